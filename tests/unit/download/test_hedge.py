"""Requests that stall are made again elsewhere: over real sockets, with a patience that the origin has taught."""

from __future__ import annotations

import asyncio
import socket
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from p2p.control import Source
from p2p.errors import CredentialsError, OriginError
from p2p.fields import single
from p2p.pieces import Span
from p2p.stores import Store
from p2p.telemetry import REGISTRY
from p2p.urgency import ORDINARY, Urgency
from peer.download.connection import AddressInfo, Connection, Endpoint, Limits, Progress
from peer.download.landing import Landing, PieceChecksums
from peer.download.patience import ENOUGH, LONGEST_SECONDS, SHORTEST_SECONDS, UNKNOWN_SECONDS, Patience
from peer.download.pool import DEAD_SECONDS, Addresses
from peer.download.transfer import Transfers, TransferSettings
from peer.source.client import OriginSettings
from peer.source.fields import Fields
from peer.source.governor import Governor, Permit
from peer.source.guard import Resolver
from tests.unit.download.support import (
    CONTENT,
    DIGESTS,
    EVERYTHING,
    KIB,
    LAYOUT,
    FileTarget,
    Pieces,
    Request,
    Restless,
    ScriptedServer,
    StallError,
    body,
    cut,
    partial,
    serving,
    silent,
    sound,
    status,
)

PATIENT = OriginSettings(connect_seconds=10, stall_seconds=10)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[FileTarget]:
    target = FileTarget(tmp_path / "data")
    yield target
    target.close()


@asynccontextmanager
async def taught(server: ScriptedServer, target: FileTarget) -> AsyncIterator[Transfers]:
    """Transfers that know what this origin's answers are like; its first ENOUGH scripts must be sound."""
    transfers = Transfers(TransferSettings(workers=4, origin=PATIENT), random=Random(1))
    try:
        for _ in range(ENOUGH):
            await fetch(transfers, target, server, Span(0, 1))
        server.requests.clear()
        yield transfers
    finally:
        await transfers.close()


async def fetch(transfers: Transfers, target: FileTarget, server: ScriptedServer, span: Span = EVERYTHING) -> Pieces:
    pieces = Pieces()
    await transfers.from_origin(target, span, source=Source(server.url), on_piece=pieces)
    return pieces


def hedges(outcome: str) -> float:
    return REGISTRY.get_sample_value("damselfly_origin_hedges_total", {"outcome": outcome}) or 0.0


def requests(kind: str, outcome: str) -> float:
    labels = {"kind": kind, "outcome": outcome}
    return REGISTRY.get_sample_value("damselfly_origin_requests_total", labels) or 0.0


async def test_a_request_without_an_answer_is_made_again_elsewhere(target: FileTarget) -> None:
    won = hedges("won")
    async with serving(*[sound] * ENOUGH, silent, sound) as server, taught(server, target) as transfers:
        pieces = await fetch(transfers, target, server)
    assert pieces == list(enumerate(DIGESTS))
    assert target.holds(EVERYTHING)
    assert [request.wanted.start for request in server.requests] == [0, 0]
    assert server.requests[0].connection != server.requests[1].connection
    assert hedges("won") == won + 1


async def test_an_answer_that_stalls_goes_on_elsewhere_at_the_first_missing_byte(target: FileTarget) -> None:
    stalls = cut(350 * KIB + 17, StallError)
    async with serving(*[sound] * ENOUGH, stalls, sound) as server, taught(server, target) as transfers:
        pieces = await fetch(transfers, target, server)
    assert pieces == list(enumerate(DIGESTS))
    assert target.holds(EVERYTHING)
    # The buffer that was not full yet is landed when the loser ends, and skipped in the winner's answer.
    first, second = (request.wanted.start for request in server.requests)
    assert first == 0
    assert 0 < second <= 300 * KIB


