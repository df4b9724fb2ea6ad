"""One version on this host: where its writers and its readers meet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from p2p.digests import PIECE_DIGEST_BYTES, piece_hasher
from p2p.errors import StoreError, StoreFullError
from p2p.identity import Task
from p2p.pieces import Bitmap, PieceLayout, Span, spans_of
from p2p.versions import Version
from peer.store.files import DataFile, store_error

_BATCH_BYTES = 32 * 1024 * 1024
_READ_BYTES = 256 * 1024


class Keeper(Protocol):
    """What an entry needs of the store that it belongs to."""

    async def record(self, entry: Entry, pieces: Sequence[tuple[int, bytes]]) -> None:
        """Put pieces into the index and have the entry `admit` them."""

    async def inspect(
        self, entry: Entry, file: DataFile, pieces: Sequence[tuple[int, bytes]], *, aside: bool = False
    ) -> frozenset[int]:
        """Return which of the pieces do not have their digests; in a thread. `aside`: past the page cache."""

    async def settle(self, entry: Entry, sound: Sequence[int], damaged: Sequence[int]) -> None:
        """Put the verdict on suspect pieces into the index and have the entry `acquit` and `drop` them."""

    async def prove(self, entry: Entry, sound: Sequence[int]) -> None:
        """Put into the index that landed pieces are as recorded, and have the entry note that they are `proven`."""

    async def forget(self, entry: Entry, damaged: Sequence[int]) -> None:
        """Take landed pieces out of the index and have the entry `drop` them."""

    def relieve(self, need: int) -> bool:
        """Make room for `need` bytes on a full disk, from any thread; tells whether it is worth trying again."""

    def released(self, entry: Entry) -> None:
        """Note that nobody refers to the entry any more."""


class Entry:
    """One version on this host: its pieces, its data file, and who waits for which piece.

    An entry belongs to the loop; only `write` may be called from any thread. It is good for as long as a reference is
    held: `find` and `entry` of the store give one, `retain` another, and each ends with `release`, or by leaving the
    entry's `with`. `landed` are the pieces that may be read and served; `suspect` are those recorded before a crash of
    the operating system and not verified since, which count as missing until `ensure_verified` has seen them. Both are
    read-only to others.
    """

    def __init__(
        self,
        keeper: Keeper,
        row: int,
        task: Task,
        version: Version,
        file: DataFile,
        *,
        trusted: Sequence[tuple[int, bytes]],
        suspect: Sequence[tuple[int, bytes]],
        unproven: Iterable[int] = (),
    ) -> None:
        self.row = row
        self.task = task
        self.version = version
        self.version_id = version.id
        self.layout = PieceLayout.of(version.length)
        self.landed = Bitmap(self.layout.count)
        self.suspect = Bitmap(self.layout.count)
        self.unproven = Bitmap(self.layout.count, spans_of(unproven))
        self.references = 0
        self._keeper = keeper
        self._file: DataFile | None = file
        self._digests = bytearray(PIECE_DIGEST_BYTES * self.layout.count)
        self._waiters: dict[int, list[asyncio.Future[BaseException | None]]] = {}
        self._listeners: list[Callable[[], None]] = []
        self._retired: StoreError | None = None
        self._verifying = asyncio.Lock()
        for bitmap, pieces in ((self.landed, trusted), (self.suspect, suspect)):
            for index, digest in pieces:
                bitmap.add_piece(index)
                self._note(index, digest)

    def __repr__(self) -> str:
        return f"Entry({self.version_id}, {self.landed!r}, references={self.references})"

    # What its users do.

    @property
    def fd(self) -> int:
        """The descriptor of the sparse data file, to read with pread or sendfile while a reference is held."""
        return self._open_file().fd

    @property
    def path(self) -> Path:
        """Where the data file is; good for as long as a reference is held and the version is not removed."""
        return self._open_file().path.absolute()

    @property
    def is_shared(self) -> bool:
        """Whether users have a hard link of the data file, or had one: what is damaged must not be mended in it."""
        return self._file is not None and self._file.is_shared

    @property
    def held(self) -> bool:
        """Whether the index has anything of the version: a piece, or all of an empty object."""
        return bool(self.landed or self.suspect) or self.layout.count == 0

    def digest(self, index: int) -> bytes:
        """Return the xxh3-128 of a landed piece, 16 bytes. Raises KeyError for any other."""
        if index not in self.landed:
            raise KeyError(f"piece {index} of version {self.version_id} has not landed")
        return self._noted(index)

    def allocate(self, offset: int, length: int) -> None:
        """Find room on the disk for bytes that are about to be written; from any thread. Raises as `write` does."""
        file = self._open_file()
        if self._retired is not None:
            raise self._retired
        if not 0 <= offset <= offset + length <= self.layout.length:
            raise ValueError(f"bytes {offset}..{offset + length} of an object of {self.layout.length}")
        self._with_room(length, lambda: file.allocate(offset, length))

    def write(self, offset: int, data: memoryview) -> None:
        """Write bytes at `offset` of the object; from any thread; they count for nothing until they are committed.

        Bytes of landed pieces stay as they are: a straggler's copy, not verified yet, must not touch what is being
        served. For the same reason at most one writer may be at work on a piece when another commits it. Raises
        StoreError, StoreFullError for want of space, ValueError for bytes beyond the object.
        """
        file = self._open_file()
        if self._retired is not None:
            raise self._retired
        stop = offset + len(data)
        if not 0 <= offset <= stop <= self.layout.length:
            raise ValueError(f"bytes {offset}..{stop} of an object of {self.layout.length}")
        position = offset
        while position < stop:
            index = position // self.layout.piece_length
            end = min(stop, self.layout.offset(index + 1))
            if index not in self.landed:
                part = data[position - offset : end - offset]
                self._with_room(len(part), partial(file.write, part, position))
            position = end

    async def commit(self, pieces: Sequence[tuple[int, bytes]]) -> None:
        """Record written pieces as (index, 16-byte digest), mark them landed and wake who waits for them.

        When this returns a crash of the process does not lose them. Cancelling it does not undo it. Pieces that have
        landed before are left as they are. Raises StoreError if the version was removed meanwhile, StoreFullError if
        the store's capacity is used up by versions in use, ValueError or IndexError for what is no piece.
        """
        for index, digest in pieces:
            self.layout.size(index)
            if len(digest) != PIECE_DIGEST_BYTES:
                raise ValueError(f"the digest of piece {index} has {len(digest)} bytes, not {PIECE_DIGEST_BYTES}")
        if self._retired is not None:
            raise self._retired
        fresh = [(index, digest) for index, digest in pieces if index not in self.landed]
        if fresh:
            await self._keeper.record(self, fresh)

    async def wait(self, index: int) -> None:
        """Return when the piece has landed. Raises what `fail` is given meanwhile, StoreError if the version goes."""
        self.layout.size(index)
        while index not in self.landed:
            if self._retired is not None:
                raise self._retired
            woken: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
            waiters = self._waiters.setdefault(index, [])
            waiters.append(woken)
            try:
                error = await woken
            except asyncio.CancelledError:
                if woken in waiters:
                    waiters.remove(woken)
                if not waiters and self._waiters.get(index) is waiters:
                    del self._waiters[index]
                raise
            if error is not None:
                raise error

    def fail(self, error: BaseException) -> None:
        """Give `error` to everyone who waits now; who waits later waits afresh."""
        waiting, self._waiters = self._waiters, {}
        for waiters in waiting.values():
            _wake(waiters, error)

    def listen(self, listener: Callable[[], None]) -> None:
        """Have `listener` called, on the loop, whenever a piece has landed, and when the version is gone."""
        self._listeners.append(listener)

    def unlisten(self, listener: Callable[[], None]) -> None:
        """End what `listen` began."""
        self._listeners.remove(listener)

    async def ensure_verified(self, span: Span) -> None:
        """Verify the suspect and the unproven pieces of `span`: the sound ones land, the damaged ones are forgotten.

        Costs nothing unless the store was not closed in good order since the pieces were recorded.
        """
        await self.ensure_known(span)
        while self.unproven and (pieces := self.unproven & Bitmap(self.layout.count, (span,))):
            await self._verify_unproven(self._batch(pieces))

    async def ensure_known(self, span: Span) -> None:
        """Find out which pieces of `span` have landed: verify those that a crash of the machine has made suspect."""
        while self.suspect and (pieces := self.suspect & Bitmap(self.layout.count, (span,))):
            await self._verify_suspects(self._batch(pieces))

    async def verify(self, span: Span, *, aside: bool = False) -> Bitmap:
        """Read all pieces held of `span` and compare them with their digests; drop and return the damaged ones.

        With `aside` that leaves the page cache as it was: nobody else is about to read them.
        """
        wanted = Bitmap(self.layout.count, (span,))
        damaged = Bitmap(self.layout.count)
        while suspect := self.suspect & wanted:
            for index in await self._verify_suspects(self._batch(suspect), aside=aside):
                damaged.add_piece(index)
        remaining = self.landed & wanted
        while batch := self._batch(remaining):
            for index in await self._verify_landed(batch, aside=aside):
                damaged.add_piece(index)
            for index in batch:
                remaining.discard_piece(index)
        return damaged

    def pieces_from(self, first: int, size: int) -> list[int]:
        """Return the pieces held from `first` on, as many as `size` bytes are, and one at least where there is one."""
        limit = max(1, size // self.layout.piece_length)
        rest = (self.landed | self.suspect) & Bitmap(self.layout.count, (Span(first, self.layout.count),))
        return [index for index, _ in zip(rest, range(limit), strict=False)]

    def retain(self) -> Self:
        """Take another reference; only while one is held."""
        self.references += 1
        return self

    def release(self) -> None:
        """End one reference."""
        if self.references <= 0:
            raise RuntimeError(f"{self!r} was released more often than retained")
        self.references -= 1
        if self.references == 0:
            self._keeper.released(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    # What the store does to it, each time the index has it already.

    def admit(self, pieces: Iterable[tuple[int, bytes]]) -> None:
        """Mark recorded pieces landed and wake who waits for them."""
        for index, digest in pieces:
            self._note(index, digest)
            self.suspect.discard_piece(index)
            self._land(index)

    def acquit(self, indices: Iterable[int]) -> None:
        """Mark suspect pieces landed: they are as recorded."""
        for index in indices:
            if index in self.suspect:
                self.suspect.discard_piece(index)
                self._land(index)

    def proven(self, indices: Iterable[int]) -> None:
        """Note that pieces need not be verified any more."""
        for index in indices:
            self.unproven.discard_piece(index)

    def drop(self, indices: Iterable[int], *, of: Bitmap) -> None:
        """Forget pieces that are damaged; `of` is `landed` or `suspect`."""
        for index in indices:
            of.discard_piece(index)

    def retire(self, error: StoreError) -> None:
        """The version is gone from the store: nothing more can land, what has landed stays readable until released."""
        self._retired = error
        self.fail(error)
        self._tell()

    @property
    def retired(self) -> bool:
        """Whether the version is gone from the store."""
        return self._retired is not None

    def detach(self) -> DataFile | None:
        """Give up the data file, which closes when whoever gets it, or still writes to it, lets go of it."""
        file, self._file = self._file, None
        return file

    def _with_room(self, need: int, act: Callable[[], None]) -> None:
        """Act, and act again for as long as room can be made on a full disk; others may have taken it meanwhile."""
        while True:
            try:
                return act()
            except StoreFullError:
                if not self._keeper.relieve(need):
                    raise

    def _open_file(self) -> DataFile:
        file = self._file
        if file is None:
            raise StoreError(f"version {self.version_id} was used after its last reference was released")
        return file

    def _note(self, index: int, digest: bytes) -> None:
        self._digests[PIECE_DIGEST_BYTES * index : PIECE_DIGEST_BYTES * (index + 1)] = digest

    def _noted(self, index: int) -> bytes:
        return bytes(self._digests[PIECE_DIGEST_BYTES * index : PIECE_DIGEST_BYTES * (index + 1)])

    def _land(self, index: int) -> None:
        self.landed.add_piece(index)
        _wake(self._waiters.pop(index, []), None)
        self._tell()

    def _tell(self) -> None:
        for listener in tuple(self._listeners):
            listener()

    def _batch(self, pieces: Bitmap) -> list[int]:
        """Return the first of the pieces, as many as are read in one go: others get their turn in between."""
        limit = max(1, _BATCH_BYTES // self.layout.piece_length)
        return [index for index, _ in zip(pieces, range(limit), strict=False)]

    async def _verify_suspects(self, batch: Sequence[int], *, aside: bool = False) -> list[int]:
        async with self._verifying:
            pieces = [(index, self._noted(index)) for index in batch if index in self.suspect]
            if not pieces:
                return []
            damaged = await self._keeper.inspect(self, self._open_file(), pieces, aside=aside)
            # Some may have been downloaded and committed meanwhile.
            verdict = [index for index, _ in pieces if index in self.suspect]
            lost = [index for index in verdict if index in damaged]
            await self._keeper.settle(self, [index for index in verdict if index not in damaged], lost)
            return lost

    async def _verify_unproven(self, batch: Sequence[int]) -> None:
        async with self._verifying:
            pieces = [(index, self._noted(index)) for index in batch if index in self.unproven]
            if pieces:
                damaged = await self._keeper.inspect(self, self._open_file(), pieces)
                await self._keeper.prove(self, [index for index, _ in pieces if index not in damaged])
                if damaged:
                    await self._keeper.forget(self, sorted(damaged))

    async def _verify_landed(self, batch: Sequence[int], *, aside: bool) -> list[int]:
        async with self._verifying:
            pieces = [(index, self._noted(index)) for index in batch if index in self.landed]
            damaged = sorted(await self._keeper.inspect(self, self._open_file(), pieces, aside=aside))
            if sound := [index for index, _ in pieces if index in self.unproven and index not in damaged]:
                await self._keeper.prove(self, sound)
            if damaged:
                await self._keeper.forget(self, damaged)
            return damaged


def _wake(waiters: Iterable[asyncio.Future[BaseException | None]], error: BaseException | None) -> None:
    # The error is a result, not the future's exception: a waiter cancelled in this very moment would leave that unread.
    for woken in waiters:
        if not woken.done():
            woken.set_result(error)


def damaged_pieces(
    file: DataFile, layout: PieceLayout, pieces: Iterable[tuple[int, bytes]], *, aside: bool = False
) -> frozenset[int]:
    """Return which of the (index, digest) pairs the file does not bear out; a piece that cannot be read is damaged.

    With `aside` the page cache stays as it was. Raises StoreError if that cannot be had.
    """
    view = memoryview(bytearray(_READ_BYTES))
    try:
        with file.aside() if aside else nullcontext(file.read) as read:
            return frozenset(index for index, digest in pieces if not _sound(read, layout, index, digest, view))
    except OSError as error:
        raise store_error("open once more", file.path, error) from error


def _sound(
    read: Callable[[memoryview, int], int], layout: PieceLayout, index: int, digest: bytes, view: memoryview
) -> bool:
    hasher = piece_hasher()
    position, stop = layout.offset(index), layout.offset(index) + layout.size(index)
    while position < stop:
        try:
            count = read(view[: stop - position], position)
        except OSError:
            return False
        if count == 0:
            return False
        hasher.update(view[:count])
        position += count
    return hasher.digest() == digest
