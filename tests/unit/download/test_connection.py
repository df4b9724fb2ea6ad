"""The pieces of a transfer that can be looked at alone: pace, the pool, the request's octets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from random import Random

import pytest

from p2p.errors import BadRequestError
from peer.download.connection import (
    AbortedError,
    Answer,
    Connection,
    Endpoint,
    Limits,
    Pace,
    StalledError,
)
from peer.download.origin import endpoint_of, request_head
from peer.download.pool import ConnectionPool

KIB = 1024
LIMITS = Limits(connect_seconds=10, stall_seconds=10, floor_bytes_per_second=100)


def test_a_drip_is_not_progress() -> None:
    pace = Pace(LIMITS, now=0.0)
    assert all(pace.note(1, now=float(second)) for second in range(1, 10))
    assert not pace.note(1, now=10.0)


def test_every_stretch_is_judged_by_itself() -> None:
    pace = Pace(LIMITS, now=0.0)
    assert pace.note(10**9, now=1.0)
    assert pace.note(1, now=10.0)
    assert pace.note(999, now=19.0)
    assert pace.note(1, now=20.0)
    assert not pace.note(999, now=30.5)


async def opened(endpoint: Endpoint, server: socket.socket) -> tuple[Connection, socket.socket]:
    """A connection that has had one exchange, and the other side's end of it."""
    connection = Connection(endpoint, LIMITS)
    loop = asyncio.get_running_loop()
    addresses = await loop.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    asking = loop.run_in_executor(None, connection.ask, addresses, b"GET / HTTP/1.1\r\n\r\n")
    other, _ = await loop.sock_accept(server)
    await loop.sock_sendall(other, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    (await asking).close()
    assert connection.reusable
    return connection, other


@pytest.fixture
def server() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    return listener


async def test_the_pool_is_bounded_in_number(server: socket.socket) -> None:
    here = Endpoint("127.0.0.1", server.getsockname()[1])
    pool = ConnectionPool(per_endpoint=2, total=3, idle_seconds=60)
    ends = []
    with server:
        connections = []
        for _ in range(3):
            connection, end = await opened(here, server)
            connections.append(connection)
            ends.append(end)
            pool.give(connection)
        assert len(pool) == 2
        assert pool.take(Endpoint("127.0.0.1", 1)) is None
        assert pool.take(here) is connections[2]
        ends[1].close()
        assert pool.take(here) is None
        assert len(pool) == 0
        for _ in range(4):
            connection, end = await opened(here, server)
            connection.endpoint = Endpoint(f"host-{len(ends)}", here.port)  # one of many hosts: the bound on all
            ends.append(end)
            pool.give(connection)
        assert len(pool) == 3
    pool.close()
    assert len(pool) == 0
    connections[2].close()
    for end in ends:
        end.close()


async def test_the_pool_is_bounded_in_age(server: socket.socket) -> None:
    pool = ConnectionPool(per_endpoint=2, total=3, idle_seconds=0.02)
    with server:
        connection, end = await opened(Endpoint("127.0.0.1", server.getsockname()[1]), server)
        pool.give(connection)
        end.setblocking(False)
        assert await asyncio.get_running_loop().sock_recv(end, 1024)
        assert await asyncio.get_running_loop().sock_recv(end, 1024) == b""  # ends only when the pool closes its side
        end.close()
    assert len(pool) == 0


@pytest.mark.parametrize(
    ("url", "host", "endpoint"),
    [
        ("http://h:80/", "h", Endpoint("h", 80)),
        ("http://h:443/", "h:443", Endpoint("h", 443)),
        ("https://h:443/", "h", Endpoint("h", 443, tls=True)),
        ("https://h/", "h", Endpoint("h", 443, tls=True)),
        ("http://[::1]:9000/", "[::1]:9000", Endpoint("::1", 9000)),
        ("http://Bucket.S3.example/", "Bucket.S3.example", Endpoint("bucket.s3.example", 80)),
    ],
)
def test_the_host_field_is_the_callers_without_the_default_port(url: str, host: str, endpoint: Endpoint) -> None:
    assert request_head(url, ()) == f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    found = endpoint_of(url)
    assert (found.host.lower(), found.port, found.tls) == (endpoint.host, endpoint.port, endpoint.tls)


@pytest.mark.parametrize("field", [("X", "a\nb"), ("X\r", "a"), ("X", "a\0")])
def test_fields_cannot_smuggle_others(field: tuple[str, str]) -> None:
    with pytest.raises(BadRequestError, match="line break"):
        request_head("http://h/", (field,))


class Feed:
    """The other side of one connection, which says what it is told to."""

    def __init__(self, server: socket.socket) -> None:
        self._server = server
        self.end: socket.socket | None = None

    async def open(self, stall_seconds: float, head: bytes) -> tuple[Connection, Answer]:
        here = Endpoint("127.0.0.1", self._server.getsockname()[1])
        connection = Connection(here, Limits(connect_seconds=10, stall_seconds=stall_seconds))
        loop = asyncio.get_running_loop()
        addresses = await loop.getaddrinfo(here.host, here.port, type=socket.SOCK_STREAM)
        asking = loop.run_in_executor(None, connection.ask, addresses, b"GET / HTTP/1.1\r\n\r\n")
        self.end, _ = await loop.sock_accept(self._server)
        await self.say(head)
        return connection, await asking

    async def say(self, data: bytes) -> None:
        assert self.end is not None
        await asyncio.get_running_loop().sock_sendall(self.end, data)


@pytest.mark.parametrize("length", [1, 8191, 98_304, 240 * KIB, 240 * KIB + 1, 336 * KIB - 1, 3_000_017])
async def test_every_length_is_read_to_its_end_and_not_beyond(server: socket.socket, length: int) -> None:
    content = Random(length).randbytes(length)
    feed = Feed(server)
    with server:
        connection, answer = await feed.open(10, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length)
        loop = asyncio.get_running_loop()
        saying = asyncio.ensure_future(feed.say(content))
        got = bytearray()
        while len(got) < length:
            buffer = memoryview(bytearray(min(240 * KIB, length - len(got))))
            count = await loop.run_in_executor(None, answer.read, buffer)
            got += buffer[:count]
        await saying
        answer.close()
        assert got == content
        assert connection.reusable
        connection.close()
        assert feed.end is not None
        feed.end.close()


async def test_what_came_before_a_stall_is_not_lost(server: socket.socket) -> None:
    content = Random(5).randbytes(1000 * KIB)
    feed = Feed(server)
    with server:
        connection, answer = await feed.open(0.3, b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n")
        loop = asyncio.get_running_loop()
        saying = asyncio.ensure_future(feed.say(content))
        got = bytearray()
        buffer = memoryview(bytearray(240 * KIB))
        while len(got) < len(content):
            count = await loop.run_in_executor(None, answer.read, buffer)
            got += buffer[:count]
        with pytest.raises(StalledError):
            await loop.run_in_executor(None, answer.read, buffer)
        await saying
        assert got == content
        connection.close()
        assert feed.end is not None
        feed.end.close()


async def test_abort_ends_a_read_that_waits_for_a_whole_buffer(server: socket.socket) -> None:
    feed = Feed(server)
    with server:
        connection, answer = await feed.open(60, b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n")
        loop = asyncio.get_running_loop()
        saying = asyncio.ensure_future(feed.say(bytes(500 * KIB)))
        buffer = memoryview(bytearray(240 * KIB))
        assert await loop.run_in_executor(None, answer.read, buffer) == 240 * KIB
        await saying
        assert await loop.run_in_executor(None, answer.read, buffer) == 240 * KIB
        waiting = loop.run_in_executor(None, answer.read, buffer)
        connection.abort()
        with contextlib.suppress(AbortedError):
            # The last 20 KiB may be given before the abort is noticed.
            assert await waiting == 20 * KIB
        connection.close()
        assert feed.end is not None
        feed.end.close()
