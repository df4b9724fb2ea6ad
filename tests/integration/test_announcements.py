"""Announcements between two hosts: a real store, real sockets, both event loops, and the watch as their client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

import aiohttp
import pytest

from p2p.announcements import FRAME_BYTES, NO_PIECE, frames, target
from p2p.auth import ClusterSecret
from p2p.errors import DamselflyError, ParentError, ParentMissingError, ParentStalledError, ParentUnreachableError
from p2p.pieces import Span
from p2p.telemetry import REGISTRY
from peer.download.announcements import DigestTable, watch
from peer.upload import announcements
from tests.integration import test_piece_server as piece_server
from tests.integration.test_piece_server import SECRET, Parent, Run
from tests.integration.test_piece_server import run as run  # a fixture
from tests.unit.store.support import a_task, a_version, content, put

parent = partial(piece_server.parent, held=Span(0, 3))


class Follower:
    """Follows a parent in a task of its own and keeps what it hears."""

    def __init__(
        self,
        of: Parent,
        *,
        stripes: tuple[int, ...] = (0,),
        number: int = 1,
        token: str | None = None,
        version_id: str | None = None,
        count: int | None = None,
    ) -> None:
        self.entry = of.entry
        self.heard: list[int] = []
        self.news = asyncio.Event()
        size = of.entry.layout.count if count is None else count
        self.digests = DigestTable(size)
        self.lost: asyncio.Task[DamselflyError] = asyncio.ensure_future(
            watch(
                version_id or of.entry.version_id,
                of.address,
                stripes=stripes,
                of=number,
                token=token,
                digests=self.digests,
                count=size,
                on_pieces=self._hear,
            )
        )

    def _hear(self, spans: tuple[Span, ...]) -> None:
        self.heard += [index for span in spans for index in span]
        self.news.set()

    async def until(self, indices: Iterable[int]) -> None:
        """Return once exactly these pieces were announced, each with its digest."""
        wanted = list(indices)
        while self.heard != wanted:
            assert len(self.heard) < len(wanted)
            assert not self.lost.done()
            self.news.clear()
            await self.news.wait()
        assert [self.digests.get(index) for index in wanted] == [content(self.entry, index)[1] for index in wanted]

    async def leave(self) -> None:
        self.lost.cancel()
        with suppress(asyncio.CancelledError):
            await self.lost


async def somebody_waits(of: Parent) -> None:
    """Return once a follower waits for a version that the parent does not know."""
    while not of.server._arriving:  # noqa: ASYNC110  # the server has nothing to say of it
        await asyncio.sleep(0)


def test_what_is_held_comes_first_and_then_what_lands(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with parent(tmp_path, secret=SECRET) as of:
            follower = Follower(of, token=of.token())
            await follower.until([0, 1, 2])
            assert REGISTRY.get_sample_value("damselfly_followers") == 1
            await put(of.entry, [3])
            await follower.until([0, 1, 2, 3])
            await follower.leave()

    run(work())


def test_only_the_stripes_asked_for_are_announced(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with parent(tmp_path) as of:
            even, odd = Follower(of, stripes=(0,), number=2), Follower(of, stripes=(1,), number=2)
            both = Follower(of, stripes=(1, 2), number=3)
            await even.until([0, 2])
            await odd.until([1])
            await put(of.entry, [3])
            await odd.until([1, 3])
            await both.until([1, 2])
            assert even.heard == [0, 2]
            for follower in (even, odd, both):
                await follower.leave()

    run(work())


def test_pieces_that_land_together_are_announced_together(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with parent(tmp_path) as of:
            task = a_task("another")
            with await of.store.entry(task, a_version(task)) as entry:
                reader, writer = await asyncio.open_connection("127.0.0.1", of.port)
                writer.write(f"GET {target(entry.version_id, (0,), 1)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 ")
                assert b"Transfer-Encoding: chunked" in head
                await put(entry, [0, 2, 3])
                size = int(await reader.readuntil(b"\r\n"), 16)
                assert size == 3 * FRAME_BYTES
                assert [index for index, _ in frames(await reader.readexactly(size))] == [0, 2, 3]
                writer.close()

    run(work())


def test_any_client_of_http_can_follow_to_the_end(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with parent(tmp_path) as of, aiohttp.ClientSession() as session:
            url = f"http://{of.address}{target(of.entry.version_id, (0,), 1)}"
            async with session.get(url) as response:
                body = await response.content.readexactly(3 * FRAME_BYTES)
                await of.store.remove_version(of.entry.version_id)
                assert await response.content.read() == b""
            assert list(frames(body)) == [(index, content(of.entry, index)[1]) for index in (0, 1, 2)]

    run(work())


def test_a_follower_may_come_before_its_parent_has_begun(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with parent(tmp_path) as of:
            task = a_task("another")
            version = a_version(task)
            follower = Follower(of, version_id=version.id)
            await somebody_waits(of)
            with await of.store.entry(task, version) as entry:
                follower.entry = entry
                await put(entry, [1])
                await follower.until([1])
                await follower.leave()

    run(work())


def test_a_version_that_stays_unknown_is_missing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with parent(tmp_path) as of:
            of.server._arrival_seconds = 0.0
            assert isinstance(await Follower(of, version_id="0" * 32).lost, ParentMissingError)

    run(work())


def test_shutting_down_ends_every_stream_and_who_waits_for_one(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with parent(tmp_path) as of:
            follower, early = Follower(of), Follower(of, version_id="0" * 32)
            await follower.until([0, 1, 2])
            await somebody_waits(of)
            await of.server.shutdown(20)
            assert isinstance(await follower.lost, ParentUnreachableError)
            assert isinstance(await early.lost, ParentMissingError)

    run(work())


def test_a_removed_version_ends_its_streams(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with parent(tmp_path) as of:
            follower = Follower(of)
            await follower.until([0, 1, 2])
            await of.store.remove_version(of.entry.version_id)
            assert isinstance(await follower.lost, ParentUnreachableError)

    run(work())


def test_a_follower_that_leaves_is_forgotten(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with parent(tmp_path) as of:
            references = of.entry.references
            follower = Follower(of)
            await follower.until([0, 1, 2])
            assert of.entry.references == references + 1
            await follower.leave()
            while of.entry.references > references:
                of.entry._tell()
                await asyncio.sleep(0)
            assert not of.server._announcements._followers
            assert not of.entry._listeners

    run(work())


def test_a_token_is_needed(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with parent(tmp_path, secret=SECRET) as of:
            other = ClusterSecret(b"a secret of another cluster")
            for token in (
                None,
                "a.b.c.d",
                of.token("rpc"),
                of.token(subject="0" * 32),
                other.sign("piece", "x", now=0),
            ):
                error = await Follower(of, token=token).lost
                assert isinstance(error, ParentError)
                assert "refuses the token" in str(error)

    run(work())


@pytest.mark.parametrize("query", ["", "?stripes=0", "?stripes=4&of=4", "?stripes=&of=4", "?stripes=0&of=0", "?of=x"])
def test_what_is_no_choice_of_stripes_is_refused(run: Run, tmp_path: Path, query: str) -> None:
    async def work() -> None:
        async with parent(tmp_path) as of:
            path = f"/v1/announcements/{of.entry.version_id}{query}"
            assert (await of.get(path=path)).status == 400

    run(work())


def test_a_silent_parent_is_alive_as_long_as_its_heart_beats(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcements, "HEARTBEAT_SECONDS", 0.01)

    async def work() -> None:
        async with parent(tmp_path) as of:
            reader, writer = await asyncio.open_connection("127.0.0.1", of.port)
            writer.write(f"GET {target(of.entry.version_id, (0,), 1)} HTTP/1.0\r\n\r\n".encode())
            await reader.readuntil(b"\r\n\r\n")
            told = [index for index, _ in frames(await reader.readexactly(6 * FRAME_BYTES))]
            assert told == [0, 1, 2, NO_PIECE, NO_PIECE, NO_PIECE]
            writer.close()

    run(work())


class Stuck(asyncio.Transport):
    """Nobody reads at its other end."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.aborted = False
        self.room = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0 if self.room else len(self.written)

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


