"""TLS on a blocking socket, for a worker thread: bytes come from the kernel by the buffer, and are decrypted there.

`ssl.SSLSocket` asks the kernel twice for each record of 16 KiB, and may wake the thread for each. Here one call takes
what has come of 256 KiB, and the records in it are decrypted straight to where they are wanted.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from p2p.pagecache import give_buffer, take_buffer

RECORD_BYTES = 17 * 1024
"""More than a record can have, with what surrounds it (RFC 8446 §5.2)."""


class TlsStream:
    """The client's side of TLS on a connected socket. Used by one thread at a time."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_hostname: str | None) -> None:
        """Begin nothing yet. Raises ValueError for a name that cannot be in a certificate."""
        self._socket = sock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_hostname)

    @property
    def quiet(self) -> bool:
        """Whether everything that came has been read."""
        return not self._incoming.pending and not self._tls.pending()

    def handshake(self, deadline: float) -> None:
        """Shake hands until `deadline` (monotonic seconds). Raises OSError kinds: ssl.SSLError, TimeoutError."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._socket.settimeout(max(0.001, deadline - time.monotonic()))
                self._take(self._socket.recv_into)
            except ssl.SSLError:
                with suppress(OSError):
                    self._flush()  # the alert that tells the other side why
                raise
            else:
                self._flush()
                return

    def sendall(self, data: bytes) -> None:
        """Send all of `data`. Raises OSError kinds."""
        self._tls.write(data)
        self._flush()

    def read_into(self, view: memoryview, receive: Callable[[memoryview], int]) -> int:
        """Fill `view` as far as records are there; returns at least one byte, unless the other side has ended: 0.

        `receive` fills a buffer from the socket where more is needed. Raises what it does, and ssl.SSLError.
        """
        filled, size = 0, len(view)
        read = cast(Callable[[int, memoryview], int], self._tls.read)
        while not filled:
            try:
                while filled < size:
                    count = read(size - filled, view[filled:])
                    if not count:
                        return filled
                    filled += count
            except ssl.SSLWantReadError:
                if not filled:
                    self._take(receive)
            except ssl.SSLEOFError:
                return filled
        if self._outgoing.pending:
            self._flush()  # what the protocol itself answers
        return filled

    def _take(self, receive: Callable[[memoryview], int]) -> None:
        buffer = take_buffer()
        try:
            count = receive(buffer)
            if count:
                self._incoming.write(buffer[:count])
            else:
                self._incoming.write_eof()
        finally:
            give_buffer(buffer)

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._socket.sendall(self._outgoing.read())
