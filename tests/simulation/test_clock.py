"""Virtual time: the order of calls, and where a run stops."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bench.sim.clock import Clock

DELAYS = st.lists(st.sampled_from([0.0, 1e-6, 1e-5, 1e-4, 1e-3, 0.5]), max_size=20)


@given(DELAYS, DELAYS)
def test_calls_happen_in_order_of_time_and_else_as_asked_for(first: list[float], then: list[float]) -> None:
    clock = Clock()
    asked: list[tuple[float, int]] = []
    happened: list[tuple[float, int]] = []

    def ask(delay: float, more: list[float]) -> None:
        key = (clock.now + delay, len(asked))
        asked.append(key)
        clock.after(delay, happen, key, more)

    def happen(key: tuple[float, int], more: list[float]) -> None:
        assert clock.now == key[0]
        happened.append(key)
        for delay in more:
            ask(delay, [])

    for delay in first:
        ask(delay, then)
    assert clock.run(10.0) == len(asked)
    assert happened == sorted(asked)


def test_a_run_that_was_stopped_goes_on_where_it_was() -> None:
    clock = Clock()
    happened: list[str] = []
    clock.at(1.0, happened.append, "first")
    clock.at(1.0, clock.stop)
    clock.at(1.0, happened.append, "second")
    assert clock.run(5.0) == 2
    assert happened == ["first"]
    assert clock.step()
    assert happened == ["first", "second"]
    assert not clock.step()


def test_a_run_ends_after_the_first_call_that_is_too_late() -> None:
    clock = Clock()
    happened: list[float] = []
    for time in (1.0, 2.0, 2.00001, 3.0):
        clock.at(time, happened.append, time)
    assert clock.run(1.5) == 2
    assert happened == [1.0, 2.0]
    assert clock.run(1.5) == 0
    assert clock.run(10.0) == 2
    assert happened == [1.0, 2.0, 2.00001, 3.0]
