"""Whose turn it is, and how much is kept for the brief."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.urgency import PATIENT_TURN, Turns, Urgency, extra_for_brief, kept_for_brief

BIG, BRIEF, URGENT, IDLE = Urgency(), Urgency(brief=True), Urgency(7), Urgency(0)


def queue(*waiting: tuple[Urgency, str]) -> Turns:
    turns = Turns()
    for ticket, (urgency, task) in enumerate(waiting):
        turns.add(ticket, urgency, task)
    return turns


def test_the_most_urgent_go_first_and_brief_ones_before_large() -> None:
    turns = queue((IDLE, "a"), (URGENT, "d"), (BIG, "b"), (BRIEF, "c"))
    assert [turns.take() for _ in range(3)] == [1, 3, 2]
    assert [turns.take(), turns.take()] == [0, None]


def test_tasks_take_turns_and_in_a_task_the_first_goes_first() -> None:
    turns = queue((BIG, "a"), (BIG, "a"), (BIG, "b"), (BIG, "b"))
    assert [turns.take() for _ in range(4)] == [0, 2, 1, 3]


def test_every_so_many_turns_whoever_has_waited_longest_goes() -> None:
    turns = queue((IDLE, "idle"), *((URGENT, f"urgent-{number}") for number in range(2 * PATIENT_TURN)))
    taken = [turns.take() for _ in range(PATIENT_TURN)]
    assert taken == [*range(1, PATIENT_TURN), 0]


def test_what_is_kept_for_the_brief_no_large_one_gets() -> None:
    turns = queue((URGENT, "model"), (Urgency(0, brief=True), "config"))
    assert turns.any_brief()
    assert [turns.take(brief_only=True), turns.take(brief_only=True)] == [1, None]
    assert not turns.any_brief()
    assert len(turns) == 1


def test_who_gives_up_is_not_called() -> None:
    turns = queue((BIG, "a"), (BIG, "b"))
    turns.remove(0)
    assert 0 not in turns
    assert [turns.take(), turns.take()] == [1, None]


@pytest.mark.parametrize(
    ("count", "kept", "extra"), [(0, 0, 0), (1, 0, 1), (2, 0, 1), (3, 1, 1), (16, 1, 2), (32, 2, 4)]
)
def test_how_much_is_for_the_brief(count: int, kept: int, extra: int) -> None:
    assert (kept_for_brief(count), extra_for_brief(count)) == (kept, extra)


@given(
    st.lists(st.tuples(st.builds(Urgency, st.integers(0, 7), st.booleans()), st.sampled_from("abc")), max_size=30),
)
def test_nobody_starves(waiting: list[tuple[Urgency, str]]) -> None:
    """However urgent those who come are, everybody who waits goes within PATIENT_TURN turns for each ahead of him."""
    turns = queue(*waiting)
    ticket = len(waiting)
    for _ in range(PATIENT_TURN * len(waiting)):
        turns.add(ticket, URGENT, "z")
        ticket += 1
        turns.take()
    assert not any(number in turns for number in range(len(waiting)))
    left = len(turns)
    assert len({turns.take() for _ in range(left)}) == left
    assert turns.take() is None
    assert len(turns) == 0
