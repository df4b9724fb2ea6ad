"""What waits for company before it is said to a scheduler, and for how long."""

from __future__ import annotations

import pytest

from p2p.control import LAZY_REPORT_SECONDS
from peer.core.outbox import Outbox
from tests.unit.download.test_reports import Timers


class World:
    def __init__(self) -> None:
        self.timers = Timers()
        self.calls = 0
        self.outbox = Outbox[str](self.timers, self._ready)

    def _ready(self) -> None:
        self.calls += 1


@pytest.fixture
def world() -> World:
    return World()


def test_what_is_urgent_waits_for_nothing(world: World) -> None:
    world.outbox.put("a")
    world.outbox.put("b")
    assert world.calls > 0
    assert world.outbox.take() == ["a", "b"]
    assert world.outbox.take() == []
    assert world.timers.pending() == []


def test_what_nobody_waits_for_waits_half_a_second_from_the_first(world: World) -> None:
    world.outbox.put("a", soon=False)
    world.outbox.put("b", soon=False)
    assert world.calls == 0
    assert world.timers.pending() == [LAZY_REPORT_SECONDS]
    world.timers.fire(LAZY_REPORT_SECONDS)
    assert world.calls == 1
    assert world.outbox.take() == ["a", "b"]
    world.outbox.put("c", soon=False)
    assert world.timers.pending() == [LAZY_REPORT_SECONDS], "it waits afresh"


def test_what_nobody_waits_for_goes_with_what_is_urgent_and_before_it(world: World) -> None:
    world.outbox.put("a", soon=False)
    world.outbox.put("b")
    assert world.calls == 1
    assert len(world.outbox) == 2
    assert world.outbox.take() == ["a", "b"]
    assert world.timers.pending() == [], "there is nothing left to wait for"
