from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from p2p.pieces import GIB, Bitmap, PieceLayout, Span, spans_of
from p2p.ranges import ByteRange

LENGTHS = st.one_of(st.integers(0, 100), st.integers(0, 200 * GIB), st.sampled_from([GIB // 2, GIB, 4 * GIB, 32 * GIB]))


@st.composite
def layouts(draw: st.DrawFn) -> PieceLayout:
    """Any real layout, and ones with small pieces, whose every byte can be looked at."""
    if draw(st.booleans()):
        return PieceLayout.of(draw(LENGTHS))
    return PieceLayout(draw(st.integers(0, 300)), draw(st.integers(1, 40)))


@given(layouts())
def test_the_pieces_cover_every_byte_exactly_once(layout: PieceLayout) -> None:
    end = 0
    for index in range(layout.count):
        assert layout.offset(index) == end
        assert layout.size(index) > 0
        assert layout.bytes_of(Span(index, index + 1)) == ByteRange(end, end + layout.size(index))
        end += layout.size(index)
    assert end == layout.length
    assert all(layout.size(index) == layout.piece_length for index in range(layout.count - 1))


@given(st.data(), layouts().filter(lambda layout: layout.length > 0))
def test_covering_names_the_fewest_pieces(data: st.DataObject, layout: PieceLayout) -> None:
    start = data.draw(st.integers(0, layout.length - 1))
    wanted = ByteRange(start, data.draw(st.integers(start + 1, layout.length)))
    span = layout.covering(wanted)
    covered = layout.bytes_of(span)
    assert covered.start <= wanted.start < covered.start + layout.size(span.start)
    assert covered.stop - layout.size(span.stop - 1) < wanted.stop <= covered.stop


@given(st.sets(st.integers(0, 500)))
def test_spans_are_maximal_and_name_what_they_were_made_of(indices: set[int]) -> None:
    spans = spans_of(sorted(indices))
    assert [index for span in spans for index in span] == sorted(indices)
    assert all(before.stop < after.start for before, after in itertools.pairwise(spans))


@given(st.binary(max_size=40), st.integers(0, 300))
def test_a_bitmap_read_from_any_bytes_holds_only_pieces_that_exist(data: bytes, size: int) -> None:
    try:
        bitmap = Bitmap.from_bytes(data, size)
    except ValueError:
        assert int.from_bytes(data, "little") >= 1 << size
        return
    assert all(0 <= index < size for index in bitmap)
    assert Bitmap.from_bytes(bitmap.to_bytes(), size) == bitmap


class BitmapAgainstSet(RuleBasedStateMachine):
    """A bitmap does what a set of integers does."""

    @initialize(size=st.integers(1, 200))
    def start(self, size: int) -> None:
        self.size = size
        self.bitmap = Bitmap(size)
        self.model: set[int] = set()
        self.twin, self.twin_model = self.bitmap.copy(), set(self.model)

    def span(self, data: st.DataObject) -> Span:
        start = data.draw(st.integers(0, self.size - 1))
        return Span(start, data.draw(st.integers(start + 1, self.size)))

    @rule(data=st.data())
    def add(self, data: st.DataObject) -> None:
        span = self.span(data)
        self.bitmap.add(span)
        self.model |= set(span)

    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        span = self.span(data)
        self.bitmap.discard(span)
        self.model -= set(span)

    @rule(data=st.data())
    def add_piece(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, self.size - 1))
        self.bitmap.add_piece(index)
        self.model.add(index)

    @rule(data=st.data())
    def discard_piece(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, self.size - 1))
        self.bitmap.discard_piece(index)
        self.model.discard(index)

    @rule()
    def clear(self) -> None:
        self.bitmap.clear()
        self.model.clear()

    @rule()
    def copy(self) -> None:
        self.twin, self.twin_model = self.bitmap.copy(), set(self.model)

    @rule()
    def combine(self) -> None:
        assert set(self.bitmap | self.twin) == self.model | self.twin_model
        assert set(self.bitmap & self.twin) == self.model & self.twin_model
        assert set(self.bitmap - self.twin) == self.model - self.twin_model

    @rule(data=st.data())
    def look_at_a_span(self, data: st.DataObject) -> None:
        span = self.span(data)
        assert self.bitmap.covers(span) == (set(span) <= self.model)
        assert self.bitmap.missing(span) == spans_of(sorted(set(span) - self.model))

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert list(self.bitmap) == sorted(self.model)
        assert len(self.bitmap) == len(self.model)
        assert bool(self.bitmap) == bool(self.model)
        assert self.bitmap.full == (len(self.model) == self.size)
        assert self.bitmap.first() == min(self.model, default=None)
        assert self.bitmap.spans() == spans_of(sorted(self.model))
        assert all((index in self.bitmap) == (index in self.model) for index in range(-1, self.size + 1))
        assert Bitmap(self.size, self.bitmap.spans()) == self.bitmap
        assert Bitmap.from_bytes(self.bitmap.to_bytes(), self.size) == self.bitmap
        assert set(self.twin) == self.twin_model, "a copy is independent"


TestBitmapAgainstSet = BitmapAgainstSet.TestCase
TestBitmapAgainstSet.settings = settings(max_examples=50, stateful_step_count=30)
