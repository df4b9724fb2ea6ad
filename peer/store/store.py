"""The store of one host: what it holds, who uses it, and what goes when room is short."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from p2p.control import Holding
from p2p.errors import StoreError, StoreFullError
from p2p.fetches import HeldVersion
from p2p.identity import Task
from p2p.pieces import Span, spans_of
from p2p.telemetry import logger
from p2p.versions import Version
from peer.core.evict import Marks, choose
from peer.store import inventory, records
from peer.store.clock import UseClock
from peer.store.disk import DISK, Disk
from peer.store.entry import Entry, damaged_pieces
from peer.store.files import DataDirectory, DataFile, wait_until_closed
from peer.store.index import Index, StoreStats, Work
from peer.store.metrics import DAMAGED, DISK_FULL, EVICTED, EVICTED_BYTES, EXPIRED, OPEN_ENTRIES
from peer.store.recover import discard_broken_index, recover
from peer.store.space import Ballast

_LOG = logger(__name__)

_IDLE_ENTRIES = 64
_TOUCHES = 256
_CANDIDATES = 256
_RELIEF_SECONDS = 30.0  # how long a writer waits for room on a full disk
_SLACK = 64  # on a full disk a 64th of what is held goes at once, so that small versions do not go one by one


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """How far a scrub of a version has come: the piece to go on with, None at the end; bytes read, pieces damaged."""

    next: int | None
    bytes: int
    damaged: int


class Store:
    """The versions on one host's disk. Belongs to one event loop; `open` makes it, `close` ends it."""

    def __init__(
        self,
        directory: DataDirectory,
        index: Index,
        epochs: records.Epochs,
        *,
        on_dropped: Callable[[str], None] | None,
        on_damaged: Callable[[str, tuple[Span, ...]], None] | None,
        clock: UseClock,
        idle_entries: int,
        marks: Marks | None,
    ) -> None:
        """Use `open` instead."""
        self._directory = directory
        self._index = index
        self._epochs = epochs
        self._marks = marks
        self._on_dropped = on_dropped
        self._on_damaged = on_damaged
        self._clock = clock
        self._idle_entries = idle_entries
        self._live: dict[str, Entry] = {}  # in memory, with an open file: the referenced ones and the idle ones
        self._idle: OrderedDict[str, Entry] = OrderedDict()  # not referenced, least recently used first
        self._unused: set[str] = set()  # referenced by the scrub alone, for which they do not count as used
        self._loading: Counter[str] = Counter()  # asked of the index, to be live presently
        self._arrival = asyncio.Event()  # set, and replaced, when a version comes into memory
        self._touched: dict[int, float] = {}
        self._owed: defaultdict[str, list[Work[None]]] = defaultdict(list)  # by version, to be done before it is read
        self._evicting = asyncio.Lock()
        self._above_mark = asyncio.Event()
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._ballast = Ballast(directory.path / "ballast", directory.disk)
        self._reliefs = 0
        self._freeing: list[Future[None]] = []
        # Verifying, forcing to the disk and freeing blocks take long and must not hold up the index.
        self._executor = ThreadPoolExecutor(2, thread_name_prefix="store")
        self._executor.submit(self._ballast.place)

    @classmethod
    async def open(
        cls,
        directory: Path,
        *,
        verify_on_use: bool | None = None,
        capacity: int | None = None,
        high: float = 1.0,
        low: float = 63 / 64,
        on_dropped: Callable[[str], None] | None = None,
        on_damaged: Callable[[str, tuple[Span, ...]], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        idle_entries: int = _IDLE_ENTRIES,
        disk: Disk = DISK,
    ) -> Self:
        """Take a data directory, which is made if need be. Raises StoreError if it is taken, unwritable or foreign.

        With `verify_on_use` every piece recorded so far is suspect; None decides by the boot that the directory was
        last used under. `capacity` bounds the bytes of all pieces held, `high` and `low` are shares of it (`Marks`);
        `on_dropped` is told the id of each version that goes by itself, `on_damaged` the id and the pieces that had
        landed and are no longer what they were. `idle_entries` versions stay open after their last use. `clock` goes
        forward, in seconds from anywhere; `wall` is looked at once, for how much time has passed since the last use
        (`UseClock`). `disk` does what is done to the disk.
        """
        files = await asyncio.to_thread(DataDirectory, directory, disk)
        try:
            broken = await asyncio.to_thread(discard_broken_index, files)
            suspicious = not (files.was_clean or files.same_boot) if verify_on_use is None else verify_on_use
            index = Index(files.index_path, disk)
            try:
                if files.was_clean:
                    # Before anything changes: what is cut off half-way is to be tidied by the next opening.
                    await asyncio.to_thread(files.mark_in_use)
                time_of_use = UseClock(clock, wall=wall(), last=await index.submit(records.latest()))
                tidy = broken or not files.was_clean
                epochs = await index.submit(recover(files, suspicious=suspicious, tidy=tidy, now=time_of_use()))
                if not files.was_clean:
                    # Not before the new epoch is recorded: from here on the pieces of this boot are trusted.
                    await asyncio.to_thread(files.mark_in_use)
                await asyncio.to_thread(files.mark_format)
            except BaseException:
                await index.stop()
                raise
        except BaseException:
            files.unlock()
            raise
        return cls(
            files,
            index,
            epochs,
            on_dropped=on_dropped,
            on_damaged=on_damaged,
            clock=time_of_use,
            idle_entries=idle_entries,
            marks=None if capacity is None else Marks(capacity, high, low),
        )

    async def close(self, *, sync_seconds: float = 10.0) -> None:
        """Let go of the directory. Entries still referenced fail their waiters and can be read until released.

        Data is forced to the disk for at most `sync_seconds`, checked between files. If that is done in time the next
        opening trusts all pieces even if the operating system has been restarted.
        """
        if self._closed:
            return
        self._closed = True
        error = self._closed_error()
        for entry in self._live.values():
            entry.retire(error)
        self._detach(self._idle.values())
        self._live.clear()
        self._idle.clear()
        clean = False
        try:
            clean = await self._sync(time.monotonic() + sync_seconds)
        except StoreError as failure:
            _LOG.warning("store not closed cleanly", error=str(failure))
        finally:
            await self._stop(clean)

    async def _sync(self, deadline: float) -> bool:
        self._flush_touches()
        self._index.submit(records.mark_time(self._clock())).add_done_callback(_log_failure)
        unsynced = await self._index.submit(records.unsynced())
        loop = asyncio.get_running_loop()
        synced = await loop.run_in_executor(self._executor, self._directory.sync_data, unsynced, deadline)
        await self._index.submit(records.mark_synced(synced))
        return len(synced) == len(unsynced)

    async def _stop(self, clean: bool) -> None:
        try:
            await asyncio.to_thread(self._executor.shutdown)
            await self._index.stop()
            await asyncio.to_thread(_empty_trash, self._directory)
            if clean and not self._directory.untidy:
                await asyncio.to_thread(self._directory.mark_clean)
        finally:
            self._directory.unlock()

    # Finding and making entries.

    async def find(self, version_id: str) -> Entry | None:
        """Return the entry of a version with a reference for the caller, None if nothing of the version is held.

        An entry in memory is returned without a switch to another task or thread. Raises StoreError.
        """
        entry = await self._present(version_id)
        return self._referenced(entry) if entry is not None and entry.held else None

    async def awaited(self, version_id: str) -> Entry:
        """Return the entry of a version with a reference for the caller as soon as there is one, held or not.

        For ever, if need be. Raises StoreError.
        """
        while True:
            arrival = self._arrival
            if (entry := await self._present(version_id)) is not None:
                return self._referenced(entry)
            await arrival.wait()

    async def entries(self, task_id: str) -> tuple[Entry, ...]:
        """Return the entries of all versions of a task, each with a reference for the caller. Raises StoreError."""
        self._check_open()
        found: list[Entry] = []
        try:
            for version_id in await self._index.submit(records.versions_of(task_id)):
                entry = await self._present(version_id)
                found += [self._referenced(entry)] if entry is not None else []
        except BaseException:
            for entry in found:
                entry.release()
            raise
        return tuple(found)

    async def _present(self, version_id: str) -> Entry | None:
        while (entry := self._live.get(version_id)) is None:
            if not await self._load(version_id, records.load(self._directory, version_id, self._epochs)):
                return None
        return entry

    async def entry(self, task: Task, version: Version) -> Entry:
        """Return the entry of a version, made if need be, with a reference for the caller. Raises StoreError."""
        if task.id != version.task_id:
            raise ValueError(f"version {version.id} is of task {version.task_id}, not of {task.id}")
        version_id = version.id
        while (entry := self._live.get(version_id)) is None:
            creating = records.create(self._directory, task, version, self._epochs, self._clock())
            try:
                await self._load(version_id, creating)
            except StoreFullError:
                if not await self._relieve(0):
                    raise
                await self._load(version_id, creating)
        return self._referenced(entry)

    def _referenced(self, entry: Entry) -> Entry:
        self._idle.pop(entry.version_id, None)
        self._unused.discard(entry.version_id)
        return entry.retain()

    async def _load(self, version_id: str, work: Work[records.Record | None]) -> bool:
        """Bring a version into memory, if the index has it; tells whether it is worth looking again."""
        self._check_open()
        self._loading[version_id] += 1
        try:
            if owed := self._owed.pop(version_id, None):
                try:
                    await asyncio.gather(*(self._index.submit(one) for one in owed))
                except StoreError:
                    self._owed[version_id] = owed
                    raise
            record = await self._index.submit(work, then=self._loaded)
        finally:
            self._loading[version_id] -= 1
            if not self._loading[version_id]:
                del self._loading[version_id]
        if record is not None and record.file is None:
            _LOG.error("data file is gone, its version is forgotten", version=version_id)
            await self._remove(records.remove_versions(self._directory, (version_id,)))
        return record is not None

    def _loaded(self, record: records.Record | None) -> None:
        if record is None or record.file is None or record.version.id in self._live or self._closed:
            return
        entry = Entry(
            self,
            record.row,
            record.task,
            record.version,
            record.file,
            trusted=record.trusted,
            suspect=record.suspect,
            unproven=record.unproven,
        )
        self._live[entry.version_id] = self._idle[entry.version_id] = entry
        self._arrival.set()
        self._arrival = asyncio.Event()
        self._close_idle()

    def released(self, entry: Entry) -> None:
        """Keep an entry that nobody refers to any more for its next user, or let it go (Keeper)."""
        if self._live.get(entry.version_id) is not entry or entry.retired:
            self._detach([entry])
        elif entry.held or self._loading[entry.version_id]:
            if entry.version_id not in self._unused:
                self._touched[entry.row] = self._clock()
                if len(self._touched) >= _TOUCHES:
                    self._flush_touches()
            self._idle[entry.version_id] = entry
            self._close_idle()
        else:
            # Nothing of it ever landed. Out of sight at once: whoever wants it next is behind the removal in the queue.
            del self._live[entry.version_id]
            self._detach([entry])
            removing = self._index.submit(records.remove_if_empty(self._directory, entry.row), then=self._removed)
            removing.add_done_callback(_log_failure)
        OPEN_ENTRIES.set(len(self._live))

    def _close_idle(self) -> None:
        while len(self._idle) > max(1, self._idle_entries):
            version_id, entry = self._idle.popitem(last=False)
            del self._live[version_id]
            self._detach([entry])
        OPEN_ENTRIES.set(len(self._live))

    def _detach(self, entries: Iterable[Entry]) -> None:
        """Have the files closed where closing the last descriptor of a removed file may take its time."""
        files = [entry.detach() for entry in entries]
        if files and not self._closed:
            # The list is all that refers to the files: emptying it there closes them there.
            self._free(files.clear)

    def _free(self, work: Callable[[], None]) -> None:
        """Give blocks back to the disk, in a thread."""
        self._freeing = [one for one in self._freeing if not one.done()]
        self._freeing.append(self._executor.submit(work))

    def _flush_touches(self) -> None:
        if self._touched:
            used = [(when, row) for row, when in self._touched.items()]
            self._touched.clear()
            self._index.submit(records.touch(used)).add_done_callback(_log_failure)

    # What entries ask for (Keeper).

    async def record(self, entry: Entry, pieces: Sequence[tuple[int, bytes]]) -> None:
        """Put pieces into the index, having made room for them, and have the entry admit them (Keeper)."""
        self._check_open()
        need = sum(entry.layout.size(index) for index, _ in pieces)
        capacity = self._marks.capacity if self._marks is not None else None
        work = records.commit(entry.row, entry.layout, pieces, self._epochs.current, capacity)
        relieved = False
        while True:
            try:
                await self._index.submit(work, then=lambda _: entry.admit(pieces))
                break
            except records.CapacityError:
                if self._marks is None or not await self._make_room(need, self._marks):
                    raise
            except StoreFullError:
                if relieved or not await self._relieve(need):
                    raise
                relieved = True
        if self._marks is not None and self._marks.ahead(self._index.stats.bytes):
            self._above_mark.set()

    def relieve(self, need: int) -> bool:
        """Evict because the disk is full, and wait until it is done; from any thread but the loop's (Keeper)."""
        if threading.get_ident() == self._thread or self._closed:
            return False
        relief = asyncio.run_coroutine_threadsafe(self._relieve(need), self._loop)
        try:
            return relief.result(_RELIEF_SECONDS)
        except (StoreError, TimeoutError) as error:
            relief.cancel()
            _LOG.warning("no room can be made on a full disk", error=str(error) or "not in time")
            return False

    async def _relieve(self, need: int) -> bool:
        """Evict a 64th of what is held, at least `need` bytes, and free it on the disk; tells whether that helped.

        Whoever has waited for another's eviction tries again without one of its own.
        """
        before = self._reliefs
        async with self._evicting:
            self._check_open()
            if self._reliefs != before:
                return True
            wanted = max(need, self._index.stats.bytes // _SLACK, 1)
            try:
                freed = await self._evict(wanted)
            except StoreFullError:
                # The index itself has no room to forget anything.
                if not await self._loop.run_in_executor(self._executor, self._ballast.drop):
                    raise
                freed = await self._evict(wanted)
            # A file takes up its room until it has no name left, and its last descriptor is closed.
            self._free(partial(_empty_trash, self._directory))
            await asyncio.gather(*map(asyncio.wrap_future, self._freeing))
            await self._loop.run_in_executor(self._executor, wait_until_closed)
            _LOG.warning("the disk is full", path=str(self._directory.path), needed=need, freed=freed)
            DISK_FULL.inc()
            self._executor.submit(self._ballast.place)
            self._reliefs += freed > 0
            return freed > 0

    async def inspect(
        self, entry: Entry, file: DataFile, pieces: Sequence[tuple[int, bytes]], *, aside: bool = False
    ) -> frozenset[int]:
        """Compare pieces with their digests in a thread (Keeper)."""
        self._check_open()
        work = partial(damaged_pieces, file, entry.layout, pieces, aside=aside)
        damaged = await self._loop.run_in_executor(self._executor, work)
        if damaged:
            DAMAGED.inc(len(damaged))
            _LOG.error("damaged pieces", version=entry.version_id, pieces=sorted(damaged)[:20], count=len(damaged))
        return damaged

    async def settle(self, entry: Entry, sound: Sequence[int], damaged: Sequence[int]) -> None:
        """Put the verdict on suspect pieces into the index (Keeper)."""
        self._check_open()
        confirm = records.confirm(entry.row, sound, self._epochs.current)
        forget = records.forget(entry.row, entry.layout, damaged, older_than=self._epochs.current)
        await asyncio.gather(
            self._index.submit(confirm, then=lambda _: entry.acquit(sound)),
            self._index.submit(forget, then=lambda _: entry.drop(damaged, of=entry.suspect)),
        )
        if damaged:
            await self._part_with_shared(entry)

    async def prove(self, entry: Entry, sound: Sequence[int]) -> None:
        """Put into the index that landed pieces are as recorded (Keeper)."""
        self._check_open()
        confirm = records.confirm(entry.row, sound, self._epochs.current)
        await self._index.submit(confirm, then=lambda _: entry.proven(sound))

    async def forget(self, entry: Entry, damaged: Sequence[int]) -> None:
        """Take landed pieces out of the index, and tell of it (Keeper)."""
        self._check_open()
        work = records.forget(entry.row, entry.layout, damaged, older_than=None)

        def forgotten(_: None) -> None:
            entry.drop(damaged, of=entry.landed)
            entry.proven(damaged)
            if self._on_damaged is not None:
                self._on_damaged(entry.version_id, spans_of(sorted(damaged)))

        try:
            await self._index.submit(work, then=forgotten)
        except StoreError:
            # Nobody may read them all the same: not now, not when the version is read anew, nor after the next opening.
            self._directory.untidy = True
            self._owed[entry.version_id].append(work)
            forgotten(None)
            raise
        await self._part_with_shared(entry)

    async def _part_with_shared(self, entry: Entry) -> None:
        """Remove a damaged version whose file is a user's as well: it comes anew in another file, and his stays."""
        if entry.is_shared:
            _LOG.warning("a damaged file is also linked elsewhere, its version is let go of", version=entry.version_id)
            removed = await self._remove(records.remove_versions(self._directory, (entry.version_id,)))
            if self._on_dropped is not None:
                for one in removed:
                    self._on_dropped(one.version_id)

    # What is held, and what goes.

    def require_room(self, size: int) -> None:
        """Raise StoreFullError for more bytes than may be here at once; all else would be evicted for them in vain."""
        if self._marks is not None and size > self._marks.capacity:
            capacity = self._marks.capacity
            raise StoreFullError(f"{size} bytes are more than the store's capacity of {capacity} bytes; raise it")

    def stats(self) -> StoreStats:
        """Return how much is held."""
        return self._index.stats

    async def holdings(self) -> AsyncIterator[Holding]:
        """Yield all that may be served at once, for the announcement; suspect pieces are left out until verified."""
        after = 0
        self._check_open()
        while (page := await self._index.submit(records.holdings(after, self._epochs))) is not None:
            after, found = page
            for holding in found:
                yield holding
            self._check_open()

    async def remove(self, task_id: str) -> tuple[str, ...]:
        """Remove every version of a task, and return their ids.

        Readers that hold an entry finish with it; commits to it fail from now on. Raises StoreError.
        """
        self._check_open()
        removed = await self._remove(records.remove_task(self._directory, task_id))
        return tuple(one.version_id for one in removed)

    async def remove_version(self, version_id: str) -> None:
        """Remove one version, if it is held, as `remove` does. Raises StoreError."""
        self._check_open()
        await self._remove(records.remove_versions(self._directory, (version_id,)))

    async def pin(self, task_id: str) -> int:
        """Keep every version of a task that is here now from eviction, over restarts too; returns how many there are.

        A version that comes later is not pinned by that. Raises StoreError.
        """
        self._check_open()
        return await self._index.submit(inventory.pin("task_id", task_id))

    async def pin_version(self, version_id: str) -> None:
        """Keep one version, of which there is an entry, from eviction for as long as it is here. Raises StoreError."""
        self._check_open()
        await self._index.submit(inventory.pin("version_id", version_id))

    async def unpin(self, task_id: str) -> int:
        """Let every version of a task be evicted again; returns how many were pinned. Raises StoreError."""
        self._check_open()
        return await self._index.submit(inventory.unpin(task_id))

    async def held(self, task_id: str | None = None) -> tuple[HeldVersion, ...]:
        """Return what is held (of a task), suspect pieces included, the oldest first. Raises StoreError."""
        self._check_open()
        self._flush_touches()
        found: list[HeldVersion] = []
        after = 0
        while page := await self._index.submit(inventory.stock(after, task_id)):
            after, now = page[-1].row, self._clock()
            found += [stock.held(now, in_use=self._in_use(stock.version_id)) for stock in page]
            self._check_open()
        return tuple(found)

    async def evict(self, target_bytes: int) -> int:
        """Remove versions, least recently used first, until at most `target_bytes` are held; none in use or pinned.

        Returns the bytes freed, which are too few if versions in use take up more; their blocks are given back a little
        later, in a thread. Raises StoreError.
        """
        async with self._evicting:
            return await self._evict(self._index.stats.bytes - target_bytes)

    async def _make_room(self, need: int, marks: Marks) -> bool:
        """Evict until there is room for `need` bytes more; tells whether it is worth trying again."""
        async with self._evicting:
            excess = marks.needed(self._index.stats.bytes, need)
            return excess == 0 or await self._evict(excess) > 0

    async def room_ahead(self) -> None:
        """Wait until more is held than the high mark, and evict down to the low one. Raises StoreError."""
        await self._above_mark.wait()
        self._above_mark.clear()
        async with self._evicting:
            if self._marks is not None and (excess := self._marks.ahead(self._index.stats.bytes)):
                await self._evict(excess)

    async def expire(self, ttl_seconds: float) -> int:
        """Remove the versions that nobody has used for so long, none that is pinned; returns how many went.

        Raises StoreError.
        """
        async with self._evicting:
            gone = await self._evict_until(math.inf, unused_since=self._clock() - ttl_seconds)
        EXPIRED.inc(len(gone))
        return len(gone)

    async def _evict(self, need: int) -> int:
        gone = await self._evict_until(need)
        EVICTED.inc(len(gone))
        size = sum(one.size for one in gone)
        EVICTED_BYTES.inc(size)
        return size

    async def _evict_until(self, need: float, *, unused_since: float = math.inf) -> list[records.Removed]:
        """Remove versions last used before a time, until `need` bytes are free; if that is infinite, all of them."""
        self._check_open()
        self._flush_touches()
        gone: list[records.Removed] = []
        freed, after = 0, (-math.inf, 0)
        while freed < need:
            page = await self._index.submit(records.oldest(after, _CANDIDATES, unused_since))
            if not page:
                break
            after = page[-1][0]
            victims = [victim for _, victim in page if not self._in_use(victim.version_id)]
            everything = math.isinf(need)
            chosen = [one.version_id for one in victims] if everything else choose(victims, int(need) - freed)
            # Out of sight before anything is awaited: nobody can come to refer to what is about to go.
            for version_id in chosen:
                if (entry := self._live.pop(version_id, None)) is not None:
                    del self._idle[version_id]
                    self._detach([entry])
            removed = await self._remove(records.remove_versions(self._directory, chosen))
            size = sum(one.size for one in removed)
            freed += size
            gone += removed
            if removed:
                why = "unused" if everything else "room"
                _LOG.info("versions evicted", why=why, versions=len(removed), bytes=size, first=removed[0].version_id)
            if self._on_dropped is not None:
                for one in removed:
                    self._on_dropped(one.version_id)
        OPEN_ENTRIES.set(len(self._live))
        return gone

    # What is verified in the background.

    @property
    def busy(self) -> bool:
        """Whether any version is in use: a download or a response is under way."""
        return len(self._live) > len(self._idle)

    @property
    def doubted(self) -> float:
        """What was verified before this time was held when the store was last not closed in good order."""
        return self._epochs.doubted

    def now(self) -> float:
        """Return the store's time in seconds: what uses are ordered by."""
        return self._clock()

    async def mark_time(self) -> None:
        """Record which time it is, so that the next opening knows how long the store was closed. Raises StoreError."""
        self._check_open()
        self._flush_touches()
        await self._index.submit(records.mark_time(self._clock()))

    async def due(self, after: tuple[float, int], before: float) -> records.Due | None:
        """Return which version behind a key was verified longest ago, before a time. Raises StoreError."""
        self._check_open()
        return await self._index.submit(records.due(after, before))

    async def mark_verified(self, version: records.Due, when: float) -> None:
        """Record that all of a version was verified, begun at a time of the store's. Raises StoreError."""
        self._check_open()
        await self._index.submit(records.mark_verified(version.row, when))

    async def scrub(self, version_id: str, first: int, size: int) -> Scrubbed:
        """Verify up to `size` bytes of pieces, one at least, from the piece `first` on; drop and tell the damaged ones.

        That is no use of the version, and leaves the page cache as it was. Raises StoreError.
        """
        # Nothing is evicted meanwhile, so that nobody finds that what could go is in use by this.
        async with self._evicting:
            known = version_id in self._live
            entry = await self._present(version_id)
            if entry is None:
                return Scrubbed(None, 0, 0)
            alone = entry.references == 0
            with self._referenced(entry):
                if alone:
                    self._unused.add(version_id)
                pieces = list(entry.pieces_from(first, size))
                if not pieces:
                    return Scrubbed(None, 0, 0)
                span = Span(pieces[0], pieces[-1] + 1)
                damaged = await entry.verify(span, aside=True)
            self._unused.discard(version_id)
            if not known and version_id in self._idle:
                self._idle.move_to_end(version_id, last=False)
            read = sum(entry.layout.size(index) for index in pieces)
            return Scrubbed(span.stop if span.stop < entry.layout.count else None, read, len(damaged))

    def _in_use(self, version_id: str) -> bool:
        entry = self._live.get(version_id)
        return version_id in self._loading or (entry is not None and entry.references > 0)

    async def _remove(self, work: Work[tuple[records.Removed, ...]]) -> tuple[records.Removed, ...]:
        return await self._index.submit(work, then=self._removed)

    def _removed(self, removed: tuple[records.Removed, ...]) -> None:
        for one in removed:
            entry = self._live.get(one.version_id)
            if entry is None or entry.row != one.row:
                continue
            del self._live[one.version_id]
            entry.retire(StoreError(f"version {one.version_id} was removed from the store; ask for it again"))
            if self._idle.pop(one.version_id, None) is not None:
                self._detach([entry])
        if removed and not self._closed:
            self._free(partial(_empty_trash, self._directory))

    def _check_open(self) -> None:
        if self._closed:
            raise self._closed_error()

    def _closed_error(self) -> StoreError:
        return StoreError(f"the store in {str(self._directory.path)!r} is closed")


def _empty_trash(directory: DataDirectory) -> None:
    try:
        directory.empty_trash()
    except OSError as error:
        _LOG.warning("removed data still takes up room", path=str(directory.path), errno=error.errno)
        directory.untidy = True


def _log_failure(future: asyncio.Future[Any]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        _LOG.warning("the index was not brought up to date", error=str(error))
