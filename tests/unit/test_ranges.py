from __future__ import annotations

import pytest

from p2p.errors import RangeNotSatisfiableError
from p2p.fields import http_date
from p2p.ranges import (
    MAX_RANGES,
    ByteRange,
    ContentRange,
    format_content_range,
    format_range,
    if_range_matches,
    not_modified,
    parse_content_range,
    parse_range,
)

MODIFIED = "Sun, 06 Nov 1994 08:49:37 GMT"
LATER = "Sun, 06 Nov 1994 08:49:39 GMT"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", [(0, 1)]),
        ("bytes=0-99", [(0, 100)]),
        ("bytes=10-", [(10, 100)]),
        ("bytes=99-1000", [(99, 100)]),
        ("bytes=-1", [(99, 100)]),
        ("bytes=-1000", [(0, 100)]),
        ("BYTES = 1-2", [(1, 3)]),
        ("bytes= 1-2 ,, \t4-5,", [(1, 3), (4, 6)]),
        ("bytes=90-,0-4", [(90, 100), (0, 5)]),
        ("bytes=0-4,100-", [(0, 5)]),
        ("bytes=0-4,-0", [(0, 5)]),
        ("bytes=00000000000000000000005-5", [(5, 6)]),
        (f"bytes=0-{'9' * 4000}", [(0, 100)]),
    ],
)
def test_ranges_of_a_hundred_bytes(header: str, expected: list[tuple[int, int]]) -> None:
    assert parse_range(header, 100) == tuple(ByteRange(*pair) for pair in expected)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=,",
        "bytes=-",
        "bytes=5-4",
        "bytes=a-b",
        "bytes=1",
        "bytes=1-2-3",
        "bytes=+1-2",
        "bytes=1_0-20",
        "bytes=\u0661-\u0662",
        "bytes=1 - 2",
        "items=0-5",
        "bytes=0-1,x",
        "bytes=" + ",".join(f"{i * 2}-{i * 2}" for i in range(MAX_RANGES + 1)),
        "bytes=0-99,0-0",
        f"bytes=0-{'9' * 5000}",
    ],
)
def test_what_is_malformed_or_abusive_is_ignored(header: str) -> None:
    assert parse_range(header, 100) is None


@pytest.mark.parametrize(
    ("header", "length"),
    [
        ("bytes=100-", 100),
        ("bytes=100-200", 100),
        ("bytes=-0", 100),
        ("bytes=200-,300-", 100),
        ("bytes=0-", 0),
        ("bytes=-0", 0),
    ],
)
def test_ranges_beyond_the_end_cannot_be_satisfied(header: str, length: int) -> None:
    with pytest.raises(RangeNotSatisfiableError) as caught:
        parse_range(header, length)
    assert caught.value.length == length


def test_a_suffix_of_nothing_is_everything() -> None:
    assert parse_range("bytes=-5", 0) is None


def test_range_fields_are_written_with_inclusive_ends() -> None:
    assert format_range(ByteRange(0, 1)) == "bytes=0-0"
    assert format_content_range(ByteRange(5, 10), 10) == "bytes 5-9/10"
    assert format_content_range(None, 10) == "bytes */10"
    with pytest.raises(ValueError, match=r"5\.\.5"):
        format_range(ByteRange(5, 5))
    with pytest.raises(ValueError, match=r"5\.\.5"):
        format_content_range(ByteRange(5, 5), 10)
    with pytest.raises(ValueError, match="of 10"):
        format_content_range(ByteRange(5, 11), 10)
    with pytest.raises(ValueError, match=r"2\.\.1"):
        ByteRange(2, 1)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("bytes 0-0/1", ContentRange(ByteRange(0, 1), 1)),
        (" Bytes  5-9/10 ", ContentRange(ByteRange(5, 10), 10)),
        ("bytes 5-9/*", ContentRange(ByteRange(5, 10), None)),
        ("bytes */10", ContentRange(None, 10)),
        ("bytes */0", ContentRange(None, 0)),
        ("bytes */*", ContentRange(None, None)),
        ("bytes 9-5/10", ContentRange(None, None)),
        ("bytes 5-10/10", ContentRange(None, None)),
        ("bytes=5-9/10", ContentRange(None, None)),
        ("items 5-9/10", ContentRange(None, None)),
        ("", ContentRange(None, None)),
        (f"bytes 0-{'9' * 5000}/*", ContentRange(None, None)),
    ],
)
def test_content_ranges_say_what_they_say_or_nothing(field: str, expected: ContentRange) -> None:
    assert parse_content_range(field) == expected


@pytest.mark.parametrize(
    ("header", "etag", "last_modified", "date", "matches"),
    [
        ('"a"', '"a"', None, None, True),
        (' "a" ', '"a"', None, None, True),
        ('"a"', '"b"', MODIFIED, LATER, False),
        ('"a"', None, MODIFIED, LATER, False),
        ('W/"a"', 'W/"a"', None, None, False),
        ('W/"a"', '"a"', None, None, False),
        ('"a"', 'W/"a"', None, None, False),
        (MODIFIED, '"a"', MODIFIED, LATER, True),
        ("Sunday, 06-Nov-94 08:49:37 GMT", None, MODIFIED, LATER, True),
        (LATER, '"a"', MODIFIED, LATER, False),
        (MODIFIED, '"a"', MODIFIED, MODIFIED, False),
        (MODIFIED, '"a"', MODIFIED, None, False),
        (MODIFIED, '"a"', None, LATER, False),
        ("a", '"a"', MODIFIED, LATER, False),
        ("", None, None, None, False),
    ],
)
def test_if_range_is_compared_strongly(
    header: str, etag: str | None, last_modified: str | None, date: str | None, matches: bool
) -> None:
    assert if_range_matches(header, etag=etag, last_modified=last_modified, date=date) is matches


@pytest.mark.parametrize(
    ("request_headers", "expected"),
    [
        ([], False),
        ([("If-None-Match", '"a"')], True),
        ([("if-none-match", 'W/"a"')], True),
        ([("If-None-Match", '"b", "x,y" , W/"a"')], True),
        ([("If-None-Match", '"b"'), ("If-None-Match", '"a"')], True),
        ([("If-None-Match", "*")], True),
        ([("If-None-Match", '"b,a"')], False),
        ([("If-None-Match", "a")], False),
        ([("If-None-Match", '"b"'), ("If-Modified-Since", LATER)], False),
        ([("If-Modified-Since", MODIFIED)], True),
        ([("If-Modified-Since", LATER)], True),
        ([("If-Modified-Since", "Sun, 06 Nov 1994 08:49:36 GMT")], False),
        ([("If-Modified-Since", "whenever")], False),
        ([("If-Modified-Since", MODIFIED), ("If-Modified-Since", LATER)], False),
    ],
)
def test_conditional_requests(request_headers: list[tuple[str, str]], expected: bool) -> None:
    assert not_modified(request_headers, etag='"a"', last_modified=MODIFIED) is expected
    weak = not_modified(request_headers, etag='W/"a"', last_modified=MODIFIED)
    assert weak is expected, "If-None-Match is compared weakly"


def test_conditions_are_not_met_by_what_is_unknown() -> None:
    assert not not_modified({"If-None-Match": '"a"'}, etag=None, last_modified=None)
    assert not not_modified({"If-Modified-Since": MODIFIED}, etag='"a"', last_modified=None)


@pytest.mark.parametrize(
    "text", [MODIFIED, "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994", "Sun, 06 Nov 1994 08:49:37 -0000"]
)
def test_http_dates_have_three_forms(text: str) -> None:
    assert http_date(text) == 784111777
