"""A client's connection: how long the head of a request may take, and what becomes of one that cannot be understood.

aiohttp reads the requests, and strictly (RFC 9112 §2.2, §5, §6, §7); here stand the limit and refusals that are ours.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from aiohttp import StreamReader, web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestPayloadError, _ErrInfo

from p2p.errors import BadRequestError, ErrorType
from p2p.telemetry import logger
from peer.proxy import metrics
from peer.proxy.exchange import Answered, Exchange, Route

log = logger(__name__)

_TEXTS = {
    HTTPStatus.BAD_REQUEST: "the request cannot be understood: it is not HTTP/1.1, or can be read in two ways",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "a line of the request's head is too long",
}


class Connection(web.RequestHandler):
    """One client's connection.

    A request's head has to be complete `head_seconds` after its first octet: aiohttp knows only for how long a
    connection may be idle, and takes a head that comes octet by octet for idleness.

    A body that turns out to be unreadable ends with RequestPayloadError for whoever reads it: aiohttp only queues its
    refusal as if it were the next request, behind the very one that waits for the rest of the body.
    """

    __slots__ = ("_head_seconds", "_head_timer", "_incoming")

    def __init__(self, server: web.Server, *, head_seconds: float, **options: Any) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self._head_seconds = head_seconds
        self._head_timer: asyncio.TimerHandle | None = None
        self._incoming: StreamReader | None = None

    def data_received(self, data: bytes) -> None:
        """Take octets; the first of a head starts its clock, the last stops it."""
        super().data_received(data)
        if self._messages:
            message, body = self._messages[-1]
            if isinstance(message, _ErrInfo):
                self._break_off()
            else:
                self._incoming = body
        if not self._awaits_head():
            self._stop_clock()
        elif data and self._head_timer is None:
            self._head_timer = self._loop.call_later(self._head_seconds, self._late)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Let go of everything."""
        self._stop_clock()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Refuse what aiohttp could not read. Its own text stays unsaid: it quotes the line, which may be a secret."""
        self.logger.warning("request not understood", exc_info=exc)
        metrics.REQUESTS.labels(Route.REJECT, "refused").inc()
        refusal = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if isinstance(exc, LineTooLong) else HTTPStatus(status)
        if self.transport is not None:
            body = f"damselfly: {refusal.value}: {_TEXTS.get(refusal, refusal.phrase)}\n".encode()
            lines = (
                f"HTTP/1.1 {refusal.value} {refusal.phrase}",
                "Content-Type: text/plain; charset=utf-8",
                f"X-Dragonfly-Error-Type: {ErrorType.PROXY}",
                f"Content-Length: {len(body)}",
                "Connection: close",
            )
            self.transport.write("\r\n".join((*lines, "", "")).encode() + body)
        return Answered(keep_alive=False)

    def _break_off(self) -> None:
        """Fail the body that octets were for which cannot be read, if they were for one."""
        if self._incoming is not None and not self._incoming.is_eof():
            self._incoming.set_exception(RequestPayloadError("the rest of the body cannot be read"))
        self._incoming = None

    def _awaits_head(self) -> bool:
        return self._waiter is not None and not self._waiter.done()

    def _late(self) -> None:
        self._head_timer = None
        if self._awaits_head():
            # Without an answer: a client that takes any body for what it asked for must see an error (WIRE §1).
            log.info("the head of a request did not come in time", seconds=self._head_seconds)
            self.force_close()

    def _stop_clock(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def require_one_meaning(exchange: Exchange) -> None:
    """Refuse a request that another reader could take for a different one, and end its connection.

    The parser refuses nearly all of them; it lets through a repeated Host (RFC 9112 §3.2), and transfer codings besides
    `chunked`, whose body would reach the origin without the field that explains it (§6.1). Raises BadRequestError.
    """
    headers, version = exchange.request.headers, exchange.request.version
    codings = [coding.lower() for coding in headers.getall("Transfer-Encoding", [])]
    if codings and (codings != ["chunked"] or version < (1, 1)):
        exchange.keep_alive = False
        raise BadRequestError("Transfer-Encoding: only 'chunked' is understood, given once, in HTTP/1.1")
    if len(headers.getall("Host", [])) > 1:
        exchange.keep_alive = False
        raise BadRequestError("the request has several Host fields; send one")