async def test_a_hedge_that_has_won_and_stalls_is_itself_made_again(target: FileTarget) -> None:
    won = hedges("won")
    first, second = cut(250 * KIB + 17, StallError), cut(300 * KIB + 5, StallError)
    async with serving(*[sound] * ENOUGH, first, second, sound) as server, taught(server, target) as transfers:
        pieces = await fetch(transfers, target, server)
    assert pieces == list(enumerate(DIGESTS))
    assert target.holds(EVERYTHING)
    assert hedges("won") == won + 2
    starts = [request.wanted.start for request in server.requests]
    assert starts == sorted(starts)
    assert len(starts) == 3


async def test_a_hedge_without_an_answer_gives_its_place_to_another(target: FileTarget) -> None:
    lost = hedges("lost")
    async with serving(*[sound] * ENOUGH, silent, silent, sound) as server, taught(server, target) as transfers:
        pieces = await fetch(transfers, target, server)
    assert pieces == list(enumerate(DIGESTS))
    assert target.holds(EVERYTHING)
    assert hedges("lost") == lost + 1


async def test_whoever_delivers_first_wins(target: FileTarget) -> None:
    lost, asked = hedges("lost"), asyncio.Event()

    async def late(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(partial(request))
        await asked.wait()
        writer.write(body(request))

    async def hedge(_: Request, __: asyncio.StreamWriter) -> None:
        asked.set()
        raise StallError

    async with serving(*[sound] * ENOUGH, late, hedge, sound) as server, taught(server, target) as transfers:
        pieces = await fetch(transfers, target, server)
    assert pieces == list(enumerate(DIGESTS))
    assert target.holds(EVERYTHING)
    assert hedges("lost") == lost + 1


async def test_a_hedge_that_fails_costs_nothing(target: FileTarget) -> None:
    failed, asked = hedges("failed"), asyncio.Event()

    async def late(request: Request, writer: asyncio.StreamWriter) -> None:
        await asked.wait()
        await sound(request, writer)

    async def refusal(request: Request, writer: asyncio.StreamWriter) -> None:
        await status(403)(request, writer)
        await writer.drain()
        asked.set()

    async with serving(*[sound] * ENOUGH, late, refusal, sound) as server, taught(server, target) as transfers:
        await fetch(transfers, target, server)
    assert target.holds(EVERYTHING)
    assert hedges("failed") + hedges("lost") >= failed + 1


async def test_cancelling_ends_both(target: FileTarget) -> None:
    both = asyncio.Event()

    async def second(_: Request, __: asyncio.StreamWriter) -> None:
        both.set()
        raise StallError

    async with serving(*[sound] * ENOUGH, silent, second) as server, taught(server, target) as transfers:
        fetching = asyncio.ensure_future(fetch(transfers, target, server))
        await both.wait()
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        await server.left.wait()


def test_patience_is_learnt_and_bounded() -> None:
    patience = Patience()
    progress = Progress()
    assert patience.limit(progress) == UNKNOWN_SECONDS
    for _ in range(20):
        patience.answered(0.03)
    assert patience.limit(progress) == pytest.approx(0.12)
    patience.answered(9.0)
    assert patience.limit(progress) == pytest.approx(0.12), "one straggler is not the rule"
    for seconds, limit in ((0.001, SHORTEST_SECONDS), (9.0, LONGEST_SECONDS)):
        for _ in range(100):
            patience.answered(seconds)
        assert patience.limit(progress) == limit


def test_hedges_are_a_small_share_of_requests() -> None:
    patience = Patience()
    hedged = 0
    for _ in range(1000):
        patience.asked()
        hedged += patience.spend(0.0)
    assert 90 <= hedged <= 101


def test_what_has_been_silent_for_very_long_needs_no_leave() -> None:
    patience = Patience()
    patience.wasted(2 * 1024 * 1024)
    assert not patience.spend(LONGEST_SECONDS - 0.1)
    assert patience.spend(LONGEST_SECONDS)


def test_hedges_end_when_they_waste_what_they_bring() -> None:
    patience = Patience()
    patience.wasted(2 * 1024 * 1024)
    assert not patience.spend(0.0)
    patience.ended(Progress(received=1 << 30))
    assert patience.spend(0.0)


def test_a_straggler_is_far_slower_than_the_others() -> None:
    patience = Patience()
    for _ in range(ENOUGH):
        patience.ended(Progress(first_byte=0.01, longest_gap=0.01, waited=1.0, received=80_000_000))
    assert not patience.is_straggler(Progress(first_byte=0.01, waited=0.5, received=100_000)), "too early to tell"
    assert patience.is_straggler(Progress(first_byte=0.01, waited=2.0, received=10_000_000))
    assert not patience.is_straggler(Progress(first_byte=0.01, waited=2.0, received=40_000_000))


def connection(address: object) -> Connection:
    connection = Connection(Endpoint("h", 80), Limits(connect_seconds=1, stall_seconds=1))
    connection.address = address
    return connection


def test_connections_are_spread_over_all_addresses() -> None:
    infos: list[AddressInfo] = [(2, 1, 6, "", (f"192.0.2.{number}", 80)) for number in range(3)]
    a, b, c = (info[4] for info in infos)
    addresses = Addresses()

    def order(*used: object, now: float = 0.0, avoid: object = None) -> list[object]:
        return [info[4] for info in addresses.order(infos, map(connection, used), now=now, avoid=avoid)]

    assert order() == [a, b, c]
    assert order(a) == [b, c, a]
    assert order(a, b, b) == [c, a, b]
    assert order(b, c, c, avoid=a) == [b, c, a]
    addresses.failed([c], now=0.0)
    assert order(a, b, now=1.0) == [a, b, c]
    assert order(a, b, now=DEAD_SECONDS + 1) == [c, a, b]


async def test_a_dead_address_is_no_dead_origin(target: FileTarget) -> None:
    async def lookup(_: str, port: int) -> Sequence[AddressInfo]:
        # Nobody listens on the first.
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in ("127.0.0.2", "127.0.0.1")]

    async with serving(sound) as server:
        transfers = Transfers(TransferSettings(workers=4, origin=PATIENT), resolver=Resolver(lookup=lookup))
        source = Source(f"http://both.example:{server.port}/object")
        await transfers.from_origin(target, EVERYTHING, source=source, on_piece=Pieces())
        await transfers.close()
    assert target.holds(EVERYTHING)


