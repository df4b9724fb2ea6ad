from __future__ import annotations

import math
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from p2p.config import format_duration, format_size, nearest, parse_address, parse_duration, parse_size
from p2p.errors import ConfigError


@given(st.one_of(st.integers(0, 10**17), st.builds(lambda n, p: n * 1024**p, st.integers(0, 999), st.integers(0, 4))))
def test_sizes_round_trip_exactly(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.integers(0, 10**15))
def test_durations_round_trip_to_the_microsecond(microseconds: int) -> None:
    assert parse_duration(format_duration(microseconds / 10**6)) == microseconds / 10**6


@given(st.floats(0, 10**9))
def test_any_duration_can_be_written(seconds: float) -> None:
    assert math.isclose(parse_duration(format_duration(seconds)), seconds, rel_tol=1e-12, abs_tol=1e-6)


@given(
    st.one_of(st.text(), st.from_regex(r"[0-9]{1,30}(\.[0-9]{0,12})?[ kKmMgGiIbBhsud]{0,4}", fullmatch=True)),
    st.sampled_from([parse_size, parse_duration, parse_address]),
)
def test_no_text_breaks_a_parser(text: str, parse: Callable[[str], object]) -> None:
    try:
        parse(text)
    except ConfigError:
        return


@given(st.integers(0, 65535), st.sampled_from(["", "localhost", "10.0.0.1", "::1", "2001:db8::7", "a-b.c"]))
def test_addresses_round_trip(port: int, host: str) -> None:
    text = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    assert str(parse_address(text)) == text


@given(st.text(), st.lists(st.text()))
def test_the_nearest_name_is_a_known_one(name: str, known: list[str]) -> None:
    found = nearest(name, known)
    assert found is None or found in known
