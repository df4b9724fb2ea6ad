"""Where a benchmark takes place: an origin and a cluster of its own, or the user's."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from bench.cluster import DAMSELFLY, LocalCluster
from bench.origin import Stats
from bench.origin_client import OriginClient, running_origin
from bench.process import Meter
from bench.reserve import MemoryReserve
from p2p.errors import DamselflyError

EXTERNAL = "external"
"""The profile's name when the origin is the user's own."""
_COPIES = {"cold": 2, "remote": 1}
"""How many peers of the embedded cluster write the object in a read: the seed and the asked peer, the other peer."""

_WRITTEN_A_SECOND = 1e9
"""Bytes that one peer may write in a second."""


@dataclass(frozen=True, slots=True)
class Target:
    """What one round reads; `xxh3_128` is None where only the direct read can tell it. The URL may hold a signature."""

    url: str = field(repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    xxh3_128: str | None = None


class Ground(Protocol):
    """Where the benchmark takes place."""

    @property
    def profile(self) -> str:
        """The origin's profile, or EXTERNAL."""
        ...

    @property
    def proxies(self) -> Sequence[str]:
        """The proxies of one or two peers, "host:port"."""
        ...

    def target(self, size: int) -> Target:
        """Return something to read that no peer has."""
        ...

    def origin_stats(self) -> Stats | None:
        """Return the origin's counters, if it has any."""
        ...

    def cpu_seconds(self) -> dict[str, float]:
        """Return the CPU time used so far by each process in reach."""
        ...

    def take_peaks(self) -> dict[str, int]:
        """Return each daemon's highest RssAnon in bytes since the last call."""
        ...

    def prepared(self, name: str) -> AbstractContextManager[None]:
        """Get ready for the read of the target that is called `name`, which is done within the context.

        Getting ready is not timed, and its CPU time is not counted.
        """
        ...

    def forget(self, task_id: str) -> None:
        """Remove the object from the peers, so that its dirty pages do not burden the next."""
        ...


class EmbeddedGround:
    """An origin and a cluster of this run's own, each daemon a process."""

    def __init__(
        self, profile: str, origin: OriginClient, cluster: LocalCluster, meter: Meter, reserve: MemoryReserve
    ) -> None:
        self.profile = profile
        self.proxies = (cluster["peer-1"].addresses["proxy"], cluster["peer-2"].addresses["proxy"])
        self._origin = origin
        self._cluster = cluster
        self._meter = meter
        self._reserve = reserve
        self._size = 0

    def target(self, size: int) -> Target:
        """Make an object at the origin."""
        self._size = size
        made = self._origin.create(f"models/{uuid.uuid4()}/1/model.bin", size)
        return Target(made.url, (), made.xxh3_128)

    def origin_stats(self) -> Stats:
        """Ask the origin."""
        return self._origin.stats()

    def cpu_seconds(self) -> dict[str, float]:
        """Return the CPU time of every process: the daemons, the origin and this client."""
        return {**self._meter.cpu_seconds(), "client": time.process_time() - self._reserve.cpu_seconds}

    def take_peaks(self) -> dict[str, int]:
        """Return the daemons' peaks."""
        return self._meter.take_peaks()

    def prepared(self, name: str) -> AbstractContextManager[None]:
        """Hold memory for the page cache of what this read will write, and give it back while it does."""
        copies = _COPIES.get(name, 0)
        if not copies:
            return nullcontext()
        self._reserve.fill(copies * self._size)
        return self._reserve.releasing(copies * self._size, copies * _WRITTEN_A_SECOND)

    def forget(self, task_id: str) -> None:
        """Delete the task on every peer."""
        self._cluster.delete_task(task_id)


class ExternalGround:
    """The user's own store and cluster; of its costs only the client's CPU time is known.

    A tag of its own makes every round a fresh task. What the rounds leave behind on the peers is theirs to evict.
    """

    profile = EXTERNAL

    def __init__(self, url: str, proxies: Sequence[str]) -> None:
        self._url = url
        self.proxies = tuple(proxies)

    def target(self, size: int) -> Target:
        """Return the URL as a new task; its size is what it is."""
        return Target(self._url, (("X-Dragonfly-Tag", f"bench-{uuid.uuid4()}"),))

    def origin_stats(self) -> None:
        """Return nothing: this origin does not say."""

    def cpu_seconds(self) -> dict[str, float]:
        """Return the client's CPU time."""
        return {"client": time.process_time()}

    def take_peaks(self) -> dict[str, int]:
        """Return nothing: these daemons are out of reach."""
        return {}

    def prepared(self, name: str) -> AbstractContextManager[None]:
        """Leave the user's machines as they are."""
        return nullcontext()

    def forget(self, task_id: str) -> None:
        """Leave the task where it is."""


@contextmanager
def embedded_ground(profile: str, *, program: Sequence[str] = DAMSELFLY) -> Iterator[EmbeddedGround]:
    """Start an origin, a scheduler, a seed and two peers; stop them and remove their data in the end.

    The logs go too, so an error that leaves the context takes the end of each along as a note.
    """
    with ExitStack() as stack:
        cluster = stack.enter_context(LocalCluster(program=program))
        origin = stack.enter_context(running_origin(profile, cluster.directory))
        children = {name: daemon.child for name, daemon in cluster.daemons.items()} | {"origin": origin.child}
        meter = stack.enter_context(Meter(children))
        reserve = stack.enter_context(MemoryReserve())
        try:
            yield EmbeddedGround(profile, origin, cluster, meter, reserve)
        except DamselflyError as error:
            for child in children.values():
                error.add_note(f"the log of {child.name} ends with:\n{child.tail()}")
            raise