async def test_a_follower_that_does_not_read_is_told_later_and_at_last_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcements, "HEARTBEAT_SECONDS", 0.001)
    monkeypatch.setattr(announcements, "_UNSENT_BYTES", 1)
    async with parent(tmp_path) as of:
        transport = Stuck()
        follower = announcements._Follower(transport, of.entry, frozenset((0,)), 1, chunked=False, patience=10)
        follower.begin()
        transport.room = False
        await put(of.entry, [3])
        follower.hear()
        follower._tell()
        assert [index for index, _ in frames(transport.written)] == [0, 1, 2], "one who does not read is told no more"
        transport.room = True
        follower._tell()
        assert [index for index, _ in frames(transport.written)] == [0, 1, 2, 3]
        follower._patience = 0.01
        transport.room = False
        await follower.ended
        assert transport.aborted


async def scripted(
    answer: bytes,
    *,
    hang_up: bool,
    silence: float = 20.0,
    arrival: float = 0.0,
    digests: DigestTable | None = None,
) -> tuple[DamselflyError, list[int]]:
    """Follow a parent that answers with these octets, one at a time; `digests` are what it announced before."""
    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with suppress(ConnectionError):
            for octet in answer:
                writer.write(bytes([octet]))
                await writer.drain()
            if not hang_up:
                await reader.read()
        writer.close()
        left.set()

    heard: list[int] = []
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        error = await watch(
            "0" * 32,
            f"127.0.0.1:{server.sockets[0].getsockname()[1]}",
            stripes=(0,),
            of=1,
            token=None,
            digests=DigestTable(4) if digests is None else digests,
            count=4,
            on_pieces=lambda spans: heard.extend(index for span in spans for index in span),
            silence_seconds=silence,
            arrival_seconds=arrival,
        )
        await left.wait()
    return error, heard


