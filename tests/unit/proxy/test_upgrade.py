from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from peer.proxy.server import ProxySettings

from ..source.raw_origin import RawOrigin, response
from .front import HOST_ID, Front

SWITCH = ("Connection: Upgrade", "Sec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==")


@asynccontextmanager
async def upgrading(answer: bytes) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Run an origin that switches with `answer`, and then says what it hears in capitals."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        with contextlib.suppress(ConnectionResetError):
            while data := await reader.read(65536):
                writer.write(data.upper())
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], heads


def switching(protocol: str, first: bytes = b"") -> bytes:
    return (
        f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: {protocol}\r\nConnection: upgrade\r\nX-A: 1\r\n\r\n".encode()
        + first
    )


@pytest.mark.parametrize("protocol", ["websocket", "tcp", "example/1"])
async def test_an_upgrade_switches_the_connection_both_ways(front: Front, protocol: str) -> None:
    async with upgrading(switching(protocol, b"hello ")) as (port, heads):
        client = await front.connect()
        await client.send(f"GET http://127.0.0.1:{port}/chat HTTP/1.1", "Host: x", *SWITCH, f"Upgrade: {protocol}")
        head = await client.head()
        assert (head.status, head.field("Upgrade"), head.field("X-A")) == (101, protocol, "1")
        assert (head.field("Connection"), head.field("Content-Length")) == ("Upgrade", None)
        assert await client.reader.readexactly(6) == b"hello "
        # What comes now looks like a request, and is none.
        client.writer.write(b"get http://x/ http/1.1\r\n\r\n")
        assert await client.reader.readexactly(26) == b"GET HTTP://X/ HTTP/1.1\r\n\r\n"
        big = b"x" * 1_000_000
        client.writer.write(big)
        assert await client.reader.readexactly(len(big)) == big.upper()
        client.writer.write_eof()
        assert await client.reader.read() == b""
    lines = heads[0].decode().split("\r\n")
    assert f"Upgrade: {protocol}" in lines
    assert "Sec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==" in lines
    assert f"Via: 1.1 {HOST_ID}" in lines
    await front.server.shutdown(5.0)
    assert not front.server._http.connections


@pytest.mark.parametrize("upgrade", ["websocket", "example/1"])
async def test_an_origin_may_decline_and_the_connection_stays_http(
    front: Front, origin: RawOrigin, upgrade: str
) -> None:
    origin.answer = lambda _: response(200, body=b"no")
    client = await front.connect()
    for _ in range(2):
        await client.send(f"GET {origin.base}/x HTTP/1.1", "Host: x", "Connection: upgrade", f"Upgrade: {upgrade}")
        assert (await client.reply()).body == b"no"
    assert [request.field("Upgrade") for request in origin.requests] == [upgrade] * 2


async def test_h2c_is_not_asked_for(front: Front, origin: RawOrigin) -> None:
    origin.answer = lambda _: response(200, body=b"in HTTP/1.1")
    fields = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQC")
    assert (await front.get(f"{origin.base}/x", *fields)).body == b"in HTTP/1.1"
    names = {name.lower() for name, _ in origin.requests[0].fields}
    assert names.isdisjoint({"upgrade", "http2-settings", "connection"})


async def test_a_switch_that_nobody_asked_for_is_a_502(front: Front) -> None:
    async with upgrading(switching("websocket")) as (port, _):
        reply = await front.get(f"http://127.0.0.1:{port}/x")
    assert (reply.status, reply.field("X-Dragonfly-Error-Type")) == (502, "backend")


async def test_an_upgraded_connection_that_is_silent_is_cut(fronts: Callable[..., Awaitable[Front]]) -> None:
    front = await fronts(ProxySettings(tunnel_idle_seconds=0.01))
    async with upgrading(switching("websocket")) as (port, _):
        client = await front.connect()
        await client.send(f"GET http://127.0.0.1:{port}/chat HTTP/1.1", "Host: x", *SWITCH, "Upgrade: websocket")
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):  # noqa: PT012  # it may come at once
            await client.head()
            await client.reader.readexactly(1)
