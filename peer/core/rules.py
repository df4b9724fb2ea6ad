"""Rules: what the operator wants done with which URLs.

A rule is chosen by an unanchored regular expression on the full URL (see `comparable`); the first that matches wins,
and without one the defaults below hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from p2p.stores import Store


class Action(StrEnum):
    """Where a request goes. AUTO: through P2P if the URL is a presigned one of a known store, else straight on."""

    AUTO = "auto"
    P2P = "p2p"
    DIRECT = "direct"
    DENY = "deny"


class StaleIfError(StrEnum):
    """Who may have cached bytes while the origin cannot be asked: nobody, whoever it allowed before, anybody."""

    OFF = "off"
    SAME_CREDENTIAL = "same_credential"
    ANY = "any"


class Errors(StrEnum):
    """How failures are told. AUTO: a reset to clients of the kind that ignores statuses (WIRE §1), else a status."""

    AUTO = "auto"
    STATUS = "status"
    RESET = "reset"


class Credentials(StrEnum):
    """Whose credentials an origin is asked with: the caller's, or those that the operator gave the seeds."""

    CALLER = "caller"
    SEED = "seed"


@dataclass(frozen=True, slots=True)
class Rule:
    """What is done with the URLs that `pattern` finds. Times in seconds.

    `revalidate`: how old the origin's last word on a version may be (0: every request asks; infinity: never again).
    `authorize_ttl`: how long the origin's leave is remembered for exactly the credential that got it, never past the
    URL's own expiry. `redirect`: the origin's authority ("host" or "host:port") to ask instead. `tls`: ask by https.
    `store`: what is asked with the seeds' `credentials`, where neither the host nor a signature tells.
    """

    pattern: re.Pattern[str] = re.compile("")
    action: Action = Action.AUTO
    redirect: str | None = None
    tls: bool = False
    filters: tuple[str, ...] = ()
    tag: str | None = None
    application: str | None = None
    revalidate: float = 0.0
    authorize_ttl: float = 0.0
    stale_if_error: StaleIfError = StaleIfError.OFF
    errors: Errors = Errors.AUTO
    prefetch: bool = False
    intercept: bool = False
    ca_file: Path | None = None
    credentials: Credentials = Credentials.CALLER
    store: Store | None = None


DEFAULT_RULE = Rule()


_URL = re.compile(r"(https?)://([^/?#]*)/?(.*)", re.IGNORECASE | re.DOTALL)
_PORTS = {"http": ":80", "https": ":443"}


def comparable(url: str) -> str:
    """Return a URL with one spelling for what has several and means the same, so that none slips past a rule.

    Scheme and host are in lower case, the default port, a user and a final dot of the host are gone, and there is a
    path. The path and the query stay as they came.
    """
    match = _URL.fullmatch(url)
    if match is None:
        return url
    scheme = match[1].lower()
    authority = match[2].rpartition("@")[2].lower().removesuffix(_PORTS[scheme]).removesuffix(":")
    host, colon, port = authority.partition(":") if not authority.startswith("[") else (authority, "", "")
    return f"{scheme}://{host.rstrip('.')}{colon}{port}/{match[3]}"


class Rules:
    """An ordered list of rules."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self._rules = tuple(rules)

    def match(self, url: str) -> Rule:
        """Return the first rule whose pattern is found in `url` as `comparable` writes it, or the defaults."""
        if not self._rules:
            return DEFAULT_RULE
        url = comparable(url)
        return next((rule for rule in self._rules if rule.pattern.search(url)), DEFAULT_RULE)

    def __iter__(self) -> Iterator[Rule]:
        return iter(self._rules)
