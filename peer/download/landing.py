"""Where the pieces of one span go as their bytes come in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from p2p.digests import piece_hasher
from p2p.errors import CorruptPieceError
from p2p.pieces import PieceLayout, Span
from p2p.ranges import ByteRange
from p2p.versions import Version


class Target(Protocol):
    """What a transfer needs of a store's entry."""

    @property
    def version(self) -> Version:
        """Which bytes these are."""

    @property
    def layout(self) -> PieceLayout:
        """How they are cut."""

    def write(self, offset: int, data: memoryview) -> None:
        """Write unverified bytes, from any thread. Raises StoreError."""


class Landing:
    """Hashes and writes the pieces of `span` in order and reports each one that is on disk and sound.

    `digests`, one a piece of the span, are what the pieces must have; None where the pieces come from the origin and
    the digests are made here. `report(index, digest)` is called in the thread that runs `fill`.
    """

    def __init__(
        self, target: Target, span: Span, digests: Sequence[bytes] | None, report: Callable[[int, bytes], None]
    ) -> None:
        if digests is not None and len(digests) != len(span):
            raise ValueError(f"{len(digests)} digests for pieces {span.start}..{span.stop}")
        self.next = span.start
        self._target = target
        self._span = span
        self._digests = digests
        self._report = report

    @property
    def remaining(self) -> Span | None:
        """The pieces that have not been reported yet; None when all have."""
        return Span(self.next, self._span.stop) if self.next < self._span.stop else None

    @property
    def wanted(self) -> ByteRange:
        """The bytes of the remaining pieces, of which there must be some."""
        return self._target.layout.bytes_of(Span(self.next, self._span.stop))

    def fill(self, read_exactly: Callable[[memoryview], None], buffer: memoryview) -> None:
        """Take the remaining pieces' bytes from `read_exactly` by way of `buffer`; blocks.

        Raises CorruptPieceError at the first piece that does not have its digest, StoreError, and what `read_exactly`
        does; `remaining` then starts with the piece that was at work.
        """
        layout = self._target.layout
        for index in Span(self.next, self._span.stop):
            hasher = piece_hasher()
            offset = layout.offset(index)
            stop = offset + layout.size(index)
            while offset < stop:
                view = buffer[: min(len(buffer), stop - offset)]
                read_exactly(view)
                hasher.update(view)
                self._target.write(offset, view)
                offset += len(view)
            digest = hasher.digest()
            if self._digests is not None and digest != self._digests[index - self._span.start]:
                raise CorruptPieceError(
                    f"piece {index} of version {self._target.version.id} does not have the digest that it had when it "
                    "came from the origin; it is fetched elsewhere"
                )
            self.next = index + 1
            self._report(index, digest)
