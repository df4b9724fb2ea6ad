"""Pieces: how an object is cut, and sets of pieces.

A piece is a fixed slice of a version. Its length is a pure function of the object's length, so that every host cuts
alike without asking. Spans are half-open runs of piece indices; control messages name spans, never single pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from p2p.ranges import ByteRange

MIB = 1024 * 1024
GIB = 1024 * MIB


def piece_length(object_length: int) -> int:
    """Return the length in bytes of every piece but the last of an object of `object_length` bytes.

    Small enough that the swarm has some hundred pieces to trade: the trees by which an object spreads fill at the pace
    of a few pieces, and with 256 of them that is a hundredth of the way. Large enough that a piece's fixed cost (a
    request, a report, an index row) stays under a percent of moving it.
    """
    if object_length < GIB:
        return 2 * MIB
    if object_length < 4 * GIB:
        return 4 * MIB
    if object_length < 32 * GIB:
        return 8 * MIB
    return 16 * MIB


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A half-open, non-empty run of piece indices: `start`, …, `stop - 1`."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"not a span of pieces: {self.start}..{self.stop}")

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.stop))

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and self.start <= index < self.stop


@lru_cache(maxsize=4096)
def one_piece(index: int) -> Span:
    """Return the span of one piece; the same object again and again, as one is needed for each piece that lands."""
    return Span(index, index + 1)


def spans_of(indices: Iterable[int]) -> tuple[Span, ...]:
    """Join ascending, distinct piece indices into as few spans as possible."""
    spans: list[Span] = []
    start = stop = -1
    for index in indices:
        if index == stop:
            stop += 1
            continue
        if stop > 0:
            spans.append(Span(start, stop))
        start, stop = index, index + 1
    if stop > 0:
        spans.append(Span(start, stop))
    return tuple(spans)


@dataclass(frozen=True, slots=True)
class PieceLayout:
    """How an object of `length` bytes is cut into pieces of `piece_length` bytes; the last may be shorter."""

    length: int
    piece_length: int

    @classmethod
    def of(cls, length: int) -> PieceLayout:
        """Return the layout that every host uses for an object of `length` bytes."""
        if length < 0:
            raise ValueError(f"an object cannot have {length} bytes")
        return cls(length, piece_length(length))

    @property
    def count(self) -> int:
        """The number of pieces; 0 for an empty object."""
        return -(-self.length // self.piece_length)

    def offset(self, index: int) -> int:
        """Return the first byte of piece `index`."""
        return index * self.piece_length

    def size(self, index: int) -> int:
        """Return the length in bytes of piece `index`."""
        if not 0 <= index < self.count:
            raise IndexError(f"piece {index} of {self.count}")
        return min(self.piece_length, self.length - index * self.piece_length)

    def bytes_of(self, span: Span) -> ByteRange:
        """Return the bytes that the pieces of `span` cover."""
        if span.stop > self.count:
            raise IndexError(f"pieces {span.start}..{span.stop} of {self.count}")
        return ByteRange(span.start * self.piece_length, min(span.stop * self.piece_length, self.length))

    def covering(self, wanted: ByteRange) -> Span:
        """Return the fewest pieces that cover the bytes `wanted`, which must be non-empty and inside the object."""
        if not 0 <= wanted.start < wanted.stop <= self.length:
            raise ValueError(f"bytes {wanted.start}..{wanted.stop} of {self.length}")
        return Span(wanted.start // self.piece_length, -(-wanted.stop // self.piece_length))

    def everything(self) -> tuple[Span, ...]:
        """Return the span of all pieces, or nothing for an empty object."""
        return (Span(0, self.count),) if self.count else ()


class Bitmap:
    """A mutable set of piece indices below `size`, held in one integer: a thousand pieces cost some 200 bytes."""

    __slots__ = ("_bits", "size")

    def __init__(self, size: int, spans: Iterable[Span] = ()) -> None:
        self.size = size
        self._bits = 0
        for span in spans:
            self.add(span)

    @classmethod
    def from_bytes(cls, data: bytes, size: int) -> Bitmap:
        """Read what `to_bytes` wrote; bits at or above `size` are an error (ValueError)."""
        bitmap = cls(size)
        bits = int.from_bytes(data, "little")
        if bits >> size:
            raise ValueError(f"bitmap of {len(data)} bytes names pieces beyond the {size} there are")
        bitmap._bits = bits
        return bitmap

    def to_bytes(self) -> bytes:
        """Return ceil(size / 8) bytes; bit i, least significant first, says whether piece i is in the set."""
        return self._bits.to_bytes(-(-self.size // 8), "little")

    def copy(self) -> Bitmap:
        """Return an independent set with the same pieces."""
        twin = Bitmap(self.size)
        twin._bits = self._bits
        return twin

    @staticmethod
    def _mask(span: Span) -> int:
        return ((1 << len(span)) - 1) << span.start

    def _checked(self, span: Span) -> Span:
        if span.stop > self.size:
            raise IndexError(f"pieces {span.start}..{span.stop} of {self.size}")
        return span

    def _checked_piece(self, index: int) -> int:
        if not 0 <= index < self.size:
            raise IndexError(f"piece {index} of {self.size}")
        return index

    def add(self, span: Span) -> None:
        """Add every piece of `span`."""
        self._bits |= self._mask(self._checked(span))

    def discard(self, span: Span) -> None:
        """Remove every piece of `span` that is there."""
        self._bits &= ~self._mask(self._checked(span))

    def update(self, other: Bitmap) -> None:
        """Add every piece of a set of the same size."""
        if other.size != self.size:
            raise ValueError(f"bitmaps of {self.size} and {other.size} pieces")
        self._bits |= other._bits

    def add_piece(self, index: int) -> None:
        """Add one piece."""
        # One call less than by `_checked_piece`: this comes for each piece that lands.
        if not 0 <= index < self.size:
            raise IndexError(f"piece {index} of {self.size}")
        self._bits |= 1 << index

    def discard_piece(self, index: int) -> None:
        """Remove one piece, if it is there."""
        self._bits &= ~(1 << self._checked_piece(index))

    def clear(self) -> None:
        """Remove every piece."""
        self._bits = 0

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and index >= 0 and self._bits >> index & 1 == 1

    def covers(self, span: Span) -> bool:
        """Tell whether every piece of `span` is in the set."""
        mask = self._mask(span)
        return self._bits & mask == mask

    def __len__(self) -> int:
        return self._bits.bit_count()

    def __bool__(self) -> bool:
        return self._bits != 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bitmap) and (self.size, self._bits) == (other.size, other._bits)

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"Bitmap({len(self)}/{self.size})"

    @property
    def full(self) -> bool:
        """Whether every piece is in the set."""
        return len(self) == self.size

    def __iter__(self) -> Iterator[int]:
        bits = self._bits
        while bits:
            low = bits & -bits
            yield low.bit_length() - 1
            bits ^= low

    def spans(self) -> tuple[Span, ...]:
        """Return the set as ascending, maximal spans."""
        return self._spans_of_bits(self._bits)

    def missing(self, span: Span) -> tuple[Span, ...]:
        """Return the pieces of `span` that are not in the set, as ascending, maximal spans."""
        return self._spans_of_bits(self._mask(self._checked(span)) & ~self._bits)

    def __or__(self, other: Bitmap) -> Bitmap:
        return self._combined(self._bits | other._bits, other)

    def __and__(self, other: Bitmap) -> Bitmap:
        return self._combined(self._bits & other._bits, other)

    def __sub__(self, other: Bitmap) -> Bitmap:
        return self._combined(self._bits & ~other._bits, other)

    def first(self) -> int | None:
        """Return the lowest piece in the set, or None when it is empty."""
        return (self._bits & -self._bits).bit_length() - 1 if self._bits else None

    def _combined(self, bits: int, other: Bitmap) -> Bitmap:
        if other.size != self.size:
            raise ValueError(f"bitmaps of {self.size} and {other.size} pieces")
        result = Bitmap(self.size)
        result._bits = bits
        return result

    @staticmethod
    def _spans_of_bits(bits: int) -> tuple[Span, ...]:
        spans: list[Span] = []
        base = 0
        while bits:
            zeros = (bits & -bits).bit_length() - 1
            bits >>= zeros
            ones = (~bits & (bits + 1)).bit_length() - 1
            spans.append(Span(base + zeros, base + zeros + ones))
            bits >>= ones
            base += zeros + ones
        return tuple(spans)
