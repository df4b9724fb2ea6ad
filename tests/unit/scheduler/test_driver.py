"""The driver's own part: order, bounds and departures. What is decided is the core's matter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random

import pytest

from p2p.control import Assignment, Hello, Holdings, Landed, Progress, Unwant, Want
from p2p.pieces import Span
from p2p.tasks import TaskScope
from scheduler import driver as driver_module
from scheduler.core.model import Limits
from scheduler.core.state import SchedulerCore
from scheduler.driver import Driver, Ending, HostSession
from scheduler.journal import Journal
from tests.unit.scheduler.support import digest_of, everything, holding_of, source_of, version_of

VERSION = version_of(10)
DEADLINE = 10.0


@pytest.fixture
async def driver() -> AsyncIterator[Driver]:
    journal = await Journal.open(None)
    driver = Driver(
        SchedulerCore(random=Random(0), limits=Limits(stripes=0)), journal, clock=asyncio.get_running_loop().time
    )
    async with TaskScope() as scope:
        scope.spawn(driver.run(), name="driver")
        yield driver
    await journal.close()


async def next_assignment(session: HostSession) -> Assignment:
    async with asyncio.timeout(DEADLINE):
        while not isinstance(message := await session.outbox.get(), Assignment):
            pass
        return message


def want(host_id: str) -> Want:
    return Want(VERSION, everything(VERSION), source_of(host_id))


async def settled(driver: Driver) -> None:
    """Return when everything said so far has been applied: what a new host wants is the last word in the inbox."""
    session = await driver.join(Hello("probe", "probe:1"))
    await driver.hear(session, want("probe"))
    await next_assignment(session)


async def test_an_assignment_reaches_the_host_it_is_for(driver: Driver) -> None:
    seed = await driver.join(Hello("seed", "seed:1", seed=True))
    child = await driver.join(Hello("child", "child:1"))
    await driver.hear(child, want("child"))
    first = await next_assignment(seed)
    assert first.source == source_of("child")
    landed = Landed(Span(0, 1), "", (digest_of(VERSION, 0),))
    await driver.hear(seed, Progress(VERSION.id, (landed,)))
    second = await next_assignment(child)
    assert [(part.span, part.parent_id) for part in second.parts] == [(Span(0, 1), "seed")]
    assert [host.host_id for host in driver.hosts()] == ["seed", "child"]
    assert [swarm.tradeable for swarm in driver.swarms()] == [1]


async def test_digests_are_known_again_after_everyone_left(driver: Driver) -> None:
    seed = await driver.join(Hello("seed", "seed:1"))
    await driver.hear(seed, want("seed"))
    await next_assignment(seed)
    landed = Landed(Span(0, 10), "", tuple(digest_of(VERSION, index) for index in range(10)))
    await driver.hear(seed, Progress(VERSION.id, (landed,)))
    driver.leave(seed, Ending.CLOSED, "gone")
    back = await driver.join(Hello("seed", "seed:1"))
    await driver.hear(back, Holdings((holding_of(VERSION),)))
    child = await driver.join(Hello("child", "child:1"))
    await driver.hear(child, want("child"))
    assert {part.parent_id for part in (await next_assignment(child)).parts} <= {"seed", ""}


async def test_a_host_that_comes_back_replaces_its_session(driver: Driver) -> None:
    old = await driver.join(Hello("h", "h:1"))
    new = await driver.join(Hello("h", "h:2"))
    assert (await old.ended)[0] is Ending.REPLACED
    await driver.hear(old, Unwant(VERSION.id))
    driver.leave(old, Ending.CLOSED, "its stream closed")
    await driver.hear(new, want("h"))
    await next_assignment(new)
    assert [host.address for host in driver.hosts()] == ["h:2"]
    assert not new.ended.done()


async def test_a_departure_does_not_wait_for_room_in_the_inbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "INBOX_EVENTS", 3)
    journal = await Journal.open(None)
    driver = Driver(
        SchedulerCore(random=Random(0), limits=Limits(stripes=0)), journal, clock=asyncio.get_running_loop().time
    )
    brief = await driver.join(Hello("brief", "h:1"))
    await driver.hear(brief, want("brief"))
    back = await driver.join(Hello("back", "b:1"))
    driver.leave(brief, Ending.SILENT, "nothing was heard")
    driver.leave(back, Ending.CLOSED, "the connection broke")
    async with TaskScope() as scope:
        waiting = scope.spawn(driver.join(Hello("back", "b:2")), name="joining again")
        scope.spawn(driver.run(), name="driver")
        await waiting
        await settled(driver)
        assert [(host.host_id, host.address) for host in driver.hosts()] == [("back", "b:2"), ("probe", "probe:1")]
        assert [peer.host_id for swarm in driver.swarms() for peer in swarm.peers] == ["probe"]
    await journal.close()


async def test_a_host_that_is_gone_before_there_is_room_for_it_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "INBOX_EVENTS", 1)
    journal = await Journal.open(None)
    driver = Driver(
        SchedulerCore(random=Random(0), limits=Limits(stripes=0)), journal, clock=asyncio.get_running_loop().time
    )
    await driver.join(Hello("first", "f:1"))
    async with TaskScope() as scope:
        joining = scope.spawn(driver.join(Hello("hasty", "h:1")), name="joining")
        await asyncio.sleep(0)
        joining.cancel()
        scope.spawn(driver.run(), name="driver")
        await settled(driver)
        assert [host.host_id for host in driver.hosts()] == ["first", "probe"]
    await journal.close()


async def test_a_host_that_reads_nothing_is_dropped(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "OUTBOX_MESSAGES", 1)
    slow = await driver.join(Hello("slow", "slow:1"))
    for name in ("one", "two"):
        version = version_of(3, name)
        await driver.hear(slow, Want(version, everything(version), source_of("slow")))
    async with asyncio.timeout(DEADLINE):
        why, _ = await slow.ended
    assert why is Ending.SLOW
    await settled(driver)
    assert "slow" not in [host.host_id for host in driver.hosts()]


async def test_a_host_that_says_the_impossible_is_dropped(driver: Driver) -> None:
    host = await driver.join(Hello("h", "h:1"))
    await driver.hear(host, Want(VERSION, (Span(0, 11),), None))
    async with asyncio.timeout(DEADLINE):
        why, detail = await host.ended
    assert why is Ending.IMPOSSIBLE
    assert "0..11" in detail


async def test_a_deadline_is_kept_without_any_event() -> None:
    """Time runs as fast as the driver asks: a silent seed is relieved without anybody saying a word."""
    journal = await Journal.open(None)
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 30.0
        return now

    driver = Driver(SchedulerCore(random=Random(0), limits=Limits(stripes=0)), journal, clock=clock)
    async with TaskScope() as scope:
        scope.spawn(driver.run(), name="driver")
        await driver.join(Hello("seed", "seed:1", seed=True))
        child = await driver.join(Hello("child", "child:1"))
        await driver.hear(child, want("child"))
        assignment = await next_assignment(child)
        assert {part.parent_id for part in assignment.parts} == {""}
    await journal.close()


async def test_stopping_ends_every_session(driver: Driver) -> None:
    sessions = [await driver.join(Hello(name, "h:1")) for name in ("a", "b")]
    driver.end_all("the scheduler is stopping")
    assert [(await session.ended)[0] for session in sessions] == [Ending.STOPPING] * 2
