from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import RangeNotSatisfiableError
from p2p.ranges import (
    ByteRange,
    ContentRange,
    format_content_range,
    format_range,
    if_range_matches,
    not_modified,
    parse_content_range,
    parse_range,
)

LENGTHS = st.integers(1, 2**50)


@st.composite
def ranges_within(draw: st.DrawFn) -> tuple[ByteRange, int]:
    length = draw(LENGTHS)
    start = draw(st.integers(0, length - 1))
    return ByteRange(start, draw(st.integers(start + 1, length))), length


@given(ranges_within())
def test_ranges_round_trip(given_range: tuple[ByteRange, int]) -> None:
    wanted, length = given_range
    assert parse_range(format_range(wanted), length) == (wanted,)
    assert parse_content_range(format_content_range(wanted, length)) == ContentRange(wanted, length)
    assert parse_content_range(format_content_range(None, length)) == ContentRange(None, length)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300))
def test_every_form_selects_the_bytes_that_the_rfc_says(first: int, extent: int, length: int) -> None:
    everything = range(length)
    last = first + extent
    for header, expected in (
        (f"bytes={first}-{last}", everything[first : last + 1]),
        (f"bytes={first}-", everything[first:]),
        (f"bytes=-{first}", everything[length - min(first, length) :]),
    ):
        if not expected and (length or not header.startswith("bytes=-") or not first):
            with pytest.raises(RangeNotSatisfiableError):
                parse_range(header, length)
        elif not expected:
            assert parse_range(header, length) is None, "a suffix of an empty object"
        else:
            assert parse_range(header, length) == (ByteRange(expected.start, expected.stop),)


@given(st.one_of(st.text(), st.text("0123456789-, *").map("bytes=".__add__)), st.integers(0, 100))
def test_what_is_selected_is_inside_and_never_empty(header: str, length: int) -> None:
    try:
        selected = parse_range(header, length)
    except RangeNotSatisfiableError:
        return
    if selected is None:
        return
    assert selected
    assert all(0 <= one.start < one.stop <= length for one in selected)
    assert sum(map(len, selected)) <= length


@given(st.one_of(st.text(), st.text("0123456789-*/ ").map("bytes ".__add__)))
def test_no_content_range_breaks_the_parser(field: str) -> None:
    found = parse_content_range(field)
    if found.range is not None:
        assert found.range
        assert found.length is None or found.range.stop <= found.length


@given(st.text(), st.text(), st.none() | st.text(), st.none() | st.text())
def test_no_text_breaks_the_conditions(field: str, date: str, etag: str | None, modified: str | None) -> None:
    if_range_matches(field, etag=etag, last_modified=modified, date=date)
    not_modified([("If-None-Match", field)], etag=etag, last_modified=modified)
    not_modified([("If-Modified-Since", field)], etag=etag, last_modified=modified)
