"""One blocking HTTP/1.1 connection for a worker thread, and the pool of the idle ones.

Blocking, because a thread that reads, hashes and writes 256 KiB at a time, each step without the GIL and the bytes
still in the CPU's cache, costs less than anything that hands buffers over to the event loop and back. The request is
written octet by octet; the answer's head and framing are `http.client`'s.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from prometheus_client import Counter

from p2p.telemetry import REGISTRY

DRAINED_BYTES = 64 * 1024
"""A refusal's body up to this long is read to its end, so that the connection can be kept."""

_CONNECTIONS = Counter(
    "damselfly_transfer_exchanges",
    "Requests to origins and parents, by the connection they went over (fresh, kept).",
    ["connection"],
    registry=REGISTRY,
)

AddressInfo = tuple[int, int, int, str, Any]
"""One answer of getaddrinfo: family, type, protocol, canonical name, address."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a connection leads; `ca_file` names who vouches for it, besides those that do for every origin."""

    host: str
    port: int
    tls: bool = False
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """When to give a connection up; seconds, and bytes a second.

    Silence for `stall_seconds` ends an exchange, and so does a stretch of that length that brought less than
    `floor_bytes_per_second`: a byte now and then is not progress.
    """

    connect_seconds: float
    stall_seconds: float
    floor_bytes_per_second: float = 4096.0


class ExchangeError(Exception):
    """An exchange came to nothing; the text is fit for a log."""


class ConnectError(ExchangeError):
    """No connection could be made."""


class BrokenError(ExchangeError):
    """The connection broke, or what came over it is not HTTP."""


class StaleError(BrokenError):
    """A kept connection broke before a byte of the answer had come: the other side may never have seen the request."""


class StalledError(ExchangeError):
    """The other side sent nothing, or next to nothing, within the progress deadline."""


class AbortedError(ExchangeError):
    """`Connection.abort` was called."""


class Pace:
    """Judges progress: every stretch of `stall_seconds` must bring its share of bytes. Times are seconds."""

    __slots__ = ("_bytes", "_floor", "_since", "_stretch")

    def __init__(self, limits: Limits, *, now: float) -> None:
        self._floor = limits.floor_bytes_per_second
        self._stretch = limits.stall_seconds
        self._since = now
        self._bytes = 0

    def note(self, count: int, *, now: float) -> bool:
        """Take note of `count` bytes; return False if the stretch that ends with them brought too few."""
        self._bytes += count
        elapsed = now - self._since
        if elapsed < self._stretch:
            return True
        enough = self._bytes >= self._floor * elapsed
        self._since, self._bytes = now, 0
        return enough


class _Incoming(io.RawIOBase):
    """The receiving half of a socket during one exchange. `makefile` makes it a socket in the eyes of HTTPResponse."""

    def __init__(self, sock: socket.socket, limits: Limits) -> None:
        self._socket = sock
        self._limits = limits
        self.received = 0
        self.expect_body()

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def expect_body(self) -> None:
        """Judge the pace from here: how long the other side thought about its answer does not count."""
        self._pace = Pace(self._limits, now=time.monotonic())

    def readinto(self, buffer: Any) -> int:
        count = self._socket.recv_into(buffer)
        self.received += count
        if count and not self._pace.note(count, now=time.monotonic()):
            raise StalledError(f"less than {self._limits.floor_bytes_per_second:g} bytes a second came")
        return count


