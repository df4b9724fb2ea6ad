from __future__ import annotations

import pytest

from p2p.pieces import GIB, MIB, Bitmap, PieceLayout, Span, piece_length, spans_of
from p2p.ranges import ByteRange
from tests.support.pieces import PIECE


def test_piece_lengths_grow_with_the_object() -> None:
    assert [piece_length(size) for size in (0, GIB - 1)] == [2 * MIB, 2 * MIB]
    assert [piece_length(size) for size in (GIB, 4 * GIB - 1)] == [4 * MIB, 4 * MIB]
    assert [piece_length(size) for size in (4 * GIB, 32 * GIB - 1)] == [8 * MIB, 8 * MIB]
    assert [piece_length(size) for size in (32 * GIB, 10**13)] == [16 * MIB, 16 * MIB]


def test_a_layout_cuts_an_object() -> None:
    layout = PieceLayout.of(2 * PIECE + 5)
    assert layout.count == 3
    assert [layout.offset(index) for index in range(3)] == [0, PIECE, 2 * PIECE]
    assert [layout.size(index) for index in range(3)] == [PIECE, PIECE, 5]
    assert layout.bytes_of(Span(1, 3)) == ByteRange(PIECE, 2 * PIECE + 5)
    assert layout.everything() == (Span(0, 3),)


def test_an_empty_object_has_no_pieces() -> None:
    layout = PieceLayout.of(0)
    assert layout.count == 0
    assert layout.everything() == ()
    assert Bitmap(layout.count).full


def test_what_lies_outside_is_refused() -> None:
    layout = PieceLayout.of(2 * PIECE + 5)
    with pytest.raises(IndexError, match="3 of 3"):
        layout.size(3)
    with pytest.raises(IndexError, match="of 3"):
        layout.bytes_of(Span(2, 4))
    for outside in (ByteRange(0, 2 * PIECE + 6), ByteRange(5, 5)):
        with pytest.raises(ValueError, match="bytes"):
            layout.covering(outside)
    with pytest.raises(ValueError, match="-1"):
        PieceLayout.of(-1)


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (2, 1), (-1, 1)])
def test_spans_are_neither_empty_nor_negative(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="not a span"):
        Span(start, stop)


def test_spans_behave_like_sequences_of_indices() -> None:
    span = Span(2, 5)
    assert len(span) == 3
    assert list(span) == [2, 3, 4]
    assert 4 in span
    assert 5 not in span
    assert spans_of([0, 1, 2, 5, 7, 8]) == (Span(0, 3), Span(5, 6), Span(7, 9))
    assert spans_of([]) == ()


def test_a_bitmap_refuses_pieces_that_do_not_exist() -> None:
    bitmap = Bitmap(8)
    for refused in (
        lambda: bitmap.add(Span(7, 9)),
        lambda: bitmap.discard(Span(7, 9)),
        lambda: bitmap.missing(Span(7, 9)),
        lambda: bitmap.add_piece(8),
        lambda: bitmap.add_piece(-1),
        lambda: bitmap.discard_piece(8),
        lambda: bitmap.discard_piece(-1),
    ):
        with pytest.raises(IndexError, match="of 8"):
            refused()
    assert not bitmap
    assert -1 not in bitmap
    assert 8 not in bitmap
    assert not bitmap.covers(Span(7, 9))


def test_bitmaps_of_different_sizes_do_not_mix() -> None:
    with pytest.raises(ValueError, match="8 and 9"):
        Bitmap(8) | Bitmap(9)
    with pytest.raises(ValueError, match="beyond"):
        Bitmap.from_bytes(b"\xff\x01", 8)
    assert Bitmap(8) != Bitmap(9)


def test_a_bitmap_travels_least_significant_bit_first() -> None:
    bitmap = Bitmap(10, [Span(0, 1), Span(8, 10)])
    assert bitmap.to_bytes() == b"\x01\x03"
    assert repr(bitmap) == "Bitmap(3/10)"
