"""The task manager and its downloads over a real store; only the network is played."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from p2p.control import (
    ORIGIN,
    Assignment,
    Dropped,
    FailureReason,
    Following,
    KnownDigests,
    Lagging,
    Landed,
    Parent,
    Part,
    PeerMessage,
    Progress,
    Source,
    Unwant,
    Want,
)
from p2p.digests import piece_digest
from p2p.errors import (
    DamselflyError,
    OriginRefusedError,
    ParentUnreachableError,
    StoppingError,
    StoreError,
    StoreFullError,
)
from p2p.identity import Task, identify
from p2p.pieces import PieceLayout, Span
from p2p.ranges import ByteRange
from p2p.tasks import TaskScope
from p2p.urgency import ORDINARY, Urgency
from p2p.versions import ValidatorKind, Version
from peer.download.announcements import DigestTable
from peer.download.landing import PieceChecksums
from peer.store import Entry, Store
from peer.tasks import TaskManager
from tests.support.pieces import PIECE

CONTENT = b"".join(bytes([index + 1]) * PIECE for index in range(4)) + b"end"
TASK: Task = identify("http://origin/model.bin")
VERSION = Version(TASK.id, len(CONTENT), ValidatorKind.ETAG, '"a"')
LAYOUT = PieceLayout.of(VERSION.length)
SOURCE = Source("http://origin/model.bin")
DIGESTS = tuple(
    piece_digest(CONTENT[LAYOUT.offset(i) : LAYOUT.offset(i) + LAYOUT.size(i)]) for i in range(LAYOUT.count)
)


class Network:
    """Gives the bytes of CONTENT, or what `failures` says; holds transfers back while `gate` is closed."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.asked = asyncio.Event()
        self.followed = asyncio.Event()
        self.gate.set()
        self.failures: list[DamselflyError] = []
        self.origin: list[Span] = []
        self.parents: list[tuple[str, Span]] = []
        self.sources: list[Source] = []
        self.urgencies: list[Urgency] = []
        self.wrong = 0
        self.announced: dict[str, Callable[[tuple[Span, ...]], None]] = {}
        self.tables: dict[str, DigestTable] = {}
        self.lost: dict[str, asyncio.Future[DamselflyError]] = {}

    async def follow(
        self,
        entry: Entry,
        *,
        address: str,
        stripes: tuple[int, ...],
        of: int,
        token: str | None,
        digests: DigestTable,
        on_pieces: Callable[[tuple[Span, ...]], None],
    ) -> DamselflyError:
        self.announced[address], self.tables[address] = on_pieces, digests
        self.lost[address] = asyncio.get_running_loop().create_future()
        self.followed.set()
        return await self.lost[address]

    def announce(self, address: str, span: Span, digests: Sequence[bytes] = ()) -> None:
        """Have a followed host announce pieces."""
        for index in span:
            self.tables[address][index] = digests[index - span.start] if digests else DIGESTS[index]
        self.announced[address]((span,))

    async def from_origin(
        self,
        entry: Entry,
        span: Span,
        *,
        source: Source,
        on_piece: Callable[[int, bytes], None],
        on_overload: Callable[[], None],
        checksums: PieceChecksums | None = None,
        urgency: Urgency = ORDINARY,
    ) -> None:
        self.urgencies.append(urgency)
        self.origin.append(span)
        self.sources.append(source)
        await self._bring(entry, span, on_piece, checksums)

    async def from_parent(
        self,
        entry: Entry,
        span: Span,
        *,
        address: str,
        token: str | None,
        digests: Sequence[bytes],
        on_piece: Callable[[int, bytes], None],
        checksums: PieceChecksums | None = None,
        urgency: Urgency = ORDINARY,
    ) -> None:
        self.urgencies.append(urgency)
        self.parents.append((address, span))
        assert tuple(digests) == DIGESTS[span.start : span.stop]
        await self._bring(entry, span, on_piece, checksums)

    async def _bring(
        self, entry: Entry, span: Span, on_piece: Callable[[int, bytes], None], checksums: PieceChecksums | None
    ) -> None:
        self.asked.set()
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        for index in span:
            data = self.content(index)
            entry.write(LAYOUT.offset(index), memoryview(data))
            if checksums is not None:
                checksums.of[index] = checksums.update(data, 0)
            on_piece(index, piece_digest(data))

    def content(self, index: int) -> bytes:
        """The bytes of a piece; wrong in the first one as often as `wrong` says."""
        start = LAYOUT.offset(index)
        data = CONTENT[start : start + LAYOUT.size(index)]
        if index == 0 and self.wrong:
            self.wrong -= 1
            return b"?" + data[1:]
        return data


