"""Sets of pieces as plain integers: bit i says whether piece i is in the set.

A core is called for every piece that lands, hundreds of times a second for each download. These sets cost a few machine
instructions a word where `Bitmap`, which checks what it is given, costs a call; inside a core that is all the
difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from p2p.pieces import Bitmap, Span


def bits_of(spans: Iterable[Span]) -> int:
    """Return the pieces of all `spans`."""
    bits = 0
    for span in spans:
        bits |= ((1 << (span.stop - span.start)) - 1) << span.start
    return bits


def bits_of_bitmap(bitmap: Bitmap) -> int:
    """Return the pieces of a bitmap."""
    return int.from_bytes(bitmap.to_bytes(), "little")


def bitmap_of(bits: int, size: int) -> Bitmap:
    """Return the bitmap of `size` pieces that holds these."""
    return Bitmap.from_bytes(bits.to_bytes(-(-size // 8), "little"), size)


def spans_of_bits(bits: int) -> tuple[Span, ...]:
    """Return the pieces as ascending, maximal spans."""
    return bitmap_of(bits, bits.bit_length()).spans()


def lowest(bits: int) -> int:
    """Return the lowest piece of a set that is not empty."""
    return (bits & -bits).bit_length() - 1


def indices(bits: int) -> Iterator[int]:
    """Yield the pieces, ascending."""
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low