OK = b"HTTP/1.0 200 OK\r\nServer: x\r\n\r\n"
PIECE_2 = (2).to_bytes(4, "big") + b"d" * 16


async def test_frames_may_come_in_bits() -> None:
    error, heard = await scripted(OK + PIECE_2, hang_up=True)
    assert isinstance(error, ParentUnreachableError)
    assert heard == [2]


@pytest.mark.parametrize("answer", [b"", OK[:20], OK, OK + PIECE_2[:-1]])
async def test_silence_ends_it(answer: bytes) -> None:
    error, heard = await scripted(answer, hang_up=False, silence=0.05)
    assert isinstance(error, ParentStalledError)
    assert heard == []


async def test_who_has_announced_something_has_begun_and_may_not_be_silent_for_longer() -> None:
    digests = DigestTable(4)
    digests[1] = b"d" * 16
    error, _ = await scripted(b"", hang_up=False, silence=0.05, arrival=3600.0, digests=digests)
    assert isinstance(error, ParentStalledError)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 500 Broken\r\n\r\n",
        b"what?\r\n\r\n",
        b"x" * 10_000,
        OK + (4).to_bytes(4, "big") + b"d" * 16,
    ],
)
async def test_nonsense_ends_it(answer: bytes) -> None:
    error, heard = await scripted(answer, hang_up=False)
    assert isinstance(error, ParentError)
    assert heard == []


@pytest.mark.parametrize("address", ["nowhere", "h\r\nX: y:80", "127.0.0.1:1"])
async def test_nobody_there_is_unreachable(address: str) -> None:
    error = await watch(
        "0" * 32, address, stripes=(0,), of=1, token=None, digests=DigestTable(1), count=1, on_pieces=lambda _: None
    )
    assert isinstance(error, ParentUnreachableError)
