from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

from hypothesis import given
from hypothesis import strategies as st

from p2p.fields import STRONG_AFTER_SECONDS, http_date
from p2p.versions import Unkeepable, ValidatorKind, Version, conditional_headers, matches, read_version

TASK = "ab" * 32
FIELD_NAMES = st.sampled_from(
    [
        "ETag",
        "Last-Modified",
        "Date",
        "x-goog-generation",
        "x-amz-version-id",
        "Docker-Content-Digest",
        "Cache-Control",
        "Vary",
        "Content-Encoding",
        "x-goog-stored-content-encoding",
    ]
)
FIELD_VALUES = st.one_of(
    st.text(max_size=20),
    st.sampled_from(['"a"', 'W/"a"', "null", "gzip", "7", "Sun, 06 Nov 1994 08:49:37 GMT", f"sha256:{'a' * 64}"]),
)
SECONDS = st.integers(10**9, 2 * 10**9)


def http(seconds: int) -> str:
    return format_datetime(datetime.fromtimestamp(seconds, UTC), usegmt=True)


@given(st.lists(st.tuples(FIELD_NAMES, FIELD_VALUES), max_size=8), st.integers(0, 2**50))
def test_an_answer_matches_the_version_read_from_it(headers: list[tuple[str, str]], length: int) -> None:
    version = read_version(TASK, headers, length=length)
    if isinstance(version, Unkeepable):
        return
    assert matches(version, headers, length)
    assert not matches(version, headers, length + 1)
    assert all(value == version.validator for _, value in conditional_headers(version))


@given(SECONDS, st.integers(-5, 10), st.integers(0, 2**50), st.integers(0, 999_999))
def test_validators_made_of_dates_count_once_their_second_is_over(
    modified: int, age: int, length: int, microseconds: int
) -> None:
    dates = {"Last-Modified": http(modified), "Date": http(modified + age)}
    kinds = []
    for etag in (f'"{modified:x}-{length:x}"', f'"{length:x}-{modified * 10**6 + microseconds:x}"', 'W/"a"'):
        version = read_version(TASK, {"ETag": etag, **dates}, length=length)
        assert isinstance(version, Version) is (age >= STRONG_AFTER_SECONDS)
        if isinstance(version, Version):
            kinds.append(version.kind)
    assert kinds in ([], [ValidatorKind.ETAG, ValidatorKind.ETAG, ValidatorKind.LAST_MODIFIED])


@given(st.binary(min_size=16, max_size=16), SECONDS, st.integers(0, 2**50))
def test_hashes_of_the_content_are_not_mistaken_for_dates(digest: bytes, modified: int, length: int) -> None:
    fresh = {"Last-Modified": http(modified), "Date": http(modified)}
    for etag in (f'"{digest.hex()}"', f'"{digest.hex()}-7"'):
        if etag.endswith('-7"') and length == 7:
            continue
        version = read_version(TASK, {"ETag": etag, **fresh}, length=length)
        assert isinstance(version, Version)
        assert version.validator == etag


@given(SECONDS)
def test_http_dates_round_trip(seconds: int) -> None:
    assert http_date(http(seconds)) == seconds


@given(st.text())
def test_no_text_breaks_the_date_parser(text: str) -> None:
    http_date(text)
