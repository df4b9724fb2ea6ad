"""Leave for requests to origins: slots in order, rates in virtual time, pauses, and what is said to a scheduler."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

import pytest

from p2p.budgets import LEASE_SECONDS, UNBOUNDED, Budget
from p2p.control import Allowance, OriginLoad, OriginUse, PeerMessage
from p2p.errors import BadRequestError, OriginUnreachableError
from p2p.urgency import Urgency
from peer.core.budget import Bucket, Gate
from peer.source import governor as governor_module
from peer.source.allotment import ANSWER_SECONDS, CAUTIOUS, Allotment
from peer.source.client import kind_of
from peer.source.governor import Governor, Permit

URL = "https://store.internal/bucket/model.bin?X-Amz-Signature=secret"
ORIGIN = "https://store.internal:443"
BRIEF, URGENT = Urgency(brief=True), Urgency(7)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Scheduler:
    """Answers at once with `share`, or not at all."""

    share: Budget | None = None
    reachable: bool = True
    tell: Callable[[Allowance], None] = lambda allowance: None
    loads: list[OriginLoad] = field(default_factory=list)

    def of(self, version_id: str) -> str | None:
        assert version_id == ORIGIN
        return "127.0.0.1:1" if self.reachable else None

    def send(self, version_id: str, message: PeerMessage) -> None:
        assert isinstance(message, OriginUse)
        for load in message.loads:
            self.loads.append(load)
            if self.share is not None and load.connections:
                asyncio.get_running_loop().call_soon(self.answer, load)

    def answer(self, load: OriginLoad, share: Budget | None = None) -> None:
        given = share or self.share
        assert given is not None
        self.tell(
            Allowance(
                load.origin,
                given.connections,
                given.requests_per_second,
                given.bytes_per_second,
                answers=load.serial,
            )
        )


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def started(governor: Governor, scheduler: Scheduler) -> asyncio.Task[None]:
    scheduler.tell = governor.told
    return asyncio.create_task(governor.run(scheduler))


async def ended(*tasks: asyncio.Task[object]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("rate", [0.5, 40.0, 500.0, 20_000.0])
def test_requests_keep_to_their_rate(rate: float) -> None:
    now, gate, seconds = 0.0, Gate(), 10.0
    gate.set_limit(Budget(requests_per_second=rate), now)
    moments: list[float] = []
    for _ in range(200):
        gate.enter()
    while now < seconds:
        for ticket in gate.admit(now):
            gate.leave(ticket)
            moments.append(now)
            gate.enter()
        again = gate.next_at(now)
        assert again is not None
        now = again + 0.001  # what a timer is late by
    assert len(moments) == pytest.approx(rate * seconds, rel=0.05, abs=1)
    first_second = [moment for moment in moments if moment < 1.0]
    assert len(first_second) <= rate * 1.02 + 1


@pytest.mark.parametrize("rate", [100e3, 16e6, 2e9])
def test_bytes_keep_to_their_rate_however_many_read(rate: float) -> None:
    bucket, seconds, size = Bucket(), 30.0, 256 * 1024
    bucket.set_rate(rate, 0.0)
    readers = [0.0] * 8
    taken = 0
    while (now := min(readers)) < seconds:
        taken += size
        readers[readers.index(now)] = now + bucket.use(size, now) + 0.0001
    assert taken == pytest.approx(rate * seconds, rel=0.05, abs=8 * size)


def test_a_rate_may_change_and_be_none() -> None:
    bucket = Bucket()
    assert bucket.use(10**9, 0.0) == 0.0
    bucket.set_rate(10.0, 0.0)
    assert bucket.use(20, 0.0) == pytest.approx(2.0)
    bucket.set_rate(20.0, 1.0)
    assert bucket.wait(1.0) == pytest.approx(0.5)
    bucket.set_rate(0.0, 1.0)
    assert bucket.wait(1.0) == inf
    bucket.set_rate(None, 1.0)
    assert bucket.wait(1.0) == 0.0


def test_who_comes_first_goes_first_and_who_gives_up_is_passed_over() -> None:
    gate = Gate()
    gate.set_limit(Budget(connections=1), 0.0)
    first, second, third = gate.enter(), gate.enter(), gate.enter()
    assert gate.admit(0.0) == [first]
    assert gate.next_at(0.0) is None
    gate.withdraw(second)
    assert gate.wanted == 2
    gate.leave(first)
    assert gate.admit(0.0) == [third]


def test_a_pause_holds_everybody_up_within_bounds() -> None:
    gate = Gate()
    gate.pause(5.0, 10.0)
    gate.pause(1.0, 10.0)
    gate.enter()
    assert gate.admit(14.9) == []
    assert gate.next_at(14.9) == pytest.approx(15.0)
    assert len(gate.admit(15.0)) == 1
    gate.pause(1e9, 0.0)
    gate.enter()
    assert gate.next_at(0.0) == 60.0


def test_checks_go_first_and_are_not_held_up_by_a_pause() -> None:
    gate = Gate()
    gate.set_limit(Budget(connections=2), 0.0)
    gate.pause(5.0, 0.0)
    read, check, withdrawn, late = gate.enter(), gate.enter(check=True), gate.enter(check=True), gate.enter(check=True)
    gate.withdraw(withdrawn)
    assert gate.wanted == 3
    assert gate.admit(0.0) == [check, late]
    assert gate.next_at(0.0) is None, "both slots are taken"
    gate.leave(check)
    assert (gate.admit(0.0), gate.next_at(0.0)) == ([], 5.0)
    assert gate.admit(5.0) == [read]


def test_brief_requests_and_checks_have_a_connection_that_large_ones_never_get() -> None:
    gate = Gate()
    gate.set_limit(Budget(connections=4), 0.0)
    large = [gate.enter(task="model") for _ in range(5)]
    assert gate.admit(0.0) == large[:3]
    assert gate.next_at(0.0) is None, "the fourth connection is for others"
    brief = gate.enter(urgency=BRIEF, task="config")
    assert gate.next_at(0.0) == 0.0
    assert gate.admit(0.0) == [brief]
    check = gate.enter(check=True)
    gate.leave(brief)
    assert gate.admit(0.0) == [check]
    gate.leave(check)
    assert gate.admit(0.0) == []
    gate.leave(large[0])
    assert gate.admit(0.0) == [large[3]]


def test_a_large_request_that_gave_up_takes_no_connection() -> None:
    gate = Gate()
    gate.set_limit(Budget(connections=3), 0.0)
    first, second, third = (gate.enter(task="model") for _ in range(3))
    gate.withdraw(first)
    assert gate.admit(0.0) == [second, third]


def test_urgent_requests_go_first_and_tasks_take_turns() -> None:
    gate = Gate()
    gate.set_limit(Budget(connections=1), 0.0)
    one, other, third = gate.enter(task="a"), gate.enter(task="a"), gate.enter(task="b")
    urgent = gate.enter(task="c", urgency=URGENT)
    order = gate.admit(0.0)
    while gate.wanted > 1:
        gate.leave(order[-1])
        order += gate.admit(0.0)
    assert order == [urgent, one, third, other]


def test_an_answer_to_what_was_asked_after_a_pause_began_ends_it() -> None:
    gate = Gate()
    gate.pause(60.0, 10.0)
    read = gate.enter()
    gate.resume(9.0)
    assert gate.admit(11.0) == [], "that was asked before"
    gate.resume(10.5)
    assert gate.admit(11.0) == [read]


async def test_without_a_budget_nobody_waits() -> None:
    governor = Governor()
    permits = [await governor.enter(URL, "read") for _ in range(1000)]
    assert permits[0].take(10**12) == 0.0
    for permit in permits:
        governor.leave(permit)


async def test_a_url_that_cannot_be_fetched_is_an_error() -> None:
    with pytest.raises(BadRequestError):
        async with Governor().request("nonsense"):
            pass


async def test_the_ceiling_of_this_host_holds(clock: Clock) -> None:
    governor = Governor(ceiling=Budget(connections=2, bytes_per_second=1000.0), clock=clock)
    running = [await governor.enter(URL, "read") for _ in range(2)]
    third = asyncio.create_task(governor.enter(URL, "read"))
    await settle()
    assert not third.done()
    governor.leave(running[0])
    permit = await third
    assert permit.take(500) == pytest.approx(0.5)
    assert running[1].take(500) == pytest.approx(1.0)


async def test_one_who_gives_up_waiting_takes_no_slot(clock: Clock) -> None:
    governor = Governor(ceiling=Budget(connections=1), clock=clock)
    permit = await governor.enter(URL, "read")
    waiting = [asyncio.create_task(governor.enter(URL, "read")) for _ in range(3)]
    await settle()
    waiting[0].cancel()
    governor.leave(permit)
    waiting[1].cancel()  # it has been let in by now, and does not know it yet
    governor.leave(await waiting[2])
    assert all(task.cancelled() for task in waiting[:2])
    governor.leave(await governor.enter(URL, "read"))


async def test_waiting_has_an_end(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(governor_module, "WAIT_SECONDS", 0.0)
    governor = Governor(ceiling=Budget(connections=1), clock=clock)
    permit = await governor.enter(URL, "read")
    with pytest.raises(OriginUnreachableError, match=r"no leave to ask https://store.internal:443") as caught:
        await governor.enter(URL, "read")
    assert "secret" not in str(caught.value)
    governor.leave(permit)
    governor.leave(await governor.enter(URL, "read"))


async def test_a_first_request_waits_for_its_share_and_says_what_it_does(clock: Clock) -> None:
    governor, scheduler = Governor(clock=clock), Scheduler(Budget(connections=1))
    running = started(governor, scheduler)
    await settle()
    permit = await governor.enter(URL, "check")
    assert [load.connections for load in scheduler.loads] == [1]
    second = asyncio.create_task(governor.enter(URL, "read"))
    clock.now += 1.0
    await settle()
    assert not second.done()
    latest = scheduler.loads[-1]
    assert (latest.connections, latest.under_way, latest.checks, latest.heard) == (2, 1, 1, 1)
    permit.take(7)
    permit.refused()
    governor.leave(permit)
    permit = await second
    clock.now += 1.0
    governor.scheduler_changed()
    latest = scheduler.loads[-1]
    assert (latest.requests, latest.checks, latest.refused, latest.bytes, latest.serial) == (1, 0, 1, 7, 3)
    governor.leave(permit)
    await ended(running)


async def test_an_origin_without_a_budget_is_asked_about_once(clock: Clock) -> None:
    governor, scheduler = Governor(clock=clock), Scheduler(UNBOUNDED)
    running = started(governor, scheduler)
    await settle()
    permits: list[Permit] = [await governor.enter(URL, "read") for _ in range(100)]
    clock.now += 1000.0
    permits.append(await governor.enter(URL, "read"))
    assert len(scheduler.loads) == 1
    governor.scheduler_changed()
    assert len(scheduler.loads) == 2
    for permit in permits:
        governor.leave(permit)
    await ended(running)


async def test_without_a_scheduler_a_host_is_cautious(clock: Clock) -> None:
    governor, scheduler = Governor(clock=clock), Scheduler(reachable=False)
    running = started(governor, scheduler)
    await settle()
    for _ in range(CAUTIOUS.connections or 0):
        await governor.enter(URL, "read", BRIEF)
    one_more = asyncio.create_task(governor.enter(URL, "read"))
    await settle()
    assert not one_more.done()
    assert scheduler.loads == []
    await ended(one_more, running)


async def test_a_briefer_share_is_confirmed_at_once(clock: Clock) -> None:
    governor, scheduler = Governor(clock=clock), Scheduler(Budget(connections=4))
    running = started(governor, scheduler)
    await settle()
    await governor.enter(URL, "read")
    scheduler.share = None
    scheduler.answer(scheduler.loads[-1], Budget(connections=2))
    assert [load.heard for load in scheduler.loads] == [0, 1]
    scheduler.answer(scheduler.loads[-1], Budget(connections=3))
    assert len(scheduler.loads) == 2
    await ended(running)


def test_an_allotment_without_an_answer_or_a_renewal() -> None:
    allotment, sent = Allotment(ORIGIN, UNBOUNDED, CAUTIOUS), list[OriginLoad]()
    assert allotment.limit(0.0) == CAUTIOUS
    allotment.report(0.0, sent.append)
    assert allotment.limit(0.5) == Budget(connections=0)
    assert allotment.changes_at(0.5) == ANSWER_SECONDS
    assert allotment.limit(ANSWER_SECONDS) == CAUTIOUS
    assert allotment.to_be_asked(ANSWER_SECONDS)
    allotment.told(Allowance(ORIGIN, 8, 40.0, None, answers=1))
    assert allotment.limit(5.0) == Budget(8, 40.0)
    assert allotment.changes_at(5.0) == LEASE_SECONDS
    assert not allotment.confirmed(LEASE_SECONDS)
    assert allotment.limit(LEASE_SECONDS) == Budget(2, 10.0)


def test_what_was_on_its_way_when_a_share_was_given_up_counts_no_more() -> None:
    allotment, sent = Allotment(ORIGIN, UNBOUNDED, CAUTIOUS), list[OriginLoad]()
    allotment.report(0.0, sent.append)
    allotment.give_up(1.0, sent.append)
    assert (sent[-1].connections, sent[-1].serial) == (0, 2)
    allotment.told(Allowance(ORIGIN, 8, answers=1))
    assert allotment.limit(1.0) == CAUTIOUS
    allotment.report(2.0, sent.append)
    allotment.told(Allowance(ORIGIN, 8, answers=3))
    allotment.told(Allowance(ORIGIN, 9, answers=77))
    assert allotment.limit(2.0) == Budget(8)


def test_requests_are_told_apart() -> None:
    assert kind_of(URL, (("range", "bytes=0-0"),)) == "check"
    assert kind_of(URL, (("Range", "bytes=0-9"),)) == "read"
    assert kind_of("https://store.internal/bucket?list-type=2&prefix=a", ()) == "list"
