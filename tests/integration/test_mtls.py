"""TLS between the members of a cluster: piece server and transfers on real sockets, and a whole cluster of daemons."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import uvloop

from bench.cluster import LocalCluster
from bench.origin_client import OriginClient
from bench.reader import Reader
from p2p.auth import authorization
from p2p.errors import DamselflyError, ParentMissingError, ParentUnreachableError
from p2p.mtls import ClusterTls
from p2p.pieces import Span
from peer.download.announcements import DigestTable
from peer.download.transfer import Transfers
from peer.store import Entry, Store
from peer.upload.server import PieceServer
from tests.support.mtls import TestAuthority
from tests.unit.store.support import a_task, a_version, assert_sound, content, put

KIB, MIB = 1024, 1024 * 1024
HELD = Span(0, 3)

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}
Run = Callable[[Awaitable[None]], None]


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine on each kind of loop."""

    def call(work: Awaitable[None]) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(asyncio.wait_for(work, 60))

    return call


class Pair:
    """A parent that holds three pieces of a version, and a child's entry for them."""

    def __init__(self, address: str, entry: Entry) -> None:
        self.address = address
        self.entry = entry

    async def fetch(self, members: ClusterTls | None) -> None:
        """Fetch the three pieces with the certificate of a member, twice the last one: over a kept connection."""
        transfers = Transfers(members=members)
        landed: list[tuple[int, bytes]] = []
        try:
            for span in (HELD, Span(2, 3)):
                await transfers.from_parent(
                    self.entry,
                    span,
                    address=self.address,
                    token=None,
                    digests=[content(self.entry, index)[1] for index in span],
                    on_piece=lambda index, digest: landed.append((index, digest)),
                )
        finally:
            await transfers.close()
        await self.entry.commit(landed)

    async def follow(self, members: ClusterTls | None, digests: DigestTable, enough: asyncio.Event) -> DamselflyError:
        """Hear announcements until the stream is lost, or all that is held has been announced."""
        transfers = Transfers(members=members)

        def heard(_: tuple[Span, ...]) -> None:
            if all(digests.get(index) for index in HELD):
                enough.set()

        following = asyncio.ensure_future(
            transfers.follow(
                self.entry,
                address=self.address,
                stripes=(0,),
                of=1,
                token=None,
                digests=digests,
                on_pieces=heard,
            )
        )
        waiting = asyncio.ensure_future(enough.wait())
        try:
            await asyncio.wait((following, waiting), return_when=asyncio.FIRST_COMPLETED)
            return following.result() if following.done() else ParentMissingError("not lost")
        finally:
            waiting.cancel()
            following.cancel()
            await asyncio.gather(waiting, following, return_exceptions=True)
            await transfers.close()


@asynccontextmanager
async def pair(directory: Path, tls: ClusterTls | None, rate: float | None = None) -> AsyncIterator[Pair]:
    holds, wants = await Store.open(directory / "parent"), await Store.open(directory / "child")
    task = a_task()
    server = PieceServer(holds, secret=None, slots=4, rate=rate, tls=tls)
    with await holds.entry(task, a_version(task)) as held, await wants.entry(task, a_version(task)) as wanted:
        await put(held, HELD)
        sock = socket.create_server(("127.0.0.1", 0))
        await server.start(sock)
        try:
            yield Pair(f"127.0.0.1:{sock.getsockname()[1]}", wanted)
        finally:
            await server.shutdown(5)
    await holds.close()
    await wants.close()


def test_members_exchange_pieces_and_announcements(run: Run, tmp_path: Path) -> None:
    authority = TestAuthority(tmp_path)
    parent, child = (ClusterTls.load(authority.member(name)) for name in ("parent", "child"))

    async def scenario() -> None:
        async with pair(tmp_path, parent, rate=200 * MIB) as two:
            digests, enough = DigestTable(two.entry.layout.count), asyncio.Event()
            await two.follow(child, digests, enough)
            assert [digests.get(index) for index in HELD] == [content(two.entry, index)[1] for index in HELD]
            await two.fetch(child)
            assert two.entry.landed.covers(HELD)
            assert_sound(two.entry)

    run(scenario())


