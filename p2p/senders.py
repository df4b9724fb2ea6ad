"""Threads that send the bytes of files: each waits for many sockets at once, and sends to whichever takes something.

Sending is the kernel's work but for some microseconds a burst, and is done without the interpreter's lock: as many
cores as there are threads send at the same time, while the event loop parses requests. There is no other state in a
thread than which sockets it waits for, so nothing has to be kept in step.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import threading
from collections import deque
from typing import Protocol

from prometheus_client import Gauge

from p2p.telemetry import REGISTRY

MOST_DEFAULT_WORKERS = 4
"""Enough for 100 Gbit/s at a quarter of a CPU-second a GiB; each costs a thread that sleeps while nothing is sent."""

STALL_TICKS = 8
"""How often within its progress deadline a receiver is looked at."""

_SENDING = Gauge("damselfly_sends_in_threads", "Files being sent by sender threads.", registry=REGISTRY)


class Sending(Protocol):
    """Bytes on their way into one socket, which never blocks."""

    offset: int
    """Where the next byte is; it moves as the socket takes them."""

    def fileno(self) -> int:
        """Return the socket's descriptor."""

    def burst(self) -> bool:
        """Send what the socket takes, within bounds; return False to be called again when it takes more.

        It must not raise.
        """


def default_workers() -> int:
    """Return how many threads send unless told otherwise: one a CPU that this process may use, and at most four."""
    return min(MOST_DEFAULT_WORKERS, len(os.sched_getaffinity(0)))


def set_workers(count: int) -> None:
    """Have `count` threads send from now on; called once, before anything is sent."""
    global _senders
    _senders = [_Sender(f"sender-{number}") for number in range(count)]


async def send(sending: Sending, stall_seconds: float) -> bool:
    """Have a thread send; return True when it has nothing left to do, False for a receiver that took nothing so long.

    However this ends, the thread does not touch the socket any more.
    """
    if not _senders:
        set_workers(default_workers())
    sender = min(_senders, key=lambda each: each.load)
    handle = _Handle(sending)
    with _SENDING.track_inprogress():
        sender.take(handle)
        try:
            return await _watched(handle, stall_seconds)
        finally:
            await sender.give_back(handle)


async def _watched(handle: _Handle, stall_seconds: float) -> bool:
    """Wait until a thread is done; False if its socket has taken nothing for so long."""
    seen, ticks = -1, 0
    while ticks < STALL_TICKS:
        done, _ = await asyncio.wait((handle.over,), timeout=stall_seconds / STALL_TICKS)
        if done:
            return True
        # Looked at from here, now and then: a thread that took down when it got on would do so at every burst.
        seen, ticks = handle.sending.offset, ticks + 1 if handle.sending.offset == seen else 0
    return False


class _Handle:
    """A sending in the hands of a thread; `over` comes true, in the event loop, when the thread has let go of it."""

    __slots__ = ("loop", "over", "sending")

    def __init__(self, sending: Sending) -> None:
        self.sending = sending
        self.loop = asyncio.get_running_loop()
        self.over: asyncio.Future[None] = self.loop.create_future()

    def let_go(self) -> None:
        """Tell the event loop, from the thread."""
        with contextlib.suppress(RuntimeError):  # it was closed in the middle of it all
            self.loop.call_soon_threadsafe(self.over.set_result, None)


class _Sender:
    """One thread, which ends with the process. `load` is how many sendings it has."""

    def __init__(self, name: str) -> None:
        self.load = 0
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._handles: dict[int, _Handle] = {}
        self._unwanted: deque[_Handle] = deque()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def take(self, handle: _Handle) -> None:
        """Begin with a sending."""
        self.load += 1
        descriptor = handle.sending.fileno()
        self._handles[descriptor] = handle
        self._epoll.register(descriptor, select.EPOLLOUT)

    async def give_back(self, handle: _Handle) -> None:
        """Wait until the thread has let go of a sending, which it is asked for if it is not done: within one burst."""
        if not handle.over.done():
            self._unwanted.append(handle)
            os.eventfd_write(self._wake, 1)
        cancelled: asyncio.CancelledError | None = None
        while not handle.over.done():
            try:
                await asyncio.wait((handle.over,))
            except asyncio.CancelledError as error:
                # Not yet: the socket is closed next, and its descriptor may be another one's at once.
                cancelled = error
        self.load -= 1
        if cancelled is not None:
            raise cancelled

    def _run(self) -> None:
        while True:
            for descriptor, _ in self._epoll.poll():
                handle = self._handles.get(descriptor)
                if handle is not None and handle.sending.burst():
                    self._let_go(descriptor)
                elif descriptor == self._wake:
                    os.eventfd_read(descriptor)
            while self._unwanted:
                handle = self._unwanted.popleft()
                descriptor = handle.sending.fileno()
                if self._handles.get(descriptor) is handle:
                    self._let_go(descriptor)

    def _let_go(self, descriptor: int) -> None:
        self._epoll.unregister(descriptor)
        self._handles.pop(descriptor).let_go()


_senders: list[_Sender] = []
