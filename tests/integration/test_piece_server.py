"""The piece server between two hosts: a real store, real sockets, both event loops, and the transfers as its client."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvloop

from p2p.auth import TOKEN_SECONDS, ClusterSecret
from p2p.control import SMALL_BYTES
from p2p.errors import ParentBusyError, ParentError
from p2p.pieces import Span
from p2p.telemetry import REGISTRY
from peer.download.transfer import Transfers
from peer.store import Entry, Store
from peer.upload.server import SMALL_A_SLOT, PieceServer
from tests.support.pieces import PIECE
from tests.unit.store.support import a_task, a_version, assert_sound, content, put

NOW = 1_800_000_000.0
SECRET = ClusterSecret(b"a secret of the cluster")
HELD = Span(0, 12)  # far more than what the sockets between the server and a child hold

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}

Run = Callable[[Awaitable[None]], None]


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine on each kind of loop."""

    def call(work: Awaitable[None]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(20):
                await work

        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(bounded())

    return call


@dataclass
class Parent:
    """A host with a piece server; it holds all pieces of a version but the last."""

    store: Store
    entry: Entry
    server: PieceServer
    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def path(self) -> str:
        return f"/v1/pieces/{self.entry.version_id}"

    def token(self, purpose: str = "piece", subject: str | None = None, now: float = NOW) -> str:
        return SECRET.sign(purpose, subject or self.entry.version_id, now=now)

    async def get(self, *lines: str, path: str | None = None, method: str = "GET") -> Answer:
        """Ask once, over a connection of its own."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write("\r\n".join((f"{method} {path or self.path} HTTP/1.1", "Host: x", *lines, "", "")).encode())
        answer = await answered(reader)
        writer.close()
        return answer


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


async def answered(reader: asyncio.StreamReader) -> Answer:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:-2])}
    return Answer(int(lines[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"])))


def bytes_of(entry: Entry, start: int, stop: int) -> bytes:
    return b"".join(content(entry, index)[0] for index in HELD)[start:stop]


@asynccontextmanager
async def parent(
    directory: Path,
    *,
    secret: ClusterSecret | None = None,
    slots: int = 4,
    rate: float | None = None,
    stall_seconds: float = 10,
    held: Span = HELD,
) -> AsyncIterator[Parent]:
    store = await Store.open(directory / "parent")
    task = a_task()
    with await store.entry(task, a_version(task, held.stop * PIECE + 5)) as entry:
        await put(entry, held)
        server = PieceServer(
            store, secret=secret, slots=slots, rate=rate, stall_seconds=stall_seconds, clock=lambda: NOW
        )
        sock = socket.create_server(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        await server.start(sock)
        try:
            yield Parent(store, entry, server, port)
        finally:
            await server.shutdown(5)
    await store.close()


@asynccontextmanager
async def child(directory: Path, of: Parent) -> AsyncIterator[tuple[Transfers, Entry]]:
    store = await Store.open(directory / "child")
    transfers = Transfers()
    with await store.entry(of.entry.task, of.entry.version) as entry:
        try:
            yield transfers, entry
        finally:
            await transfers.close()
    await store.close()


async def fetch(transfers: Transfers, entry: Entry, of: Parent, span: Span, token: str | None = None) -> None:
    landed: list[tuple[int, bytes]] = []
    await transfers.from_parent(
        entry,
        span,
        address=of.address,
        token=token,
        digests=[content(entry, index)[1] for index in span],
        on_piece=lambda index, digest: landed.append((index, digest)),
    )
    await entry.commit(landed)


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_a_limit_on_uploads_changes_no_byte(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with parent(tmp_path, rate=50e6) as of, child(tmp_path, of) as (transfers, entry):
            await fetch(transfers, entry, of, HELD)
            assert entry.landed.spans() == (HELD,)
            assert_sound(entry)

    run(work())


def test_a_child_gets_what_it_asks_for(run: Run, tmp_path: Path) -> None:
    before = metric("damselfly_uploaded_bytes_total")
    sent = metric("damselfly_sent_file_bytes_total")
    fallbacks = metric("damselfly_send_fallbacks_total", reason="transport")

    async def work() -> None:
        async with parent(tmp_path, secret=SECRET) as of, child(tmp_path, of) as (transfers, entry):
            await fetch(transfers, entry, of, Span(1, HELD.stop), of.token())
            await fetch(transfers, entry, of, Span(0, 1), of.token())
            assert entry.landed.spans() == (HELD,)
            assert_sound(entry)

    run(work())
    # The uploads' last count may be made after the child has its last byte, but before the server has shut down.
    assert metric("damselfly_uploaded_bytes_total") - before == HELD.stop * PIECE
    assert metric("damselfly_sent_file_bytes_total") - sent == HELD.stop * PIECE
    assert metric("damselfly_send_fallbacks_total", reason="transport") == fallbacks


@pytest.mark.parametrize(
    "bounds", [(0, 0), (5, 1_000_000), (PIECE - 1, PIECE), (HELD.stop * PIECE - 1, HELD.stop * PIECE - 1)]
)
def test_any_range_of_bytes_held_is_served(run: Run, tmp_path: Path, bounds: tuple[int, int]) -> None:
    async def work() -> None:
        async with parent(tmp_path) as of:
            first, last = bounds
            answer = await of.get(f"Range: bytes={first}-{last}")
            assert answer.status == 206
            assert answer.headers["content-range"] == f"bytes {first}-{last}/{of.entry.version.length}"
            assert "x-damselfly-digests" not in answer.headers
            assert answer.body == bytes_of(of.entry, first, last + 1)

    run(work())


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ((), 416),
        (("Range: pieces=0-1",), 416),
        (("Range: bytes=0-1,5-6",), 416),
        (("Range: bytes=999999999-",), 416),
        ((f"Range: bytes={HELD.stop * PIECE}-{HELD.stop * PIECE}",), 404),
        ((f"Range: bytes=0-{HELD.stop * PIECE}",), 404),
    ],
)
def test_what_is_no_range_or_not_held_is_refused(run: Run, tmp_path: Path, lines: tuple[str, ...], status: int) -> None:
    async def work() -> None:
        async with parent(tmp_path) as of:
            answer = await of.get(*lines)
            assert answer.status == status
            if status == 416:
                assert answer.headers["content-range"] == f"bytes */{of.entry.version.length}"

    run(work())


@pytest.mark.parametrize("path", ["/", "/v1/pieces/", f"/v1/pieces/{'0' * 32}", "/v1/pieces/../../etc/passwd"])
def test_there_is_nothing_else(run: Run, tmp_path: Path, path: str) -> None:
    async def work() -> None:
        async with parent(tmp_path) as of:
            assert (await of.get("Range: bytes=0-0", path=path)).status == 404
            assert (await of.get("Range: bytes=0-0", method="POST")).status == 405

    run(work())


def test_a_token_is_needed(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with parent(tmp_path, secret=SECRET) as of, child(tmp_path, of) as (transfers, entry):
            other = ClusterSecret(b"a secret of another cluster")
            lines = [
                "",
                "Authorization: Bearer x",
                "Authorization: Damselfly",
                "Authorization: Damselfly a.b.c.d",
                f"Authorization: Damselfly {of.token(purpose='rpc')}",
                f"Authorization: Damselfly {of.token(subject='0' * 32)}",
                f"Authorization: Damselfly {of.token(now=NOW - TOKEN_SECONDS - 1)}",
                f"Authorization: Damselfly {other.sign('piece', of.entry.version_id, now=NOW)}",
            ]
            for line in lines:
                answer = await of.get("Range: bytes=0-0", *([line] if line else []))
                assert (answer.status, answer.headers["www-authenticate"]) == (401, "Damselfly")
            for token in (None, "a.b.c.d"):
                with pytest.raises(ParentError, match="refuses the token"):
                    await fetch(transfers, entry, of, Span(0, 1), token)
            # Whoever has no token does not learn what is held here, either.
            assert (await of.get("Range: bytes=0-0", path=f"/v1/pieces/{'0' * 32}")).status == 401
            answer = await of.get("Range: bytes=0-0", f"Authorization: Damselfly {of.token()}")
            assert answer.body == bytes_of(of.entry, 0, 1)

    run(work())


@asynccontextmanager
async def slow_client(of: Parent) -> AsyncIterator[asyncio.StreamReader]:
    """A child that has asked for everything held, has had the first byte of the answer, and reads only when told to."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", of.port))
    reader, writer = await asyncio.open_connection(sock=sock)
    writer.write(f"GET {of.path} HTTP/1.1\r\nHost: x\r\nRange: bytes=0-{HELD.stop * PIECE - 1}\r\n\r\n".encode())
    await reader.readexactly(1)
    try:
        yield reader
    finally:
        writer.transport.abort()


