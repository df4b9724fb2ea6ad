"""The API of hosts over real sockets, with the scheduler's client: real store and task manager, played network."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import pytest

from p2p.auth import ClusterSecret, authorization
from p2p.control import Source
from p2p.digests import ExpectedDigest
from p2p.errors import DeniedError, OriginError, OriginUnreachableError, UnauthorizedError
from p2p.fetches import FetchRequest, FetchState, State
from p2p.hostapi import Keepable, Listed, Probe, Refused, Stream
from p2p.stores import Store as StoreKind
from p2p.tasks import TaskScope
from p2p.versions import ValidatorKind, Version
from peer.fetches import Fetches
from peer.hostapi import HostApi
from peer.upload.server import PieceServer
from scheduler.fleet import Fleet, HostError, Member
from tests.unit.peer.test_tasks import CONTENT, DIGESTS, SOURCE, TASK, VERSION, Peer, running

SECRET = ClusterSecret(b"a secret of the cluster")
OURS = Source("https://s3.amazonaws.com/bucket/key", (), StoreKind.S3)
LISTED = tuple(Listed(f"models/{n}", f"https://host/models/{n}", n, f'"{n}"') for n in range(3000))


class Origin:
    """Answers probes and listings with what it is given."""

    def __init__(self) -> None:
        self.says: Probe | Exception = Keepable(VERSION, (("ETag", '"a"'),), OURS)
        self.asked: list[tuple[Source, str]] = []
        self.listed: list[Listed | Exception] = list(LISTED)

    async def probe(self, source: Source, task_id: str, content: ExpectedDigest | None = None) -> Probe:
        self.asked.append((source, task_id))
        if isinstance(self.says, Exception):
            raise self.says
        return self.says

    async def listing(self, url: str, store: StoreKind) -> AsyncGenerator[Listed, None]:
        assert (url, store) == (OURS.url, StoreKind.S3)
        for entry in self.listed:
            if isinstance(entry, Exception):
                raise entry
            yield entry


@dataclass
class Host:
    peer: Peer
    origin: Origin
    fleet: Fleet
    member: Member

    async def until(self, version: Version, *states: State) -> FetchState:
        while True:
            found = (await self.fleet.fetches(self.member))[version.id]
            if found.state in states:
                return found


@contextlib.asynccontextmanager
async def a_host(directory: Path, secret: ClusterSecret | None = SECRET) -> AsyncIterator[Host]:
    async with asyncio.timeout(20), running(directory) as peer, TaskScope() as scope:
        origin = Origin()
        api = HostApi(
            prober=origin,
            lister=origin.listing,
            fetches=Fetches(peer.tasks, peer.store, scope),
            tasks=peer.tasks,
            store=peer.store,
            secret=secret,
        )
        server = PieceServer(peer.store, secret=secret, slots=1, api=api)
        listening = socket.create_server(("127.0.0.1", 0))
        member = Member("peer-1", f"127.0.0.1:{listening.getsockname()[1]}", False, {})
        await server.start(listening)
        fleet = Fleet(lambda: [member], secret)
        try:
            yield Host(peer, origin, fleet, member)
        finally:
            await fleet.close()
            await server.shutdown(0)


@pytest.mark.parametrize(
    "says",
    [
        Keepable(VERSION, (("ETag", '"a"'),), OURS),
        Refused(404, "Not Found", (("Content-Type", "text/xml"),), b"<Error>"),
        Stream("it cannot be kept"),
    ],
)
async def test_what_an_origin_says(tmp_path: Path, says: Probe) -> None:
    async with a_host(tmp_path) as host:
        host.origin.says = says
        assert await host.fleet.probe(host.member, OURS, TASK.id) == says
        assert host.origin.asked == [(OURS, TASK.id)]


async def test_what_a_probe_raises(tmp_path: Path) -> None:
    async with a_host(tmp_path) as host:
        for error in (OriginUnreachableError("no way"), DeniedError("not that one")):
            host.origin.says = error
            with pytest.raises(type(error), match=str(error)):
                await host.fleet.probe(host.member, OURS, TASK.id)


async def test_a_listing_comes_whole(tmp_path: Path) -> None:
    async with a_host(tmp_path) as host:
        assert await host.fleet.listing(host.member, OURS.url, StoreKind.S3) == LISTED


@pytest.mark.parametrize("before", [0, 1, 2000])
async def test_a_listing_that_fails(tmp_path: Path, before: int) -> None:
    async with a_host(tmp_path) as host:
        host.origin.listed = [*LISTED[:before], OriginError("NoSuchBucket")]
        with pytest.raises(OriginError, match="NoSuchBucket"):
            await host.fleet.listing(host.member, OURS.url, StoreKind.S3)


async def test_a_fetch_brings_the_version_and_pins_it(tmp_path: Path) -> None:
    async with a_host(tmp_path) as host:
        await host.fleet.fetch(host.member, FetchRequest(TASK, VERSION, SOURCE, pin=True))
        state = await host.until(VERSION, State.DONE)
        assert (state.pieces_held, state.pieces, state.bytes_held) == (len(DIGESTS), len(DIGESTS), len(CONTENT))
        (held,) = await host.fleet.held(host.member, TASK.id)
        assert (held.pinned, held.bytes_held, held.object) == (True, len(CONTENT), TASK.canonical)
        assert await host.fleet.pin(host.member, TASK.id, pinned=False) == 1
        host.peer.schedulers.address = "127.0.0.1:8002"
        assert await host.fleet.remove(host.member, TASK.id) == 1
        assert await host.fleet.held(host.member) == ()


async def test_an_empty_object_is_fetched(tmp_path: Path) -> None:
    empty = Version(TASK.id, 0, ValidatorKind.ETAG, '"e"')
    async with a_host(tmp_path) as host:
        await host.fleet.fetch(host.member, FetchRequest(TASK, empty, SOURCE))
        assert (await host.until(empty, State.DONE)).pieces == 0
        assert [row.version_id for row in await host.fleet.held(host.member)] == [empty.id]


async def test_a_fetch_that_fails_says_why(tmp_path: Path) -> None:
    async with a_host(tmp_path) as host:
        host.peer.network.failures = [DeniedError("not from there") for _ in range(100)]
        await host.fleet.fetch(host.member, FetchRequest(TASK, VERSION, SOURCE))
        assert "not from there" in (await host.until(VERSION, State.FAILED)).error


async def test_a_fetch_is_cancelled_and_can_be_ordered_again(tmp_path: Path) -> None:
    async with a_host(tmp_path) as host:
        host.peer.network.gate.clear()
        order = FetchRequest(TASK, VERSION, SOURCE)
        await host.fleet.fetch(host.member, order)
        await host.peer.network.asked.wait()
        await host.fleet.fetch(host.member, order)
        await host.fleet.cancel(host.member, VERSION.id)
        await host.until(VERSION, State.CANCELLED)
        host.peer.network.gate.set()
        await host.fleet.fetch(host.member, order)
        await host.until(VERSION, State.DONE)


async def test_an_order_right_after_a_cancellation_does_not_join_what_is_ending(tmp_path: Path) -> None:
    async with asyncio.timeout(20), running(tmp_path) as peer, TaskScope() as scope:
        fetches, order = Fetches(peer.tasks, peer.store, scope), FetchRequest(TASK, VERSION, SOURCE)
        peer.network.gate.clear()
        fetches.begin(order)
        await peer.network.asked.wait()
        assert fetches.cancel(VERSION.id)
        fetches.begin(order)
        peer.network.gate.set()
        while not (states := fetches.states())[0].state.over:  # noqa: ASYNC110  # nobody is told of it
            await asyncio.sleep(0)
        assert [row.state for row in states] == [State.DONE]


async def test_a_fetch_of_more_than_the_capacity_fails_at_once(tmp_path: Path) -> None:
    async with asyncio.timeout(20), running(tmp_path, capacity=len(CONTENT) - 1) as peer, TaskScope() as scope:
        fetches = Fetches(peer.tasks, peer.store, scope)
        fetches.begin(FetchRequest(TASK, VERSION, SOURCE))
        while not (state := fetches.states()[0]).state.over:  # noqa: ASYNC110  # nobody is told of it
            await asyncio.sleep(0)
        assert (state.state, state.pieces_held) == (State.FAILED, 0)
        assert "more than the store's capacity" in state.error
        assert peer.store.stats().versions == 0


async def test_a_fetch_of_one_piece_does_not_wait_until_a_model_is_here(tmp_path: Path) -> None:
    tiny = replace(VERSION, length=4096, validator='"tiny"')
    async with asyncio.timeout(20), running(tmp_path) as peer, TaskScope() as scope:
        fetches = Fetches(peer.tasks, peer.store, scope, running=1)
        peer.network.gate.clear()
        for version in (VERSION, replace(VERSION, validator='"next"'), tiny):
            fetches.begin(FetchRequest(TASK, version, SOURCE))
        while len(peer.network.urgencies) < 2:  # noqa: ASYNC110  # nobody is told of it
            await asyncio.sleep(0)
        states = {row.version_id: row.state for row in fetches.states()}
        assert (states[VERSION.id], states[tiny.id]) == (State.RUNNING, State.RUNNING)
        assert list(states.values()).count(State.PENDING) == 1
        for version_id in states:
            fetches.cancel(version_id)


async def test_a_removal_ends_the_fetch(tmp_path: Path) -> None:
    async with a_host(tmp_path) as host:
        host.peer.network.gate.clear()
        await host.fleet.fetch(host.member, FetchRequest(TASK, VERSION, SOURCE))
        await host.peer.network.asked.wait()
        host.peer.schedulers.address = "127.0.0.1:8002"
        await host.fleet.remove(host.member, TASK.id)
        assert (await host.until(VERSION, State.CANCELLED, State.FAILED)).pieces_held == 0


async def test_strangers_are_turned_away(tmp_path: Path) -> None:
    async with a_host(tmp_path) as host:
        other = Fleet(lambda: [host.member], ClusterSecret(b"another secret altogether"))
        with pytest.raises(UnauthorizedError):
            await other.held(host.member)
        await other.close()
        async with aiohttp.ClientSession() as session:
            for purpose, expected in (("piece", 401), ("admin", 401), ("host", 200)):
                token = SECRET.sign(purpose, "x", now=time.time())
                url = f"http://{host.member.address}/v1/held"
                async with session.get(url, headers={"Authorization": authorization(token)}) as answer:
                    assert answer.status == expected


async def test_what_is_no_request_is_refused(tmp_path: Path) -> None:
    async with a_host(tmp_path, secret=None) as host, aiohttp.ClientSession() as session:
        base = f"http://{host.member.address}"
        for method, path, body, expected in (
            ("POST", "/v1/probe", b"{", 400),
            ("POST", "/v1/probe", b"[]", 400),
            ("POST", "/v1/probe", b'{"task_id": "x"}', 400),
            ("POST", "/v1/list", b'{"url": "http://x/", "store": "ftp"}', 400),
            ("POST", "/v1/fetches", b"{}", 400),
            ("POST", "/v1/probe", b" " * 2_000_000, 400),
            ("GET", "/v1/probe", b"", 404),
            ("PUT", "/v1/pins/abc", b"", 404),
        ):
            async with session.request(method, base + path, data=io.BytesIO(body)) as answer:
                assert (answer.status, path) == (expected, path)


async def test_a_host_that_is_not_there(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        member = Member("gone", f"127.0.0.1:{nobody.getsockname()[1]}", False, {})
        fleet = Fleet(lambda: [member], None)
        with pytest.raises(HostError, match="host gone at"):
            await fleet.held(member)
        await fleet.close()
