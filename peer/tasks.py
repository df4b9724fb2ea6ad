"""What a reader asks for: bytes of a version, wherever they are now.

`TaskManager.open` is the one door to content on this host. It finds or makes the version's store entry, joins or starts
the host's one download of it, and gives back a `Reader` that tells how far contiguous bytes have landed.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import inf
from types import TracebackType
from typing import Literal, Protocol, Self

from p2p.auth import ClusterSecret
from p2p.checksums import Checksum
from p2p.control import (
    ORIGIN,
    Assignment,
    Condemned,
    Dropped,
    Following,
    Holding,
    PeerMessage,
    Source,
    Verify,
)
from p2p.digests import ExpectedDigest
from p2p.errors import ChecksumMismatchError, DamselflyError, DigestMismatchError, StoppingError, StoreError
from p2p.identity import Store as StoreKind
from p2p.identity import Task, identify
from p2p.pieces import MIB, Bitmap, Span
from p2p.ranges import ByteRange
from p2p.tasks import TaskScope
from p2p.telemetry import logger
from p2p.urgency import DEFAULT_PRIORITY, LOWEST_PRIORITY
from p2p.versions import Version
from peer.core.messages import Assigned, Followed, PiecesLost, SchedulerDown, SchedulerUp
from peer.core.pace import Paces
from peer.download.contract import TransferPool
from peer.download.driver import Download, Tally
from peer.download.reports import Send
from peer.integrity import Claim, Integrity
from peer.prefetch import Demand, Prefetcher
from peer.store import Entry, Store
from peer.verify import ObjectDigests, Verification

log = logger(__name__)

REMEMBERED_TALLIES = 1024

VERIFIED_BYTES = 32 * MIB
"""How far a reader has pieces verified at once that a killed process recorded."""

Whence = Literal["local", "remote", "origin"]


class Schedulers(Protocol):
    """The links to the schedulers, as the task manager needs them; `peer.link.Links` is it."""

    def of(self, version_id: str) -> str | None:
        """Return which of the reachable schedulers is the version's, or None if none can be reached."""

    def send(self, version_id: str, message: PeerMessage, *, soon: bool = True) -> None:
        """Send a message to the version's scheduler, or drop it if there is none."""

    def left(self, name: str, version_id: str) -> None:
        """Have the scheduler that a version had before plan no more of it."""


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """What this host has of one task's latest version; bytes, and pieces as counts."""

    task_id: str
    version_id: str
    object: str
    length: int
    pieces: int
    pieces_held: int
    bytes_from_origin: int
    bytes_from_parents: int
    downloading: bool


