"""Sending a file's bytes over a plain TCP transport without taking them through Python.

uvloop has no `sendfile`, and what libraries do in its place is read-and-write without a word. Here the bytes go from
the file to a duplicate of the socket's descriptor, whenever that is writable: by `os.sendfile` to other hosts, by
`preadv` into a reused buffer and `send` to this one, where copying from the page cache is the cheaper of the two.
Nothing is ever handed to `transport.write`, and a transport for which this cannot work is refused and counted.

The event loop must not wait for a disk: see `p2p.pagecache`. TLS has `p2p.copyfile`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from enum import StrEnum

from prometheus_client import Counter

from p2p.errors import DamselflyError, StoreError
from p2p.pagecache import (
    FALLBACKS,
    AbsentError,
    give_buffer,
    read_ahead,
    read_some,
    require_present,
    short,
    take_buffer,
    unreadable,
)
from p2p.telemetry import REGISTRY

_SLACK = 0.1
"""How much longer than told a receiver may take nothing, as a share."""

WAKEUP_BYTES = 1024 * 1024
"""How much one transfer may send before the other work of the event loop has its turn."""

_SENT = Counter("damselfly_sent_file_bytes", "Bytes sent from files, by method.", ["method"], registry=REGISTRY)


class SendMethod(StrEnum):
    """How bytes get from a file into a socket."""

    SENDFILE = "sendfile"
    COPY = "copy"


_SENT_BY = {method: _SENT.labels(method) for method in SendMethod}


class UnsendableTransportError(DamselflyError):
    """Bytes for this transport have to pass through user space (TLS), so `send_file` is not for it."""


class ReceiverStalledError(ConnectionAbortedError, TimeoutError):
    """The receiver took nothing within the progress deadline."""


def choose_method(peername: object) -> SendMethod:
    """Return the cheaper method for the receiver at a socket's `peername`: COPY for this machine, else SENDFILE."""
    host = peername[0] if isinstance(peername, tuple) and peername else None
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return SendMethod.SENDFILE
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return SendMethod.COPY if (mapped or address).is_loopback else SendMethod.SENDFILE


async def send_file(
    transport: asyncio.Transport, fd: int, offset: int, count: int, *, method: SendMethod, stall_seconds: float
) -> None:
    """Send bytes `offset` to `offset + count` of the file `fd` over `transport`, after what it has still buffered.

    Nobody may write to the transport meanwhile. Returns when the socket has taken the last byte. Whenever this raises
    or is cancelled, an unknown part has been sent and the caller has to abort the connection. Raises
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
        await _Sending(transport, duplicate, fd, offset, count, method, stall_seconds).run()
    _SENT_BY[method].inc(count)


class _Sending:
    """One call of `send_file`: bursts of sending on the loop, and reading ahead in a thread between them if need be."""

    def __init__(
        self,
        transport: asyncio.Transport,
        channel: socket.socket,
        fd: int,
        offset: int,
        count: int,
        method: SendMethod,
        stall_seconds: float,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._channel = channel
        self._fd = fd
        self._offset = offset
        self._stop = offset + count
        self._read_until = offset  # a thread has read everything below: no need to ask whether it is there
        self._step = self._step_sendfile if method is SendMethod.SENDFILE else self._step_copy
        self._stall_seconds = stall_seconds
        self._buffer = take_buffer() if method is SendMethod.COPY else memoryview(b"")
        self._unsent = self._buffer[:0]
        self._backlog = 0  # of the transport's own bytes, when last seen
        self._deadline: asyncio.Timeout
        # How a burst ended. The error is its result, not its exception: a caller that is cancelled in that very moment
        # would leave an exception unread.
        self._burst: asyncio.Future[OSError | StoreError | None]

    async def run(self) -> None:
        try:
            while not await self._send_present():
                self._read_until = await read_ahead(self._fd, self._offset, self._stop)
        finally:
            if self._buffer:
                give_buffer(self._buffer)

    async def _send_present(self) -> bool:
        """Send until everything is sent (True) or the next bytes are not in the page cache (False)."""
        self._burst = self._loop.create_future()
        self._deadline = asyncio.timeout(self._stall_seconds)
        try:
            async with self._deadline:
                self._pump()
                if not self._burst.done():
                    self._loop.add_writer(self._channel, self._pump)
                error = await self._burst
        except TimeoutError:
            raise ReceiverStalledError(f"the receiver took nothing for {self._stall_seconds:g} s") from None
        finally:
            self._loop.remove_writer(self._channel)
        if error is not None:
            raise error
        return self._offset == self._stop

    def _pump(self) -> None:
        """Send what the socket takes, within one wakeup's share; called whenever it is writable."""
        if self._burst.done():
            return
        if self._transport.is_closing():
            self._burst.set_result(ConnectionResetError("the connection was closed while the file was sent"))
            return
        if backlog := self._transport.get_write_buffer_size():
            # The transport has bytes of its own to send first, and waits for the same socket to do so: this is called
            # again when it has had its turn.
            if backlog < self._backlog:
                self._progressed()
            self._backlog = backlog
            return
        before = self._offset
        limit = min(self._stop, before + WAKEUP_BYTES)
        try:
            while self._offset < limit and self._step(limit):
                pass
        except AbsentError:
            self._burst.set_result(None)
        except (OSError, StoreError) as error:
            self._burst.set_result(error)
        else:
            if self._offset == self._stop:
                self._burst.set_result(None)
        if self._offset > before:
            self._progressed()

    def _progressed(self) -> None:
        # Moving the deadline costs more than many a burst: it is moved now and then, and then a little further.
        when, now = self._deadline.when(), self._loop.time()
        if when is not None and when < now + self._stall_seconds and not self._deadline.expired():
            self._deadline.reschedule(now + self._stall_seconds * (1 + _SLACK))

    def _step_sendfile(self, limit: int) -> bool:
        """Send some bytes below `limit`; return False when the socket takes no more for now."""
        count = limit - self._offset
        if limit > self._read_until:
            require_present(self._fd, self._offset, limit)
        try:
            sent = os.sendfile(self._channel.fileno(), self._fd, self._offset, count)
        except BlockingIOError:
            return False
        except OSError as error:
            raise _send_error(error) from error
        if sent == 0:
            raise short(self._offset)
        self._offset += sent
        return True

    def _step_copy(self, limit: int) -> bool:
        """Send some bytes; return False when the socket takes no more for now."""
        if not self._unsent:
            # Not only up to `limit`: the rest of a full buffer is sent in the next wakeup.
            wanted = self._buffer[: min(len(self._buffer), self._stop - self._offset)]
            present = self._offset + len(wanted) <= self._read_until
            self._unsent = wanted[: read_some(self._fd, wanted, self._offset, wait=present)]
        try:
            sent = self._channel.send(self._unsent)
        except BlockingIOError:
            return False
        except OSError as error:
            raise _send_error(error) from error
        self._unsent = self._unsent[sent:]
        self._offset += sent
        return not self._unsent


def _send_error(error: OSError) -> OSError | StoreError:
    if isinstance(error, (ConnectionError, TimeoutError)):
        return ConnectionResetError(f"the receiver closed the connection: {error.strerror}")
    return unreadable(error)
