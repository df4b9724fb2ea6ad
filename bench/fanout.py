"""`damselfly bench fanout`: one object to many nodes at once, with real daemons, each behind a link of its own.

Each node is a network namespace with a limited link (`bench.fanout_network`), the seed too; scheduler and origin share
one without a limit. Where namespaces cannot be made, all run on loopback and the peers' own upload limit is the link.
Every run reads a fresh object, with one client a node that reads all of it in order through its node's proxy.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.cluster import DAMSELFLY, SCHEDULER, LocalCluster
from bench.fanout_clients import Client, read_all
from bench.fanout_network import CONTROL, Network
from bench.fetching import counter
from bench.origin_client import OriginClient, running_origin
from bench.reserve import MemoryReserve
from p2p.errors import DamselflyError

SINGLE, ALL, PARENT, SEED, RESTART = "single", "all", "parent-killed", "seed-killed", "scheduler-restarted"
NAMES = (SINGLE, ALL, PARENT, SEED, RESTART)
THE_SEED = "seed-1"
LEAST_BYTES = 1024 * 1024

_VICTIM = "peer-1"
_KILL_AT = 0.4
"""Which share of the object that peer has when it, or the scheduler, is killed.

Of what it has, not of what its client has read: there may be little of that before most is there.
"""
_LOOK_SECONDS = 0.1
_LINK_SLICE_SECONDS = 0.2
_METRICS_SLICE_SECONDS = 1.0
_STALL_SECONDS = 60.0
_SETTLE_SECONDS = 60.0
_READY_SECONDS = 300.0
_WARM_UP_BYTES = 8 * 1024 * 1024
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Sample:
    """One run; times in seconds from the moment in which all clients asked.

    `lost` are nodes that were killed, `failed` says why others did not read everything, and `wrong` are those that read
    other bytes. `sent` has bytes by sender and slice of time. What cannot be known is None. CPU times are those of the
    daemons and the origin, of this process, and of all that ran on this machine.
    """

    name: str
    object_bytes: int
    completed: Mapping[str, float]
    failed: Mapping[str, str]
    wrong: tuple[str, ...]
    lost: tuple[str, ...]
    origin_bytes: int
    seed_bytes: int
    scheduler_events: int | None
    cpu_idle_share: float
    daemons_cpu_seconds: float
    client_cpu_seconds: float
    machine_cpu_seconds: float
    accident_seconds: float | None
    sent: Mapping[tuple[str, int], int]
    slice_seconds: float
    wall_seconds: float


@dataclass(frozen=True, slots=True)
class Placed:
    """Puts each peer into its own namespace, and the scheduler beside the origin."""

    network: Network

    def command(self, name: str) -> Sequence[str]:
        """Return the words before the command of a daemon."""
        return self.network.command(_place(name))

    def addresses(self, name: str) -> Mapping[str, str]:
        """Let others reach only what they need: sessions of peers, and pieces."""
        address = self.network.plan.places[_place(name)]
        if name == SCHEDULER:
            return {"grpc": f"{address}:8002", "http": "127.0.0.1:8000"}
        return {"proxy": "127.0.0.1:65001", "pieces": f"{address}:65002", "http": "127.0.0.1:65003"}

    def inside(self, name: str) -> AbstractContextManager[None]:
        """Have this thread be where the daemon is."""
        return self.network.inside(_place(name))


class Sampler:
    """Notes from a thread how much each host sends in each slice of time; a context manager."""

    def __init__(self, sent: Callable[[], Mapping[str, int]], slice_seconds: float) -> None:
        self.slices: dict[tuple[str, int], int] = {}
        self._sent = sent
        self._slice_seconds = slice_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def __enter__(self) -> Self:
        self._before = self._sent()
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(self._began + (number + 1) * self._slice_seconds - time.monotonic()):
            now = self._sent()
            for name, value in now.items():
                # One that was started again counts from 0.
                more = value - self._before.get(name, 0)
                self.slices[name, number] = more if more >= 0 else value
            self._before = {**self._before, **now}
            number = max(number + 1, int((time.monotonic() - self._began) / self._slice_seconds))


class Field:
    """An origin, a cluster with one seed, and the links between them."""

    def __init__(
        self,
        origin: OriginClient,
        cluster: LocalCluster,
        placed: Placed | None,
        link_bytes: Callable[[], Mapping[str, int]] | None,
        reserve: MemoryReserve,
        rate: float,
    ) -> None:
        self._rate = rate
        self._origin = origin
        self._cluster = cluster
        self._placed = placed
        self._link_bytes = link_bytes
        self._reserve = reserve
        self._nodes = [name for name, daemon in cluster.daemons.items() if daemon.role == "peer"]
        self._seed_sent = 0

    def run(self, name: str, size: int) -> Sample:
        """Do one run; afterwards everything that was killed runs again, and nobody holds the object."""
        self._settle()
        nodes = self._nodes[:1] if name == SINGLE else self._nodes
        with self._inside_control():
            self._origin.reset()
            made = self._origin.create(f"models/{uuid.uuid4()}/1/model.bin", size)
        self._reserve.fill((len(nodes) + 1) * size)
        clients = {node: Client() for node in nodes}
        connect = {node: self._connection(node) for node in nodes}
        events = self._scheduler_events()
        before = self._seed_sent = self._uploaded(THE_SEED)
        children = [*(daemon.child for daemon in self._cluster.daemons.values()), self._origin.child]
        cpu, own_cpu = sum(child.cpu_seconds() for child in children), time.process_time()
        idle, total = _cpu_ticks()
        period = _LINK_SLICE_SECONDS if self._link_bytes else _METRICS_SLICE_SECONDS
        over = threading.Event()
        with (
            self._reserve.releasing((len(nodes) + 1) * size, (len(nodes) + 1) * self._rate),
            Sampler(self._link_bytes or self._all_uploaded, period) as sampler,
            ThreadPoolExecutor(1) as thread,
        ):
            accident = thread.submit(self._accident, name, size, over)
            try:
                began = read_all(made.url, connect, clients, stall_seconds=_STALL_SECONDS)
            finally:
                over.set()
            ended = time.monotonic()
            happened = accident.result()
        idle_after, total_after = _cpu_ticks()
        idle, total = idle_after - idle, total_after - total
        cpu, own_cpu = sum(child.cpu_seconds() for child in children) - cpu, time.process_time() - own_cpu
        killed = {PARENT: _VICTIM, SEED: THE_SEED}.get(name) if happened is not None else None
        # A seed that was killed says no more; it was asked right before.
        seed_bytes = (self._seed_sent if killed == THE_SEED else self._uploaded(THE_SEED)) - before
        later = self._scheduler_events()
        with self._inside_control():
            stats = self._origin.stats()
        if killed is not None:
            self._cluster.restart(killed)
        for task_id in {client.task_id for client in clients.values() if client.task_id}:
            self._cluster.delete_task(task_id)
        lost = tuple(node for node in nodes if node == killed)
        done = {node: client for node, client in clients.items() if client.seconds is not None and node not in lost}
        return Sample(
            name=name,
            object_bytes=size,
            completed={node: client.seconds for node, client in done.items() if client.seconds is not None},
            failed={n: client.failure for n, client in clients.items() if client.failure and n not in lost},
            wrong=tuple(node for node, client in done.items() if client.xxh3_128 != made.xxh3_128),
            lost=lost,
            origin_bytes=stats.body_bytes,
            seed_bytes=seed_bytes,
            # One that was started again counts from 0.
            scheduler_events=later - events if name != RESTART else None,
            cpu_idle_share=idle / max(1, total),
            daemons_cpu_seconds=cpu,
            client_cpu_seconds=own_cpu,
            machine_cpu_seconds=(total - idle) / _TICKS_PER_SECOND,
            accident_seconds=None if happened is None else happened - began,
            sent=sampler.slices,
            slice_seconds=period,
            wall_seconds=ended - began,
        )

    def _accident(self, name: str, size: int, over: threading.Event) -> float | None:
        """Let happen what the run is named after, when it is time; return when it was (monotonic), None if never."""
        if name not in (PARENT, SEED, RESTART):
            return None
        sent, got = self._uploaded(THE_SEED), self._downloaded(_VICTIM)

        def due() -> bool:
            if name == SEED:
                self._seed_sent = self._uploaded(THE_SEED)
                return self._seed_sent - sent >= size
            return self._downloaded(_VICTIM) - got >= _KILL_AT * size

        while not over.wait(_LOOK_SECONDS):
            if due():
                self._cluster.kill({PARENT: _VICTIM, SEED: THE_SEED, RESTART: SCHEDULER}[name])
                now = time.monotonic()
                if name == RESTART:
                    self._cluster.restart(SCHEDULER)
                return now
        return None

    def _settle(self) -> None:
        """Wait until the scheduler has a session with every host."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while self._metric(SCHEDULER, "damselfly_scheduler_hosts") < len(self._nodes) + 1:
            if time.monotonic() > deadline:
                raise DamselflyError("not all hosts have found the scheduler; their logs say why")
            time.sleep(_LOOK_SECONDS)

    def _inside(self, name: str) -> AbstractContextManager[None]:
        return self._placed.inside(name) if self._placed else contextlib.nullcontext()

    def _inside_control(self) -> AbstractContextManager[None]:
        return self._inside(SCHEDULER)

    def _connection(self, node: str) -> Callable[[], socket.socket]:
        host, _, port = self._cluster[node].addresses["proxy"].rpartition(":")

        def connect() -> socket.socket:
            with self._inside(node):
                return socket.create_connection((host, int(port)), timeout=_STALL_SECONDS)

        return connect

    def _metric(self, name: str, metric: str) -> int:
        with self._inside(name):
            return counter(self._cluster[name].addresses["http"], metric)

    def _uploaded(self, name: str) -> int:
        return self._metric(name, "damselfly_uploaded_bytes_total")

    def _downloaded(self, name: str) -> int:
        return self._metric(name, "damselfly_downloaded_bytes_total")

    def _all_uploaded(self) -> dict[str, int]:
        found = {}
        for name in (THE_SEED, *self._nodes):
            with contextlib.suppress(OSError):  # killed
                found[name] = self._uploaded(name)
        return found

    def _scheduler_events(self) -> int:
        return self._metric(SCHEDULER, "damselfly_scheduler_events_total")


