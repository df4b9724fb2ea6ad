"""Transfers: one span of pieces, one connection, one worker thread.

The event loop decides (which connection, whether to try again, where a redirect leads) and a thread does one exchange
at a time: send the request, judge the answer before a byte of it is written, then read, hash and write 256 KiB at a
time.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Generic, TypeVar

from p2p.auth import authorization
from p2p.config import parse_address
from p2p.control import Source
from p2p.errors import (
    ConfigError,
    DamselflyError,
    OriginError,
    OriginStalledError,
    OriginUnreachableError,
    ParentBusyError,
    ParentError,
    ParentMissingError,
    ParentStalledError,
    ParentUnreachableError,
    StoppingError,
)
from p2p.fields import single
from p2p.identity import redact
from p2p.pieces import Span
from p2p.ranges import ByteRange, ContentRange, format_range, parse_content_range
from p2p.versions import Version
from peer.download.connection import (
    AbortedError,
    AddressInfo,
    ConnectError,
    Connection,
    ConnectionPool,
    Endpoint,
    ExchangeError,
    Limits,
    StaleError,
    StalledError,
)
from peer.download.landing import Landing, Target
from peer.download.origin import Later, Redirect, endpoint_of, judge_origin, range_request, request_head
from peer.source.backoff import Backoff
from peer.source.client import MAX_REDIRECTS, OriginSettings, redirected
from peer.source.fields import Fields
from peer.source.guard import Resolver
from peer.source.trust import Trust

BUFFER_BYTES = 256 * 1024
"""A worker's buffer: it stays in the CPU's second-level cache between the socket, the hash and the file."""

T = TypeVar("T")
Report = Callable[[int, bytes], None]

_PARENT_LIMITS = Limits(connect_seconds=2.0, stall_seconds=5.0)


@dataclass(frozen=True, slots=True)
class TransferSettings:
    """How transfers are made; times in seconds.

    `attempts` bounds how often an origin is asked in a row without a piece landing. Between two attempts there is a
    pause that doubles from `backoff_seconds` on; an origin that asks for more than `longest_pause_seconds` is given up.
    """

    workers: int = 32
    parent: Limits = _PARENT_LIMITS
    origin: OriginSettings = field(default_factory=OriginSettings)
    attempts: int = 4
    backoff_seconds: float = 0.2
    longest_pause_seconds: float = 30.0
    idle_seconds: float = 30.0
    idle_per_endpoint: int = 16
    idle_total: int = 64


@dataclass(frozen=True, slots=True)
class _Request(Generic[T]):
    """One exchange to be made: `judge(status, headers)` says what to do instead of landing the body, or None.

    With a `resolver` only addresses that it allows are connected to.
    """

    endpoint: Endpoint
    limits: Limits
    head: bytes = field(repr=False)  # holds credentials
    judge: Callable[[int, Fields], T | None]
    landing: Landing
    resolver: Resolver | None = None


@dataclass(frozen=True, slots=True)
class _Setback:
    """Why an attempt at the origin came to nothing, and how long the origin wants to be left alone."""

    error: OriginError
    seconds: float = 0.0


class Transfers:
    """Fetches spans from parents and origins, with bounded threads and bounded kept connections. Belongs to the loop.

    `resolver` decides which origins may be asked; `random` jitters the pauses between attempts; `sleep` makes them.
    """

    def __init__(
        self,
        settings: TransferSettings | None = None,
        *,
        resolver: Resolver | None = None,
        random: Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._settings = settings = settings or TransferSettings()
        self._origin_limits = Limits(settings.origin.connect_seconds, settings.origin.stall_seconds)
        self._resolver = resolver or Resolver()
        self._trust = Trust(settings.origin.ca_file, settings.origin.rules)
        self._backoff = Backoff(settings.attempts, settings.backoff_seconds, settings.longest_pause_seconds)
        self._random = random or Random()  # noqa: S311  # spreads retries out; keeps no secret
        self._sleep = sleep
        self._workers = asyncio.Semaphore(settings.workers)
        self._executor = ThreadPoolExecutor(settings.workers, thread_name_prefix="transfer")
        self._buffers = threading.local()
        self._idle = ConnectionPool(
            per_endpoint=settings.idle_per_endpoint, total=settings.idle_total, idle_seconds=settings.idle_seconds
        )
        self._busy: dict[Connection, asyncio.Future[Any]] = {}
        self._closing = False

    async def from_parent(
        self,
        entry: Target,
        span: Span,
        *,
        address: str,
        token: str | None,
        digests: Sequence[bytes],
        on_piece: Report,
    ) -> None:
        """Fetch the pieces of `span` from the host at `address` ("host:port"), each checked against its digest.

        `on_piece(index, digest)` is called on the loop as each piece is written and sound, in order, and never after
        this has returned or raised. Raises ParentError kinds, CorruptPieceError, StoreError and StoppingError. When
        this is cancelled the connection is closed, and the thread has ended before CancelledError leaves.
        """
        try:
            dialled = parse_address(address)
        except ConfigError as error:
            raise ParentUnreachableError(str(error)) from None
        landing = Landing(entry, span, digests, _on_loop(on_piece))
        wanted = landing.wanted
        fields = [("Range", format_range(wanted))]
        if token is not None:
            fields.append(("Authorization", authorization(token)))
        head = request_head(f"http://{address}/v1/pieces/{entry.version.id}", fields)

        def judge(status: int, headers: Fields) -> None:
            judge_parent(address, entry.version, wanted, status, headers)

        with _parent_errors(address):
            endpoint = Endpoint(dialled.host, dialled.port)
            await self._exchange(_Request(endpoint, self._settings.parent, head, judge, landing))

    async def from_origin(self, entry: Target, span: Span, *, source: Source, on_piece: Report) -> None:
        """Fetch the pieces of `span` from the origin by way of `source`, all of them of the entry's version.

        Redirects are followed. What breaks off is taken up again at the first piece that is missing. `on_piece` and
        cancelling are as with `from_parent`. Raises OriginError kinds (DeniedError for an origin that may not be asked,
        redirects included), BadRequestError for a URL or a header that cannot be sent, StoreError and StoppingError.
        """
        landing = Landing(entry, span, None, _on_loop(on_piece))
        failures = 0
        while landing.remaining is not None:
            before = landing.next
            setback = await self._attempt(landing, entry.version, source)
            if setback is None:
                return
            landed = landing.next > before
            failures = 1 if landed else failures + 1
            # An origin that says nothing for a whole deadline is not asked again: the caller has waited long enough.
            silent = isinstance(setback.error, OriginStalledError) and not landed
            pause = self._backoff.pause(failures, setback.seconds, self._random)
            if silent or pause is None:
                raise setback.error
            await self._sleep(pause)

    async def close(self) -> None:
        """End every transfer (StoppingError) and every connection, and wait for the threads."""
        self._closing = True
        for connection in self._busy:
            connection.abort()
        if self._busy:
            await asyncio.wait(tuple(self._busy.values()))
        self._idle.close()
        self._executor.shutdown()

    async def _attempt(self, landing: Landing, version: Version, source: Source) -> _Setback | None:
        """Ask the origin once for what remains, redirects included; return None when everything has landed."""
        wanted = landing.wanted
        for _ in range(MAX_REDIRECTS + 1):
            url = source.url

            def judge(status: int, headers: Fields, url: str = url) -> Redirect | Later | None:
                return judge_origin(url, version, wanted, status, headers)

            head = range_request(source, version, wanted)
            try:
                request = _Request(self._endpoint(url), self._origin_limits, head, judge, landing, self._resolver)
                answer = await self._exchange(request)
            except StalledError as error:
                return _Setback(OriginStalledError(f"{redact(url)}: {error}"))
            except ExchangeError as error:
                return _Setback(OriginUnreachableError(f"{redact(url)}: {error}"))
            match answer:
                case Redirect(location):
                    source = redirected(source, location)
                case Later(status, seconds):
                    return _Setback(OriginUnreachableError(f"the origin answers {status} ({redact(url)})"), seconds)
                case None:
                    return None
        raise OriginError(f"{redact(source.url)} redirected more than {MAX_REDIRECTS} times")

    def _endpoint(self, url: str) -> Endpoint:
        return replace(endpoint_of(url), ca_file=self._trust.ca_file(url))

    async def _exchange(self, request: _Request[T]) -> T | None:
        """Do one exchange; return what `judge` makes of the answer's head, or None once the body has landed.

        Raises ExchangeError kinds, what `judge` raises, and what `landing.fill` does.
        """
        async with self._workers:
            kept = self._idle.take(request.endpoint)
            if kept is not None:
                try:
                    return await self._run(kept, (), request)
                except StaleError:
                    pass  # The other side closed it as we wrote: this one exchange gets a connection of its own.
            addresses = await _resolve(request.endpoint, request.limits, request.resolver)
            endpoint = request.endpoint
            tls = self._trust.context(endpoint.ca_file) if endpoint.tls else None
            fresh = Connection(endpoint, request.limits, tls)
            return await self._run(fresh, addresses, request)

    async def _run(self, connection: Connection, addresses: Sequence[AddressInfo], request: _Request[T]) -> T | None:
        """Do one exchange in a thread, and keep the connection if it can be used again."""
        if self._closing:
            connection.close()
            raise StoppingError("this peer is shutting down")
        future: asyncio.Future[T | None] = asyncio.wrap_future(
            self._executor.submit(lambda: self._in_thread(connection, addresses, request))
        )
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
            if connection.reusable and not self._closing:
                self._idle.give(connection)
            else:
                connection.close()

    def _in_thread(self, connection: Connection, addresses: Sequence[AddressInfo], request: _Request[T]) -> T | None:
        answer = connection.ask(addresses, request.head)
        try:
            try:
                verdict = request.judge(answer.status, answer.headers)
            except DamselflyError:
                answer.skip()
                raise
            if verdict is None:
                request.landing.fill(answer.read_exactly, self._buffer())
            else:
                answer.skip()
            return verdict
        finally:
            answer.close()

    def _buffer(self) -> memoryview:
        # One a thread, for good: the first touch of fresh memory costs more than what is done with it here.
        if not hasattr(self._buffers, "view"):
            self._buffers.view = memoryview(bytearray(BUFFER_BYTES))
        view: memoryview = self._buffers.view
        return view


def judge_parent(address: str, version: Version, wanted: ByteRange, status: int, headers: Fields) -> None:
    """Raise ParentError kinds unless the body of a parent's answer is exactly the bytes `wanted` of `version`."""
    if status == 503:
        raise ParentBusyError(f"parent {address} has no free upload slot")
    if status in (404, 416):
        raise ParentMissingError(f"parent {address} does not hold all of bytes {wanted.start}-{wanted.stop - 1}")
    if status == 401:
        raise ParentError(f"parent {address} refuses the token (401); compare --cluster-secret-file and the clocks")
    sent = parse_content_range(single(headers, "content-range") or "")
    if status != 206 or sent != ContentRange(wanted, version.length):
        raise ParentError(f"parent {address} answered {status} with other bytes than those asked for")


@contextmanager
def _parent_errors(address: str) -> Iterator[None]:
    try:
        yield
    except StalledError as error:
        raise ParentStalledError(f"parent {address}: {error}") from None
    except ExchangeError as error:
        raise ParentUnreachableError(f"parent {address}: {error}") from None


def _on_loop(on_piece: Report) -> Report:
    """Return a function for threads that has `on_piece` called on the running loop."""
    loop = asyncio.get_running_loop()

    def report(index: int, digest: bytes) -> None:
        loop.call_soon_threadsafe(on_piece, index, digest)

    return report


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
