"""Exchanges: one request and the landing of its answer, on one connection, in one worker thread.

The event loop decides (which connection, which address) and a thread does the work: send the request, judge the answer
before a byte of it is written, then read, hash and write a buffer at a time.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from p2p.errors import DamselflyError, StoppingError
from p2p.pagecache import WRITE_BYTES
from p2p.ranges import ByteRange
from p2p.urgency import ORDINARY, Turns, Urgency, kept_for_brief
from peer.download.connection import (
    AbortedError,
    AddressInfo,
    Answer,
    ConnectError,
    Connection,
    Endpoint,
    Limits,
    Progress,
    StaleError,
)
from peer.download.landing import Landing
from peer.download.pool import Addresses, ConnectionPool
from peer.source.fields import Fields
from peer.source.guard import Resolver
from peer.source.trust import Trust

BUFFER_BYTES = 4 * WRITE_BYTES
"""A worker's buffer. Each step that leaves the GIL has to take it again, from one of many threads: that costs more than
what a buffer that fits into the second-level cache would save."""

T = TypeVar("T")
Judge = Callable[[int, Fields, Callable[[], bytes]], T | None]


@dataclass(frozen=True, slots=True)
class Request(Generic[T]):
    """One exchange to be made: `judge(status, headers, body)` says what to do instead of landing the body, or None.

    Where it is not landed, `body` reads it if it is short. With a `resolver` only addresses that it allows are
    connected to. `take(count)` hears of the body's bytes in the thread, and says for how many seconds to read nothing.
    `urgency` and `task` say whose turn it is where all threads are busy.
    """

    endpoint: Endpoint
    limits: Limits
    head: bytes = field(repr=False)  # holds credentials
    judge: Judge[T]
    resolver: Resolver | None = None
    take: Callable[[int], float] | None = None
    progress: Progress = field(default_factory=Progress)
    urgency: Urgency = ORDINARY
    task: str = ""


@dataclass(frozen=True, slots=True)
class Rivalry:
    """What a request for the bytes `wanted` needs that races another one, which is at work with them.

    It goes over a connection of its own, to another address than `avoid` if there is one, and reads its first bytes
    into a buffer of its own. Then `claim` ends the other one: where it returns, nobody else writes what is wanted.
    `wasted(count)` hears of the bytes that had come by then and are of no use.
    """

    wanted: ByteRange
    avoid: Any
    claim: Callable[[], Awaitable[None]]
    wasted: Callable[[int], None]


class Workers:
    """Places for `count` exchanges at once, by urgency (`p2p.urgency`), some of them for brief ones alone.

    An exchange holds its place for as long as the other side takes, and large ones come by the dozen: in one queue, a
    brief one would wait until somebody has sent megabytes.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._kept = kept_for_brief(count)
        self._turns = Turns()
        self._waiters: dict[int, asyncio.Future[None]] = {}
        self._tickets = 0

    @asynccontextmanager
    async def place(self, urgency: Urgency, task: str) -> AsyncIterator[None]:
        """Wait for a place, and have it while the context lasts."""
        await self._take(urgency, task)
        try:
            yield
        finally:
            self._give_back()

    async def _take(self, urgency: Urgency, task: str) -> None:
        self._tickets += 1
        ticket = self._tickets
        waiter = self._waiters[ticket] = asyncio.get_running_loop().create_future()
        self._turns.add(ticket, urgency, task)
        self._call()
        try:
            await waiter
        except asyncio.CancelledError:
            if ticket in self._turns:
                self._turns.remove(ticket)
                del self._waiters[ticket]
            else:
                self._give_back()  # It was called at the very moment when it gave up.
            raise

    def _give_back(self) -> None:
        self._free += 1
        self._call()

    def _call(self) -> None:
        """Call those who may have a place now."""
        while self._free and (ticket := self._turns.take(brief_only=self._free <= self._kept)) is not None:
            self._free -= 1
            waiter = self._waiters.pop(ticket)
            if not waiter.done():  # else it was cancelled, and gives its place back as soon as it runs
                waiter.set_result(None)