class Schedulers:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.address: str | None = None
        self.told: list[PeerMessage] = []
        self.heard = asyncio.Event()

    def of(self, version_id: str) -> str | None:
        return self.address

    def send(self, version_id: str, message: PeerMessage, *, soon: bool = True) -> None:
        if self.address is None:
            assert isinstance(message, Dropped), "nobody is there to be told"
            return
        self.told.append(message)
        self.heard.set()

    def left(self, name: str, version_id: str) -> None:
        self.told.append(Unwant(version_id))

    def last(self, kind: type[PeerMessage]) -> PeerMessage | None:
        return next((message for message in reversed(self.told) if isinstance(message, kind)), None)


class Peer:
    def __init__(self, store: Store, tasks: TaskManager, network: Network, schedulers: Schedulers) -> None:
        self.store = store
        self.tasks = tasks
        self.network = network
        self.schedulers = schedulers


@contextlib.asynccontextmanager
async def running(
    directory: Path, *, scheduler: bool = False, seed: bool = False, capacity: int | None = None
) -> AsyncIterator[Peer]:
    store = await Store.open(directory, capacity=capacity)
    network, schedulers = Network(), Schedulers()
    schedulers.address = "127.0.0.1:8002" if scheduler else None
    async with TaskScope() as scope:
        tasks = TaskManager(store, network, schedulers, scope, secret=None, seed=seed)
        scope.spawn(tasks.run(), name="duties")
        yield Peer(store, tasks, network, schedulers)
        schedulers.address = None
        tasks.scheduler_changed()
        await tasks.stop()
    await store.close()


async def whole(peer: Peer, wanted: ByteRange | None = None, source: Source = SOURCE) -> tuple[bytes, str]:
    async with await peer.tasks.open(TASK, VERSION, source, wanted) as reader:
        offset, data = reader.wanted.start, b""
        while offset < reader.wanted.stop:
            end = await reader.ready(offset)
            data += await asyncio.to_thread(_pread, reader.entry.fd, end - offset, offset)
            offset = end
        return data, reader.origin_of_bytes


def _pread(fd: int, count: int, offset: int) -> bytes:
    return os.pread(fd, count, offset)


async def test_alone_the_origin_gives_everything_once(tmp_path: Path) -> None:
    async with running(tmp_path) as peer:
        assert await whole(peer) == (CONTENT, "origin")
        assert await whole(peer) == (CONTENT, "local")
        assert sorted(index for span in peer.network.origin for index in span) == list(range(LAYOUT.count))
        (status,) = await peer.tasks.status(TASK.id)
        assert (status.bytes_from_origin, status.pieces_held, status.downloading) == (len(CONTENT), 5, False)


async def test_a_range_fetches_only_the_pieces_that_cover_it(tmp_path: Path) -> None:
    async with running(tmp_path) as peer:
        wanted = ByteRange(PIECE + 5, 2 * PIECE - 5)
        assert await whole(peer, wanted) == (CONTENT[wanted.start : wanted.stop], "origin")
        assert peer.network.origin == [Span(1, 2)]


async def test_many_readers_share_one_download(tmp_path: Path) -> None:
    async with running(tmp_path) as peer:
        peer.network.gate.clear()
        readers = [asyncio.ensure_future(whole(peer)) for _ in range(10)]
        await asyncio.sleep(0)
        peer.network.gate.set()
        assert all(data == CONTENT for data, _ in await asyncio.gather(*readers))
        assert sorted(index for span in peer.network.origin for index in span) == list(range(LAYOUT.count))


