"""Fetches: whole versions that a scheduler ordered to be here before anybody on this host asks for them.

Unlike a prefetch a fetch waits for no client: its user waits for it. A few run at the same time, each the host's one
download of its version, which whoever asks meanwhile joins.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import Counter

from p2p.checksums import Checksum
from p2p.control import Source
from p2p.errors import DamselflyError, StoppingError
from p2p.fetches import FetchRequest, FetchState, State
from p2p.identity import Task
from p2p.pieces import PieceLayout
from p2p.ranges import ByteRange
from p2p.tasks import TaskScope
from p2p.telemetry import REGISTRY, logger
from p2p.urgency import BRIEF_BYTES
from p2p.versions import Version
from peer.store import Entry, Store

log = logger(__name__)

MAX_RUNNING = 4
"""Fetches that run at the same time: enough that small objects' round trips overlap. Brief ones (`p2p.urgency`) have as
many places of their own, so that none waits until a model is here."""

MAX_WAITING = 4096
"""Fetches that run or wait; more are refused, and the scheduler comes back with them."""

REMEMBERED = 1024
"""Fetches that are over, of which the outcome is kept."""

_FETCHES = Counter("damselfly_fetches_total", "Ordered fetches that ended, by outcome", ["outcome"], registry=REGISTRY)


class Reading(Protocol):
    """A claim on bytes of a version; `peer.tasks.Reader` is one."""

    async def ready(self, offset: int) -> int:
        """Wait for the byte at `offset` and return where contiguous bytes end. Raises what ended the download."""

    def close(self) -> None:
        """Give the claim up."""


class Bringer(Protocol):
    """Brings bytes here; `peer.tasks.TaskManager` does."""

    def note(self, version: Version, checksum: Checksum) -> None:
        """Remember what the store says of all bytes of a version."""

    async def bring(self, entry: Entry, wanted: ByteRange, source: Source) -> Reading:
        """Return a claim that takes over one reference to the entry and counts as nobody who waits."""


@dataclass(slots=True, eq=False)
class _Fetch:
    task: Task
    version: Version
    pin: bool
    state: State = State.PENDING
    entry: Entry | None = None  # while it runs
    pieces_held: int = 0
    bytes_held: int = 0
    error: str = ""

    def look(self) -> None:
        """Take note of what has landed."""
        if self.entry is not None:
            landed, layout = self.entry.landed, self.entry.layout
            self.pieces_held = len(landed)
            self.bytes_held = sum(len(layout.bytes_of(span)) for span in landed.spans())


class Fetches:
    """This host's ordered fetches, at most one a version."""

    def __init__(self, tasks: Bringer, store: Store, scope: TaskScope, *, running: int = MAX_RUNNING) -> None:
        self._tasks = tasks
        self._store = store
        self._scope = scope
        self._turns = asyncio.Semaphore(running)
        self._turns_of_brief = asyncio.Semaphore(running)
        self._under_way: dict[str, tuple[_Fetch, asyncio.Task[None]]] = {}
        self._over: OrderedDict[str, _Fetch] = OrderedDict()

    def begin(self, request: FetchRequest) -> None:
        """Bring a version here, and pin it if that is asked for; joins the fetch of it that is under way.

        Raises StoppingError when too many wait.
        """
        version_id = request.version.id
        known = self._under_way.get(version_id)
        if known is not None and not known[0].state.over:
            known[0].pin |= request.pin
            return
        if len(self._under_way) >= MAX_WAITING:
            raise StoppingError(f"{len(self._under_way)} fetches wait here already; order fewer at a time")
        self._over.pop(version_id, None)
        if request.checksum is not None:
            self._tasks.note(request.version, request.checksum)
        fetch = _Fetch(request.task, request.version, request.pin)
        running = self._scope.spawn(self._run(fetch, request.source), name=f"fetch of {version_id}")
        self._under_way[version_id] = fetch, running
        # Not at the end of the task's own code, which never runs if it is cancelled early.
        running.add_done_callback(lambda _: self._ended(fetch))

    def cancel(self, version_id: str) -> bool:
        """End a fetch, and tell whether it was under way; what has landed stays."""
        known = self._under_way.get(version_id)
        if known is not None:
            # At once, so that nobody who orders it anew joins what is about to end.
            known[0].state = State.CANCELLED
            known[1].cancel()
        return known is not None

    def states(self) -> tuple[FetchState, ...]:
        """Return how far each fetch is, and the outcome of those that ended lately."""
        rows = [*self._over.values(), *(fetch for fetch, _ in self._under_way.values())]
        for fetch in rows:
            fetch.look()
        return tuple(
            FetchState(
                version_id=fetch.version.id,
                task_id=fetch.task.id,
                object=fetch.task.canonical,
                state=fetch.state,
                pieces=PieceLayout.of(fetch.version.length).count,
                pieces_held=fetch.pieces_held,
                length=fetch.version.length,
                bytes_held=fetch.bytes_held,
                error=fetch.error,
            )
            for fetch in rows
        )

    def _ended(self, fetch: _Fetch) -> None:
        version_id = fetch.version.id
        if not fetch.state.over:
            fetch.state = State.CANCELLED
        _FETCHES.labels(str(fetch.state)).inc()
        known = self._under_way.get(version_id)
        if known is None or known[0] is not fetch:
            return
        del self._under_way[version_id]
        self._over[version_id] = fetch
        while len(self._over) > REMEMBERED:
            self._over.popitem(last=False)

    async def _run(self, fetch: _Fetch, source: Source) -> None:
        brief = fetch.version.length <= BRIEF_BYTES
        try:
            async with self._turns_of_brief if brief else self._turns:
                fetch.state = State.RUNNING
                self._store.require_room(fetch.version.length)
                with await self._store.entry(fetch.task, fetch.version) as entry:
                    fetch.entry = entry
                    try:
                        await self._fill(entry, source)
                        if fetch.pin:
                            await self._store.pin_version(fetch.version.id)
                    finally:
                        fetch.look()
                        fetch.entry = None
        except DamselflyError as error:
            fetch.state, fetch.error = State.FAILED, str(error)
            log.warning("fetch failed", version=fetch.version.id, error=str(error))
        else:
            fetch.state = State.DONE

    async def _fill(self, entry: Entry, source: Source) -> None:
        length = entry.version.length
        if length == 0:
            return
        reader = await self._tasks.bring(entry.retain(), ByteRange(0, length), source)
        try:
            offset = 0
            while offset < length:
                offset = await reader.ready(offset)
        finally:
            reader.close()
