"""Configuration files (TOML): every key is taken by name, and what is not known is named with what is near it.

The `as_…` functions read one value each and raise ConfigError, which says what to write instead.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, cast

from p2p.budgets import Budget
from p2p.config import nearest, parse_duration, parse_size
from p2p.errors import ConfigError

T = TypeVar("T")
Read = Callable[[object], T]


class Table:
    """One table of the file: every key is taken by name, and what is left in the end is not known."""

    def __init__(self, file: str, place: str, values: object) -> None:
        self._file = file
        self._place = place
        if not isinstance(values, dict):
            raise ConfigError(f"{file}: {place} is {kind_of(values)}; write it as a table, [{place}]")
        self._values: dict[str, object] = values
        self._known: list[str] = []

    @classmethod
    def load(cls, path: Path) -> Table:
        """Read a whole file. Raises ConfigError for one that cannot be read or is not TOML."""
        try:
            return cls(str(path), "", tomllib.loads(read_file(path, str(path))))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path} is not TOML: {error}") from None

    def get(self, key: str, read: Read[T], default: T) -> T:
        """Return what `read` makes of the key's value, or the default where it is absent."""
        self._known.append(key)
        if key not in self._values:
            return default
        try:
            return read(self._values[key])
        except ConfigError as error:
            raise ConfigError(f"{self._at(key)}: {error}") from None

    def require(self, key: str, read: Read[T]) -> T:
        """Return what `read` makes of the value of a key that has no default."""
        if key not in self._values:
            raise ConfigError(f"{self._file}: {self._place} has no {key!r}, which it needs")
        return cast(T, self.get(key, read, None))

    def table(self, key: str) -> Table:
        """Return a table within; an absent one is empty."""
        self._known.append(key)
        return Table(self._file, self._path(key), self._values.get(key, {}))

    def tables(self, key: str) -> Sequence[Table]:
        """Return an array of tables, each of which is called by its number, the first being 1."""
        self._known.append(key)
        found = self._values.get(key, [])
        if not isinstance(found, list):
            raise ConfigError(f"{self._at(key)} is {kind_of(found)}; write each of them as [[{self._path(key)}]]")
        return [Table(self._file, f"{self._path(key)} number {n}", each) for n, each in enumerate(found, start=1)]

    def entries(self) -> dict[str, object]:
        """Return all that is left, and take it: a table whose keys are names of the operator's own."""
        self._known += self._values
        return self._values

    def done(self) -> None:
        """Raise ConfigError for the first key that nobody took."""
        for key in self._values:
            if key not in self._known:
                near = nearest(key, self._known)
                hint = f"did you mean {near!r}?" if near else f"known are {', '.join(self._known)}"
                raise ConfigError(f"{self._at(key)} is not a known key; {hint}")

    def _path(self, key: str) -> str:
        return f"{self._place}.{key}" if self._place else key

    def _at(self, key: str) -> str:
        return f"{self._file}: {self._path(key)}"


def read_file(path: Path, what: str) -> str:
    """Return the text of a file; `what` names it in errors. Raises ConfigError."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {what} {str(path)!r}: {error.strerror}") from None
    except UnicodeError:
        raise ConfigError(f"{what} {str(path)!r} is not UTF-8") from None


def kind_of(value: object) -> str:
    """Say of which kind a value is, for errors: the value itself may be a secret."""
    names = {bool: "true or false", str: "a string", list: "a list", dict: "a table"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else "a date or a time")


def as_text(value: object) -> str:
    """Read a string that is not empty."""
    if not isinstance(value, str) or not value:
        raise ConfigError(f"write a string that is not empty instead of {kind_of(value)}")
    return value


def as_texts(value: object) -> tuple[str, ...]:
    """Read a list of them."""
    if not isinstance(value, list):
        raise ConfigError(f'write a list of strings, ["…", "…"], instead of {kind_of(value)}')
    return tuple(map(as_text, value))


def as_flag(value: object) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise ConfigError(f"write true or false instead of {kind_of(value)}")
    return value


def as_duration(value: object) -> float:
    """Read a duration in seconds, or 0."""
    if type(value) is int and value == 0:
        return 0.0
    if not isinstance(value, str):
        raise ConfigError(f'write a duration with a unit as a string, for example "30s", instead of {kind_of(value)}')
    return parse_duration(value)


def as_positive_duration(value: object) -> float:
    """Read a duration that is not 0, in seconds."""
    seconds = as_duration(value)
    if seconds <= 0:
        raise ConfigError("a deadline of 0 is over before it begins; write for example 30s")
    return seconds


def as_pattern(value: object) -> re.Pattern[str]:
    """Read a regular expression."""
    text = as_text(value)
    try:
        return re.compile(text)
    except re.error as error:
        raise ConfigError(f"{text!r} is not a regular expression: {error}") from None


def as_budget(table: Table) -> Budget:
    """Take the keys of a budget from a table: connections, requests_per_second and bytes_per_second."""
    return Budget(
        table.get("connections", _connections, None),
        table.get("requests_per_second", _requests_rate, None),
        table.get("bytes_per_second", as_bytes_rate, None),
    )


def _connections(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1_000_000:
        raise ConfigError("write how many requests there may be at once, for example 64")
    return value


def _requests_rate(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0.01 <= value <= 1e9:
        raise ConfigError("write a number of requests a second, for example 500")
    return float(value)


def as_bytes_rate(value: object) -> float:
    """Read a number of bytes a second, as a whole number or with a unit."""
    size = parse_size(value) if isinstance(value, str) else value
    if not isinstance(size, int) or isinstance(size, bool) or size < 1024:
        raise ConfigError('write a number of bytes a second, at least 1KiB, for example "2GiB"')
    return float(size)