class Exchanges:
    """Makes exchanges, with bounded threads and bounded kept connections. Belongs to the event loop.

    `trust` has the contexts for origins, `members` the one for members of the cluster, if they speak TLS.
    """

    def __init__(
        self, *, workers: int, idle: ConnectionPool, trust: Trust, members: ssl.SSLContext | None = None
    ) -> None:
        self._trust = trust
        self._members = members
        self._workers = Workers(workers)
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="transfer")
        self._buffers = threading.local()
        self._idle = idle
        self._addresses = Addresses()
        self._busy: dict[Connection, asyncio.Future[Any]] = {}
        self._closing = False

    async def land(self, request: Request[T], landing: Landing) -> T | None:
        """Do one exchange; return what `judge` makes of the answer's head, or None once the body has landed.

        Raises ExchangeError kinds, what `judge` raises, and what `landing.fill` does. When this is cancelled the
        connection is closed, and the thread has ended before CancelledError leaves.
        """
        async with self._workers.place(request.urgency, request.task):
            kept = self._idle.take(request.endpoint)
            if kept is not None:
                try:
                    return await self._run(kept, lambda: self._exchange(kept, (), request, landing))
                except StaleError:
                    pass  # The other side closed it as we wrote: this one exchange gets a connection of its own.
                finally:
                    self._put_back(kept)
            addresses = await self._look_up(request, None)
            fresh = self._connection(request)
            try:
                return await self._run(fresh, lambda: self._exchange(fresh, addresses, request, landing))
            finally:
                self._put_back(fresh)

    async def race(self, request: Request[T], landing: Landing, rivalry: Rivalry) -> T | None:
        """Do as `land` does for bytes that another exchange is at work with, which ends before this one lands any."""
        async with self._workers.place(request.urgency, request.task):
            addresses = await self._look_up(request, rivalry.avoid)
            connection = self._connection(request)
            buffer = memoryview(bytearray(min(WRITE_BYTES, len(rivalry.wanted))))
            opened: list[Answer] = []

            def first_bytes() -> T | int:
                answer = connection.ask(addresses, request.head, request.progress)
                opened.append(answer)
                verdict = self._judged(answer, request)
                return answer.read(buffer) if verdict is None else verdict

            try:
                first = await self._run(connection, first_bytes)
                if not isinstance(first, int):
                    return first
                await rivalry.claim()
                behind = landing.offset - rivalry.wanted.start
                rivalry.wasted(behind)
                if landing.remaining is None:
                    return None
                read = self._reader(connection, opened[0], request)
                await self._run(connection, lambda: _catch_up(landing, buffer, first, behind, read))
                return None
            finally:
                for answer in opened:
                    answer.close()
                self._put_back(connection)

    async def close(self) -> None:
        """End every exchange (StoppingError) and every connection, and wait for the threads."""
        self._closing = True
        for connection in self._busy:
            connection.abort()
        if self._busy:
            await asyncio.wait(tuple(self._busy.values()))
        self._idle.close()
        self._executor.shutdown()

    def _connection(self, request: Request[T]) -> Connection:
        endpoint = request.endpoint
        tls = self._members if endpoint.member else None
        if endpoint.tls:
            tls = self._trust.context(endpoint.ca_file)
        return Connection(endpoint, request.limits, tls)

    async def _look_up(self, request: Request[T], avoid: Any) -> Sequence[AddressInfo]:
        found = await _resolve(request.endpoint, request.limits, request.resolver)
        now = asyncio.get_running_loop().time()
        return self._addresses.order(found, (*self._busy, *self._idle), now=now, avoid=avoid)

    async def _run(self, connection: Connection, work: Callable[[], T]) -> T:
        """Let a thread work with a connection."""
        if self._closing:
            raise StoppingError("this peer is shutting down")
        future = asyncio.wrap_future(self._executor.submit(work))
        self._busy[connection] = future
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            connection.abort()
            await _ended(future)
            raise
        except AbortedError:
            raise StoppingError("this peer is shutting down") from None
        finally:
            del self._busy[connection]

    def _put_back(self, connection: Connection) -> None:
        self._addresses.failed(connection.unreachable, now=asyncio.get_running_loop().time())
        if connection.reusable and not self._closing:
            self._idle.give(connection)
        else:
            connection.close()

    def _exchange(
        self, connection: Connection, addresses: Sequence[AddressInfo], request: Request[T], landing: Landing
    ) -> T | None:
        answer = connection.ask(addresses, request.head, request.progress)
        try:
            verdict = self._judged(answer, request)
            if verdict is None:
                landing.fill(self._reader(connection, answer, request), self._buffer())
            return verdict
        finally:
            answer.close()

    @staticmethod
    def _judged(answer: Answer, request: Request[T]) -> T | None:
        try:
            verdict = request.judge(answer.status, answer.headers, answer.skip)
        except DamselflyError:
            answer.skip()
            raise
        if verdict is not None:
            answer.skip()
        return verdict

    @staticmethod
    def _reader(connection: Connection, answer: Answer, request: Request[T]) -> Callable[[memoryview], int]:
        take = request.take
        if take is None:
            return answer.read

        def read(view: memoryview) -> int:
            count = answer.read(view)
            if (seconds := take(count)) > 0:
                connection.pause(seconds)
            return count

        return read

    def _buffer(self) -> memoryview:
        # One a thread, for good: the first touch of fresh memory costs more than what is done with it here.
        if not hasattr(self._buffers, "view"):
            self._buffers.view = memoryview(bytearray(BUFFER_BYTES))
        view: memoryview = self._buffers.view
        return view


def _catch_up(landing: Landing, buffer: memoryview, first: int, behind: int, read: Callable[[memoryview], int]) -> None:
    """Land what `buffer` holds and `read` gives, without the first `behind` bytes, which have landed by another way."""
    while behind >= first:
        behind -= first
        first = read(buffer)
    landing.feed(buffer[behind:first])
    landing.fill(read, buffer)


async def _resolve(endpoint: Endpoint, limits: Limits, resolver: Resolver | None) -> Sequence[AddressInfo]:
    """Look the endpoint's addresses up. Raises ConnectError, and DeniedError if the resolver allows none of them."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(limits.connect_seconds):
            if resolver is not None:
                return await resolver.addresses(endpoint.host, endpoint.port)
            return await loop.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise ConnectError("its name could not be looked up within the deadline") from None
    except (OSError, UnicodeError):
        raise ConnectError("its name could not be looked up") from None


async def _ended(future: asyncio.Future[T]) -> None:
    """Wait until a thread has ended, however often the waiting is cancelled; what it raised is of no interest."""
    while not future.done():
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError:
            continue  # The thread's socket is shut down: it ends as soon as it is scheduled.
    future.exception()
