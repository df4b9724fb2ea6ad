"""Which header fields travel from a caller to the origin, and which stop here (RFC 9110 §7.6.1, WIRE §3 and §4).

Fields are pairs in the order they came; names are compared without regard to case.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from p2p.fields import http_date, single

Fields = tuple[tuple[str, str], ...]

HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "http2-settings", "proxy-connection"}
)
"""Fields of one connection; those that `Connection` names come on top."""

_CONDITIONAL = frozenset({"if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "if-range"})

REPHRASED = _CONDITIONAL | {"range", "accept-encoding", "expect", "content-length", "content-type", "content-encoding"}
"""Request fields that Damselfly writes itself, or leaves out, when it takes an object in pieces."""

_PORTABLE = frozenset({"accept", "accept-language", "user-agent", "range", "accept-encoding", "via"}) | _CONDITIONAL
"""Request fields that cannot carry a secret: the only ones that follow a redirect to another host."""


def end_to_end(fields: Iterable[tuple[str, str]]) -> Fields:
    """Return the fields without those of the connection they came on, `Proxy-*` included."""
    fields = tuple(fields)
    named = {
        token.strip().lower() for name, value in fields if name.lower() == "connection" for token in value.split(",")
    }
    stopped = HOP_BY_HOP | named
    return tuple(
        (name, value) for name, value in fields if name.lower() not in stopped and not name.lower().startswith("proxy-")
    )


def for_origin(fields: Iterable[tuple[str, str]]) -> Fields:
    """Return the request fields that an origin may see; `Host` follows from the URL and is left out."""
    return tuple(
        (name, value)
        for name, value in end_to_end(fields)
        if name.lower() != "host" and not name.lower().startswith(("x-dragonfly-", "x-damselfly-"))
    )


def for_pieces(fields: Iterable[tuple[str, str]]) -> Fields:
    """Return the request fields that go with every ranged request for an object's pieces."""
    return tuple((name, value) for name, value in for_origin(fields) if name.lower() not in REPHRASED)


def across_hosts(fields: Iterable[tuple[str, str]]) -> Fields:
    """Return the request fields that may follow a redirect to another host."""
    return tuple((name, value) for name, value in fields if name.lower() in _PORTABLE)


def retry_after(fields: Fields) -> float:
    """Return the seconds of a `Retry-After` (RFC 9110 §10.2.3), 0 without one; a date counts from `Date`."""
    field = single(fields, "retry-after") or ""
    if re.fullmatch(r"[0-9]{1,9}", field):
        return float(field)
    until, now = http_date(field), http_date(single(fields, "date") or "")
    return float(max(0, until - now)) if until is not None and now is not None else 0.0
