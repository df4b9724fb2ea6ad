"""One blocking HTTP/1.1 connection for a worker thread.

Blocking, because a thread that reads, hashes and writes a buffer at a time, each step without the GIL and the bytes
still in the CPU's cache, costs less than anything that hands buffers over to the event loop and back. The request is
written octet by octet; the answer's head and framing are `http.client`'s.
"""

from __future__ import annotations

import http.client
import io
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, cast

from prometheus_client import Counter

from p2p.mtls import REMEDY, explain
from p2p.telemetry import REGISTRY
from peer.download.tls import RECORD_BYTES, TlsStream

DRAINED_BYTES = 64 * 1024
"""A refusal's body up to this long is read to its end, so that the connection can be kept."""

PATIENT_SECONDS = 0.1
"""For how long a read of the body waits in the kernel until all that it asked for has come: each wake-up of a thread
costs several times what is done with the bytes, and takes the GIL from another."""

LOW_WATER_BYTES = 96 * 1024
"""Such a read is woken for no less, but for the end of what is sure to come."""

_HEAD_BUFFER_BYTES = 8192

_CONNECTIONS = Counter(
    "damselfly_transfer_exchanges",
    "Requests to origins and parents, by the connection they went over (fresh, kept).",
    ["connection"],
    registry=REGISTRY,
)

_FRESH, _KEPT = _CONNECTIONS.labels("fresh"), _CONNECTIONS.labels("kept")

AddressInfo = tuple[int, int, int, str, Any]
"""One answer of getaddrinfo: family, type, protocol, canonical name, address."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a connection leads: to a member of the cluster, or to an origin.

    `ca_file` names who vouches for an origin, besides those that do for every one.
    """

    host: str
    port: int
    tls: bool = False
    ca_file: Path | None = None
    member: bool = False


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


@dataclass(slots=True)
class Progress:
    """How an exchange is getting on; its thread writes it, and others may look. Times are monotonic seconds.

    Only waiting for the other side counts as its time: a slow disk on this one is no stall. `waiting_since` is
    infinity while nothing is waited for; `first_byte` is how long the answer took to begin, -1 before it has.
    `longest_gap` and `waited` are those within the answer, `address` is where the connection leads to.
    """

    waiting_since: float = inf
    first_byte: float = -1.0
    longest_gap: float = 0.0
    waited: float = 0.0
    received: int = 0
    address: Any = None

    def got(self, count: int, now: float) -> None:
        """Take note of `count` bytes that end the waiting."""
        gap, self.waiting_since = now - self.waiting_since, inf
        if self.first_byte < 0:
            self.first_byte = gap
        else:
            self.longest_gap = max(self.longest_gap, gap)
            self.waited += gap
        self.received += count


