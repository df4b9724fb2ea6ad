"""The configuration file of a peer (TOML): read once, whole, into frozen values.

What is wrong is said with its place in the file and the remedy. Values are never quoted where they may be secret.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from p2p.budgets import UNBOUNDED, Budget
from p2p.config import nearest, parse_capacity, parse_size
from p2p.errors import ConfigError
from p2p.stores import Store
from p2p.toml import (
    Read,
    Table,
    as_budget,
    as_bytes_rate,
    as_duration,
    as_flag,
    as_pattern,
    as_positive_duration,
    as_text,
    as_texts,
    kind_of,
    read_file,
)
from peer.core.rules import Action, Credentials, Errors, Rule, Rules, StaleIfError
from peer.proxy.access import Users
from peer.proxy.server import ProxySettings
from peer.source.guard import Guard
from peer.store import StoreSettings

C = TypeVar("C", Action, StaleIfError, Errors, Credentials, Store)

MAX_LINE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Configuration:
    """What a configuration file says; without one, the defaults."""

    rules: Rules = field(default_factory=Rules)
    users: Users = field(default_factory=Users)
    guard: Guard = field(default_factory=Guard)
    proxy: ProxySettings = field(default_factory=ProxySettings)
    ca_dir: Path | None = None
    cluster_tls_dir: Path | None = None
    """Where this host's certificate is, with which it speaks TLS to the other hosts (`p2p.mtls`)."""
    cloud_credentials: Path | None = None
    ceiling: Budget = UNBOUNDED
    """What this host may do at any one origin, whatever the scheduler says."""
    upload_rate: float | None = None
    """The most piece bytes a second that this host sends to others, all together."""
    store: StoreSettings = field(default_factory=StoreSettings)


def load_configuration(path: Path) -> Configuration:
    """Read a configuration file; files that it names are looked for beside it.

    Raises ConfigError with the place of what cannot work, and for a file that cannot be read.
    """
    top = Table.load(path)
    proxy = top.table("proxy")
    rules = tuple(_rule(table, path.parent) for table in top.tables("rules"))
    origin = top.table("origin")
    upload = top.table("upload")
    cluster = top.table("cluster")
    store = _store(top.table("store"))
    top.done()
    users, guard, settings = _users(proxy, path.parent), _guard(proxy), _proxy(proxy)
    ca_dir = proxy.get("ca_dir", lambda value: path.parent / as_text(value), None)
    proxy.done()
    credentials = origin.get("credentials", lambda value: path.parent / as_text(value), None)
    ceiling = as_budget(origin)
    origin.done()
    upload_rate = upload.get("bytes_per_second", as_bytes_rate, None)
    upload.done()
    cluster_tls_dir = cluster.get("tls_dir", lambda value: path.parent / as_text(value), None)
    cluster.done()
    return Configuration(
        Rules(rules), users, guard, settings, ca_dir, cluster_tls_dir, credentials, ceiling, upload_rate, store
    )


def _store(table: Table) -> StoreSettings:
    default = StoreSettings()
    high = table.get("high", _share, default.high)
    settings = StoreSettings(
        scrub_seconds=table.get("scrub", _duration_or_off, default.scrub_seconds),
        ttl_seconds=table.get("ttl", _duration_or_off, default.ttl_seconds),
        high=high,
        low=table.get("low", _share, high * default.low),
    )
    table.done()
    if settings.low > settings.high:
        raise ConfigError("store: low is above high; what is held could never go down to it")
    return settings


def _duration_or_off(value: object) -> float | None:
    if value == "off":
        return None
    seconds = as_duration(value)
    if seconds <= 0:
        raise ConfigError('write "off", or a duration that is not 0, for example "30d"')
    return seconds


def _share(value: object) -> float:
    capacity = parse_capacity(as_text(value))
    if capacity.share is None:
        raise ConfigError(f'{value!r} is no share of the capacity; write for example "95%"')
    return capacity.share


