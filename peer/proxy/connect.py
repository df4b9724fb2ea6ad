"""CONNECT: a blind tunnel between a client and a host; bytes go both ways unseen (RFC 9110 §9.3.6)."""

from __future__ import annotations

import asyncio
from typing import cast

from p2p.config import parse_address
from p2p.errors import BadRequestError, ConfigError, OriginUnreachableError
from peer.proxy.exchange import Exchange, reset

_ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


class _End(asyncio.Protocol):
    """One end of a tunnel: what comes in here goes out at the other end, as fast as that takes it."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.other: _End | None = None
        self.transport: asyncio.Transport | None = None
        self.received = 0
        self.last_active = loop.time()
        self.lost: asyncio.Future[BaseException | None] = loop.create_future()
        self.ended = False
        self._loop = loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep a host that speaks first waiting until there is somebody to listen."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        self.last_active = self._loop.time()
        if (out := self._out()) is not None:
            out.write(data)

    def eof_received(self) -> bool:
        self.ended = True
        out = self._out()
        if out is None or self.other is None or self.other.ended:
            return False
        if out.can_write_eof():
            out.write_eof()
        return True  # keeps this direction's reverse open

    def pause_writing(self) -> None:
        if (source := self._out()) is not None:
            source.pause_reading()

    def resume_writing(self) -> None:
        self.last_active = self._loop.time()
        if (source := self._out()) is not None:
            source.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(error)
        if (out := self._out()) is not None:
            if error is None:
                out.close()
            else:
                reset(out)

    def _out(self) -> asyncio.Transport | None:
        transport = self.other.transport if self.other is not None else None
        return None if transport is None or transport.is_closing() else transport


class _Early:
    """Takes over what aiohttp has read past the head of the CONNECT."""

    def __init__(self) -> None:
        self.data = bytearray()

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """Nothing follows from the end: the transport's new protocol hears of it."""


async def tunnel(exchange: Exchange, *, connect_seconds: float, idle_seconds: float) -> None:
    """Connect the client with the host it names until either side ends, or both are silent for `idle_seconds`.

    Raises BadRequestError for a target that is not host:port, and OriginUnreachableError.
    """
    exchange.step = "connect"
    upstream = await _dial(exchange.target, connect_seconds)
    client = _End()
    try:
        _take_over(exchange, client, upstream)
        await _until_over(client, upstream, idle_seconds)
    except BaseException:
        for end in (client, upstream):
            if end.transport is not None:
                reset(end.transport)
        raise
    finally:
        exchange.keep_alive = False
        exchange.body_bytes = upstream.received
        if upstream.transport is not None:
            upstream.transport.close()


async def _dial(target: str, connect_seconds: float) -> _End:
    try:
        address = parse_address(target)
    except ConfigError as error:
        raise BadRequestError(f"CONNECT: {error}") from error
    if not address.host or not address.port:
        raise BadRequestError(f"CONNECT {target!r} names no host and port")
    try:
        async with asyncio.timeout(connect_seconds):
            _, end = await asyncio.get_running_loop().create_connection(_End, address.host, address.port)
    except TimeoutError:
        raise OriginUnreachableError(f"no connection to {address} within {connect_seconds:g} s") from None
    except OSError as error:
        raise OriginUnreachableError(f"cannot connect to {address}: {error.strerror or error}") from error
    return end


def _take_over(exchange: Exchange, client: _End, upstream: _End) -> None:
    """Take the client's connection away from aiohttp, with every byte that has come on it since the request."""
    transport, handler = exchange.transport, exchange.request.protocol
    early = _Early()
    handler.set_parser(early)  # type: ignore[arg-type]  # only these two methods of a parser are used
    client.transport = transport
    client.other, upstream.other = upstream, client
    transport.set_protocol(client)
    # aiohttp no longer hears of the connection's end; it must, or it would keep it in its list for ever.
    exchange.request.task.add_done_callback(lambda _: handler.connection_lost(None))
    exchange.status = 200
    transport.write(_ESTABLISHED)
    if upstream.transport is not None:
        upstream.transport.write(bytes(early.data))
        upstream.transport.resume_reading()


async def _until_over(client: _End, upstream: _End, idle_seconds: float) -> None:
    loop = asyncio.get_running_loop()
    both = asyncio.gather(client.lost, upstream.lost)
    while True:
        deadline = max(client.last_active, upstream.last_active) + idle_seconds
        if deadline <= loop.time():
            raise ConnectionAbortedError(f"the tunnel was silent for {idle_seconds:g} s")
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.shield(both)
        except TimeoutError:
            continue
        return
