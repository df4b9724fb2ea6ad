from datetime import UTC, datetime

import pytest
from multidict import CIMultiDict

from bench.conditions import Decision, asks_one_byte, decide

ETAG = '"0123"'
MODIFIED = datetime(2024, 5, 1, 12, 0, 0, tzinfo=UTC)
SAME = "Wed, 01 May 2024 12:00:00 GMT"
BEFORE = "Wed, 01 May 2024 11:59:59 GMT"
WHOLE = Decision(200, 0, 100)


@pytest.mark.parametrize(
    ("headers", "decision"),
    [
        ({}, WHOLE),
        ({"Range": "bytes=0-0"}, Decision(206, 0, 1)),
        ({"range": "bytes=10-19"}, Decision(206, 10, 20)),
        ({"Range": "bytes=90-"}, Decision(206, 90, 100)),
        ({"Range": "bytes=90-1000"}, Decision(206, 90, 100)),
        ({"Range": "bytes=-10"}, Decision(206, 90, 100)),
        ({"Range": "bytes=-1000"}, Decision(206, 0, 100)),
        ({"Range": "bytes=-0"}, Decision(416)),
        ({"Range": "bytes=100-"}, Decision(416)),
        ({"Range": "bytes=20-10"}, WHOLE),
        ({"Range": "bytes=0-1,5-6"}, WHOLE),
        ({"Range": "lines=0-1"}, WHOLE),
        ({"If-Match": ETAG}, WHOLE),
        ({"If-Match": f'"other", {ETAG}', "Range": "bytes=0-0"}, Decision(206, 0, 1)),
        ({"If-Match": "*"}, WHOLE),
        ({"If-Match": '"other"', "Range": "bytes=0-0"}, Decision(412)),
        ({"If-Unmodified-Since": SAME}, WHOLE),
        ({"If-Unmodified-Since": BEFORE}, Decision(412)),
        ({"If-Unmodified-Since": BEFORE, "If-Match": ETAG}, WHOLE),
        ({"If-None-Match": ETAG, "Range": "bytes=0-0"}, Decision(304)),
        ({"If-None-Match": f"W/{ETAG}"}, Decision(304)),
        ({"If-None-Match": '"other"', "If-Modified-Since": SAME}, WHOLE),
        ({"If-Modified-Since": SAME}, Decision(304)),
        ({"If-Modified-Since": BEFORE}, WHOLE),
        ({"If-Modified-Since": "yesterday"}, WHOLE),
        ({"If-Unmodified-Since": "tomorrow"}, WHOLE),
        ({"If-Range": ETAG, "Range": "bytes=1-2"}, Decision(206, 1, 3)),
        ({"If-Range": '"other"', "Range": "bytes=1-2"}, WHOLE),
        ({"If-Range": SAME, "Range": "bytes=1-2"}, Decision(206, 1, 3)),
        ({"If-Range": BEFORE, "Range": "bytes=1-2"}, WHOLE),
        ({"If-Range": "nonsense", "Range": "bytes=1-2"}, WHOLE),
    ],
)
def test_decisions(headers: dict[str, str], decision: Decision) -> None:
    assert decide(CIMultiDict(headers), length=100, etag=ETAG, last_modified=MODIFIED) == decision


def test_an_empty_object() -> None:
    assert decide({}, length=0, etag=ETAG, last_modified=MODIFIED) == Decision(200, 0, 0)
    assert decide({"Range": "bytes=0-0"}, length=0, etag=ETAG, last_modified=MODIFIED) == Decision(416)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("bytes=0-0", True),
        ("bytes=7-7", True),
        ("bytes=-1", True),
        ("bytes=0-1", False),
        ("bytes=0-", False),
        ("", False),
    ],
)
def test_one_byte(field: str, expected: bool) -> None:
    assert asks_one_byte({"Range": field}) is expected
