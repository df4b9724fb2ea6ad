"""Which way a request goes: through P2P, straight to its origin, or through a tunnel. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote

from p2p.control import Source
from p2p.errors import BadRequestError
from p2p.fields import single, values
from p2p.identity import Task, identify, parse_filters, recognise
from peer.source.fields import REPHRASED, Fields, for_pieces

USE_P2P = "X-Dragonfly-Use-P2P"
FILTERS = ("X-Dragonfly-Filter", "X-Dragonfly-Filtered-Query-Params")
TAG = "X-Dragonfly-Tag"
APPLICATION = "X-Dragonfly-Application"

_ABSOLUTE = re.compile(r"https?://", re.IGNORECASE)
_SIGNED = re.compile(r"SignedHeaders=([^\s,&]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Wanted:
    """An object that goes through P2P: which one, and the caller's own way to its origin."""

    task: Task
    source: Source = field(repr=False)


def route(method: str, target: str, fields: Fields, *, has_body: bool) -> Wanted | None:
    """Return what a request wants through P2P, or None if it is to be forwarded untouched.

    Through P2P go GET and HEAD of presigned URLs; `X-Dragonfly-Use-P2P` overrules that either way. Raises
    BadRequestError for a target that is not absolute, or a header that cannot be understood.
    """
    if _ABSOLUTE.match(target) is None:
        raise BadRequestError(
            "this port is an HTTP proxy, and the request names no origin; use it as one (curl -x, http_proxy=…), "
            "not as the server itself"
        )
    choice = _choice(fields)
    if method not in {"GET", "HEAD"} or has_body or choice is False or _pins_the_request(target, fields):
        return None
    if choice is None:
        found = recognise(target)
        if found is None or not found.presigned:
            return None
    task = identify(
        target,
        filters=parse_filters(value for name in FILTERS for value in values(fields, name)),
        tag=single(fields, TAG) or "",
        application=single(fields, APPLICATION) or "",
    )
    return Wanted(task, Source(target, for_pieces(fields)))


def names_peer(fields: Fields, peer_id: str) -> bool:
    """Tell whether `Via` says that the request has been through this peer before (RFC 9110 §7.6.3)."""
    received_by = (member.split() for value in values(fields, "Via") for member in value.split(","))
    return any(len(words) > 1 and words[1].lower() == peer_id.lower() for words in received_by)


def _choice(fields: Fields) -> bool | None:
    value = single(fields, USE_P2P)
    if value is None:
        return None
    if value.lower() not in {"true", "false"}:
        raise BadRequestError(f"{USE_P2P}: {value!r} is neither true nor false")
    return value.lower() == "true"


def _pins_the_request(target: str, fields: Fields) -> bool:
    """Tell whether a signature covers fields that taking the object in pieces would change (WIRE §4)."""
    texts = (unquote(target.partition("?")[2]), *values(fields, "Authorization"))
    signed = {name.lower() for text in texts for match in _SIGNED.findall(text) for name in match.split(";")}
    return not signed.isdisjoint(REPHRASED)
