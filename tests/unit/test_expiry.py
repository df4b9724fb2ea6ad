from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.expiry import OVER, expires_at

NOON = 1767268800.0  # 2026-01-01T12:00:00Z


@pytest.mark.parametrize(
    ("query", "end"),
    [
        ("", None),
        ("v=2&part=7", None),
        ("X-Amz-Date=20260101T120000Z&X-Amz-Expires=60&X-Amz-Signature=0", NOON + 60),
        ("x-amz-expires=60&x-amz-date=20260101T120000Z&x-amz-signature=0", NOON + 60),
        ("X-Goog-Date=20260101T120000Z&X-Goog-Expires=604800&X-Goog-Signature=0", NOON + 604800),
        ("X-Oss-Date=20260101T120000Z&X-Oss-Expires=1&x-oss-signature=0", NOON + 1),
        ("X-Obs-Date=20260101T120000Z&X-Obs-Expires=1&X-Obs-Signature=0", NOON + 1),
        ("AWSAccessKeyId=A&Expires=1767268800&Signature=0", NOON),
        ("GoogleAccessId=A&Expires=1767268800&Signature=0", NOON),
        ("Expires=Thu%2C%2001%20Jan%202026%2012%3A00%3A00%20GMT", NOON),
        ("sv=2024&sr=b&se=2026-01-01T12%3A00%3A00Z&sig=0", NOON),
        ("sv=2024&sr=b&se=2026-01-01T12%3A00Z&sig=0", NOON),
        ("sv=2024&sr=b&se=2026-01-01T12%3A00%3A00.0000000Z&sig=0", NOON),
        ("sv=2024&sr=b&se=2026-01-01&sig=0", NOON - 12 * 3600),
        ("sv=2024&sr=b&se=2026-01-02&ske=2026-01-01T12%3A00%3A00Z&sig=0", NOON),
    ],
)
def test_the_end_is_read_from_the_query(query: str, end: float | None) -> None:
    assert expires_at(f"https://host/key?{query}") == end


@pytest.mark.parametrize(
    "query",
    [
        "X-Amz-Expires=60&X-Amz-Signature=0",
        "X-Amz-Date=yesterday&X-Amz-Expires=60",
        "X-Amz-Date=20261301T120000Z&X-Amz-Expires=60",
        "X-Amz-Date=20260101T120000Z&X-Amz-Expires=forever",
        "X-Amz-Signature=0",
        "AWSAccessKeyId=A&Expires=soon&Signature=0",
        "sv=2024&sr=b&se=never&sig=0",
        "sv=2024&sr=b&si=policy&sig=0",
    ],
)
def test_an_end_that_is_not_understood_has_come(query: str) -> None:
    assert expires_at(f"https://host/key?{query}") == OVER


def test_the_earliest_end_counts() -> None:
    url = "https://host/key?X-Amz-Date=20260101T120000Z&X-Amz-Expires=60&X-Amz-Expires=30&X-Amz-Signature=0"
    assert expires_at(url) == NOON + 30
    assert expires_at(url + "&Expires=nonsense") == OVER


@given(st.text())
def test_no_text_is_too_odd(text: str) -> None:
    end = expires_at(f"http://host/key?Expires=9&{text}")
    assert end is not None
    assert end <= 9