@contextmanager
def field(
    profile: str, *, nodes: int, rate: float, namespaces: bool, program: Sequence[str] = DAMSELFLY
) -> Iterator[Field]:
    """Start an origin, a scheduler, a seed and the nodes; everything is stopped and removed in the end.

    `rate` is that of every link, in bytes a second.
    """
    peers = [f"peer-{number}" for number in range(1, nodes + 1)]
    with ExitStack() as stack:
        placed, link_bytes = None, None
        if namespaces:
            placed = Placed(stack.enter_context(Network([THE_SEED, *peers], rate)))
            link_bytes = stack.enter_context(placed.network.counters()).sent
        arguments = {"seed": ["--drain", "1s"], "peer": ["--drain", "1s"]}
        if placed is None:
            limits = Path(stack.enter_context(_limits(rate)))
            arguments = {role: [*words, "--config", str(limits)] for role, words in arguments.items()}
        cluster = stack.enter_context(
            LocalCluster(
                peers=nodes,
                seeds=1,
                arguments=arguments,
                program=program,
                placement=placed,
                ready_seconds=_READY_SECONDS,
            )
        )
        host = placed.network.plan.places[CONTROL] if placed else "127.0.0.1"
        before = placed.network.command(CONTROL) if placed else ()
        origin = stack.enter_context(running_origin(profile, cluster.directory, host=host, before=before))
        reserve = stack.enter_context(MemoryReserve())
        try:
            yield Field(origin, cluster, placed, link_bytes, reserve, rate)
        except DamselflyError as error:
            # Those that know of all: the nodes' logs would be many, and an error about one has its log's end.
            for name in (SCHEDULER, THE_SEED):
                error.add_note(f"the log of {name} ends with:\n{cluster[name].child.tail()}")
            raise


