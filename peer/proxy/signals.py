"""What a request's `X-Dragonfly-*` headers ask for, beyond what makes its identity (WIRE §3)."""

from __future__ import annotations

from p2p.errors import BadRequestError
from p2p.fields import single
from p2p.linkfile import ASKED
from p2p.telemetry import logger
from p2p.urgency import DEFAULT_PRIORITY, HIGHEST_PRIORITY
from peer.source.fields import Fields

log = logger(__name__)

USE_P2P = "X-Dragonfly-Use-P2P"
PREFETCH = "X-Dragonfly-Prefetch"
PRIORITY = "X-Dragonfly-Priority"


def choice(fields: Fields, name: str) -> bool | None:
    """Return what a header says that is either true or false, None where it is absent. Raises BadRequestError."""
    value = single(fields, name)
    if value is None:
        return None
    if value.lower() not in {"true", "false"}:
        raise BadRequestError(f"{name}: {value!r} is neither true nor false")
    return value.lower() == "true"


def wants_prefetch(fields: Fields, *, by_rule: bool) -> bool:
    """Tell whether the rest of an object is to be fetched after a range of it; the request overrules the rule."""
    chosen = choice(fields, PREFETCH)
    return by_rule if chosen is None else chosen


def wants_file(fields: Fields) -> bool:
    """Tell whether a client asks for the name of the whole object's file instead of bytes. Raises BadRequestError."""
    value = single(fields, ASKED)
    if value not in {None, "1"}:
        raise BadRequestError(f"{ASKED}: {value!r} is not 1")
    return value is not None


def priority(fields: Fields) -> int:
    """Return how urgent a request is, from 0 to 7, the most urgent.

    What is no such number counts as none, as with Dragonfly: a hint is not worth failing a download for.
    """
    value = single(fields, PRIORITY)
    if value is None:
        return DEFAULT_PRIORITY
    if len(value) == 1 and value.isascii() and value.isdigit() and int(value) <= HIGHEST_PRIORITY:
        return int(value)
    log.warning("priority ignored", header=PRIORITY, value=value[:32], taken=DEFAULT_PRIORITY)
    return DEFAULT_PRIORITY
