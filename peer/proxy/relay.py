"""Relaying: once a connection is no longer HTTP's (a tunnel, an upgrade), bytes go both ways unseen."""

from __future__ import annotations

import asyncio
from typing import cast

from peer.proxy.exchange import Exchange, reset


class End(asyncio.Protocol):
    """One end of a relay: what comes in here goes out at the other end, as fast as that takes it."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.other: End | None = None
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
        """Pass bytes on."""
        self.received += len(data)
        self.last_active = self._loop.time()
        if (out := self._out()) is not None:
            out.write(data)

    def eof_received(self) -> bool:
        """Pass the end of this direction on, and keep the other one open where that can be said."""
        self.ended = True
        out = self._out()
        if out is None or self.other is None or self.other.ended:
            return False
        if self.transport is None or not (out.can_write_eof() and self.transport.can_write_eof()):
            return False  # TLS knows no half of an end
        out.write_eof()
        return True  # keeps this direction's reverse open

    def pause_writing(self) -> None:
        """Take no more from the other side than this one takes."""
        if (source := self._out()) is not None:
            source.pause_reading()

    def resume_writing(self) -> None:
        """Take more from the other side."""
        self.last_active = self._loop.time()
        if (source := self._out()) is not None:
            source.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        """End the other side in the same way."""
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


class Early:
    """Takes over what aiohttp has read past the end of HTTP: stands in for the parser of what follows."""

    def __init__(self) -> None:
        self.data = bytearray()

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Keep bytes."""
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """Nothing follows from the end: the transport's new protocol hears of it."""


def take_early(exchange: Exchange) -> bytes:
    """Make aiohttp stop parsing the client's connection; return what has come on it since the request."""
    early = Early()
    exchange.request.protocol.set_parser(early)  # type: ignore[arg-type]  # only these two methods of a parser are used
    return bytes(early.data)


def detach(exchange: Exchange) -> None:
    """Have aiohttp forget the client's connection once the exchange is over, as if it had ended.

    It no longer hears of the connection's real end; it must, or it would keep it in its list for ever.
    """
    handler = exchange.request.protocol
    exchange.keep_alive = False
    exchange.request.content.feed_eof()  # nobody is to wait for the rest of a body that is none
    exchange.request.task.add_done_callback(lambda _: handler.connection_lost(None))


async def relay(exchange: Exchange, upstream: End, head: bytes, *, first: bytes = b"", idle_seconds: float) -> None:
    """Answer with `head` and `first`, the host's first bytes; then relay until both sides have ended.

    Raises ConnectionError when both are silent for `idle_seconds`. Whatever it raises, both connections are reset.
    """
    client = End()
    try:
        client.transport = exchange.transport
        early = take_early(exchange)
        client.other, upstream.other = upstream, client
        client.transport.set_protocol(client)
        detach(exchange)
        client.transport.write(head + first)
        if upstream.transport is not None:
            if early:
                upstream.transport.write(early)
            upstream.transport.resume_reading()
        await _until_over(client, upstream, idle_seconds)
    except BaseException:
        for end in (client, upstream):
            if end.transport is not None:
                reset(end.transport)
        raise
    finally:
        exchange.body_bytes = upstream.received + len(first)
        if upstream.transport is not None:
            upstream.transport.close()


async def _until_over(client: End, upstream: End, idle_seconds: float) -> None:
    loop = asyncio.get_running_loop()
    both = asyncio.gather(client.lost, upstream.lost)
    while True:
        deadline = max(client.last_active, upstream.last_active) + idle_seconds
        if deadline <= loop.time():
            raise ConnectionAbortedError(f"nothing went either way for {idle_seconds:g} s")
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.shield(both)
        except TimeoutError:
            continue
        return