def test_slots_are_bounded_and_come_free(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with parent(tmp_path, slots=1) as of, child(tmp_path, of) as (transfers, entry):
            async with slow_client(of) as reader:
                assert metric("damselfly_upload_slots_used") == 1
                answer = await of.get("Range: bytes=0-0")
                assert (answer.status, answer.headers["retry-after"]) == (503, "1")
                with pytest.raises(ParentBusyError):
                    await fetch(transfers, entry, of, Span(0, 1))
                assert (await answered(reader)).body == bytes_of(of.entry, 0, HELD.stop * PIECE)
            # The slot is free once the server has seen the last byte go; the next answer waits for that.
            async with slow_client(of) as reader:
                assert (await answered(reader)).status == 206

    run(work())
    assert metric("damselfly_upload_slots_used") == 0


def test_small_versions_take_no_slot_and_are_bounded_all_the_same(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = asyncio.Semaphore(0), asyncio.Event()
    verify = Entry.ensure_verified

    async def verify_later(entry: Entry, span: Span) -> None:
        if entry.layout.length <= SMALL_BYTES:
            begun.release()
            await go_on.wait()
        await verify(entry, span)

    async def work() -> None:
        task = a_task("config")
        async with parent(tmp_path, slots=1) as of:
            with await of.store.entry(task, a_version(task, SMALL_BYTES)) as small:
                await put(small, [0])
                monkeypatch.setattr(Entry, "ensure_verified", verify_later)
                path = f"/v1/pieces/{small.version_id}"
                async with slow_client(of) as reader:
                    waiting = [asyncio.create_task(of.get("Range: bytes=0-", path=path)) for _ in range(SMALL_A_SLOT)]
                    for _ in waiting:
                        await begun.acquire()
                    assert metric("damselfly_upload_slots_used") == 1
                    refused = await of.get("Range: bytes=0-", path=path)
                    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
                    go_on.set()
                    for answer in await asyncio.gather(*waiting):
                        assert answer.body == content(small, 0)[0]
                    assert (await of.get("Range: bytes=7-8", path=path)).body == content(small, 0)[0][7:9]
                    assert (await answered(reader)).status == 206

    run(work())


def test_a_child_that_takes_nothing_loses_its_connection(run: Run, tmp_path: Path) -> None:
    before = metric("damselfly_piece_responses_cut_off_total", reason="ReceiverStalledError")

    async def work() -> None:
        async with parent(tmp_path, slots=1, stall_seconds=0.05) as of, slow_client(of) as reader:
            await until_idle(of)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await answered(reader)

    run(work())
    assert metric("damselfly_piece_responses_cut_off_total", reason="ReceiverStalledError") == before + 1


async def until_idle(of: Parent) -> None:
    await of.server.shutdown(5)


def test_a_child_that_leaves_frees_its_slot(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with parent(tmp_path, slots=1) as of:
            async with slow_client(of):
                pass
            await until_idle(of)

    run(work())
    assert metric("damselfly_upload_slots_used") == 0


def test_a_file_that_is_cut_short_breaks_the_connection(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with parent(tmp_path) as of, child(tmp_path, of) as (transfers, entry):
            os.truncate(of.entry.fd, PIECE + 5)
            with pytest.raises(ParentError, match=r"early|broke"):
                await fetch(transfers, entry, of, HELD)
            # One whole piece came all the same, but was not committed by this child.
            await fetch(transfers, entry, of, Span(0, 1))
            assert_sound(entry)

    run(work())


def test_pieces_of_before_a_crash_are_verified_before_they_are_served(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with parent(tmp_path) as of:
            version_id = of.entry.version_id
            os.pwrite(of.entry.fd, b"damage", PIECE + 7)
        store = await Store.open(tmp_path / "parent", verify_on_use=True)
        server = PieceServer(store, secret=None, slots=1)
        sock = socket.create_server(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        await server.start(sock)
        entry = await store.find(version_id)
        assert entry is not None
        with entry:
            again = Parent(store, entry, server, port)
            assert (await again.get("Range: bytes=0-9")).body == bytes_of(entry, 0, 10)
            assert (await again.get(f"Range: bytes={PIECE}-{PIECE}")).status == 404
        await server.shutdown(5)
        await store.close()

    run(work())


def test_shutdown_lets_responses_finish_and_closes_the_idle(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with parent(tmp_path) as of, slow_client(of) as slow, asyncio.TaskGroup() as group:
            idle, writer = await asyncio.open_connection("127.0.0.1", of.port)
            writer.write(f"GET {of.path} HTTP/1.1\r\nHost: x\r\nRange: bytes=0-0\r\n\r\n".encode())
            assert (await answered(idle)).status == 206
            stopping = group.create_task(of.server.shutdown(10))
            assert await idle.read() == b""
            assert (await answered(slow)).body == bytes_of(of.entry, 0, HELD.stop * PIECE)
            await stopping
            with pytest.raises(ConnectionError):
                await asyncio.open_connection("127.0.0.1", of.port)
            writer.close()

    run(work())


def test_shutdown_cuts_off_what_takes_too_long(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with parent(tmp_path) as of, slow_client(of) as slow:
            await of.server.shutdown(0.01)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await answered(slow)

    run(work())
    assert metric("damselfly_upload_slots_used") == 0