async def test_the_most_urgent_reader_says_how_urgent_a_download_is(tmp_path: Path) -> None:
    async with running(tmp_path, scheduler=True) as peer:
        peer.network.gate.clear()
        async with await peer.tasks.open(TASK, VERSION, SOURCE, priority=2):
            async with await peer.tasks.open(TASK, VERSION, SOURCE, ByteRange(0, 1), priority=7):
                part = Part(Span(0, 1), "peer-2", "127.0.0.1:1", DIGESTS[:1])
                peer.tasks.assigned(Assignment(VERSION, (part,), priority=2))
                await peer.network.asked.wait()
            said = [(message.spans, message.priority) for message in peer.schedulers.told if isinstance(message, Want)]
            assert said == [((Span(0, 5),), 2), ((), 7), ((), 2)]
            assert peer.network.urgencies == [Urgency(7)]
        peer.network.gate.set()


async def test_who_wants_one_piece_is_brief(tmp_path: Path) -> None:
    async with running(tmp_path) as peer:
        async with await peer.tasks.open(TASK, VERSION, SOURCE, ByteRange(0, 1), priority=0) as reader:
            await reader.ready(0)
        assert peer.network.urgencies == [Urgency(0, brief=True)]


async def test_a_scheduler_is_asked_and_its_parents_are_used(tmp_path: Path) -> None:
    async with running(tmp_path, scheduler=True) as peer:
        reading = asyncio.ensure_future(whole(peer))
        await peer.schedulers.heard.wait()
        assert peer.schedulers.told == [Want(VERSION, (Span(0, 5),), SOURCE)]
        part = Part(Span(0, 5), "peer-2", "127.0.0.1:1", DIGESTS)
        peer.tasks.assigned(Assignment(VERSION, (part,)))
        assert await reading == (CONTENT, "remote")
        assert peer.network.origin == []
    landed = [landed for message in peer.schedulers.told if isinstance(message, Progress) for landed in message.landed]
    assert sorted(index for one in landed for index in one.span) == list(range(5))
    assert not any(one.digests for one in landed), "a child vouches for nothing"


async def test_who_leaves_with_the_last_byte_has_not_given_up(tmp_path: Path) -> None:
    async with running(tmp_path, scheduler=True) as peer:
        async with await peer.tasks.open(TASK, VERSION, SOURCE, ByteRange(0, 1)) as reader:
            peer.tasks.assigned(Assignment(VERSION, (Part(Span(0, 1), "peer-2", "127.0.0.1:1", DIGESTS[:1]),)))
            # The piece that lands wakes this reader before the download hears of it.
            await reader.ready(0)
        while not isinstance(peer.schedulers.told[-1], Progress):
            peer.schedulers.heard.clear()
            await peer.schedulers.heard.wait()
        assert [type(message) for message in peer.schedulers.told] == [Want, Progress]


async def test_a_seed_brings_what_it_was_assigned_though_nobody_reads_here(tmp_path: Path) -> None:
    async with running(tmp_path, scheduler=True, seed=True) as peer:
        peer.tasks.assigned(Assignment(VERSION, (Part(Span(0, 5), ORIGIN),), SOURCE))
        while sum(len(one.span) for m in peer.schedulers.told if isinstance(m, Progress) for one in m.landed) < 5:
            peer.schedulers.heard.clear()
            await peer.schedulers.heard.wait()
        digests = {
            one.span.start + at: digest
            for message in peer.schedulers.told
            if isinstance(message, Progress)
            for one in message.landed
            for at, digest in enumerate(one.digests)
        }
        assert digests == dict(enumerate(DIGESTS))
        assert set(peer.network.sources) == {SOURCE}


