"""`send_file` on real sockets and files, under both event loops and by both methods."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop

from p2p.errors import StoreError
from p2p.pagecache import READ_AHEAD_BYTES, ShortFileError
from p2p.senders import MOST_DEFAULT_WORKERS
from p2p.sendfile import (
    ReceiverStalledError,
    UnsendableTransportError,
    send_file,
)
from p2p.telemetry import REGISTRY

MIB = 1024 * 1024
CONTENT = random.Random(7).randbytes(24 * MIB + 12345)

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}

Run = Callable[[Awaitable[None]], None]


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Runs a coroutine on each kind of loop."""
    with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:

        def call(work: Awaitable[None]) -> None:
            async def bounded() -> None:
                async with asyncio.timeout(20):
                    await work

            runner.run(bounded())

        yield call


@pytest.fixture(scope="module")
def fd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    path = tmp_path_factory.mktemp("sendfile") / "content"
    path.write_bytes(CONTENT)
    descriptor = os.open(path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


class Server(asyncio.Protocol):
    """Hands its transport out."""

    def __init__(self, connected: asyncio.Future[asyncio.Transport]) -> None:
        self._connected = connected

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self._connected.set_result(cast(asyncio.Transport, transport))


@asynccontextmanager
async def connection() -> AsyncIterator[tuple[asyncio.Transport, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A TCP connection: the sender's transport, and the receiver's two halves."""
    loop = asyncio.get_running_loop()
    connected: asyncio.Future[asyncio.Transport] = loop.create_future()
    server = await loop.create_server(lambda: Server(connected), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    transport = await connected
    try:
        yield transport, reader, writer
    finally:
        writer.close()
        transport.abort()
        server.close()


async def received(reader: asyncio.StreamReader, count: int) -> bytes:
    return await reader.readexactly(count)


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize(
    ("offset", "count"),
    [(0, len(CONTENT)), (0, 1), (len(CONTENT) - 1, 1), (12345, 3 * MIB + 1), (4 * MIB, 4 * MIB), (17, 0)],
)
def test_sends_exactly_the_range_after_what_the_transport_has_buffered(
    run: Run, fd: int, offset: int, count: int
) -> None:
    head = b"head" * (2 * MIB)
    before = metric("damselfly_sent_file_bytes_total")

    async def work() -> None:
        async with connection() as (transport, reader, _), asyncio.TaskGroup() as group:
            transport.write(head)
            assert transport.get_write_buffer_size() > 0
            body = group.create_task(received(reader, len(head) + count + 4))
            await send_file(transport, fd, offset, count, stall_seconds=10)
            transport.write(b"tail")
            assert await body == head + CONTENT[offset : offset + count] + b"tail"

    run(work())
    assert metric("damselfly_sent_file_bytes_total") - before == count


def test_pages_that_are_not_in_the_page_cache_are_read_by_a_thread(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "cold"
    path.write_bytes(CONTENT)
    cold = os.open(path, os.O_RDONLY)
    os.fsync(cold)
    os.posix_fadvise(cold, 0, 0, os.POSIX_FADV_DONTNEED)
    before = metric("damselfly_send_read_aheads_total")

    async def work() -> None:
        async with connection() as (transport, reader, _), asyncio.TaskGroup() as group:
            body = group.create_task(received(reader, len(CONTENT)))
            await send_file(transport, cold, 0, len(CONTENT), stall_seconds=10)
            assert await body == CONTENT

    run(work())
    os.close(cold)
    assert metric("damselfly_send_read_aheads_total") > before


def test_file_systems_that_cannot_be_probed_are_served_all_the_same(run: Run) -> None:
    memory = os.memfd_create("content")
    os.write(memory, CONTENT[: READ_AHEAD_BYTES + 5])

    async def work() -> None:
        async with connection() as (transport, reader, _), asyncio.TaskGroup() as group:
            body = group.create_task(received(reader, READ_AHEAD_BYTES))
            await send_file(transport, memory, 5, READ_AHEAD_BYTES, stall_seconds=10)
            assert await body == CONTENT[5 : READ_AHEAD_BYTES + 5]

    run(work())
    os.close(memory)


def test_a_short_file_is_an_error(run: Run, fd: int) -> None:
    async def work() -> None:
        async with connection() as (transport, reader, _), asyncio.TaskGroup() as group:
            body = group.create_task(received(reader, MIB))
            with pytest.raises(ShortFileError):
                await send_file(transport, fd, len(CONTENT) - MIB, MIB + 1, stall_seconds=10)
            with pytest.raises(ShortFileError):
                await send_file(transport, fd, len(CONTENT) + 5, 1, stall_seconds=10)
            body.cancel()

    run(work())


def test_an_unreadable_file_is_an_error_of_the_store(run: Run, tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)

    async def work() -> None:
        async with connection() as (transport, _, _):
            with pytest.raises(StoreError, match="cannot send from a file"):
                await send_file(transport, directory, 0, 1, stall_seconds=10)

    run(work())
    os.close(directory)


def test_a_receiver_that_takes_nothing_is_given_up(run: Run, fd: int) -> None:
    async def work() -> None:
        async with connection() as (transport, _, _):
            before = open_descriptors()
            for kind in (TimeoutError, ConnectionError, ReceiverStalledError):
                with pytest.raises(kind, match="took nothing for"):
                    await send_file(transport, fd, 0, len(CONTENT), stall_seconds=0.05)
            assert open_descriptors() == before

    run(work())


def test_a_receiver_that_takes_none_of_the_transports_own_bytes_is_given_up(run: Run, fd: int) -> None:
    async def work() -> None:
        async with connection() as (transport, _, _):
            transport.write(bytes(32 * MIB))
            with pytest.raises(ReceiverStalledError):
                await send_file(transport, fd, 0, 1, stall_seconds=0.05)

    run(work())


def test_a_receiver_that_goes_away_is_a_reset(run: Run, fd: int) -> None:
    async def work() -> None:
        async with connection() as (transport, reader, writer), asyncio.TaskGroup() as group:
            sending = group.create_task(send_for_ever(transport))
            await reader.readexactly(MIB)
            writer.transport.abort()
            await sending

    async def send_for_ever(transport: asyncio.Transport) -> None:
        with pytest.raises(ConnectionResetError):  # noqa: PT012  # any of the sends may be the one that notices
            while True:
                await send_file(transport, fd, 0, len(CONTENT), stall_seconds=10)

    run(work())


def test_a_transport_that_is_closed_meanwhile_is_a_reset(run: Run, fd: int) -> None:
    async def work() -> None:
        async with connection() as (transport, reader, _), asyncio.TaskGroup() as group:
            sending = group.create_task(reset(transport))
            await reader.readexactly(MIB)
            transport.abort()
            while await reader.read(MIB):
                pass
            await sending
            await reset(transport)

    async def reset(transport: asyncio.Transport) -> None:
        with pytest.raises(ConnectionResetError, match="closed"):
            await send_file(transport, fd, 0, len(CONTENT), stall_seconds=10)

    run(work())


def test_cancelling_leaves_nothing_behind(run: Run, fd: int) -> None:
    async def work() -> None:
        async with connection() as (transport, reader, _):
            before = open_descriptors()
            sending = asyncio.ensure_future(send_file(transport, fd, 0, len(CONTENT), stall_seconds=10))
            await reader.readexactly(1)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            assert open_descriptors() == before

    run(work())


def test_receivers_that_take_nothing_hold_up_nobody(run: Run, fd: int) -> None:
    async def work() -> None:
        async with AsyncExitStack() as stack:
            idle = [await stack.enter_async_context(connection()) for _ in range(MOST_DEFAULT_WORKERS + 1)]
            transport, reader, _ = await stack.enter_async_context(connection())
            stalled = [
                asyncio.ensure_future(send_file(each, fd, 0, len(CONTENT), stall_seconds=10)) for each, _, _ in idle
            ]
            async with asyncio.TaskGroup() as group:
                body = group.create_task(received(reader, len(CONTENT)))
                await send_file(transport, fd, 0, len(CONTENT), stall_seconds=10)
            assert await body == CONTENT
            assert not any(each.done() for each in stalled)
            assert metric("damselfly_sends_in_threads") == len(stalled)
            for each in stalled:
                each.cancel()
            await asyncio.wait(stalled)
            assert metric("damselfly_sends_in_threads") == 0

    run(work())


class Tls(asyncio.Transport):
    """As much of a TLS transport as `send_file` looks at."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"socket": object(), "sslcontext": object()}.get(name, default)


@pytest.mark.parametrize("transport", [Tls(), asyncio.Transport()], ids=["tls", "no socket"])
async def test_transports_that_need_user_space_are_refused_and_counted(transport: asyncio.Transport, fd: int) -> None:
    before = metric("damselfly_send_fallbacks_total", reason="transport")
    with pytest.raises(UnsendableTransportError, match="not plain TCP"):
        await send_file(transport, fd, 0, 1, stall_seconds=1)
    assert metric("damselfly_send_fallbacks_total", reason="transport") == before + 1
