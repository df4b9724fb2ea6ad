"""A load of requests for equally long answers on keep-alive connections, and how many of them were answered.

One thread and one selector: every connection has one request under way at any time, and the next goes out when the last
byte of the answer is here. Every answer's head is looked at, so a quick error never counts as a quick answer.
"""

from __future__ import annotations

import contextlib
import math
import re
import selectors
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass

from p2p.errors import DamselflyError

STALL_SECONDS = 10.0
_BUFFER_BYTES = 256 * 1024
_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)


class LoadError(DamselflyError):
    """An answer was not what every answer has to be; the text quotes its status line and no more."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a load came to: `requests` answered in full within `seconds`; `latencies` in seconds, one an answer."""

    seconds: float
    requests: int
    latencies: tuple[float, ...]

    def latency(self, quantile: float) -> float:
        """Return a quantile (0 to 1) of the latencies in seconds. Raises LoadError if nothing was answered."""
        if not self.latencies:
            raise LoadError("nothing was answered in time")
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))]


class Connection:
    """One keep-alive connection to `address` with one request under way; every answer has `body_bytes` bytes.

    `receive_bytes` is the size of the socket's receive buffer; without it, the system's choice.
    """

    def __init__(
        self,
        address: tuple[str, int],
        body_bytes: int,
        *,
        status: int = 200,
        stall_seconds: float = STALL_SECONDS,
        receive_bytes: int | None = None,
    ) -> None:
        with contextlib.ExitStack() as stack:
            self.sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            if receive_bytes is not None:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            self.sock.settimeout(stall_seconds)
            self.sock.connect(address)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stack.pop_all()
        self._body_bytes = body_bytes
        self._status = status
        self._head = b""
        self._missing = -1  # body bytes; below zero while the head is not complete
        self.sent_at = 0.0

    @property
    def head(self) -> bytes:
        """The head of the last answer up to its empty line; empty while it is not complete."""
        return self._head.partition(_HEAD_END)[0] if self._missing >= 0 else b""

    def ask(self, request: bytes) -> None:
        """Send a request; the last answer is complete."""
        self.sent_at = time.perf_counter()
        self._head, self._missing = b"", -1
        self.sock.sendall(request)

    def take(self, buffer: memoryview) -> bool:
        """Receive once; tell whether the answer is complete. Raises LoadError for one that is not as it has to be."""
        got = self.sock.recv_into(buffer)
        if got == 0:
            raise LoadError("the server closed a connection that was to be kept alive")
        if self._missing >= 0:
            self._missing -= got
        else:
            self._head += buffer[: min(got, 64 * 1024)].tobytes()
            end = self._head.find(_HEAD_END)
            if end < 0:
                return False
            self._check(self._head[: end + 2])
            self._missing = self._body_bytes - (len(self._head) - end - 4) - (got - min(got, 64 * 1024))
        if self._missing < 0:
            raise LoadError("an answer had more bytes than it declared")
        return self._missing == 0

    def _check(self, head: bytes) -> None:
        length = _LENGTH.search(head)
        right = head.startswith(b"HTTP/1.1 %d " % self._status)
        if not right or length is None or int(length[1]) != self._body_bytes:
            line = head.partition(b"\r\n")[0].decode("latin-1")
            raise LoadError(f"answered {line!r}, not {self._status} with {self._body_bytes} bytes")


def run_load(
    address: tuple[str, int],
    requests: Iterable[bytes],
    *,
    body_bytes: int,
    connections: int,
    seconds: float = math.inf,
    stall_seconds: float = STALL_SECONDS,
) -> Load:
    """Send `requests` over `connections` connections until there are no more, or for `seconds`; blocks.

    Raises LoadError for an answer other than a 200 with `body_bytes` bytes, and when nothing arrives for
    `stall_seconds`; OSError when the server cannot be reached.
    """
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    latencies: list[float] = []
    pending = iter(requests)
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        idle: list[Connection] = []
        for _ in range(connections):
            connection = Connection(address, body_bytes, stall_seconds=stall_seconds)
            stack.callback(connection.sock.close)
            idle.append(connection)
        started = time.perf_counter()
        for connection, request in zip(idle, pending, strict=False):
            selector.register(connection.sock, selectors.EVENT_READ, connection)
            connection.ask(request)
        while selector.get_map() and time.perf_counter() < started + seconds:
            ready = selector.select(stall_seconds)
            if not ready:
                raise LoadError(f"nothing arrived for {stall_seconds:g} s")
            for key, _ in ready:
                if not key.data.take(buffer):
                    continue
                latencies.append(time.perf_counter() - key.data.sent_at)
                following = next(pending, None)
                if following is None:
                    selector.unregister(key.fileobj)
                else:
                    key.data.ask(following)
        return Load(time.perf_counter() - started, len(latencies), tuple(latencies))
