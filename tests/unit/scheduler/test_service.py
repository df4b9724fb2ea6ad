"""The scheduler's sockets: gRPC sessions and HTTP, as a host and an operator see them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import grpc
import pytest
from aiohttp import ClientSession, web

from p2p.auth import ClusterSecret, authorization
from p2p.control import ORIGIN, Assignment, Hello, Holdings, Landed, PeerMessage, Progress, Want
from p2p.pieces import Span
from p2p.rpc.channel import open_channel, open_server, session_metadata
from p2p.rpc.convert import peer_message_to_proto, scheduler_message_from_proto
from p2p.tasks import TaskScope
from p2p.v1 import scheduler_pb2 as pb
from p2p.v1.scheduler_pb2_grpc import SchedulerStub, add_SchedulerServicer_to_server
from scheduler.core.model import Limits
from scheduler.core.state import SchedulerCore
from scheduler.driver import Driver
from scheduler.http import application
from scheduler.journal import Journal
from scheduler.service import Heartbeat, Service
from tests.unit.scheduler.support import digest_of, everything, holding_of, source_of, version_of

DEADLINE = 10.0
VERSION = version_of(6)
SECRET = ClusterSecret(b"a secret that is long enough")
OTHER = ClusterSecret(b"another that is long enough!")


@dataclass
class Running:
    """A scheduler in this process, on real sockets."""

    driver: Driver
    grpc_address: str
    http_url: str
    ready: bool = True


@asynccontextmanager
async def running(secret: ClusterSecret | None = None, heartbeat: Heartbeat | None = None) -> AsyncIterator[Running]:
    journal = await Journal.open(None)
    driver = Driver(
        SchedulerCore(random=Random(0), limits=Limits(stripes=0)), journal, clock=asyncio.get_running_loop().time
    )
    server = open_server(secret)
    add_SchedulerServicer_to_server(Service(driver, secret, heartbeat), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    scheduler = Running(driver, f"127.0.0.1:{port}", "")
    runner = web.AppRunner(application(driver, secret=secret, ready=lambda: scheduler.ready))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    scheduler.http_url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with TaskScope() as scope:
            scope.spawn(driver.run(), name="driver")
            yield scheduler
            driver.end_all("the test is over")
    finally:
        await server.stop(1.0)
        await runner.cleanup()
        await journal.close()


class Host:
    """One side of a session."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self._unread: list[pb.SchedulerMessage] = []

    async def say(self, message: PeerMessage) -> None:
        await self.call.write(peer_message_to_proto(message))

    async def next(self, kind: str = "assignment") -> pb.SchedulerMessage:
        """Return the next message of a kind, past others."""
        async with asyncio.timeout(DEADLINE):
            while True:
                while self._unread:
                    if (message := self._unread.pop(0)).WhichOneof("body") == kind:
                        return message
                if (frame := await self.call.read()) is grpc.aio.EOF:
                    break
                self._unread = list(frame.batch.messages) if frame.WhichOneof("body") == "batch" else [frame]
        raise AssertionError(f"the session ended: {await self.call.code()} {await self.call.details()}")

    async def ending(self) -> tuple[grpc.StatusCode, str]:
        """Return how the scheduler ended the session."""
        async with asyncio.timeout(DEADLINE):
            try:
                while await self.call.read() is not grpc.aio.EOF:
                    pass
            except grpc.aio.AioRpcError:
                pass
            return await self.call.code(), await self.call.details()


@asynccontextmanager
async def host(
    scheduler: Running, host_id: str, *, seed: bool = False, metadata: tuple[tuple[str, str], ...] = ()
) -> AsyncIterator[Host]:
    async with open_channel(scheduler.grpc_address) as channel:
        call = SchedulerStub(channel).Session(metadata=metadata)
        try:
            host = Host(call)
            await host.say(Hello(host_id, f"{host_id}:65002", seed=seed, software="test"))
            yield host
        finally:
            call.cancel()


def assigned(message: pb.SchedulerMessage) -> Assignment:
    assignment = scheduler_message_from_proto(message)
    assert isinstance(assignment, Assignment)
    return assignment


def want(host_id: str) -> Want:
    return Want(VERSION, everything(VERSION), source_of(host_id))


async def test_hosts_are_welcomed_and_told_what_to_fetch() -> None:
    async with running() as scheduler, host(scheduler, "seed", seed=True) as seed, host(scheduler, "child") as child:
        welcome = (await seed.next("welcome")).welcome
        assert welcome.heartbeat_milliseconds == 2000
        assert welcome.scheduler_id
        await child.next("welcome")
        await child.say(want("child"))
        first = assigned(await seed.next())
        assert first.source == source_of("child")
        landed = Landed(Span(0, 6), ORIGIN, tuple(digest_of(VERSION, index) for index in range(6)))
        await seed.say(Progress(VERSION.id, (landed,)))
        second = assigned(await child.next())
        assert [(part.span, part.parent_id, part.parent_address) for part in second.parts] == [
            (Span(0, 4), "seed", "seed:65002"),
            (Span(4, 6), "seed", "seed:65002"),
        ]
        assert second.parts[0].digests == tuple(digest_of(VERSION, index) for index in range(4))
        assert second.source is None


async def test_a_host_whose_stream_breaks_is_replaced() -> None:
    async with running() as scheduler, host(scheduler, "child") as child:
        await child.next("welcome")
        async with host(scheduler, "seed", seed=True) as seed:
            await seed.next("welcome")
            await child.say(want("child"))
            await seed.next()
        assignment = assigned(await child.next())
        assert {part.parent_id for part in assignment.parts} == {ORIGIN}
        assert assignment.source is None, "it has a way of its own"


