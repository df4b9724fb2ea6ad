"""Sending a file's bytes over a plain TCP transport without taking them through Python.

uvloop has no `sendfile`, and what libraries do in its place is read-and-write without a word. Here the bytes go from
the file to a duplicate of the socket's descriptor, whenever that is writable, by `os.sendfile`. Nothing is ever handed
to `transport.write`, and a transport for which this cannot work is refused and counted.

The event loop must not wait for a disk: see `p2p.pagecache`. TLS has `p2p.copyfile`.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

from prometheus_client import Counter

from p2p import senders
from p2p.errors import DamselflyError, StoreError
from p2p.pagecache import (
    FALLBACKS,
    AbsentError,
    read_ahead,
    require_present,
    short,
    unreadable,
)
from p2p.telemetry import REGISTRY

AT_ONCE_BYTES = 256 * 1024
"""What is sent on the event loop where the socket takes it: less work than handing it over to a thread."""

BURST_BYTES = 4 * 1024 * 1024
"""How much one socket may be sent before a thread's others have their turn.

What a socket's buffer holds at the most: with less a receiver over loopback is woken more often, which costs both
sides CPU time.
"""

_SENT = Counter("damselfly_sent_file_bytes", "Bytes sent from files by sendfile.", registry=REGISTRY)


class UnsendableTransportError(DamselflyError):
    """Bytes for this transport have to pass through user space (TLS), so `send_file` is not for it."""


class ReceiverStalledError(ConnectionAbortedError, TimeoutError):
    """The receiver took nothing within the progress deadline."""


async def send_file(
    transport: asyncio.Transport,
    fd: int,
    offset: int,
    count: int,
    *,
    stall_seconds: float,
    on_sent: Callable[[int], object] | None = None,
) -> None:
    """Send bytes `offset` to `offset + count` of the file `fd` over `transport`, after what it has still buffered.

    Nobody may write to the transport meanwhile. Returns when the socket has taken the last byte. However this ends,
    `on_sent` is told how many it has taken: a receiver may have them all, and close, before this can return. Otherwise,
    whenever this raises or is cancelled, the caller has to abort the connection. Raises
    ReceiverStalledError when the socket takes nothing for `stall_seconds`, ConnectionResetError when the receiver or
    the transport is gone, ShortFileError when the file ends early, StoreError when it cannot be read, and
    UnsendableTransportError, before anything is sent, for a transport that is not plain TCP.
    """
    channel = transport.get_extra_info("socket")
    if channel is None or transport.get_extra_info("sslcontext") is not None:
        FALLBACKS.labels("transport").inc()
        raise UnsendableTransportError(
            f"{type(transport).__name__} is not plain TCP: its bytes cannot go from file to socket"
        )
    if transport.is_closing():
        raise ConnectionResetError("the connection was closed before the file was sent")
    with socket.socket(fileno=os.dup(channel.fileno())) as duplicate:
        duplicate.setblocking(False)
        sending = _Sending(transport, duplicate, fd, offset, count)
        try:
            await sending.run(stall_seconds)
        finally:
            _SENT.inc(sending.offset - offset)
            if on_sent is not None:
                on_sent(sending.offset - offset)


class _Sending:
    """One call of `send_file`: small ones at once on the loop, others in a thread; another reads ahead if need be."""

    def __init__(self, transport: asyncio.Transport, channel: socket.socket, fd: int, offset: int, count: int) -> None:
        self.offset = offset
        self._transport = transport
        self._channel = channel
        self._fd = fd
        self._stop = offset + count
        self._read_until = offset  # everything below was in the page cache lately
        self._failure: Exception | None = None

    def fileno(self) -> int:
        """Return the descriptor of the duplicate of the socket."""
        return self._channel.fileno()

    async def run(self, stall_seconds: float) -> None:
        """Send everything; raises as `send_file` does."""
        await self._flushed(stall_seconds)
        while self.offset < self._stop:
            at_once = self._stop - self.offset <= AT_ONCE_BYTES and self.burst()
            if not (at_once or await senders.send(self, stall_seconds)):
                raise _stalled(stall_seconds)
            if self._failure is not None:
                raise self._failure
            if self.offset < self._stop:
                self._read_until = await read_ahead(self._fd, self.offset, self._stop)

    async def _flushed(self, stall_seconds: float) -> None:
        """Wait until the transport has sent what was written to it before."""
        if not self._transport.get_write_buffer_size():
            return
        await asyncio.sleep(0)  # uvloop sends what was written once in each of its turns
        loop, ticks = asyncio.get_running_loop(), 0
        while (backlog := self._transport.get_write_buffer_size()) and not self._transport.is_closing():
            if ticks == senders.STALL_TICKS:
                raise _stalled(stall_seconds)
            # The transport waits for the same socket, and has its turn when this is told that it is writable.
            writable = loop.create_future()
            loop.add_writer(self._channel, _settle, writable)
            try:
                done, _ = await asyncio.wait((writable,), timeout=stall_seconds / senders.STALL_TICKS)
            finally:
                loop.remove_writer(self._channel)
            await asyncio.sleep(0)
            stuck = not done and self._transport.get_write_buffer_size() == backlog
            ticks = ticks + 1 if stuck else 0

    def burst(self) -> bool:
        """Send what the socket takes, at most BURST_BYTES; return False if that was all for now.

        True when everything is sent, when the next bytes are not in the page cache, and after a failure.
        """
        if self._transport.is_closing():
            self._failure = ConnectionResetError("the connection was closed while the file was sent")
            return True
        try:
            self._sendfile(min(self._stop, self.offset + BURST_BYTES))
        except AbsentError:
            return True
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the caller's, and not the thread's
            self._failure = error
            return True
        return self.offset == self._stop

    def _sendfile(self, limit: int) -> None:
        if limit > self._read_until:
            require_present(self._fd, max(self.offset, self._read_until), limit)
            self._read_until = limit
        try:
            sent = os.sendfile(self._channel.fileno(), self._fd, self.offset, limit - self.offset)
        except BlockingIOError:
            return
        except OSError as error:
            raise _send_error(error) from error
        if sent == 0 and limit > self.offset:
            raise short(self.offset)
        self.offset += sent


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _stalled(seconds: float) -> ReceiverStalledError:
    return ReceiverStalledError(f"the receiver took nothing for {seconds:g} s")


def _send_error(error: OSError) -> OSError | StoreError:
    if isinstance(error, (ConnectionError, TimeoutError)):
        return ConnectionResetError(f"the receiver closed the connection: {error.strerror}")
    return unreadable(error)
