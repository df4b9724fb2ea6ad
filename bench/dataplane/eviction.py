"""Eviction: many small versions leave a store at once, while its event loop is to go on turning."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvloop

from bench.dataplane.figures import Figure, by_name
from bench.dataplane.plan import Plan, Progress
from p2p.digests import piece_digest
from p2p.identity import Store as ObjectStore
from p2p.identity import Task
from p2p.tasks import TaskScope
from p2p.telemetry import configure_logging
from p2p.versions import ValidatorKind, Version
from peer.store import Store

SECTION = "eviction of small versions"
VERSION_BYTES = 16
STALL_SECONDS = 0.02
"""How long the event loop may be held up at the most."""
_AT_ONCE = 256


class Ticker:
    """Comes back to the event loop again and again; knows how long it was kept from it, in seconds.

    `cpu_seconds` is what the loop's thread computed in the meantime, `wall_seconds` what a clock shows: there other
    threads, and other processes, count too.
    """

    def __init__(self) -> None:
        self.cpu_seconds = 0.0
        self.wall_seconds = 0.0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Tick while the context lasts."""
        async with TaskScope() as scope:
            scope.spawn(self._tick(), name="ticker")
            yield
            # One turn more: the last delay ends with it.
            await asyncio.sleep(0)

    async def _tick(self) -> None:
        while True:
            cpu, wall = time.thread_time(), time.perf_counter()
            await asyncio.sleep(0)
            self.cpu_seconds = max(self.cpu_seconds, time.thread_time() - cpu)
            self.wall_seconds = max(self.wall_seconds, time.perf_counter() - wall)


def measure(plan: Plan, progress: Progress) -> Iterator[Figure]:
    """Fill a store and empty it, as often as there are rounds."""
    configure_logging(level="warning", daemon="bench", as_json=False)
    rounds = []
    for number in range(1, plan.rounds + 1):
        progress(f"{SECTION}, round {number}")
        with tempfile.TemporaryDirectory(prefix="damselfly-") as name:
            rounds.append(uvloop.run(evict_all(Path(name), plan.versions)))
    values = by_name(rounds)
    yield Figure(SECTION, f"{plan.versions:,} evicted", "versions_per_second", values["a second"])
    yield Figure(SECTION, "longest stall, CPU time", "seconds", values["cpu"], most=1000 * STALL_SECONDS)
    yield Figure(SECTION, "longest stall, by the clock", "seconds", values["wall"])


async def evict_all(directory: Path, count: int) -> dict[str, float]:
    """Put `count` versions into a store and evict them all; return the rate and the loop's longest stalls."""
    store = await Store.open(directory)
    try:
        await fill(store, count)
        ticker, begun = Ticker(), time.perf_counter()
        async with ticker.running():
            await store.evict(0)
        seconds = time.perf_counter() - begun
        if (left := store.stats().versions) != 0:
            raise RuntimeError(f"{left} of {count} versions were not evicted")
        return {"a second": count / seconds, "cpu": ticker.cpu_seconds, "wall": ticker.wall_seconds}
    finally:
        await store.close()


async def fill(store: Store, count: int) -> None:
    """Put `count` versions of one piece each into a store, many at a time."""
    data = b"\0" * VERSION_BYTES
    digest = piece_digest(data)

    async def put(number: int) -> None:
        canonical = f"https://store.example/bucket/{number}"
        task = Task(hashlib.sha256(canonical.encode()).hexdigest(), canonical, ObjectStore.S3)
        version = Version(task.id, VERSION_BYTES, ValidatorKind.ETAG, f'"{number}"')
        with await store.entry(task, version) as entry:
            entry.write(0, memoryview(data))
            await entry.commit([(0, digest)])

    for first in range(0, count, _AT_ONCE):
        await asyncio.gather(*map(put, range(first, min(count, first + _AT_ONCE))))