async def test_a_parents_failure_is_reported_and_costs_the_reader_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, scheduler=True) as peer:
        peer.network.failures.append(ParentUnreachableError("gone"))
        reading = asyncio.ensure_future(whole(peer))
        await peer.schedulers.heard.wait()
        peer.tasks.assigned(Assignment(VERSION, (Part(Span(0, 5), "p1", "127.0.0.1:1", DIGESTS),)))
        while not (isinstance(last := peer.schedulers.last(Progress), Progress) and last.failed):
            peer.schedulers.heard.clear()
            await peer.schedulers.heard.wait()
        assert last.failed[0].parent_id == "p1"
        peer.tasks.assigned(Assignment(VERSION, (Part(Span(0, 5), "p2", "127.0.0.1:2", DIGESTS),)))
        assert (await reading)[0] == CONTENT


async def test_the_scheduler_goes_away_and_the_origin_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peer.core.download.GRACE_SECONDS", 0.0)
    async with running(tmp_path, scheduler=True) as peer:
        reading = asyncio.ensure_future(whole(peer))
        await peer.schedulers.heard.wait()
        peer.schedulers.address = None
        peer.tasks.scheduler_changed()
        assert await reading == (CONTENT, "origin")


async def test_a_refused_reader_fails_and_another_with_a_sound_source_does_not(tmp_path: Path) -> None:
    async with running(tmp_path) as peer:
        peer.network.gate.clear()
        refused = asyncio.ensure_future(whole(peer, source=Source("http://origin/model.bin?expired")))
        sound = asyncio.ensure_future(whole(peer))
        await asyncio.sleep(0)
        peer.network.failures.extend(OriginRefusedError(403, "expired") for _ in range(2))
        peer.network.gate.set()
        assert (await sound)[0] == CONTENT
        # The bytes came through the other's source; both had proved at the origin that they may read them.
        assert (await refused)[0] == CONTENT


async def test_nobody_is_left_waiting_when_the_only_source_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as peer:
        peer.network.failures.extend(OriginRefusedError(403, "expired") for _ in range(9))
        with pytest.raises(OriginRefusedError):
            await whole(peer)
        peer.network.failures.clear()
        assert (await whole(peer))[0] == CONTENT


async def test_stopping_fails_readers_and_refuses_new_ones(tmp_path: Path) -> None:
    async with running(tmp_path) as peer:
        peer.network.gate.clear()
        reading = asyncio.ensure_future(whole(peer))
        await asyncio.sleep(0)
        await peer.network.asked.wait()
        await peer.tasks.stop()
        with pytest.raises(StoppingError):
            await reading
        with pytest.raises(StoppingError):
            await whole(peer)


async def test_removal_tells_the_scheduler_and_ends_running_reads(tmp_path: Path) -> None:
    async with running(tmp_path, scheduler=True) as peer:
        reading = asyncio.ensure_future(whole(peer))
        await peer.schedulers.heard.wait()
        peer.tasks.assigned(Assignment(VERSION, (Part(Span(0, 1), "p1", "127.0.0.1:1", DIGESTS[:1]),)))
        while peer.schedulers.last(Progress) is None:
            peer.schedulers.heard.clear()
            await peer.schedulers.heard.wait()
        assert await peer.tasks.remove(TASK.id) == (VERSION.id,)
        with pytest.raises(StoreError):
            await reading
        assert peer.schedulers.last(Dropped) == Dropped(VERSION.id)


async def test_the_last_reader_to_leave_ends_the_download(tmp_path: Path) -> None:
    async with running(tmp_path, scheduler=True) as peer:
        reading = asyncio.ensure_future(whole(peer))
        await peer.schedulers.heard.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert peer.schedulers.last(Unwant) == Unwant(VERSION.id)


async def test_more_than_the_store_may_hold_is_refused_before_anything_is_evicted_for_it(tmp_path: Path) -> None:
    async with running(tmp_path, capacity=len(CONTENT) - 1) as peer:
        part = ByteRange(0, 10)
        assert (await whole(peer, part))[0] == CONTENT[:10]
        with pytest.raises(StoreFullError, match="raise it"):
            await whole(peer)
        assert (await whole(peer, part))[1] == "local"


