"""Where the pieces of one span go as their bytes come in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from p2p.digests import Buffer, Hasher, piece_hasher
from p2p.errors import CorruptPieceError
from p2p.pagecache import WRITE_BYTES
from p2p.pieces import PieceLayout, Span
from p2p.ranges import ByteRange
from p2p.versions import Version

ALLOCATED_BYTES = 1024 * 1024
"""For fewer bytes finding room beforehand costs more than it saves."""


class Target(Protocol):
    """What a transfer needs of a store's entry."""

    @property
    def version(self) -> Version:
        """Which bytes these are."""

    @property
    def layout(self) -> PieceLayout:
        """How they are cut."""

    def allocate(self, offset: int, length: int) -> None:
        """Find room on the disk for bytes that are about to be written, from any thread. Raises StoreError."""

    def write(self, offset: int, data: memoryview) -> None:
        """Write unverified bytes, from any thread. Raises StoreError."""


@dataclass(frozen=True, slots=True)
class PieceChecksums:
    """A running checksum of each piece, computed while its bytes are in the CPU's cache.

    `update(data, previous)` continues from 0, as `zlib.crc32` does. `of` has a piece's before the piece is reported.
    """

    update: Callable[[Buffer, int], int]
    of: dict[int, int] = field(default_factory=dict)


class Landing:
    """Hashes and writes the pieces of `span` in order and reports each one that is on disk and sound.

    `digests`, one a piece of the span, are what the pieces must have; None where the pieces come from the origin and
    the digests are made here. `report(index, digest)` is called in the thread that runs `fill`. What breaks off may go
    on with another exchange at `offset`, in the middle of a piece: one thread at a time.
    """

    def __init__(
        self,
        target: Target,
        span: Span,
        digests: Sequence[bytes] | None,
        report: Callable[[int, bytes], None],
        checksums: PieceChecksums | None = None,
    ) -> None:
        if digests is not None and len(digests) != len(span):
            raise ValueError(f"{len(digests)} digests for pieces {span.start}..{span.stop}")
        self._target = target
        self._span = span
        self._digests = digests
        self._report = report
        self._checksums = checksums
        self._begin(span.start)

    def _begin(self, index: int) -> None:
        """Go to the first byte of a piece, or to the end of the span."""
        layout = self._target.layout
        self.next = index
        self.offset = layout.offset(index) if index < self._span.stop else layout.bytes_of(self._span).stop
        self._piece_stop = self.offset + layout.size(index) if index < self._span.stop else self.offset
        self._hasher: Hasher = piece_hasher()
        self._checksum = 0

    @property
    def remaining(self) -> Span | None:
        """The pieces that have not been reported yet; None when all have."""
        return Span(self.next, self._span.stop) if self.next < self._span.stop else None

    @property
    def wanted(self) -> ByteRange:
        """The bytes that have not come yet, of which there must be some."""
        return ByteRange(self.offset, self._target.layout.bytes_of(self._span).stop)

    def fill(self, read: Callable[[memoryview], int], buffer: memoryview) -> None:
        """Take the remaining bytes from `read`, which says how many it gave, by way of `buffer`; blocks.

        Raises CorruptPieceError at the first piece that does not have its digest, StoreError, and what `read` does.
        """
        if len(self.wanted) >= ALLOCATED_BYTES:
            self._target.allocate(self.offset, len(self.wanted))
        while self.next < self._span.stop:
            view = buffer[: self._piece_stop - self.offset]
            self._take(view[: read(view)])

    def feed(self, data: memoryview) -> None:
        """Take the next bytes; none may lie beyond the span. Raises as `fill` does."""
        while data:
            here = self._piece_stop - self.offset
            self._take(data[:here])
            data = data[here:]

    def _take(self, data: memoryview) -> None:
        # Written first: when that fails, what was hashed still ends where the file does.
        for start in range(0, len(data), WRITE_BYTES):
            self._target.write(self.offset + start, data[start : start + WRITE_BYTES])
        self._hasher.update(data)
        if self._checksums is not None:
            self._checksum = self._checksums.update(data, self._checksum)
        self.offset += len(data)
        if self.offset == self._piece_stop:
            self._end()

    def _end(self) -> None:
        index, digest = self.next, self._hasher.digest()
        if self._digests is not None and digest != self._digests[index - self._span.start]:
            self._begin(index)
            raise CorruptPieceError(
                f"piece {index} of version {self._target.version.id} does not have the digest that it had when it came "
                "from the origin; it is fetched elsewhere"
            )
        if self._checksums is not None:
            self._checksums.of[index] = self._checksum
        self._begin(index + 1)
        self._report(index, digest)