class _Incoming(io.RawIOBase):
    """The receiving half of a socket during one exchange. `makefile` makes it a socket in the eyes of HTTPResponse."""

    def __init__(self, sock: socket.socket, stream: TlsStream | None, limits: Limits, progress: Progress) -> None:
        self._socket = sock
        self._stream = stream
        self._limits = limits
        self._progress = progress
        self._low_water = 1
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)
        self.received = 0
        self.coming = 0
        """How many bytes the other side is sure to send if nothing breaks; the reader of the body says so."""
        self.expect_body()

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self, _HEAD_BUFFER_BYTES)

    def readable(self) -> bool:
        return True

    def expect_body(self) -> None:
        """Judge the pace from here: how long the other side thought about its answer does not count."""
        self._pace = Pace(self._limits, now=time.monotonic())

    def readinto(self, buffer: Any) -> int:
        # The wait for the answer began when its request was sent.
        self._progress.waiting_since = min(self._progress.waiting_since, time.monotonic())
        count = self._receive(buffer)
        now = time.monotonic()
        self.received += count
        self._progress.got(count, now)
        if count and not self._pace.note(count, now=now):
            raise StalledError(f"less than {self._limits.floor_bytes_per_second:g} bytes a second came")
        return count

    def _receive(self, buffer: Any) -> int:
        """Return how many bytes came: at least one, unless the other side has ended. Raises TimeoutError."""
        if self._stream is None:
            return self._from_socket(buffer, self.coming)
        # What has come and is not decrypted yet is at most a part of a record in either of two places.
        sure = max(0, self.coming - 2 * RECORD_BYTES)
        return self._stream.read_into(buffer, lambda into: self._from_socket(into, sure))

    def _from_socket(self, buffer: memoryview, sure: int) -> int:
        """Receive what the kernel has, where `sure` bytes are still to come to it."""
        size, flags = min(len(buffer), sure), int(socket.MSG_WAITALL)
        if size <= _HEAD_BUFFER_BYTES:
            size, flags = len(buffer), 0
            self.wake_for(1)
        elif sure >= 2 * LOW_WATER_BYTES:
            # A mark that what is still to come might not reach would be waited for in vain.
            size = min(size, sure - LOW_WATER_BYTES)
            self.wake_for(LOW_WATER_BYTES)
        else:
            # The end comes at once, whole: what is received of it before that would not count for the mark any more.
            flags = socket.MSG_DONTWAIT
            self.wake_for(size)
        deadline = time.monotonic() + self._limits.stall_seconds
        while True:
            try:
                if flags == socket.MSG_DONTWAIT:
                    self._readable.poll(PATIENT_SECONDS * 1000)
                return self._socket.recv_into(buffer, size, flags)
            except BlockingIOError:  # nothing came for PATIENT_SECONDS
                if time.monotonic() >= deadline:
                    raise TimeoutError from None

    def wake_for(self, count: int) -> None:
        """Have the kernel wake this thread for no less than `count` bytes."""
        if count != self._low_water:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
            self._low_water = count


