"""A load of equal requests on keep-alive connections, and how many of them were answered.

One thread and one selector: every connection has one request under way at any time, and the next goes out when the last
byte of the answer is here. Every answer's head is looked at, so a quick error never counts as a quick answer.
"""

from __future__ import annotations

import contextlib
import re
import selectors
import socket
import time
from dataclasses import dataclass

from p2p.errors import DamselflyError

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


class _Connection:
    """One keep-alive connection with one request under way."""

    def __init__(self, address: tuple[str, int], request: bytes, body_bytes: int, stall_seconds: float) -> None:
        self.sock = socket.create_connection(address, timeout=stall_seconds)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = request
        self._body_bytes = body_bytes
        self._head = b""
        self._missing = -1  # body bytes; below zero while the head is not complete
        self.sent_at = 0.0

    def ask(self) -> None:
        self.sent_at = time.perf_counter()
        self._head, self._missing = b"", -1
        self.sock.sendall(self._request)

    def take(self, buffer: memoryview) -> bool:
        """Receive once; tell whether the answer is complete."""
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
        if not head.startswith(b"HTTP/1.1 200 ") or length is None or int(length[1]) != self._body_bytes:
            line = head.partition(b"\r\n")[0].decode("latin-1")
            raise LoadError(f"answered {line!r}, not 200 with {self._body_bytes} bytes")


def run_load(
    address: tuple[str, int],
    request: bytes,
    *,
    body_bytes: int,
    connections: int,
    seconds: float,
    stall_seconds: float = 10.0,
) -> Load:
    """Send `request` over `connections` connections again and again for `seconds`; blocks.

    Raises LoadError for an answer other than a 200 with `body_bytes` bytes, and when nothing arrives for
    `stall_seconds`; OSError when the server cannot be reached.
    """
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    latencies: list[float] = []
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for _ in range(connections):
            connection = _Connection(address, request, body_bytes, stall_seconds)
            stack.callback(connection.sock.close)
            selector.register(connection.sock, selectors.EVENT_READ, connection)
        started = time.perf_counter()
        for key in selector.get_map().values():
            key.data.ask()
        while (now := time.perf_counter()) < started + seconds:
            ready = selector.select(stall_seconds)
            if not ready:
                raise LoadError(f"nothing arrived for {stall_seconds:g} s")
            for key, _ in ready:
                if key.data.take(buffer):
                    latencies.append(time.perf_counter() - key.data.sent_at)
                    key.data.ask()
        return Load(now - started, len(latencies), tuple(latencies))
