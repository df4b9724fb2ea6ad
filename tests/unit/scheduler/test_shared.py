"""What schedulers share in a real Redis: digests by the same contract as the file's, leases, and life without it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from p2p.config import Address
from p2p.dns import DnsName
from p2p.errors import ConfigError
from p2p.tasks import TaskScope
from scheduler.cluster import Cluster
from scheduler.journal import DigestJournal, Journal
from scheduler.shared import Shared, SharedJournal
from tests.support.redis import RedisServer, running_redis

A, B = "a" * 32, "b" * 32
PASSWORD = "not-to-be-shown"


def digest(number: int) -> bytes:
    return number.to_bytes(16, "big")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path, PASSWORD) as server:
        yield server


@contextlib.asynccontextmanager
async def sharing(redis: RedisServer) -> AsyncIterator[Shared]:
    async with asyncio.timeout(30), Shared.connect(redis.url) as shared, TaskScope() as scope:
        scope.spawn(shared.run(), name="redis")
        await shared.lease("probe", "test", 1.0)
        yield shared


@contextlib.asynccontextmanager
async def a_journal(kind: str, redis: RedisServer, directory: Path) -> AsyncIterator[DigestJournal]:
    async with contextlib.AsyncExitStack() as stack:
        own = await Journal.open(directory)
        stack.push_async_callback(own.close)
        if kind == "file":
            yield own
            return
        yield SharedJournal(own, await stack.enter_async_context(sharing(redis)))


@pytest.mark.parametrize("kind", ["file", "redis"])
async def test_a_journal_reads_what_was_recorded(kind: str, redis: RedisServer, tmp_path: Path) -> None:
    async with a_journal(kind, redis, tmp_path / "own") as journal:
        assert await journal.read(A) == {}
        journal.record(A, {0: digest(1), 7: digest(2)})
        journal.record(A, {7: digest(3)})
        journal.record(B, {1: digest(4)})
        assert await journal.read(A) == {0: digest(1), 7: digest(3)}
        journal.forget(A)
        assert await journal.read(A) == {}
        assert await journal.read(B) == {1: digest(4)}
        journal.record(A, {0: digest(5)})
        assert await journal.read(A) == {0: digest(5)}


async def test_another_scheduler_reads_it_too_and_forgets_with_it(redis: RedisServer, tmp_path: Path) -> None:
    async with (
        a_journal("redis", redis, tmp_path / "one") as one,
        a_journal("redis", redis, tmp_path / "other") as other,
    ):
        one.record(A, {0: digest(1)})
        assert await one.read(A) == {0: digest(1)}
        assert await other.read(A) == {0: digest(1)}
        other.forget(A)
        assert await other.read(A) == {}
        assert await one.read(A) == {}, "what its own file has is of wrong bytes"


async def test_without_redis_ones_own_journal_counts(redis: RedisServer, tmp_path: Path) -> None:
    async with sharing(redis) as shared:
        own = await Journal.open(None)
        journal = SharedJournal(own, shared)
        journal.record(A, {0: digest(1)})
        assert await journal.read(A) == {0: digest(1)}
        redis.stop()
        journal.record(A, {1: digest(2)})
        assert await journal.read(A) == {0: digest(1), 1: digest(2)}
        assert not shared.up
        redis.start()
        assert await shared.lease("probe", "test", 1.0) == ("test",)
        await shared.written()
        assert await shared.call(lambda client: client.hkeys(f"damselfly:digests:{A}")) == [b"1"], "written when back"
        await own.close()


async def test_members_come_and_go(redis: RedisServer) -> None:
    async with sharing(redis) as shared:
        one, other = Cluster("one:1", shared=shared), Cluster("other:1", shared=shared)
        await one.look()
        assert (list(one.members), one.rest) == (["one:1"], 1.0)
        await other.look()
        await one.look()
        assert list(one.members) == list(other.members) == ["one:1", "other:1"]
        assert one.rest == 0.5
        await other.leave()
        await one.look()
        assert list(one.members) == ["one:1"]
        assert one.state() == {"schedulers": ["one:1"], "redis": "up"}


async def test_an_origins_budget_is_whose_it_is_shared_out_by(redis: RedisServer) -> None:
    async with sharing(redis) as shared:
        one, other = Cluster("one:1", shared=shared), Cluster("other:1", shared=shared)
        await other.look()
        await one.look(["http://origin:80"])
        assert (one.parts, one.rest) == ({"http://origin:80": 1.0}, 0.5)
        await other.look(["http://origin:80"])
        assert other.parts == {"http://origin:80": 0.5}


async def test_the_last_known_members_count_while_redis_is_away_and_until_all_are_back(redis: RedisServer) -> None:
    async with sharing(redis) as shared:
        one, other = Cluster("one:1", shared=shared), Cluster("other:1", shared=shared)
        await other.look()
        await one.look(["http://origin:80"])
        redis.stop()
        await one.look(["http://origin:80"])
        assert (one.members, one.parts, one.rest) == (("one:1", "other:1"), {}, 0.5)
        state = one.state()
        assert "1/2" in str(state["degraded"])
        assert PASSWORD not in str(state)
        redis.start()
        await one.look()
        assert one.members == ("one:1", "other:1"), "the other one may not have been there yet"
        assert "degraded" not in one.state()


async def test_redis_that_was_never_there_costs_nothing_but_a_warning(redis: RedisServer) -> None:
    redis.stop()
    async with Shared.connect(redis.url) as shared:
        cluster = Cluster("one:1", shared=shared)
        await cluster.look()
        assert cluster.members == ("one:1",)
        assert await shared.lease("probe", "test", 1.0) is None
        assert "degraded" in cluster.state()


async def test_members_of_the_configuration_and_the_dns() -> None:
    cluster = Cluster("127.0.0.1:8002", [Address("b", 1), DnsName("127.0.0.1", 8002), DnsName("no.such.invalid", 1)])
    await cluster.look()
    assert cluster.members == ("127.0.0.1:8002", "b:1")
    assert cluster.rest == 0.5
    alone = Cluster("a:1")
    assert alone.alone
    assert alone.state() == {}


@pytest.mark.parametrize("url", ["http://:secret@host", "redis://:secret@", "redis://:secret@host:port", "secret"])
async def test_a_url_that_is_none_is_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        async with Shared.connect(url):
            pass
    assert "secret" not in str(raised.value)