def _rule(table: Table, directory: Path) -> Rule:
    rule = Rule(
        pattern=table.require("match", as_pattern),
        action=table.get("action", _choice(Action), Action.AUTO),
        redirect=table.get("redirect", _authority, None),
        tls=table.get("tls", as_flag, False),
        filters=table.get("filters", as_texts, ()),
        tag=table.get("tag", as_text, None),
        application=table.get("application", as_text, None),
        revalidate=table.get("revalidate", _revalidate, 0.0),
        authorize_ttl=table.get("authorize_ttl", as_duration, 0.0),
        stale_if_error=table.get("stale_if_error", _choice(StaleIfError), StaleIfError.OFF),
        errors=table.get("errors", _choice(Errors), Errors.AUTO),
        prefetch=table.get("prefetch", as_flag, False),
        intercept=table.get("intercept", as_flag, False),
        ca_file=table.get("ca_file", lambda value: directory / as_text(value), None),
        credentials=table.get("credentials", _choice(Credentials), Credentials.CALLER),
        store=table.get("store", _choice(Store), None),
    )
    table.done()
    return rule


def _users(proxy: Table, directory: Path) -> Users:
    def password(value: object) -> str:
        if isinstance(value, str):
            secret = value
        elif isinstance(value, dict) and isinstance(value.get("password_file"), str) and len(value) == 1:
            path = directory / value["password_file"]
            secret = read_file(path, "password_file").removesuffix("\n").removesuffix("\r")
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


def _guard(proxy: Table) -> Guard:
    # Each list by itself first, so that a bad entry is reported under its own name.
    return Guard(
        allow=proxy.get("allow", lambda value: _entries(as_texts(value)), ()),
        deny=proxy.get("deny", lambda value: _entries(as_texts(value)), ()),
    )


def _entries(texts: tuple[str, ...]) -> tuple[str, ...]:
    Guard(allow=texts)
    return texts


def _proxy(proxy: Table) -> ProxySettings:
    default = ProxySettings()
    ports = proxy.get("connect_ports", _ports, default.connect_ports)
    upstream = proxy.get("registry_upstream", _origin, default.registry_upstream)
    limits = proxy.table("limits")
    settings = ProxySettings(
        client_stall_seconds=limits.get("client_stall", as_positive_duration, default.client_stall_seconds),
        forward_stall_seconds=limits.get("forward_stall", as_positive_duration, default.forward_stall_seconds),
        connect_seconds=limits.get("connect", as_positive_duration, default.connect_seconds),
        handshake_seconds=limits.get("handshake", as_positive_duration, default.handshake_seconds),
        tunnel_idle_seconds=limits.get("tunnel_idle", as_positive_duration, default.tunnel_idle_seconds),
        keep_alive_seconds=limits.get("keep_alive", as_positive_duration, default.keep_alive_seconds),
        line_bytes=limits.get("line", _line_bytes, default.line_bytes),
        headers=limits.get("headers", _header_count, default.headers),
        connect_ports=ports,
        registry_upstream=upstream,
    )
    limits.done()
    return settings


def _revalidate(value: object) -> float:
    if value == "always":
        return 0.0
    return math.inf if value == "never" else as_duration(value)


def _choice(kind: type[C]) -> Read[C]:
    def read(value: object) -> C:
        text = as_text(value)
        try:
            return kind(text)
        except ValueError:
            known = [member.value for member in kind]
            near = nearest(text, known)
            hint = f"; did you mean {near!r}?" if near else ""
            raise ConfigError(f"{text!r} is not one of {', '.join(known)}{hint}") from None

    return read


def _authority(value: object) -> str:
    text = as_text(value)
    match = re.fullmatch(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?", text)
    if match is None or not 0 < int(match[1] or 1) <= 0xFFFF:
        # Not quoted: what else stands in a URL may be a password.
        raise ConfigError("it is to be a host or host:port alone, for example store.internal:9000; tls says the scheme")
    return text


def _origin(value: object) -> str:
    scheme, separator, authority = as_text(value).partition("://")
    if not separator or scheme not in ("http", "https"):
        raise ConfigError("it is to be http:// or https:// with a host, for example https://registry-1.docker.io")
    return f"{scheme}://{_authority(authority)}"


def _ports(value: object) -> tuple[range, ...]:
    if not isinstance(value, list):
        raise ConfigError(f'write a list of ports, [443, "8000-8999"], instead of {kind_of(value)}')
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
