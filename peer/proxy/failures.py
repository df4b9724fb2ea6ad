"""What a client is told when something fails: a status, and a small body that names the step (WIRE §1, §4)."""

from __future__ import annotations

from http import HTTPStatus

from p2p.errors import (
    BadRequestError,
    CredentialsError,
    DamselflyError,
    DeniedError,
    DigestMismatchError,
    ErrorType,
    OriginError,
    OriginRefusedError,
    OriginStalledError,
    RangeNotSatisfiableError,
    StoppingError,
)
from p2p.ranges import format_content_range
from peer.proxy.access import CHALLENGE, ProxyAuthenticationError
from peer.proxy.exchange import Exchange
from peer.source.fields import Fields


class LoopDetectedError(DamselflyError):
    """The request has been through this peer before (HTTP 508)."""

    error_type = ErrorType.PROXY


class UnexpectedError(DamselflyError):
    """A defect; its story is in the log, and no business of the client."""


_STATUSES: tuple[tuple[type[DamselflyError], HTTPStatus], ...] = (
    (BadRequestError, HTTPStatus.BAD_REQUEST),
    (RangeNotSatisfiableError, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE),
    (ProxyAuthenticationError, HTTPStatus.PROXY_AUTHENTICATION_REQUIRED),
    (DeniedError, HTTPStatus.FORBIDDEN),
    (LoopDetectedError, HTTPStatus.LOOP_DETECTED),
    (OriginStalledError, HTTPStatus.GATEWAY_TIMEOUT),
    (OriginError, HTTPStatus.BAD_GATEWAY),
    (DigestMismatchError, HTTPStatus.BAD_GATEWAY),
    (StoppingError, HTTPStatus.SERVICE_UNAVAILABLE),
)


def status_of(error: DamselflyError) -> int:
    """Return the status for an error; 500 for what is Damselfly's own fault."""
    if isinstance(error, OriginRefusedError | CredentialsError):
        return error.status
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)


async def fail(exchange: Exchange, error: DamselflyError, fields: Fields) -> None:
    """Tell the client that its request failed, in the way it understands; `fields` go with a readable answer.

    A response that has begun, and a client that ignores statuses or is taken for one, can only be told by a reset.
    """
    if exchange.head_sent or exchange.told_by_reset:
        exchange.reset()
        return
    status = status_of(error)
    lines = [f"damselfly: {status} while in step {exchange.step!r}: {error}"]
    if exchange.task_id:
        lines.append(f"task: {exchange.task_id}")
    fields += (("Content-Type", "text/plain; charset=utf-8"), ("X-Dragonfly-Error-Type", error.error_type))
    if isinstance(error, RangeNotSatisfiableError):
        fields += (("Content-Range", format_content_range(None, error.length)),)
    if isinstance(error, StoppingError):
        fields += (("Retry-After", "1"),)
    if exchange.request.body_exists and not exchange.request.content.is_eof():
        exchange.keep_alive = False
    hop = CHALLENGE if isinstance(error, ProxyAuthenticationError) else ()
    await exchange.send_whole(status, fields, ("\n".join(lines) + "\n").encode("utf-8", "replace"), hop=hop)