def measure(
    names: Sequence[str],
    *,
    profile: str,
    nodes: int,
    size: int,
    rate: float,
    namespaces: bool,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Sample]:
    """Do the runs of these names, in the order of NAMES, after one that counts for nothing. Raises DamselflyError."""
    progress(f"starting {nodes + 2} daemons")
    samples = []
    with field(profile, nodes=nodes, rate=rate, namespaces=namespaces) as ground:
        progress("warm-up")
        # Imports, threads and connections that a daemon makes once are not what is measured.
        ground.run(ALL, min(size, _WARM_UP_BYTES))
        for name in NAMES:
            if name in names:
                progress(name)
                samples.append(ground.run(name, size))
    return samples


@contextmanager
def _limits(rate: float) -> Iterator[str]:
    with tempfile.NamedTemporaryFile("w", prefix="damselfly-", suffix=".toml") as file:
        file.write(f"[upload]\nbytes_per_second = {round(rate)}\n")
        file.flush()
        yield file.name


def _place(name: str) -> str:
    return CONTROL if name == SCHEDULER else name


def _cpu_ticks() -> tuple[int, int]:
    """Return how long this machine's CPUs were idle, and how long there were some, in ticks since the boot."""
    return cpu_ticks(Path("/proc/stat").read_text())


def cpu_ticks(text: str) -> tuple[int, int]:
    """Return idle and all ticks from what /proc/stat says (user nice system idle iowait irq softirq steal …)."""
    ticks = [int(word) for word in text.partition("\n")[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)