@pytest.mark.parametrize(
    ("parent_has", "child_has", "said"),
    [
        ("ours", "theirs", "not one of this cluster"),
        ("ours", None, "give every host of the cluster, and the scheduler, --cluster-tls-dir"),
        (None, "ours", "speaks no TLS"),
    ],
)
def test_who_is_no_member_gets_nothing_and_is_told_why(
    run: Run, tmp_path: Path, parent_has: str | None, child_has: str | None, said: str
) -> None:
    of = {name: ClusterTls.load(TestAuthority(tmp_path / name).member("host")) for name in ("ours", "theirs")}
    parent, child = (None if name is None else of[name] for name in (parent_has, child_has))

    async def scenario() -> None:
        async with pair(tmp_path, parent) as two:
            with pytest.raises(ParentUnreachableError, match=said):
                await two.fetch(child)
            lost = await two.follow(child, DigestTable(two.entry.layout.count), asyncio.Event())
            assert isinstance(lost, ParentUnreachableError)
            assert said in str(lost)
            assert not two.entry.landed

    run(scenario())


def test_a_cluster_with_tls_spreads_bytes_by_it_alone(origin: OriginClient, tmp_path: Path) -> None:
    authority = TestAuthority(tmp_path)
    names = ("scheduler", "seed-1", "peer-1")
    arguments = {name: ["--cluster-tls-dir", str(authority.member(name))] for name in names}
    thing = origin.create("tls.bin", 5 * MIB + 321)
    with LocalCluster(peers=1, arguments=arguments) as cluster:
        reading = Reader(stall_seconds=30).read(thing.url, proxy=cluster["peer-1"].addresses["proxy"])
        assert (reading.length, reading.xxh3_128) == (thing.length, thing.xxh3_128)

        # What it holds a scheduler asks a host itself, by the piece port.
        held = asked(cluster, "scheduler", "/v1/tasks")
        [task] = held["versions"]
        assert (task["complete"], held["unreachable"]) == (2, {})
        uploaded = metric(cluster, "seed-1", "damselfly_uploaded_bytes_total")
        assert uploaded == thing.length

        stranger = ClusterTls.load(TestAuthority(tmp_path / "other").member("stranger")).client
        stranger.verify_mode = ssl.CERT_NONE  # it would take whatever it gets
        token = cluster.secret.sign("piece", task["version_id"], now=time.time())
        address = cluster["seed-1"].addresses["pieces"]
        fields = {"Range": "bytes=0-99", "Authorization": authorization(token)}
        for connection in (
            http.client.HTTPSConnection(address, timeout=30, context=stranger),
            http.client.HTTPConnection(address, timeout=30),
        ):
            with closing(connection), pytest.raises((OSError, http.client.HTTPException)):
                answered(connection, f"/v1/pieces/{task['version_id']}", fields)
        assert metric(cluster, "seed-1", "damselfly_uploaded_bytes_total") == uploaded


def answered(connection: http.client.HTTPConnection, path: str, fields: dict[str, str]) -> bytes:
    connection.request("GET", path, headers=fields)
    return connection.getresponse().read()


def asked(cluster: LocalCluster, name: str, path: str) -> Any:
    token = cluster.secret.sign("admin", "test", now=time.time())
    connection = http.client.HTTPConnection(cluster[name].addresses["http"], timeout=30)
    with closing(connection):
        return json.loads(answered(connection, path, {"Authorization": authorization(token)}))


def metric(cluster: LocalCluster, name: str, metric: str) -> float:
    connection = http.client.HTTPConnection(cluster[name].addresses["http"], timeout=30)
    with closing(connection):
        lines = answered(connection, "/metrics", {}).decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(metric))
