"""Many clients in one thread: each reads one object through its node's proxy, in order, into nothing.

All share one buffer, and each hashes (xxh3-128) what it gets, so that sixteen of them cost little beside the daemons.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import xxhash

from bench.reader import BUFFER_BYTES, ReadError, parse_head

_LONGEST_HEAD = 64 * 1024
_TURN_SECONDS = 0.1


@dataclass(slots=True)
class Client:
    """One client: bytes of the body so far, and in the end when it was done or why it never will be."""

    received: int = 0
    seconds: float | None = None
    """From the common start to the last byte, hashed."""
    xxh3_128: str | None = None
    task_id: str = ""
    failure: str | None = None
    _head: bytearray = field(default_factory=bytearray)
    _length: int | None = None
    _hash: xxhash.xxh3_128 = field(default_factory=xxhash.xxh3_128)

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.seconds is not None or self.failure is not None

    def take(self, data: memoryview, seconds: float) -> None:
        """Take what came `seconds` after the start; nothing at all means that the connection ended."""
        if not data:
            self.failure = f"the connection ended after {self.received} of {self._length or 'unknown'} bytes"
            return
        if self._length is None:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                if len(self._head) > _LONGEST_HEAD:
                    self.failure = "the response's head has no end"
                return
            status, fields = parse_head(bytes(self._head[:end]))
            length = fields.get("content-length", "")
            if status != 200 or not length.isdecimal():
                self.failure = f"answered {status}, with {length or 'no'} Content-Length"
                return
            self._length, self.task_id = int(length), fields.get("x-dragonfly-task-id", "")
            data = memoryview(bytes(self._head[end + 4 :]))
        self._hash.update(data)
        self.received += len(data)
        if self.received >= self._length:
            self.seconds, self.xxh3_128 = seconds, self._hash.hexdigest()


def read_all(
    url: str,
    connect: Mapping[str, Callable[[], socket.socket]],
    clients: Mapping[str, Client],
    *,
    stall_seconds: float,
) -> float:
    """Let all clients ask for `url` at the same moment and read until each is over; return that moment (monotonic).

    `connect` gives each client's connection to its proxy, before the clock runs. `clients` are filled in as it goes,
    and may be looked at from other threads. A client that gets nothing for `stall_seconds` has failed.
    """
    buffer = memoryview(bytearray(BUFFER_BYTES))
    request = f"GET {url} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nAccept: */*\r\nConnection: close\r\n\r\n".encode()
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        sockets = {name: stack.enter_context(make()) for name, make in connect.items()}
        began = time.monotonic()
        heard = dict.fromkeys(sockets, began)
        for name, connection in sockets.items():
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ, name)
            connection.send(request)
        while waiting := selector.get_map():
            for key, _ in selector.select(_TURN_SECONDS):
                client = clients[key.data]
                try:
                    # Ready by what select said, and nobody else reads it.
                    got = sockets[key.data].recv_into(buffer)
                    heard[key.data] = time.monotonic()
                    client.take(buffer[:got], heard[key.data] - began)
                except ReadError as error:
                    client.failure = str(error)
                except OSError as error:
                    client.failure = f"{error.strerror or error} after {client.received} bytes"
                if client.over:
                    selector.unregister(key.fileobj)
            late = time.monotonic() - stall_seconds
            for key in [key for key in waiting.values() if heard[key.data] < late]:
                clients[key.data].failure = f"nothing came for {stall_seconds:g} s"
                selector.unregister(key.fileobj)
    return began
