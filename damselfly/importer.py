"""What a Dragonfly peer's configuration (YAML) says, as a configuration file for `damselfly peer --config`. Pure.

Both generations are read: the Go daemon's (`proxy.proxies`, `regx`, `useHTTPS`, `direct`, `redirect`, `whiteList`,
`hijackHTTPS`, `registryMirror.url`) and the Rust client's (`proxy.rules`, `regex`, `useTLS`, `redirect`,
`filteredQueryParams`, `registryMirror.addr`, `proxy.server.basicAuth`). Their documents: d7y.io, "Dfdaemon".

Whatever asks for something and is not carried over is reported by its place. No value is repeated in a report, and no
password anywhere: these files hold secrets in many places.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import yaml

from p2p.errors import ConfigError
from p2p.identity import parse_filters
from p2p.registry import parse_upstream
from p2p.tls import CA_FILE, KEY_FILE
from peer.source.guard import Guard

__all__ = ["CA_DIR", "PASSWORD_FILE", "Imported", "import_dragonfly"]

T = TypeVar("T")

PASSWORD_FILE = "proxy.password"  # noqa: S105  # the file's name
CA_DIR = "ca"

NO_COUNTERPART = "has no counterpart in this file"
_FLAGS = {
    "host": "--advertise and --label",
    "dataDir": "--data-dir",
    "health": "--http-listen",
    "metrics": "--http-listen",
    "proxy.hijackHTTPS.hosts.caCert": "--origin-ca-file",
    "proxy.registryMirror.caCert": "--origin-ca-file",
    "proxy.registryMirror.cert": "--origin-ca-file",
    "proxy.registryMirror.certs": "--origin-ca-file",
    "proxy.server.ip": "--proxy-listen",
    "proxy.server.port": "--proxy-listen",
    "proxy.tcpListen": "--proxy-listen",
    "scheduler": "--scheduler",
    "security": "--cluster-secret-file",
    "seedPeer": "--seed",
    "storage": "--data-dir and --capacity",
    "upload": "--piece-listen and --upload-slots",
    "verbose": "--log-level debug",
}

_Keys = dict[str, str | bool | list[str]]

_AUTHORITY = re.compile(r"(?:((?i:https?))://)?((?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9._-]*)(?::([0-9]{1,5}))?)/?")


@dataclass(frozen=True, slots=True)
class Imported:
    """A configuration file, and a line for each thing that it leaves out or says in another way."""

    toml: str
    notes: tuple[str, ...]


def import_dragonfly(text: str) -> Imported:
    """Translate the text of a dfget.yaml or dfdaemon.yaml.

    Raises ConfigError for what is not such a file, and where leaving something out would open the proxy to anybody.
    """
    notes: list[str] = []
    top = _Section("", _mapping(text), notes)
    if not top.has("proxy"):
        top.note("proxy", "there is none, so there is nothing to import; is this a peer's file?")
    proxy = top.section("proxy")
    server = proxy.section("server")
    users = [*_user(proxy), *_user(server)]
    common = _common(proxy, prefetch=top.section("download").get("prefetch", bool, False))
    rules = [*_intercept(proxy, server)]
    opens_tls = bool(rules)
    rules += _rules(proxy, common, notes)
    upstream = _upstream(proxy.section("registryMirror"))
    allow = _allow(proxy)
    top.done()
    return Imported("\n".join(_render(rules, upstream, allow, users, opens_tls=opens_tls)), tuple(notes))


class _Section:
    """A mapping of the file. What nobody takes out of it by name is noted, as is what has the wrong type.

    `path` is its place for people ("proxy.proxies number 2"), `kind` the same without the numbers.
    """

    def __init__(self, path: str, values: dict[object, object], notes: list[str], kind: str | None = None) -> None:
        self.path = path
        self._kind = path if kind is None else kind
        self._values = dict(values)
        self._notes = notes
        self._within: list[_Section] = []

    def get(self, key: str, kind: type[T], default: T) -> T:
        """Take a value; one of another type is noted, and the default stands for it."""
        value = self._values.pop(key, None)
        if value is None:
            return default
        if not isinstance(value, kind):
            self.note(key, f"is not {'a flag' if kind is bool else 'a text'}, and is left out")
            return default
        return value

    def texts(self, key: str) -> list[str]:
        """Take a list of texts."""
        value = self._values.pop(key, None)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            self.note(key, "is not a list of texts, and is left out")
            return []
        return value

    def has(self, key: str) -> bool:
        """Tell whether something stands under a key."""
        return self._values.get(key) is not None

    def section(self, key: str) -> _Section:
        """Take a mapping within; an absent one is empty."""
        return self._section(key, self._values.pop(key, None), self._join(self.path, key))

    def sections(self, key: str) -> list[_Section]:
        """Take a list of mappings within."""
        value = self._values.pop(key, None)
        if value is not None and not isinstance(value, list):
            raise ConfigError(f"{self._join(self.path, key)} is not a list; is this Dragonfly's file?")
        place = self._join(self.path, key)
        return [self._section(key, each, f"{place} number {n}") for n, each in enumerate(value or [], start=1)]

    def note(self, key: str, what: str) -> None:
        """Say something of a key, or with an empty one of the section."""
        self._notes.append(f"{self._join(self.path, key)}: {what}")

    def done(self) -> None:
        """Note what is left, here and within. What is empty or off asks for nothing."""
        for key, value in self._values.items():
            flag = _FLAGS.get(self._join(self._kind, str(key)))
            if value:
                self.note(str(key), f"{NO_COUNTERPART}; see {flag} of `damselfly peer`" if flag else NO_COUNTERPART)
        for section in self._within:
            section.done()

    def _section(self, key: str, value: object, path: str) -> _Section:
        if value is not None and not isinstance(value, dict):
            raise ConfigError(f"{path} is not a mapping; is this Dragonfly's file?")
        section = _Section(path, value or {}, self._notes, self._join(self._kind, key))
        self._within.append(section)
        return section

    @staticmethod
    def _join(path: str, key: str) -> str:
        key = key if key.isprintable() else repr(key)
        return f"{path}.{key}" if path and key else path or key


def _mapping(text: str) -> dict[object, object]:
    try:
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        # Its own text shows the line, which may be the one with the password.
        mark = error.problem_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"the file is not YAML{where}: {error.context or 'it cannot be parsed'}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError("the file is not YAML that can be read") from None
    if not isinstance(values, dict):
        raise ConfigError("the file is not a YAML mapping; give Dragonfly's dfget.yaml or dfdaemon.yaml")
    return values


@dataclass(frozen=True, slots=True)
class _Rule:
    """One `[[rules]]`: its regular expression, the other keys as TOML, and a remark."""

    match: str
    keys: _Keys = field(default_factory=dict)
    remark: str = ""


def _common(proxy: _Section, *, prefetch: bool) -> _Keys:
    """Return what Dragonfly says once for everything, and a rule here for itself."""
    prefetch = proxy.get("prefetch", bool, False) or prefetch
    keys: _Keys = {
        "filters": list(parse_filters([proxy.get("defaultFilter", str, "")])),
        "tag": proxy.get("defaultTag", str, ""),
        "application": proxy.get("defaultApplication", str, ""),
        "prefetch": prefetch,
    }
    return {key: value for key, value in keys.items() if value}


def _rules(proxy: _Section, common: _Keys, notes: list[str]) -> Iterator[_Rule]:
    imported = False
    for section in (*proxy.sections("proxies"), *proxy.sections("rules")):
        pattern = section.get("regx", str, "") or section.get("regex", str, "")
        keys = _rule_keys(section, common)
        if not pattern:
            section.note("", "names no URLs (regx or regex), and is left out")
        elif (wrong := _not_python(pattern)) is not None:
            section.note("regx or regex", f"{wrong}; the rule is left out, and later ones may decide instead of it")
        else:
            if re.search(r":(?:80|443)\b", pattern):
                section.note("", "names a default port, and URLs are matched without it; take it out of `match`")
            imported = imported or keys["action"] == "p2p"
            yield _Rule(pattern, keys)
    if common and not imported:
        notes.append(f"proxy: {', '.join(common)} for all requests is said in P2P rules, of which there is none")


def _rule_keys(section: _Section, common: _Keys) -> _Keys:
    direct = section.get("direct", bool, False)
    tls = section.get("useHTTPS", bool, False) | section.get("useTLS", bool, False)
    keys: _Keys = {"action": "direct" if direct else "p2p"}
    redirect = section.get("redirect", str, "")
    target = _authority(redirect)
    if target is not None:
        keys["redirect"] = target[2]
        tls = tls or (target[1] or "").lower() == "https"
    elif redirect:
        section.note("redirect", "is not a host or host:port alone, which a redirect is here; it is left out")
    if tls:
        keys["tls"] = True
    own = section.texts("filteredQueryParams")
    if direct:
        return keys
    keys |= common
    shared = common.get("filters", [])
    filters = parse_filters([*own, *(shared if isinstance(shared, list) else ())])
    return keys | ({"filters": list(filters)} if filters else {})


def _authority(text: str) -> re.Match[str] | None:
    """Return scheme, authority and port of a host or an http(s) URL without a path, None for anything else."""
    match = _AUTHORITY.fullmatch(text)
    return match if match is not None and 0 < int(match[3] or 1) <= 0xFFFF else None


def _not_python(pattern: str) -> str | None:
    """Return what keeps an expression of RE2 or of Rust's regex from being one of Python's, or None."""
    if "[[:" in pattern:
        return "has a class like [[:alpha:]], which Python's regular expressions do not; write it out"
    try:
        re.compile(pattern)
    except re.error as error:
        return f"is not a regular expression of Python's ({error.msg})"
    return None


def _intercept(proxy: _Section, server: _Section) -> Iterator[_Rule]:
    """Yield rules for CONNECT alone (matched as `https://host[:port]/`): what is asked inside finds its own rule."""
    hijack = proxy.section("hijackHTTPS")
    for key in ("cert", "key"):
        hijack.get(key, str, "")  # the authority, of which ca_dir speaks
    for host in hijack.sections("hosts"):
        regx = host.get("regx", str, "").removeprefix("(?i)")
        body = regx.removeprefix("^")
        before = "" if body != regx else "[^/]*"
        ends = re.search(r"(?<!\\)\$$", body) is not None
        body = body[: -1 if ends else None].removesuffix(":443")
        match = f"(?i)^https://{before}(?:{body}){'' if ends else '[^/]*'}/$"
        wrong = _not_python(match) if regx else "names no hosts"
        if wrong is None:
            yield _Rule(match, {"intercept": True}, "hijackHTTPS")
        else:
            host.note("regx", f"{wrong}; the tunnels to these hosts stay closed")
    if server.get("caCert", str, "") and server.get("caKey", str, ""):
        yield _Rule("^https://[^/]*/$", {"intercept": True}, "proxy.server.caCert: every tunnel is opened")


def _upstream(mirror: _Section) -> str | None:
    if not mirror.get("dynamic", bool, True):
        mirror.note("dynamic", "is off, and cannot be here: clients may always name the registry")
    address = mirror.get("addr", str, "") or mirror.get("url", str, "")
    if not address:
        return None
    if _authority(address) is None:
        mirror.note("url or addr", "is not a host or a URL without a path; it is left out (registry_upstream)")
        return None
    return parse_upstream(address)


def _allow(proxy: _Section) -> list[str] | None:
    """Return the hosts of the white list; None if there is no list, empty if it has none that can be said here."""
    entries = proxy.sections("whiteList")
    hosts = []
    for entry in entries:
        host = entry.get("host", str, "")
        if entry.has("regx"):
            entry.get("regx", object, None)
            entry.note("regx", "is left out; `allow` has host names with *, and networks, so what it allowed is denied")
        if entry.has("ports"):
            entry.get("ports", object, None)
            entry.note("ports", "is left out: the host is allowed with every port (connect_ports is for CONNECT alone)")
        try:
            Guard(allow=(host,) if host else ())
        except ConfigError:
            entry.note("host", "is neither a host name nor a network; it is left out, so the host is denied")
            continue
        if host:
            hosts.append(host)
    return hosts if entries else None


def _user(section: _Section) -> Iterator[str]:
    # Nothing of this may be left out: without users, a proxy serves everybody.
    if section.has("basicAuth"):
        auth = section.section("basicAuth")
        name = auth.get("username", str, "")
        auth.get("password", object, None)
        if not name or ":" in name:
            raise ConfigError(f"{auth.path}.username must be a text without a colon; correct it there first")
        yield name


def _render(
    rules: list[_Rule], upstream: str | None, allow: list[str] | None, users: list[str], *, opens_tls: bool
) -> Iterator[str]:
    yield "# Imported from a Dragonfly configuration, for `damselfly peer --config`."
    for rule in rules:
        yield "\n[[rules]]" + (f"  # {rule.remark}" if rule.remark else "")
        yield f"match = {_expression(rule.match)}"
        yield from (f"{key} = {_value(value)}" for key, value in rule.keys.items())
    yield "\n# URLs that no rule matches went straight to their origin. Here presigned URLs of known object stores go"
    yield "# through P2P all the same; to have it as before, add a last rule: match = '.*', action = \"direct\"."
    if upstream or allow is not None or opens_tls:
        yield "\n[proxy]"
    if upstream:
        yield f"registry_upstream = {_value(upstream)}"
    if allow:
        yield f"allow = {_value(allow)}"
    elif allow is not None:
        yield "# Nothing of the white list could be imported. This name, which nobody has, keeps everything denied."
        yield 'allow = ["white-list.invalid"]'
    if opens_tls:
        yield f"# Copy the authority there as {CA_FILE} and {KEY_FILE}, or make one: damselfly ca init --dir {CA_DIR}"
        yield f"ca_dir = {_value(CA_DIR)}"
    if users:
        yield "\n[proxy.users]"
        yield f"# Put the password, which is not printed, into the file {PASSWORD_FILE} beside this one (mode 0600)."
    yield from (f"{_value(name)} = {{ password_file = {_value(PASSWORD_FILE)} }}" for name in dict.fromkeys(users))
    yield ""


def _expression(pattern: str) -> str:
    """Write a regular expression so that its backslashes stay as they are, where TOML can."""
    return f"'{pattern}'" if "'" not in pattern and pattern.isprintable() else _value(pattern)


def _value(value: str | bool | Iterable[str]) -> str:
    """Write a value as TOML. Its basic strings are JSON's, but for DEL, which it wants escaped."""
    if isinstance(value, str | bool):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return f"[{', '.join(map(_value, value))}]"
