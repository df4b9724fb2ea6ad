"""Spans from parents, over real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from p2p.errors import (
    CorruptPieceError,
    ParentBusyError,
    ParentError,
    ParentMissingError,
    ParentStalledError,
    ParentUnreachableError,
    StoppingError,
    StoreFullError,
)
from p2p.pieces import Span
from peer.download.connection import Limits
from peer.download.transfer import Transfers, TransferSettings
from tests.unit.download.support import (
    CONTENT,
    DIGESTS,
    EVERYTHING,
    KIB,
    VERSION,
    FileTarget,
    HangUpError,
    Pieces,
    Request,
    ScriptedServer,
    StallError,
    body,
    cut,
    gone,
    head,
    partial,
    serving,
    silent,
    sound,
    status,
)

PATIENT = TransferSettings(workers=4, parent=Limits(connect_seconds=10, stall_seconds=10))
HASTY = TransferSettings(workers=4, parent=Limits(connect_seconds=10, stall_seconds=0.05))


@pytest.fixture
def target(tmp_path: Path) -> Iterator[FileTarget]:
    target = FileTarget(tmp_path / "data")
    yield target
    target.close()


@asynccontextmanager
async def running(settings: TransferSettings = PATIENT) -> AsyncIterator[Transfers]:
    transfers = Transfers(settings)
    try:
        yield transfers
    finally:
        await transfers.close()


async def fetch(
    transfers: Transfers,
    target: FileTarget,
    server: ScriptedServer,
    span: Span = EVERYTHING,
    pieces: Pieces | None = None,
) -> Pieces:
    pieces = Pieces() if pieces is None else pieces
    await transfers.from_parent(
        target,
        span,
        address=server.address,
        token="a.token",
        digests=DIGESTS[span.start : span.stop],
        on_piece=pieces,
    )
    return pieces


async def test_every_piece_is_written_and_reported_in_order(target: FileTarget) -> None:
    async with serving(sound) as server, running() as transfers:
        pieces = await fetch(transfers, target, server)
    assert pieces == list(enumerate(DIGESTS))
    assert target.holds(EVERYTHING)


async def test_the_request_is_a_range_with_a_token(target: FileTarget) -> None:
    async with serving(sound) as server, running() as transfers:
        await fetch(transfers, target, server, Span(2, 4))
    assert (
        server.requests[0].head
        == (
            f"GET /v1/pieces/{VERSION.id} HTTP/1.1\r\nHost: {server.address}\r\n"
            f"Range: bytes={200 * KIB}-{400 * KIB - 1}\r\nAuthorization: Damselfly a.token\r\n\r\n"
        ).encode()
    )
    assert target.holds(Span(2, 4))


async def test_connections_are_kept(target: FileTarget) -> None:
    async with serving(sound) as server, running() as transfers:
        for index in EVERYTHING:
            await fetch(transfers, target, server, Span(index, index + 1))
    assert (server.connections, len(server.requests)) == (1, len(EVERYTHING))
    assert target.holds(EVERYTHING)


async def test_at_once_there_is_a_connection_for_each_span(target: FileTarget) -> None:
    async with serving(sound) as server, running() as transfers, asyncio.TaskGroup() as group:
        for index in EVERYTHING:
            group.create_task(fetch(transfers, target, server, Span(index, index + 1)))
    assert server.connections <= PATIENT.workers
    assert target.holds(EVERYTHING)


async def test_a_kept_connection_that_the_parent_has_closed_is_replaced(target: FileTarget) -> None:
    async def sound_then_gone(request: Request, writer: asyncio.StreamWriter) -> None:
        await sound(request, writer)
        await writer.drain()
        raise HangUpError

    async with serving(sound_then_gone, sound) as server, running() as transfers:
        await fetch(transfers, target, server, Span(0, 1))
        await server.left.wait()
        await fetch(transfers, target, server, Span(1, 11))
    assert server.connections == 2
    assert target.holds(EVERYTHING)


async def test_a_kept_connection_that_dies_of_the_request_is_replaced_once(target: FileTarget) -> None:
    async with serving(sound, gone, sound) as server, running() as transfers:
        await fetch(transfers, target, server, Span(0, 1))
        await fetch(transfers, target, server, Span(1, 11))
    assert [request.connection for request in server.requests] == [1, 1, 2]
    async with serving(sound, gone, gone) as server, running() as transfers:
        await fetch(transfers, target, server, Span(0, 1))
        with pytest.raises(ParentUnreachableError):
            await fetch(transfers, target, server, Span(1, 11))
    assert [request.connection for request in server.requests] == [1, 1, 2]


async def test_unasked_bytes_on_a_kept_connection_end_it(target: FileTarget) -> None:
    async def babbling(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(partial(request) + body(request) + b"HTTP/1.1 206 Forged\r\n")

    async with serving(babbling, sound) as server, running() as transfers:
        await fetch(transfers, target, server, Span(0, 1))
        await fetch(transfers, target, server, Span(1, 11))
    assert target.holds(EVERYTHING)


async def test_a_corrupt_piece_is_refused_and_nothing_after_it_is_reported(target: FileTarget) -> None:
    async def corrupt(request: Request, writer: asyncio.StreamWriter) -> None:
        payload = bytearray(body(request))
        payload[350 * KIB] ^= 1
        writer.write(partial(request) + payload)

    pieces = Pieces()
    async with serving(corrupt) as server, running() as transfers:
        with pytest.raises(CorruptPieceError, match="piece 3 "):
            await fetch(transfers, target, server, pieces=pieces)
    assert pieces.indices == [0, 1, 2]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (503, ParentBusyError),
        (404, ParentMissingError),
        (416, ParentMissingError),
        (401, ParentError),
        (500, ParentError),
    ],
)
async def test_refusals_are_told_apart_and_keep_the_connection(
    target: FileTarget, code: int, error: type[ParentError]
) -> None:
    pieces = Pieces()
    async with serving(status(code), sound) as server, running() as transfers:
        with pytest.raises(error) as refusal:
            await fetch(transfers, target, server, pieces=pieces)
        assert refusal.type is error
        assert pieces == []
        await fetch(transfers, target, server)
    assert server.connections == 1


@pytest.mark.parametrize(
    "lines",
    [
        (),
        (f"Content-Range: bytes 0-{len(CONTENT) - 1}/{len(CONTENT) + 1}",),
        (f"Content-Range: bytes 0-{len(CONTENT) - 1}/*",),
        (f"Content-Range: bytes 1-{len(CONTENT) - 1}/{len(CONTENT)}",),
    ],
)
async def test_other_bytes_than_those_asked_for_are_refused(target: FileTarget, lines: tuple[str, ...]) -> None:
    async def other(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(206, len(CONTENT), *lines) + CONTENT)

    async with serving(other) as server, running() as transfers:
        with pytest.raises(ParentError, match="other bytes"):
            await fetch(transfers, target, server)
    assert target.path.read_bytes() == b""


@pytest.mark.parametrize("after", [0, 1, 100 * KIB, 250 * KIB, len(CONTENT) - 1])
async def test_a_parent_that_breaks_off_leaves_whole_pieces(target: FileTarget, after: int) -> None:
    pieces = Pieces()
    async with serving(cut(after)) as server, running() as transfers:
        with pytest.raises(ParentUnreachableError):
            await fetch(transfers, target, server, pieces=pieces)
    assert pieces.indices == list(range(after // (100 * KIB)))


@pytest.mark.parametrize("script", [silent, cut(0, StallError), cut(250 * KIB, StallError)])
async def test_a_parent_that_says_nothing_is_given_up(target: FileTarget, script: object) -> None:
    async with serving(script) as server, running(HASTY) as transfers:  # type: ignore[arg-type]
        with pytest.raises(ParentStalledError, match="nothing came"):
            await fetch(transfers, target, server)
        await server.left.wait()


async def test_nobody_there_is_unreachable(target: FileTarget) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        async with running() as transfers:
            with pytest.raises(ParentUnreachableError, match="refused"):
                await transfers.from_parent(
                    target, Span(0, 1), address=address, token=None, digests=DIGESTS[:1], on_piece=Pieces()
                )


@pytest.mark.parametrize("address", ["nowhere", "host:99999", "http://h:1", "h\r\nX: y:80"])
async def test_an_impossible_address_is_unreachable(target: FileTarget, address: str) -> None:
    async with running() as transfers:
        with pytest.raises(ParentUnreachableError, match="address"):
            await transfers.from_parent(
                target, Span(0, 1), address=address, token=None, digests=DIGESTS[:1], on_piece=Pieces()
            )


async def test_cancelling_closes_the_connection_and_waits_for_the_thread(target: FileTarget) -> None:
    pieces = Pieces()
    async with serving(cut(250 * KIB, StallError)) as server, running() as transfers:
        fetching = asyncio.ensure_future(fetch(transfers, target, server, pieces=pieces))
        await server.asked.wait()
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        reported = len(pieces)
        await server.left.wait()
        assert len(pieces) == reported


async def test_cancelling_before_a_thread_is_free_asks_nothing(target: FileTarget) -> None:
    async with serving(silent) as server, running(TransferSettings(workers=1, parent=PATIENT.parent)) as transfers:
        first = asyncio.ensure_future(fetch(transfers, target, server))
        await server.asked.wait()
        second = asyncio.ensure_future(fetch(transfers, target, server))
        for task in (second, first):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert len(server.requests) == 1


async def test_closing_ends_every_transfer(target: FileTarget) -> None:
    async with serving(silent) as server, running() as transfers:
        fetching = asyncio.ensure_future(fetch(transfers, target, server))
        await server.asked.wait()
        await transfers.close()
        with pytest.raises(StoppingError):
            await fetching
        with pytest.raises(StoppingError):
            await fetch(transfers, target, server)


async def test_a_full_disk_is_the_stores_error(target: FileTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(offset: int, data: memoryview) -> None:
        raise StoreFullError("no room")

    monkeypatch.setattr(target, "write", full)
    async with serving(sound) as server, running() as transfers:
        with pytest.raises(StoreFullError):
            await fetch(transfers, target, server)