async def test_the_same_host_again_replaces_its_old_session() -> None:
    async with running() as scheduler, host(scheduler, "h") as old:
        await old.next("welcome")
        async with host(scheduler, "h") as new:
            await new.next("welcome")
            assert (await old.ending())[0] is grpc.StatusCode.ABORTED
            await new.say(want("h"))
            await new.next()


async def test_a_silent_host_is_gone_and_a_beating_one_stays() -> None:
    quick = Heartbeat(interval=0.05)
    async with running(heartbeat=quick) as scheduler, host(scheduler, "h") as silent:
        await silent.next("welcome")
        await silent.next("heartbeat")
        code, detail = await silent.ending()
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "nothing was heard" in detail
        assert [host.host_id for host in scheduler.driver.hosts()] == []


@pytest.mark.parametrize(
    ("message", "part"),
    [
        (pb.PeerMessage(heartbeat=pb.Heartbeat()), "first message must be Hello"),
        (pb.PeerMessage(), "without a body"),
        (pb.PeerMessage(hello=pb.Hello(host_id="not an id", address="h:1")), "hello.host_id"),
    ],
)
async def test_whoever_does_not_introduce_himself_is_refused(message: pb.PeerMessage, part: str) -> None:
    async with running() as scheduler, open_channel(scheduler.grpc_address) as channel:
        call = SchedulerStub(channel).Session()
        await call.write(message)
        code, detail = await Host(call).ending()
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert part in detail


async def test_nonsense_in_a_session_ends_it() -> None:
    hello = peer_message_to_proto(Hello("h", "h:1"))
    async with running() as scheduler:
        for nonsense in (
            pb.PeerMessage(unwant=pb.Unwant(version_id="nonsense")),
            hello,
            pb.PeerMessage(batch=pb.PeerBatch(messages=[hello])),
            peer_message_to_proto(Holdings((holding_of(VERSION, (Span(0, 1),)),))),
        ):
            async with host(scheduler, "h") as said:
                await said.next("welcome")
                if nonsense.WhichOneof("body") == "holdings":
                    nonsense.holdings.holdings[0].version.length = 1
                await said.call.write(nonsense)
                assert (await said.ending())[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_hosts_that_prove_the_secret_are_let_in() -> None:
    metadata = session_metadata(SECRET, "node-1.rack")
    async with running(SECRET) as scheduler, host(scheduler, "node-1.rack", metadata=metadata) as member:
        await member.next("welcome")


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", "Bearer abc"),),
        (("authorization", "Damselfly nonsense"),),
        session_metadata(OTHER, "h"),
        (("authorization", authorization(SECRET.sign("piece", "h", now=time.time()))),),
        (("authorization", authorization(SECRET.sign("rpc", "h", now=time.time() - 3600))),),
        session_metadata(SECRET, "somebody-else"),
    ],
    ids=["nothing", "other scheme", "nonsense", "other secret", "other purpose", "expired", "other host"],
)
async def test_whoever_does_not_prove_the_secret_is_refused(metadata: tuple[tuple[str, str], ...]) -> None:
    async with running(SECRET) as scheduler, open_channel(scheduler.grpc_address) as channel:
        call = SchedulerStub(channel).Session(metadata=metadata)
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The refusal may come before the first message is out.
            await call.write(peer_message_to_proto(Hello("h", "h:1")))
        assert (await Host(call).ending())[0] is grpc.StatusCode.UNAUTHENTICATED
        assert scheduler.driver.hosts() == ()


async def test_health_and_metrics() -> None:
    async with running() as scheduler, ClientSession(scheduler.http_url) as client:
        assert (await client.get("/healthz")).status == 200
        assert (await client.get("/readyz")).status == 200
        scheduler.ready = False
        assert (await client.get("/readyz")).status == 503
        metrics = await (await client.get("/metrics")).text()
        assert "damselfly_scheduler_hosts" in metrics


async def test_operators_see_the_swarms() -> None:
    async with running() as scheduler, host(scheduler, "h") as wanting, ClientSession(scheduler.http_url) as client:
        await wanting.next("welcome")
        await wanting.say(want("h"))
        await wanting.next()
        answer = await client.get("/v1/swarms")
        text = await answer.text()
        assert "signature" not in text, "a source must not leave the scheduler"
        body = await answer.json()
        assert [(h["host_id"], h["address"], h["software"]) for h in body["hosts"]] == [("h", "h:65002", "test")]
        [swarm] = body["swarms"]
        assert (swarm["version_id"], swarm["task_id"], swarm["pieces"]) == (VERSION.id, VERSION.task_id, 6)
        assert swarm["peers"] == [{"host_id": "h", "held": 0, "missing": 6, "from_parents": 0, "from_origin": 6}]


async def test_the_admin_api_needs_the_secret() -> None:
    async with running(SECRET) as scheduler, ClientSession(scheduler.http_url) as client:
        assert (await client.get("/v1/swarms")).status == 401
        wrong = {"Authorization": authorization(SECRET.sign("rpc", "me", now=time.time()))}
        assert (await client.get("/v1/swarms", headers=wrong)).status == 401
        right = {"Authorization": authorization(SECRET.sign("admin", "me", now=time.time()))}
        assert (await client.get("/v1/swarms", headers=right)).status == 200
        assert (await client.get("/healthz")).status == 200
