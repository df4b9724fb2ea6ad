"""What a request's `X-Dragonfly-*` headers ask for, beyond what makes its identity (WIRE §3)."""

from __future__ import annotations

from p2p.errors import BadRequestError
from p2p.fields import single
from peer.source.fields import Fields

USE_P2P = "X-Dragonfly-Use-P2P"
PREFETCH = "X-Dragonfly-Prefetch"


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