class Connection:
    """A connection to one endpoint. One thread at a time works with it; `abort` may come from any other."""

    def __init__(self, endpoint: Endpoint, limits: Limits, tls: ssl.SSLContext | None = None) -> None:
        self.endpoint = endpoint
        self.idle_since = 0.0
        self.reusable = False
        self.address: Any = None
        """Where it leads to, or is about to."""
        self.unreachable: list[Any] = []
        """The addresses that could not be connected to."""
        self._limits = limits
        self._tls = tls
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._stream: TlsStream | None = None
        self._aborted = threading.Event()

    def ask(self, addresses: Sequence[AddressInfo], head: bytes, progress: Progress | None = None) -> Answer:
        """Send a request and return its answer, the head read and the body not; blocks.

        `addresses` are the endpoint's; a connection that is open does not need them. Raises ExchangeError kinds.
        """
        progress = Progress() if progress is None else progress
        progress.waiting_since = time.monotonic()
        kept = self._socket is not None
        self.reusable = False
        if not kept:
            self._connect(addresses)
        (_KEPT if kept else _FRESH).inc()
        assert self._socket is not None
        progress.address = self.address
        incoming = _Incoming(self._socket, self._stream, self._limits, progress)
        try:
            with self.errors():
                progress.waiting_since = time.monotonic()
                (self._stream or self._socket).sendall(head)
                response = http.client.HTTPResponse(cast(socket.socket, incoming), method="GET")
                response.begin()
        except BrokenError as error:
            if kept and not incoming.received:
                raise StaleError(str(error)) from None
            if self.endpoint.member and not incoming.received and self._tls is None:
                raise BrokenError(f"{error}; if it has TLS, {REMEDY}") from None
            raise
        incoming.expect_body()
        return Answer(self, response, incoming)

    def _connect(self, addresses: Sequence[AddressInfo]) -> None:
        deadline = time.monotonic() + self._limits.connect_seconds
        reason = "its name has no address"
        for number, (family, kind, protocol, _, address) in enumerate(addresses):
            sock = socket.socket(family, kind, protocol)
            self._attach(sock)
            self.address = address
            try:
                # A dead address takes its own share of the time only.
                left = deadline - time.monotonic()
                sock.settimeout(max(0.001, left / (len(addresses) - number)))
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._tls is not None:
                    name = None if self.endpoint.member else self.endpoint.host
                    self._stream = TlsStream(sock, self._tls, name)
                    self._stream.handshake(time.monotonic() + max(0.001, deadline - time.monotonic()))
                self._set_deadline(sock)
            except (OSError, ValueError) as error:  # ValueError: a name that cannot be in a certificate
                self.close()
                self.unreachable.append(address)
                reason = self._reason(error)
            else:
                return
        self._check_aborted()
        raise ConnectError(f"no connection: {reason}")

    def _set_deadline(self, sock: socket.socket) -> None:
        # The kernel's own deadline: Python's costs a poll before every read, and cannot wait for a whole buffer.
        sock.settimeout(None)
        for option, seconds in (
            (socket.SO_RCVTIMEO, PATIENT_SECONDS),
            (socket.SO_SNDTIMEO, self._limits.stall_seconds),
        ):
            whole, rest = divmod(seconds, 1)
            sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", int(whole), max(1, int(rest * 1e6))))

    def _attach(self, sock: socket.socket) -> None:
        with self._lock:
            self._socket = sock
        if self._aborted.is_set():
            self.close()
        self._check_aborted()

    def pause(self, seconds: float) -> None:
        """Read nothing for so long; blocks. Raises AbortedError as soon as `abort` is called."""
        self._aborted.wait(seconds)
        self._check_aborted()

    def _check_aborted(self) -> None:
        if self._aborted.is_set():
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
            if isinstance(error, TimeoutError | BlockingIOError):
                raise StalledError(f"nothing came for {self._limits.stall_seconds:g} s") from None
            raise BrokenError(f"the connection broke: {self._reason(error)}") from None

    def is_quiet(self) -> bool:
        """Tell whether an idle connection is as it was left: not closed by the other side, and nothing unasked came."""
        if self._socket is None:
            return False
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0) and (self._stream is None or self._stream.quiet)

    def abort(self) -> None:
        """End whatever a thread is waiting for on this connection, now and later; from any thread."""
        with self._lock:
            self._aborted.set()
            if self._socket is not None:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket; no thread may be at work with it."""
        with self._lock:
            sock, self._socket = self._socket, None
            self._stream = None
        if sock is not None:
            sock.close()

    def _reason(self, error: Exception) -> str:
        if isinstance(error, ssl.SSLError) and self.endpoint.member:
            return explain(error)
        return _reason(error)


class Answer:
    """An answer whose head has been read. Used by one thread, and closed by it."""

    def __init__(self, connection: Connection, response: http.client.HTTPResponse, incoming: _Incoming) -> None:
        self.status = response.status
        self.headers = tuple(response.getheaders())
        self._connection = connection
        self._response = response
        self._incoming = incoming
        self._failure: ExchangeError | None = None

    def read(self, view: memoryview) -> int:
        """Fill `view` with the next bytes of the body and return how many came; blocks.

        Fewer than asked for come only before what broke the exchange off: that is raised by the next call, and by this
        one if nothing came. Raises ExchangeError kinds, also when the body ends.
        """
        if self._failure is not None:
            raise self._failure
        filled = 0
        try:
            with self._connection.errors():
                while filled < len(view):
                    filled += self._read_some(view[filled:])
        except ExchangeError as error:
            if not filled:
                raise
            self._failure = error
        return filled

    def _read_some(self, view: memoryview) -> int:
        response = self._response
        if not response.length:
            count = response.readinto(view)  # chunks, or up to the end of the connection
        else:
            # What is in the buffer of `fp` counts as well: then a little less is sure to come, which the low-water mark
            # must not rely on.
            self._incoming.coming = max(0, response.length - _HEAD_BUFFER_BYTES)
            # Its own `readinto` would lose what had come when the connection broke.
            count = response.fp.readinto1(view[: response.length])
            response.length -= count
        if not count:
            raise BrokenError("the answer ended early")
        return count

    def skip(self) -> bytes:
        """Read the rest of a short body and return it; a long one costs the connection instead, and is not read."""
        length = self._response.length
        if length is not None and 0 < length <= DRAINED_BYTES:
            with suppress(ExchangeError), self._connection.errors():
                return self._response.read()
        return b""

    def close(self) -> None:
        """Let go of the answer; the connection is reusable if the body has been read to its end."""
        with suppress(OSError):
            self._incoming.wake_for(1)  # for the next answer
        # Chunks have no length; the last of them may be unread.
        self._connection.reusable = self._response.length == 0 and not self._response.will_close
        self._response.close()


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
