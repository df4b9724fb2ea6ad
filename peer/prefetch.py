"""Prefetch: what a range left of an object is brought here in the background, when no client waits for anything.

One window of pieces at a time is taken, and the next only while no client of this host waits for a piece: so what is
under way for nobody never exceeds a window for each running prefetch, and what a client comes to want goes first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, Self

from prometheus_client import Counter

from p2p.control import Source
from p2p.errors import DamselflyError
from p2p.identity import Task
from p2p.pieces import MIB, Span
from p2p.ranges import ByteRange
from p2p.tasks import TaskScope
from p2p.telemetry import REGISTRY, logger
from p2p.versions import Version
from peer.store import Entry

log = logger(__name__)

WINDOW_BYTES = 16 * MIB
"""How much one prefetch fetches before it looks again whether a client waits: what one transfer takes."""

MAX_RUNNING = 2
"""Prefetches that fetch at the same time; further ones wait for their turn."""

MAX_KNOWN = 64
"""Prefetches that run or wait; further ones are not begun. A later request for a range of the object may ask again."""

_PREFETCHES = Counter("damselfly_prefetches_total", "Prefetches that ended, by outcome", ["outcome"], registry=REGISTRY)


class Demand:
    """Counts the clients of this host that wait for a piece right now."""

    def __init__(self) -> None:
        self._waiting = 0
        self._none = asyncio.Event()
        self._none.set()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count one client while the context lasts."""
        self._waiting += 1
        self._none.clear()
        try:
            yield
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._none.set()

    async def quiet(self) -> None:
        """Return when no client waits; that is bound to the progress deadlines of what they wait for."""
        while self._waiting:
            await self._none.wait()


class Window(Protocol):
    """A claim on some pieces."""

    async def ready(self, offset: int) -> int:
        """Wait for the byte at `offset` and return where contiguous bytes end. Raises what ended the download."""

    async def __aenter__(self) -> Self:
        """Enter the claim."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the claim up."""


class Prefetcher:
    """This host's prefetches: at most one a version, and MAX_RUNNING of them at once.

    `claim` gives a referenced entry of a version, `read` a claim on bytes of it that takes over one reference.
    """

    def __init__(
        self,
        scope: TaskScope,
        demand: Demand,
        *,
        claim: Callable[[Task, Version], Awaitable[Entry]],
        read: Callable[[Entry, ByteRange, Source], Awaitable[Window]],
    ) -> None:
        self._scope = scope
        self._demand = demand
        self._claim = claim
        self._read = read
        self._known: set[str] = set()
        self._turns = asyncio.Semaphore(MAX_RUNNING)

    def begin(self, task: Task, version: Version, source: Source) -> None:
        """Bring here what is missing of `version`; it ends when `source` may read it no more."""
        if version.id in self._known:
            return
        if len(self._known) >= MAX_KNOWN:
            _PREFETCHES.labels("skipped").inc()
            log.warning("prefetch skipped", version=version.id, known=len(self._known))
            return
        self._known.add(version.id)
        prefetch = self._scope.spawn(self._run(task, version, source), name=f"prefetch of {version.id}")
        # Not at the end of the task's own code, which never runs if it is cancelled early.
        prefetch.add_done_callback(lambda _: self._known.discard(version.id))

    async def _run(self, task: Task, version: Version, source: Source) -> None:
        outcome = "complete"
        try:
            async with self._turns:
                with await self._claim(task, version) as entry:
                    await self._fill(entry, source)
        except DamselflyError as error:
            outcome = "ended"
            log.info("prefetch ended early", version=version.id, reason=str(error))
        _PREFETCHES.labels(outcome).inc()

    async def _fill(self, entry: Entry, source: Source) -> None:
        layout = entry.layout
        pieces = max(1, WINDOW_BYTES // layout.piece_length)
        for everything in layout.everything():
            while missing := entry.landed.missing(everything):
                await self._demand.quiet()
                start = missing[0].start
                window = layout.bytes_of(Span(start, min(missing[0].stop, start + pieces)))
                async with await self._read(entry.retain(), window, source) as reader:
                    offset = window.start
                    while offset < window.stop:
                        offset = await reader.ready(offset)
