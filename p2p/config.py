"""Settings as people write them: sizes, durations, addresses, and names that may be misspelt."""

from __future__ import annotations

import difflib
import ipaddress
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from p2p.errors import ConfigError

_SIZE_UNITS = {"B": 1} | {
    f"{letter}{infix}B": base**power
    for infix, base in (("i", 1024), ("", 1000))
    for power, letter in enumerate("KMGTP", start=1)
}
_SIZE_UNITS_BY_LOWER = {name.lower(): size for name, size in _SIZE_UNITS.items()}

# Whole microseconds, so that arithmetic on what people write is exact.
_DURATION_UNITS = {"d": 86_400_000_000, "h": 3_600_000_000, "m": 60_000_000, "s": 1_000_000, "ms": 1_000, "us": 1}

# The digits are bounded: nothing real needs more, and arithmetic on unbounded input is an attack.
_NUMBER = r"[0-9]{1,18}(?:\.[0-9]{1,9})?"
_SIZE = re.compile(rf"({_NUMBER}) ?([a-z]*)", re.IGNORECASE)
_DURATION = re.compile(rf"(?:{_NUMBER}(?:d|h|ms|m|s|us))+")
_DURATION_PART = re.compile(rf"({_NUMBER})(d|h|ms|m|s|us)")
_HOST_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9.])?")


def parse_size(text: str) -> int:
    """Return the bytes that "4MiB" (1024² each), "500MB" (1000² each), "1.5GiB" or "1024" stand for.

    Units count in either case. Raises ConfigError for anything else, and for a fraction of a byte.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = _SIZE_UNITS_BY_LOWER.get(match[2].lower() or "b") if match else None
    if match is None or unit is None:
        raise ConfigError(f"size {text!r} is not a number with a unit; write for example 4MiB, 500MB or 1024")
    size = Fraction(match[1]) * unit
    if size.denominator != 1:
        raise ConfigError(f"size {text!r} is not a whole number of bytes; use a smaller unit")
    return int(size)


def format_size(size: int) -> str:
    """Return `size` bytes exactly, in the unit that needs the smallest number; `parse_size` reads it back."""
    if size < 0:
        raise ValueError(f"a size cannot be {size} bytes")
    fitting = ((size // unit, name) for name, unit in _SIZE_UNITS.items() if size % unit == 0 and size >= unit)
    number, name = min(fitting, key=lambda found: found[0], default=(0, "B"))
    return f"{number}{name}"


@dataclass(frozen=True, slots=True)
class Capacity:
    """The most that may be kept: so many bytes, or that share (0 to 1) of the disk if there is one."""

    size: int = 0
    share: float | None = None

    def of(self, disk_bytes: int) -> int:
        """Return it in bytes, on a disk of that size."""
        return self.size if self.share is None else int(disk_bytes * self.share)


def parse_capacity(text: str) -> Capacity:
    """Read a size, or a share of the disk: "500GiB", "80%". Raises ConfigError."""
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,3})?)%", text.strip())
    if match is None:
        return Capacity(parse_size(text))
    if not 0 < float(match[1]) <= 100:
        raise ConfigError(f"{text!r} is no share of a disk; write for example 80%, or a size, 500GiB")
    return Capacity(share=float(match[1]) / 100)


def parse_duration(text: str) -> float:
    """Return the seconds that "30s", "5m", "200ms", "1h30m", "1.5h" or "0" stand for.

    Units are d, h, m, s, ms and us; several go from the largest to the smallest. Raises ConfigError for anything else.
    """
    stripped = text.strip()
    if stripped == "0":
        return 0.0
    parts: list[tuple[str, str]] = _DURATION_PART.findall(stripped) if _DURATION.fullmatch(stripped) else []
    sizes = [_DURATION_UNITS[unit] for _, unit in parts]
    if not parts or any(later >= earlier for earlier, later in itertools.pairwise(sizes)):
        raise ConfigError(f"duration {text!r} is not a number with a unit; write for example 30s, 5m, 200ms or 1h30m")
    return float(sum(Fraction(number) * _DURATION_UNITS[unit] for number, unit in parts) / _DURATION_UNITS["s"])


def format_duration(seconds: float) -> str:
    """Return `seconds`, to the microsecond, as `parse_duration` reads it: 5400.0 is "1h30m"."""
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"a duration cannot be {seconds} seconds")
    left = round(seconds * _DURATION_UNITS["s"])
    text = ""
    for name, unit in _DURATION_UNITS.items():
        number, left = divmod(left, unit)
        text += f"{number}{name}" if number else ""
    return text or "0s"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a listener listens or a client dials. An empty host means every interface; port 0 means any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Read "host:port", ":port" (every interface) or "[::1]:80". Raises ConfigError."""
    if "://" in text or "/" in text or "@" in text:
        # What surrounds an address in a URL may be a password.
        raise ConfigError("an address is host:port alone; leave out the scheme, the user and the path")
    host, colon, port = text.strip().rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 0xFFFF:
        raise ConfigError(f"address {text!r} has no port from 0 to 65535; write for example 127.0.0.1:65001")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_ipv6(host):
            raise ConfigError(f"address {text!r} has no IPv6 address in its brackets; write for example [::1]:{port}")
    elif ":" in host:
        raise ConfigError(f"address {text!r} is ambiguous; put an IPv6 address in brackets: [::1]:{port}")
    elif host and _HOST_NAME.fullmatch(host) is None:
        raise ConfigError(f"address {text!r} has a host that is neither a name nor an address")
    return Address(host, int(port))


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that `name` most resembles, for a "did you mean"; None when nothing is near."""

    def plain(text: str) -> str:
        return text.lower().replace("-", "_")

    by_plain = {plain(candidate): candidate for candidate in known}
    found = difflib.get_close_matches(plain(name), by_plain, n=1)
    return by_plain[found[0]] if found else None


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