def following(*parents: Parent, known: tuple[KnownDigests, ...] = ()) -> Following:
    return Following(VERSION, 2, parents, known)


async def until(peer: Peer, done: Callable[[], object]) -> None:
    """Return once what the scheduler was told makes it so."""
    while not done():
        peer.schedulers.heard.clear()
        await peer.schedulers.heard.wait()


def landed_of(peer: Peer) -> list[Landed]:
    return [one for message in peer.schedulers.told if isinstance(message, Progress) for one in message.landed]


async def test_what_followed_parents_announce_is_fetched_and_reported_with_a_proof(tmp_path: Path) -> None:
    async with running(tmp_path, scheduler=True) as peer:
        reading = asyncio.ensure_future(whole(peer))
        await peer.schedulers.heard.wait()
        peer.tasks.told(following(Parent("p0", "even:1", (0,)), Parent("p1", "odd:1", (1,))))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert set(peer.network.announced) == {"even:1", "odd:1"}
        for index in (0, 2, 4):
            peer.network.announce("even:1", Span(index, index + 1))
        for index in (1, 3):
            peer.network.announce("odd:1", Span(index, index + 1))
        assert await reading == (CONTENT, "remote")
        assert peer.network.origin == []
        assert {(address, index) for address, span in peer.network.parents for index in span} == {
            *(("even:1", index) for index in (0, 2, 4)),
            *(("odd:1", index) for index in (1, 3)),
        }
        assert landed_of(peer) == [Landed(Span(0, 5), "p0", proof=piece_digest(b"".join(DIGESTS)))]
        assert all(lost.cancelled() for lost in peer.network.lost.values()), "who has all follows nobody"


async def test_a_parent_that_announces_another_digest_than_the_true_one_is_not_asked(tmp_path: Path) -> None:
    async with running(tmp_path, scheduler=True) as peer:
        reading = asyncio.ensure_future(whole(peer, ByteRange(0, 5)))
        await peer.schedulers.heard.wait()
        known = KnownDigests(Span(0, 1), DIGESTS[:1])
        peer.tasks.told(following(Parent("p0", "even:1", (0, 1)), known=(known,)))
        await peer.network.followed.wait()
        peer.network.announce("even:1", Span(0, 1), DIGESTS[1:2])
        await until(peer, lambda: any(one.failed for one in peer.schedulers.told if isinstance(one, Progress)))
        last = peer.schedulers.last(Progress)
        assert isinstance(last, Progress)
        assert (last.failed[0].parent_id, last.failed[0].reason) == ("p0", FailureReason.CORRUPT)
        assert peer.network.parents == []
        peer.tasks.told(following(Parent("p1", "other:1", (0, 1)), known=(known,)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        peer.network.announce("other:1", Span(0, 1))
        assert (await reading)[0] == CONTENT[:5]


async def test_the_scheduler_hears_of_a_parent_that_is_lost(tmp_path: Path) -> None:
    async with running(tmp_path, scheduler=True) as peer:
        reading = asyncio.ensure_future(whole(peer))
        await peer.schedulers.heard.wait()
        peer.tasks.told(following(Parent("p0", "even:1", (0, 1))))
        await peer.network.followed.wait()
        peer.network.lost["even:1"].set_result(ParentUnreachableError("gone"))
        await until(peer, lambda: peer.schedulers.last(Lagging))
        assert peer.schedulers.last(Lagging) == Lagging(VERSION.id, (0, 1))
        peer.tasks.assigned(Assignment(VERSION, (Part(Span(0, 5), "p2", "127.0.0.1:2", DIGESTS),)))
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading


async def test_whom_to_follow_without_a_download_is_nobodys_business(tmp_path: Path) -> None:
    async with running(tmp_path, scheduler=True) as peer:
        peer.tasks.told(following(Parent("p0", "even:1", (0, 1))))
        await asyncio.sleep(0)
        assert peer.network.announced == {}