class Keys:
    """Signs with a token that an origin may have had enough of."""

    def __init__(self) -> None:
        self.token = 1

    async def signed(self, source: Source) -> Source:
        return Source(source.url, (("Authorization", f"Bearer {self.token}"),)) if source.store else source

    async def refused(self, source: Source, status: int, headers: Fields, body: bytes) -> bool:
        assert (source.store, status, single(headers, "content-length"), body) == (Store.GCS, 403, "2", b"no")
        self.token += 1
        return True

    def explained(self, source: Source, status: int, headers: Fields, body: bytes) -> OriginError:
        assert (source.store, body) == (Store.GCS, b"no")
        return CredentialsError("not these", status)


@pytest.mark.parametrize("lasting", [False, True])
async def test_requests_are_signed_as_they_are_made(target: FileTarget, lasting: bool) -> None:
    async with serving(cut(150 * KIB), status(403), status(403) if lasting else sound) as server:

        async def no_pause(_: float) -> None:
            pass

        transfers = Transfers(TransferSettings(workers=4, origin=PATIENT), signer=Keys(), sleep=no_pause)
        source = Source(server.url, store=Store.GCS)
        if lasting:
            with pytest.raises(CredentialsError):
                await transfers.from_origin(target, EVERYTHING, source=source, on_piece=Pieces())
        else:
            await transfers.from_origin(target, EVERYTHING, source=source, on_piece=Pieces())
            assert target.holds(EVERYTHING)
        await transfers.close()
    assert [request.headers["authorization"] for request in server.requests] == ["Bearer 1", "Bearer 1", "Bearer 2"]


