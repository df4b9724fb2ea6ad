"""Interception: the TLS inside of a CONNECT is opened, and what is asked there goes the way of every other request.

The client's connection is handed over from aiohttp's handler of the CONNECT to a new one on top of TLS. That one knows
which tunnel it is in: its requests in origin form become `https://host:port/target`, and what kind of client sends
them is told by the CONNECT.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from p2p.config import Address
from p2p.errors import BadRequestError, ConfigError
from p2p.tls import CertificateAuthority, LeafContexts
from peer.core.rules import Rules
from peer.proxy.connection import Connection
from peer.proxy.exchange import Exchange, Inside
from peer.proxy.relay import detach, take_early

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


class _InsideHandler(Connection):
    """Serves one opened tunnel."""

    __slots__ = ("inside",)

    def __init__(self, server: web.Server, inside: Inside, **options: Any) -> None:
        super().__init__(server, **options)
        self.inside = inside


class HttpServer(web.Server):
    """aiohttp's server of connections, and of opened tunnels with the same handler and options."""

    def __init__(self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], **options: Any) -> None:
        super().__init__(handler, handler_cancellation=True, **options)
        self._options = options

    def __call__(self) -> web.RequestHandler:
        """Return the protocol of a new connection."""
        return Connection(self, **self._options)

    def inside_handler(self, inside: Inside) -> web.RequestHandler:
        """Return a protocol that serves the requests of one opened tunnel."""
        return _InsideHandler(self, inside, **self._options)


def inside_of(request: web.BaseRequest) -> Inside | None:
    """Return the tunnel that a request came through, or None if it came openly."""
    handler = request.protocol
    return handler.inside if isinstance(handler, _InsideHandler) else None


class Interceptor:
    """Opens tunnels with leaves of one authority. A client has `handshake_seconds` for its part of TLS's handshake."""

    def __init__(self, authority: CertificateAuthority, server: HttpServer, *, handshake_seconds: float) -> None:
        self._leaves = LeafContexts(authority)
        self._server = server
        self._handshake_seconds = handshake_seconds

    async def open(self, exchange: Exchange, address: Address) -> None:
        """Answer a CONNECT to `address` and hand the connection over; returns when TLS stands, and with that is over.

        Raises BadRequestError for a client that does not wait for the answer, and ConnectionError when there is no
        handshake, most likely because it does not trust the authority.
        """
        exchange.step = "intercept"
        context = self._leaves.get(address.host, now=datetime.now(UTC))
        transport, handler = exchange.transport, exchange.request.protocol
        exchange.keep_alive = False
        if take_early(exchange):
            raise BadRequestError("bytes came before the answer to CONNECT; wait for it")
        exchange.status = 200
        transport.write(ESTABLISHED)
        # From here on the connection is TLS's: aiohttp's handler of the CONNECT must neither close nor reset it.
        handler.transport = None
        detach(exchange)
        inside = self._server.inside_handler(Inside(_authority(address), exchange.ignores_status))
        try:
            secure = await asyncio.get_running_loop().start_tls(
                transport, inside, context, server_side=True, ssl_handshake_timeout=self._handshake_seconds
            )
        except (OSError, TimeoutError) as error:
            raise ConnectionAbortedError(
                f"no TLS with the client for {address} ({_reason(error)}); does it trust the authority in --ca-dir?"
            ) from None
        if secure is not None and not secure.is_closing():
            inside.connection_made(secure)


def require_authority(rules: Rules, authority: CertificateAuthority | None) -> None:
    """Raise ConfigError if one of `rules` says to open TLS and there is nothing to do so with."""
    for rule in rules if authority is None else ():
        if rule.intercept:
            raise ConfigError(
                f"the rule {rule.pattern.pattern!r} says intercept, and there is no authority to do so with; make one "
                "with `damselfly ca init --dir DIR` and give it as --ca-dir DIR"
            )


def _authority(address: Address) -> str:
    return str(address).removesuffix(":443")


def _reason(error: OSError) -> str:
    return (error.reason if isinstance(error, ssl.SSLError) else error.strerror) or type(error).__name__