class Reader:
    """A claim on a range of one version's bytes; `async with` it. `demand` counts it while it waits for a piece."""

    def __init__(
        self,
        entry: Entry,
        wanted: ByteRange,
        start: Callable[[Entry], Download],
        source: Source,
        demand: Demand | None,
        priority: int,
    ) -> None:
        self.entry = entry
        self.wanted = wanted
        self._demand = demand
        self._start = start
        self._source = source
        self._priority = priority
        self._download: Download | None = None
        self._failure: DamselflyError | None = None
        self._first_missing = -1
        self._number = 0
        self._asked = Bitmap(entry.layout.count)
        if not entry.landed.covers(entry.layout.covering(wanted)):
            self._join()

    def _join(self) -> None:
        """Want what is missing, also what was here when this reader came and was found damaged since."""
        missing = self.entry.landed.missing(self.entry.layout.covering(self.wanted))
        before, number = self._download, self._number
        self._download = self._start(self.entry)
        self._first_missing = missing[0].start
        self._asked = Bitmap(self.entry.layout.count, missing)
        self._number = self._download.join(missing, self._source, self._fail, self._priority)
        if before is not None:
            before.leave(number)

    @property
    def origin_of_bytes(self) -> Whence:
        """Where the bytes come from: "local" when all were here, "remote" when other hosts had the rest.

        "origin" when this host fetches from it, or a seed does for the occasion. Known for certain once `ready` has
        returned for the first byte that was not here.
        """
        if self._download is None:
            return "local"
        return "origin" if self._download.cold or self._first_missing in self._download.from_origin else "remote"

    async def ready(self, offset: int) -> int:
        """Wait for the byte at `offset` (inside the wanted range) and return where contiguous landed bytes end.

        Raises what ended the download when no way is left to get that byte.
        """
        entry, layout, landed = self.entry, self.entry.layout, self.entry.landed
        index, ahead = offset // layout.piece_length, max(1, VERIFIED_BYTES // layout.piece_length)
        while index not in landed or index in entry.unproven:
            if index in landed:
                # A part at a time: the first bytes need not wait until a hundred gigabytes are verified.
                await entry.ensure_verified(Span(index, min(index + ahead, layout.count)))
                continue
            if self._failure is not None:
                raise self._failure
            if entry.retired:
                raise StoreError(f"piece {index} of version {entry.version.id} was removed while it was being read")
            if self._download is None or self._download.closed or index not in self._asked:
                self._join()
            with self._demand.waiting() if self._demand is not None else nullcontext():
                await entry.wait(index)
        rest = layout.covering(ByteRange(offset, self.wanted.stop))
        gaps = (landed - entry.unproven if entry.unproven else landed).missing(rest)
        return layout.offset(gaps[0].start) if gaps else self.wanted.stop

    def close(self) -> None:
        """Let go of the entry and of the interest in its pieces."""
        if self._download is not None:
            self._download.leave(self._number)
        self.entry.release()

    def _fail(self, error: DamselflyError) -> None:
        self._failure = error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class TaskManager:
    """Owns this host's downloads: at most one a version, however many readers wait for it."""

    def __init__(
        self,
        store: Store,
        transfers: TransferPool,
        schedulers: Schedulers,
        scope: TaskScope,
        *,
        secret: ClusterSecret | None,
        seed: bool,
    ) -> None:
        self._store = store
        self._transfers = transfers
        self._schedulers = schedulers
        self._scope = scope
        self._secret = secret
        self._seed = seed
        self._downloads: dict[str, Download] = {}
        self._tallies: OrderedDict[str, Tally] = OrderedDict()
        self._paces = Paces()
        self._duties: asyncio.Queue[Assignment] = asyncio.Queue()
        self._demand = Demand()
        self._prefetcher = Prefetcher(scope, self._demand, claim=store.entry, read=self._bring_idly)
        self._digests = ObjectDigests(scope, disown=self._disown)
        self._integrity = Integrity(scope, schedulers, find=store.find, drop=self._drop)
        self._stopping = False
        self._scheduler_lost_at = -inf

    async def open(
        self,
        task: Task,
        version: Version,
        source: Source,
        wanted: ByteRange | None = None,
        *,
        priority: int = DEFAULT_PRIORITY,
    ) -> Reader:
        """Return a reader of `wanted` (all bytes by default; never empty) of `version`.

        `source` is the caller's own way to the origin, which has just shown that the caller may read this version;
        `priority` is from 0 to 7, the most urgent.
        Raises StoreFullError for more than the store may hold.
        """
        self._require_running()
        await self._integrity.admitted(version.id)
        wanted = wanted or ByteRange(0, version.length)
        self._store.require_room(len(wanted))
        entry = await self._store.entry(task, version)
        return await self._reader(entry, wanted, source, self._demand, priority)

    async def verify(
        self,
        task: Task,
        version: Version,
        source: Source,
        expected: ExpectedDigest,
        *,
        priority: int = DEFAULT_PRIORITY,
    ) -> Verification:
        """Begin to compare a version, which must not be empty, with the digest that is expected of it.

        All of it is wanted for that. A version without the expected digest is dropped from this host, unless
        somebody else expected the one it has.
        """
        return self._digests.verify(await self.open(task, version, source, priority=priority), expected)

    def note(self, version: Version, checksum: Checksum) -> None:
        """Remember what the store says of all bytes of a version; best before a download of it begins."""
        self._integrity.note(version.id, checksum)

    async def check(
        self, task: Task, version: Version, source: Source, *, priority: int = DEFAULT_PRIORITY
    ) -> Claim | None:
        """Begin to compare a version, which must not be empty, with what its store has said of all its bytes.

        All of it is wanted for that. None if the store has said nothing, or it is settled. A version that is not what
        the store says is dropped, from all hosts. Raises ChecksumMismatchError while it is refused for that.
        """
        if not self._integrity.needed(version.id):
            return None
        return self._integrity.verify(await self.open(task, version, source, priority=priority))

    def prefetch(self, task: Task, version: Version, source: Source) -> None:
        """Bring what is missing of a version here, in the background, for as long as `source` may read it."""
        if not self._stopping:
            self._prefetcher.begin(task, version, source)

    def told(self, message: Assignment | Following | Verify | Condemned) -> None:
        """Take what a scheduler says of versions."""
        match message:
            case Assignment():
                self.assigned(message)
            case Following():
                if (download := self._downloads.get(message.version.id)) is not None:
                    download.dispatch(Followed(message))
            case Verify(version_id):
                self._integrity.elected(version_id)
            case Condemned(version_id, reason):
                self._integrity.condemned(version_id, reason)

    def assigned(self, assignment: Assignment) -> None:
        """Take an assignment from a scheduler: for a download that is under way, or a seed's duty."""
        download = self._downloads.get(assignment.version.id)
        if download is not None:
            download.dispatch(Assigned(assignment))
        elif any(part.parent_id == ORIGIN for part in assignment.parts):
            self._duties.put_nowait(assignment)

    async def run(self) -> None:
        """Take up duties for versions that nobody here reads, one after the other."""
        while True:
            assignment = await self._duties.get()
            if assignment.source is None or self._stopping:
                continue
            task = Task(assignment.version.task_id, *_named(assignment.source))
            try:
                await self._integrity.admitted(assignment.version.id)
                entry = await self._store.entry(task, assignment.version)
            except DamselflyError as error:
                log.warning("duty refused", version=assignment.version.id, error=str(error))
                continue
            try:
                self._download(entry).dispatch(Assigned(assignment))
            finally:
                entry.release()

    def scheduler_changed(self) -> None:
        """Tell the downloads whose scheduler came, went or is another one now."""
        self._scheduler_lost_at = time.monotonic()
        self._integrity.scheduler_changed()
        for version_id, download in tuple(self._downloads.items()):
            scheduler = self._schedulers.of(version_id)
            if scheduler != download.scheduler:
                before, download.scheduler = download.scheduler, scheduler
                if before and scheduler:
                    self._schedulers.left(before, version_id)
                download.dispatch(SchedulerUp() if scheduler else SchedulerDown())

    def scheduler_returned(self, forgotten: Callable[[str], bool]) -> None:
        """Tell the downloads of the versions for which `forgotten` holds that their scheduler knows nothing of them."""
        for version_id, download in tuple(self._downloads.items()):
            if forgotten(version_id) and download.scheduler is not None:
                download.dispatch(SchedulerUp())

    async def holdings(self) -> AsyncIterator[Holding]:
        """Yield what is held here and what is under way, with what is just being fetched from origins, for schedulers.

        A download is named also while it has no piece yet: a restarted scheduler must not take the version for new.
        """
        fetching = {name: download.at_origin for name, download in self._downloads.items()}
        async for holding in self._store.holdings():
            yield replace(holding, fetching=fetching.pop(holding.version.id, ()))
        for version_id, spans in fetching.items():
            if download := self._downloads.get(version_id):
                yield Holding(download.entry.version, Bitmap(download.entry.layout.count), (), spans)

    async def status(self, task_id: str) -> tuple[TaskStatus, ...]:
        """Return what this host has of a task, a row a version."""
        rows = []
        for entry in await self._store.entries(task_id):
            with entry:
                tally = self._tallies.get(entry.version.id, Tally())
                rows.append(
                    TaskStatus(
                        task_id=task_id,
                        version_id=entry.version.id,
                        object=entry.task.canonical,
                        length=entry.version.length,
                        pieces=entry.layout.count,
                        pieces_held=len(entry.landed),
                        bytes_from_origin=tally.origin,
                        bytes_from_parents=tally.parents,
                        downloading=entry.version.id in self._downloads,
                    )
                )
        return tuple(rows)

    async def remove(self, task_id: str) -> tuple[str, ...]:
        """Remove every version of a task from this host and return their ids; the schedulers are told."""
        removed = await self._store.remove(task_id)
        for version_id in removed:
            self.dropped(version_id)
        return removed

    def dropped(self, version_id: str) -> None:
        """Tell the version's scheduler that this host no longer holds it."""
        self._integrity.gone(version_id)
        self._schedulers.send(version_id, Dropped(version_id))

    def damaged(self, version_id: str, spans: tuple[Span, ...]) -> None:
        """Take note that pieces held here were found damaged: nobody is to be sent here for them any more."""
        self._schedulers.send(version_id, Dropped(version_id, spans))
        if (download := self._downloads.get(version_id)) is not None:
            download.dispatch(PiecesLost(spans))

    async def stop(self) -> None:
        """Take no new readers, fail those that still wait, and end every transfer."""
        self._stopping = True
        error = StoppingError("this peer is shutting down")
        for download in tuple(self._downloads.values()):
            await download.stop(error)

    async def _reader(
        self, entry: Entry, wanted: ByteRange, source: Source, demand: Demand | None, priority: int
    ) -> Reader:
        """Return a reader that takes over one reference to the entry."""
        try:
            span = entry.layout.covering(wanted)
            await entry.ensure_known(span)
            self._require_running()
            return Reader(entry, wanted, self._joined, source, demand, priority)
        except BaseException:
            entry.release()
            raise

    def _require_running(self) -> None:
        if self._stopping:
            raise StoppingError("this peer is shutting down")

    async def bring(self, entry: Entry, wanted: ByteRange, source: Source) -> Reader:
        """Return a reader that takes over one reference to the entry, and does not count as a client that waits."""
        return await self._reader(entry, wanted, source, None, DEFAULT_PRIORITY)

    async def _bring_idly(self, entry: Entry, wanted: ByteRange, source: Source) -> Reader:
        """Do as `bring`, for what nobody waits for."""
        return await self._reader(entry, wanted, source, None, LOWEST_PRIORITY)

    async def _disown(self, entry: Entry, error: DigestMismatchError) -> None:
        await self._store.remove_version(entry.version.id)
        self.dropped(entry.version.id)

    async def _drop(self, version_id: str, error: ChecksumMismatchError) -> None:
        # Until this is done no other download of the version begins.
        download = self._downloads.pop(version_id, None)
        if download is not None:
            await download.stop(error)
        await self._store.remove_version(version_id)
        self.dropped(version_id)

    def _joined(self, entry: Entry) -> Download:
        self._require_running()
        return self._download(entry)

    def _download(self, entry: Entry) -> Download:
        version_id = entry.version.id
        if version_id not in self._downloads:
            self._downloads[version_id] = Download(
                entry,
                self._transfers,
                self._scope,
                send=self._sender(version_id),
                scheduler=self._schedulers.of(version_id),
                scheduler_lost_at=self._scheduler_lost_at,
                seed=self._seed,
                secret=self._secret,
                tally=self._tally(version_id),
                on_idle=self._idle,
                checksums=self._integrity.begun(version_id),
                paces=self._paces,
            )
        return self._downloads[version_id]

    def _sender(self, version_id: str) -> Send:
        return lambda message, *, soon=True: self._schedulers.send(version_id, message, soon=soon)

    def _tally(self, version_id: str) -> Tally:
        tally = self._tallies.setdefault(version_id, Tally())
        self._tallies.move_to_end(version_id)
        while len(self._tallies) > REMEMBERED_TALLIES:
            self._tallies.popitem(last=False)
        return tally

    def _idle(self, download: Download) -> None:
        if self._downloads.get(download.entry.version.id) is download:
            del self._downloads[download.entry.version.id]
            if download.entry.landed.full:
                self._integrity.completed(download.entry)


def _named(source: Source) -> tuple[str, StoreKind]:
    """Name a duty's object for operators; its task id was computed by the host that asked."""
    known = identify(source.url, store=source.store)
    return known.canonical, known.store