class Connection:
    """A connection to one endpoint. One thread at a time works with it; `abort` may come from any other."""

    def __init__(self, endpoint: Endpoint, limits: Limits, tls: ssl.SSLContext | None = None) -> None:
        self.endpoint = endpoint
        self.idle_since = 0.0
        self.reusable = False
        self._limits = limits
        self._tls = tls
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._aborted = False

    def ask(self, addresses: Sequence[AddressInfo], head: bytes) -> Answer:
        """Send a request and return its answer, the head read and the body not; blocks.

        `addresses` are the endpoint's; a connection that is open does not need them. Raises ExchangeError kinds.
        """
        kept = self._socket is not None
        self.reusable = False
        if not kept:
            self._connect(addresses)
        _CONNECTIONS.labels("kept" if kept else "fresh").inc()
        assert self._socket is not None
        incoming = _Incoming(self._socket, self._limits)
        try:
            with self.errors():
                self._socket.sendall(head)
                response = http.client.HTTPResponse(cast(socket.socket, incoming), method="GET")
                response.begin()
        except BrokenError as error:
            if kept and not incoming.received:
                raise StaleError(str(error)) from None
            raise
        incoming.expect_body()
        return Answer(self, response)

    def _connect(self, addresses: Sequence[AddressInfo]) -> None:
        deadline = time.monotonic() + self._limits.connect_seconds
        reason = "its name has no address"
        for family, kind, protocol, _, address in addresses:
            sock = socket.socket(family, kind, protocol)
            self._attach(sock)
            try:
                sock.settimeout(max(0.001, deadline - time.monotonic()))
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._tls is not None:
                    # The handshake comes after the attaching: an abort must find the socket that is being waited for.
                    sock = self._tls.wrap_socket(
                        sock, server_hostname=self.endpoint.host, do_handshake_on_connect=False
                    )
                    self._attach(sock)
                    sock.do_handshake()
                sock.settimeout(self._limits.stall_seconds)
            except (OSError, ValueError) as error:  # ValueError: a name that cannot be in a certificate
                self.close()
                reason = _reason(error)
            else:
                return
        self._check_aborted()
        raise ConnectError(f"no connection: {reason}")

    def _attach(self, sock: socket.socket) -> None:
        with self._lock:
            self._socket = sock
        if self._aborted:
            self.close()
        self._check_aborted()

    def _check_aborted(self) -> None:
        if self._aborted:
            raise AbortedError("aborted")

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what sockets and http.client raise into ExchangeError kinds, without texts that may quote secrets."""
        try:
            yield
        except (OSError, http.client.HTTPException, ExchangeError) as error:
            self._check_aborted()
            if isinstance(error, ExchangeError):
                raise
            if isinstance(error, TimeoutError):
                raise StalledError(f"nothing came for {self._limits.stall_seconds:g} s") from None
            raise BrokenError(f"the connection broke: {_reason(error)}") from None

    def is_quiet(self) -> bool:
        """Tell whether an idle connection is as it was left: not closed by the other side, and nothing unasked came."""
        if self._socket is None:
            return False
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    def abort(self) -> None:
        """End whatever a thread is waiting for on this connection, now and later; from any thread."""
        with self._lock:
            self._aborted = True
            if self._socket is not None:
                with suppress(OSError):
                    # Not SSLSocket's own: that would take the TLS state away under the thread that is using it.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket; no thread may be at work with it."""
        with self._lock:
            sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()


class Answer:
    """An answer whose head has been read. Used by one thread, and closed by it."""

    def __init__(self, connection: Connection, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = tuple(response.getheaders())
        self._connection = connection
        self._response = response

    def read_exactly(self, view: memoryview) -> None:
        """Fill `view` with the next bytes of the body; blocks. Raises ExchangeError kinds, also when the body ends."""
        with self._connection.errors():
            if self._response.readinto(view) < len(view):
                raise BrokenError("the answer ended early")

    def skip(self) -> None:
        """Read the rest of a short body and forget it; a long one costs the connection instead."""
        length = self._response.length
        if length is not None and 0 < length <= DRAINED_BYTES:
            with suppress(ExchangeError), self._connection.errors():
                self._response.read()

    def close(self) -> None:
        """Let go of the answer; the connection is reusable if the body has been read to its end."""
        # Chunks have no length; the last of them may be unread.
        self._connection.reusable = self._response.length == 0 and not self._response.will_close
        self._response.close()


class ConnectionPool:
    """Idle connections, bounded in number and age. Belongs to the event loop."""

    def __init__(self, *, per_endpoint: int, total: int, idle_seconds: float) -> None:
        self._per_endpoint = per_endpoint
        self._total = total
        self._idle_seconds = idle_seconds
        self._idle: list[Connection] = []  # the one that has been idle for longest first
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._idle)

    def take(self, endpoint: Endpoint) -> Connection | None:
        """Return the connection to `endpoint` that was used last, unless the other side has ended it."""
        for connection in reversed(self._idle):
            if connection.endpoint == endpoint:
                self._idle.remove(connection)
                if connection.is_quiet():
                    return connection
                connection.close()
        return None

    def give(self, connection: Connection) -> None:
        """Keep a connection for the next exchange; too many cost the one that has been idle for longest."""
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._idle.append(connection)
        siblings = [other for other in self._idle if other.endpoint == connection.endpoint]
        if len(siblings) > self._per_endpoint:
            self._drop(siblings[0])
        if len(self._idle) > self._total:
            self._drop(self._idle[0])
        if self._timer is None:
            self._timer = loop.call_later(self._idle_seconds, self._sweep, loop)

    def close(self) -> None:
        """Close every idle connection."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._idle:
            self._drop(self._idle[0])

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        while self._idle and self._idle[0].idle_since + self._idle_seconds <= loop.time():
            self._drop(self._idle[0])
        if self._idle:
            self._timer = loop.call_at(self._idle[0].idle_since + self._idle_seconds, self._sweep, loop)

    def _drop(self, connection: Connection) -> None:
        self._idle.remove(connection)
        connection.close()


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate cannot be verified ({error.verify_message}); "
            "a private authority goes into --origin-ca-file, or a rule's ca_file"
        )
    if isinstance(error, TimeoutError):
        return "nothing came within the deadline"
    if isinstance(error, http.client.RemoteDisconnected):
        return "it was closed without an answer"
    if isinstance(error, http.client.HTTPException):
        return f"what came is not HTTP ({type(error).__name__})"
    return getattr(error, "strerror", None) or type(error).__name__
