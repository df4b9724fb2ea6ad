from __future__ import annotations

import pytest

from p2p.config import (
    Address,
    format_duration,
    format_size,
    nearest,
    parse_address,
    parse_duration,
    parse_size,
)
from p2p.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1024", 1024),
        ("1024B", 1024),
        ("4MiB", 4 * 1024**2),
        ("4 mib", 4 * 1024**2),
        ("500MB", 500_000_000),
        (" 1.5GiB ", 3 * 512 * 1024**2),
        ("2TiB", 2 * 1024**4),
        ("1PB", 10**15),
        ("1.024KB", 1024),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "MiB", "-1", "4M", "4Mi", "4 X", "1,5GB", "1e3", "0x10", "0.5B", "1.1KiB", "9" * 40]
)
def test_bad_sizes_are_named(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (1, "1B"),
        (1023, "1023B"),
        (1024, "1KiB"),
        (4 * 1024**2, "4MiB"),
        (500_000_000, "500MB"),
        (10**15, "1PB"),
    ],
)
def test_sizes_are_written_in_the_unit_that_fits(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("30s", 30.0),
        ("5m", 300.0),
        ("200ms", 0.2),
        ("50us", 0.00005),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        ("7d", 604800.0),
        (" 1m0.5s ", 60.5),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "s", "-1s", "1h 30m", "30m1h", "1s1s", "1e3s", "inf", "1y", "5M"])
def test_bad_durations_are_named(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_duration(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (5400.0, "1h30m"), (0.2, "200ms"), (90_061.5, "1d1h1m1s500ms"), (1e-7, "0s")]
)
def test_durations_are_written_as_they_are_read(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_negative_and_endless_amounts_are_defects_of_the_caller() -> None:
    with pytest.raises(ValueError, match="cannot be"):
        format_size(-1)
    for seconds in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="cannot be"):
            format_duration(seconds)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:65001", Address("127.0.0.1", 65001)),
        (":8000", Address("", 8000)),
        ("[::1]:80", Address("::1", 80)),
        ("[fe80::1%eth0]:80", Address("fe80::1%eth0", 80)),
        ("scheduler-0.scheduler.default.svc:8002", Address("scheduler-0.scheduler.default.svc", 8002)),
        ("localhost:0", Address("localhost", 0)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    ["", "host", "host:", "host:x", "host:65536", "host:-1", "host:\u0661", "::1:80", "[::1]", "[host]:80", "a b:1"],
)
def test_bad_addresses_are_named(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_address(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["http://h:80", "user:hunter2@h:80", "h:80/path"])
def test_an_address_is_not_a_url(text: str) -> None:
    with pytest.raises(ConfigError, match="leave out") as caught:
        parse_address(text)
    assert "hunter2" not in str(caught.value)


def test_misspelt_names_have_a_nearest_known_one() -> None:
    known = ["data_dir", "proxy_listen", "upload_slots"]
    assert nearest("upload_slot", known) == "upload_slots"
    assert nearest("Data-Dir", known) == "data_dir"
    assert nearest("nonsense", known) is None
