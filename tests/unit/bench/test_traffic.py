"""What the bench's origin tells about its traffic."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bench.traffic import Coverage, Traffic

_RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=30)


@given(_RANGES)
def test_repeated_bytes_are_those_sent_before(ranges: list[tuple[int, int]]) -> None:
    coverage, sent = Coverage(), set[int]()
    for start, stop in ranges:
        added = set(range(start, stop))
        assert coverage.add(start, stop) == len(added & sent)
        sent |= added


def test_requests_are_counted_in_windows_and_at_once() -> None:
    traffic = Traffic(10.0)
    assert traffic.windows() == []
    with traffic.request(10.05), traffic.request(10.06):
        pass
    with traffic.request(10.35):
        pass
    assert (traffic.windows(), traffic.peak) == ([2, 0, 0, 1], 2)
