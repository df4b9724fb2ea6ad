"""The pieces of a transfer that can be looked at alone: pace, the pool, the request's octets."""

from __future__ import annotations

import asyncio
import socket

import pytest

from p2p.errors import BadRequestError
from peer.download.connection import Connection, Endpoint, Limits, Pace
from peer.download.origin import endpoint_of, request_head
from peer.download.pool import ConnectionPool

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
