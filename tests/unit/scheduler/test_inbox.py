"""Which events are heard first, and who waits for room."""

from __future__ import annotations

import asyncio

from p2p.control import Failed, FailureReason, Lagging, Landed, Progress, Unwant
from p2p.pieces import Span
from scheduler.core.messages import Event, HostLeft, Progressed, Tick, event_of
from scheduler.inbox import BATCH_EVENTS, BATCH_LAZY, Batches, Inbox, is_lazy


def lazy(host_id: str, index: int = 0) -> Event:
    return Progressed(host_id, Progress("v", (Landed(Span(index, index + 1), "parent", proof=b"p" * 16),)))


def urgent(host_id: str) -> Event:
    return event_of(host_id, Lagging("v", (0,)))


def test_reports_that_nobody_waits_for_are_those_of_followed_parents_only() -> None:
    followed = Landed(Span(0, 1), "parent", proof=b"p" * 16)
    failed = Failed(Span(1, 2), "parent", FailureReason.BUSY)
    assert is_lazy(Progressed("h", Progress("v", (followed, followed))))
    for progress in (
        Progress("v"),
        Progress("v", (followed,), (failed,)),
        Progress("v", (followed, Landed(Span(1, 2), "parent"))),
        Progress("v", (Landed(Span(1, 2), "", (b"d" * 16,)),)),
    ):
        assert not is_lazy(Progressed("h", progress))
    assert not is_lazy(event_of("h", Unwant("v")))
    assert not is_lazy(Tick())


def test_what_is_urgent_is_heard_before_the_reports_of_others() -> None:
    batches = Batches()
    events = [lazy("a"), lazy("b"), urgent("c"), lazy("d"), HostLeft("e")]
    for event in events:
        batches.add(event)
    assert batches.take() == [urgent("c"), HostLeft("e"), lazy("a"), lazy("b"), lazy("d")]
    assert not batches


def test_what_one_host_says_keeps_its_order() -> None:
    batches = Batches()
    for event in (lazy("a", 1), lazy("b"), lazy("a", 2), urgent("a"), lazy("a", 3), HostLeft("b"), urgent("c")):
        batches.add(event)
    heard = batches.take()
    assert heard == [lazy("a", 1), lazy("a", 2), urgent("a"), lazy("b"), HostLeft("b"), urgent("c"), lazy("a", 3)]


def test_a_batch_is_bounded_and_its_lazy_part_more_so() -> None:
    batches = Batches()
    for number in range(3 * BATCH_LAZY):
        batches.add(lazy(f"lazy-{number}"))
    for number in range(BATCH_EVENTS + 1):
        batches.add(urgent(f"urgent-{number}"))
    heard = [batches.take() for _ in range(4)]
    assert [sum(map(is_lazy, batch)) for batch in heard] == [0, BATCH_LAZY, BATCH_LAZY, BATCH_LAZY]
    assert [len(batch) for batch in heard] == [BATCH_EVENTS, BATCH_LAZY + 1, BATCH_LAZY, BATCH_LAZY]
    assert batches.take() == []


async def test_reports_without_room_keep_nobody_with_something_urgent_from_being_heard() -> None:
    inbox = Inbox(1, 1)
    await inbox.put(lazy("a"))
    waiting = asyncio.ensure_future(inbox.put(lazy("b")))
    await asyncio.sleep(0)
    assert not waiting.done()
    await inbox.put(urgent("c"))
    inbox.squeeze(HostLeft("d"))
    assert inbox.take() == [urgent("c"), HostLeft("d"), lazy("a")]
    await waiting
    assert inbox.take() == [lazy("b")]


async def test_room_that_is_given_up_goes_to_the_next() -> None:
    inbox = Inbox(1, 1)
    await inbox.room(urgent("a"))
    waiting = asyncio.ensure_future(inbox.put(urgent("b")))
    await asyncio.sleep(0)
    assert not waiting.done()
    inbox.give_up(urgent("a"))
    await waiting
    await inbox.arrival()
    assert inbox.take() == [urgent("b")]
