"""The configuration file of a peer (TOML): read once, whole, into frozen values.

What is wrong is said with its place in the file and the remedy. Values are never quoted where they may be secret.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

from p2p.config import nearest, parse_duration, parse_size
from p2p.errors import ConfigError
from p2p.stores import Store
from peer.core.rules import Action, Credentials, Errors, Rule, Rules, StaleIfError
from peer.proxy.access import Users
from peer.proxy.server import ProxySettings
from peer.source.guard import Guard

T = TypeVar("T")
C = TypeVar("C", Action, StaleIfError, Errors, Credentials, Store)
Read = Callable[[object], T]

MAX_LINE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Configuration:
    """What a configuration file says; without one, the defaults."""

    rules: Rules = field(default_factory=Rules)
    users: Users = field(default_factory=Users)
    guard: Guard = field(default_factory=Guard)
    proxy: ProxySettings = field(default_factory=ProxySettings)
    ca_dir: Path | None = None
    cloud_credentials: Path | None = None


def load_configuration(path: Path) -> Configuration:
    """Read a configuration file; files that it names are looked for beside it.

    Raises ConfigError with the place of what cannot work, and for a file that cannot be read.
    """
    text = _read_text(path, str(path))
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    top = _Table(str(path), "", values)
    proxy = top.table("proxy")
    rules = tuple(_rule(table, path.parent) for table in top.tables("rules"))
    origin = top.table("origin")
    top.done()
    users, guard, settings = _users(proxy, path.parent), _guard(proxy), _proxy(proxy)
    ca_dir = proxy.get("ca_dir", lambda value: path.parent / _text(value), None)
    proxy.done()
    credentials = origin.get("credentials", lambda value: path.parent / _text(value), None)
    origin.done()
    return Configuration(Rules(rules), users, guard, settings, ca_dir, credentials)


class _Table:
    """One table of the file: every key is taken by name, and what is left in the end is not known."""

    def __init__(self, file: str, place: str, values: object) -> None:
        self._file = file
        self._place = place
        if not isinstance(values, dict):
            raise ConfigError(f"{file}: {place} is {_kind(values)}; write it as a table, [{place}]")
        self._values: dict[str, object] = values
        self._known: list[str] = []

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

    def table(self, key: str) -> _Table:
        """Return a table within; an absent one is empty."""
        self._known.append(key)
        return _Table(self._file, self._path(key), self._values.get(key, {}))

    def tables(self, key: str) -> Sequence[_Table]:
        """Return an array of tables, each of which is called by its number, the first being 1."""
        self._known.append(key)
        found = self._values.get(key, [])
        if not isinstance(found, list):
            raise ConfigError(f"{self._at(key)} is {_kind(found)}; write each of them as [[{self._path(key)}]]")
        return [_Table(self._file, f"{self._path(key)} number {n}", each) for n, each in enumerate(found, start=1)]

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


def _rule(table: _Table, directory: Path) -> Rule:
    rule = Rule(
        pattern=table.require("match", _pattern),
        action=table.get("action", _choice(Action), Action.AUTO),
        redirect=table.get("redirect", _authority, None),
        tls=table.get("tls", _flag, False),
        filters=table.get("filters", _texts, ()),
        tag=table.get("tag", _text, None),
        application=table.get("application", _text, None),
        revalidate=table.get("revalidate", _revalidate, 0.0),
        authorize_ttl=table.get("authorize_ttl", _duration, 0.0),
        stale_if_error=table.get("stale_if_error", _choice(StaleIfError), StaleIfError.OFF),
        errors=table.get("errors", _choice(Errors), Errors.AUTO),
        prefetch=table.get("prefetch", _flag, False),
        intercept=table.get("intercept", _flag, False),
        ca_file=table.get("ca_file", lambda value: directory / _text(value), None),
        credentials=table.get("credentials", _choice(Credentials), Credentials.CALLER),
        store=table.get("store", _choice(Store), None),
    )
    table.done()
    return rule


def _users(proxy: _Table, directory: Path) -> Users:
    def password(value: object) -> str:
        if isinstance(value, str):
            secret = value
        elif isinstance(value, dict) and isinstance(value.get("password_file"), str) and len(value) == 1:
            path = directory / value["password_file"]
            secret = _read_text(path, "password_file").removesuffix("\n").removesuffix("\r")
        else:
            raise ConfigError('a user is name = "password", or name = { password_file = "FILE" }')
        if not secret:
            raise ConfigError("the password is empty; remove the user, or give it one")
        return secret

    table = proxy.table("users")
    for name in table.entries():
        if not name or ":" in name:
            raise ConfigError(f"proxy.users: the name {name!r} cannot stand in Basic credentials; leave out the colon")
    return Users({name: table.require(name, password) for name in table.entries()})


def _guard(proxy: _Table) -> Guard:
    # Each list by itself first, so that a bad entry is reported under its own name.
    return Guard(
        allow=proxy.get("allow", lambda value: _entries(_texts(value)), ()),
        deny=proxy.get("deny", lambda value: _entries(_texts(value)), ()),
    )


def _entries(texts: tuple[str, ...]) -> tuple[str, ...]:
    Guard(allow=texts)
    return texts


def _proxy(proxy: _Table) -> ProxySettings:
    default = ProxySettings()
    ports = proxy.get("connect_ports", _ports, default.connect_ports)
    upstream = proxy.get("registry_upstream", _origin, default.registry_upstream)
    limits = proxy.table("limits")
    settings = ProxySettings(
        client_stall_seconds=limits.get("client_stall", _positive_duration, default.client_stall_seconds),
        forward_stall_seconds=limits.get("forward_stall", _positive_duration, default.forward_stall_seconds),
        connect_seconds=limits.get("connect", _positive_duration, default.connect_seconds),
        handshake_seconds=limits.get("handshake", _positive_duration, default.handshake_seconds),
        tunnel_idle_seconds=limits.get("tunnel_idle", _positive_duration, default.tunnel_idle_seconds),
        keep_alive_seconds=limits.get("keep_alive", _positive_duration, default.keep_alive_seconds),
        line_bytes=limits.get("line", _line_bytes, default.line_bytes),
        headers=limits.get("headers", _header_count, default.headers),
        connect_ports=ports,
        registry_upstream=upstream,
    )
    limits.done()
    return settings


def _read_text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {what} {str(path)!r}: {error.strerror}") from None
    except UnicodeError:
        raise ConfigError(f"{what} {str(path)!r} is not UTF-8") from None


def _kind(value: object) -> str:
    names = {bool: "true or false", str: "a string", list: "a list", dict: "a table"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else "a date or a time")


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"write a string that is not empty instead of {_kind(value)}")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ConfigError(f'write a list of strings, ["…", "…"], instead of {_kind(value)}')
    return tuple(map(_text, value))


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"write true or false instead of {_kind(value)}")
    return value


def _duration(value: object) -> float:
    if type(value) is int and value == 0:
        return 0.0
    if not isinstance(value, str):
        raise ConfigError(f'write a duration with a unit as a string, for example "30s", instead of {_kind(value)}')
    return parse_duration(value)


def _positive_duration(value: object) -> float:
    seconds = _duration(value)
    if seconds <= 0:
        raise ConfigError("a deadline of 0 is over before it begins; write for example 30s")
    return seconds


def _revalidate(value: object) -> float:
    if value == "always":
        return 0.0
    return math.inf if value == "never" else _duration(value)


def _choice(kind: type[C]) -> Read[C]:
    def read(value: object) -> C:
        text = _text(value)
        try:
            return kind(text)
        except ValueError:
            known = [member.value for member in kind]
            near = nearest(text, known)
            hint = f"; did you mean {near!r}?" if near else ""
            raise ConfigError(f"{text!r} is not one of {', '.join(known)}{hint}") from None

    return read


def _pattern(value: object) -> re.Pattern[str]:
    text = _text(value)
    try:
        return re.compile(text)
    except re.error as error:
        raise ConfigError(f"{text!r} is not a regular expression: {error}") from None


def _authority(value: object) -> str:
    text = _text(value)
    match = re.fullmatch(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?", text)
    if match is None or not 0 < int(match[1] or 1) <= 0xFFFF:
        # Not quoted: what else stands in a URL may be a password.
        raise ConfigError("it is to be a host or host:port alone, for example store.internal:9000; tls says the scheme")
    return text


def _origin(value: object) -> str:
    scheme, separator, authority = _text(value).partition("://")
    if not separator or scheme not in ("http", "https"):
        raise ConfigError("it is to be http:// or https:// with a host, for example https://registry-1.docker.io")
    return f"{scheme}://{_authority(authority)}"


def _ports(value: object) -> tuple[range, ...]:
    if not isinstance(value, list):
        raise ConfigError(f'write a list of ports, [443, "8000-8999"], instead of {_kind(value)}')
    return tuple(_port_range(each) for each in value)


def _port_range(value: object) -> range:
    match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", str(value))
    first, last = (int(match[1]), int(match[2] or match[1])) if match and not isinstance(value, bool) else (0, 0)
    if not 0 < first <= last <= 0xFFFF:
        raise ConfigError(f'{value!r} is neither a port from 1 to 65535 nor a range of them; write 443 or "8000-8999"')
    return range(first, last + 1)


def _line_bytes(value: object) -> int:
    size = parse_size(value) if isinstance(value, str) else value
    if not isinstance(size, int) or isinstance(size, bool) or not 1024 <= size <= MAX_LINE_BYTES:
        raise ConfigError('a line of a head may be limited to 1KiB … 1MiB; write for example "64KiB"')
    return size


def _header_count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 16 <= value <= 10_000:
        raise ConfigError("a request may be limited to 16 … 10000 header fields")
    return value