class Budget(Governor):
    """Gives leave at once, and lets nobody read on after the first bytes if it is `tight`."""

    def __init__(self, *, tight: bool) -> None:
        self.tight = tight
        self.taken = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self.leaves = 0
        self.refusals: list[float] = []

    @asynccontextmanager
    async def request(
        self, url: str, *, check: bool = False, listing: bool = False, urgency: Urgency = ORDINARY, task: str = ""
    ) -> AsyncIterator[Permit]:
        budget = self

        class Leave(Permit):
            def __init__(self) -> None:
                budget.leaves += 1

            def take(self, size: int) -> float:
                budget.loop.call_soon_threadsafe(budget.taken.set)
                return 3600.0 if budget.tight else 0.0

            def refused(self, seconds: float = 0.0) -> None:
                budget.refusals.append(seconds)

        yield Leave()


async def test_every_request_needs_leave_and_hears_when_it_is_refused(target: FileTarget) -> None:
    budget = Budget(tight=False)

    async def no_pause(_: float) -> None:
        pass

    async with serving(status(503, "Retry-After: 2"), cut(150 * KIB), sound) as server:
        transfers = Transfers(TransferSettings(workers=4, origin=PATIENT), governor=budget, sleep=no_pause)
        await transfers.from_origin(target, EVERYTHING, source=Source(server.url), on_piece=Pieces())
        await transfers.close()
    assert (budget.leaves, budget.refusals) == (3, [2.0])


async def test_a_transfer_that_may_not_read_on_can_be_cancelled_at_once(target: FileTarget) -> None:
    budget = Budget(tight=True)
    async with serving(sound) as server:
        transfers = Transfers(TransferSettings(workers=4, origin=PATIENT), governor=budget)
        fetching = asyncio.ensure_future(
            transfers.from_origin(target, EVERYTHING, source=Source(server.url), on_piece=Pieces())
        )
        await budget.taken.wait()
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        await transfers.close()


async def test_overload_is_told_and_counted(target: FileTarget) -> None:
    told: list[None] = []
    refused = requests("piece", "refused")
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    async with serving(status(503), status(429, "Retry-After: 3"), sound) as server:
        transfers = Transfers(TransferSettings(workers=4, origin=PATIENT), governor=Restless(), sleep=pause)
        await transfers.from_origin(
            target,
            EVERYTHING,
            source=Source(server.url),
            on_piece=Pieces(),
            on_overload=lambda: told.append(None),
        )
        await transfers.close()
    assert len(told) == 2
    assert requests("piece", "refused") == refused + 2
    assert pauses[1] == 3.0


async def test_checksums_of_pieces_are_there_when_they_are_reported(target: FileTarget) -> None:
    checksums = PieceChecksums(zlib.crc32)
    seen: list[int] = []
    async with serving(cut(250 * KIB), sound) as server:

        async def no_pause(_: float) -> None:
            pass

        transfers = Transfers(TransferSettings(workers=4, origin=PATIENT), sleep=no_pause)
        await transfers.from_origin(
            target,
            EVERYTHING,
            source=Source(server.url),
            on_piece=lambda index, _: seen.append(checksums.of[index]),
            checksums=checksums,
        )
        await transfers.close()
    starts = [LAYOUT.offset(index) for index in EVERYTHING]
    assert seen == [zlib.crc32(CONTENT[start : start + LAYOUT.piece_length]) for start in starts]


def test_what_lands_may_come_in_any_portions(target: FileTarget) -> None:
    reported: list[tuple[int, bytes]] = []
    landing = Landing(target, EVERYTHING, None, lambda index, digest: reported.append((index, digest)))
    content = memoryview(CONTENT)
    random = Random(3)
    while landing.remaining is not None:
        start = landing.offset
        landing.feed(content[start : min(len(content), start + random.randrange(1, 300 * KIB))])
        assert landing.wanted.start > start
    assert reported == list(enumerate(DIGESTS))
    assert target.holds(EVERYTHING)
