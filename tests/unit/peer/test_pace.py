"""How many connections to an origin, and how much at once, against origins that are simple to calculate."""

from __future__ import annotations

from itertools import pairwise

import pytest

from p2p.pieces import MIB
from peer.core.pace import (
    HIGHEST,
    LARGEST_REQUEST_BYTES,
    LONGEST_RETRY_WINDOWS,
    LOWEST,
    NOTABLE_REFUSALS,
    REMEMBERED_ORIGINS,
    OriginPace,
    Paces,
)

PIECE = 4 * MIB


class Clock:
    """Plays an origin that gives `per_connection` bytes a second, and `in_all` at the most."""

    def __init__(self, pace: OriginPace, *, per_connection: float, in_all: float) -> None:
        self.pace = pace
        self.per_connection = per_connection
        self.in_all = in_all
        self.now = 0.0
        pace.began(self.now)

    def pass_pieces(self, count: int) -> None:
        for _ in range(count):
            self.now += PIECE / min(self.per_connection * self.pace.limit, self.in_all)
            self.pace.landed(PIECE, self.now)


def test_connections_grow_while_the_rate_grows_with_them() -> None:
    pace = OriginPace()
    Clock(pace, per_connection=90e6, in_all=10e9).pass_pieces(400)
    assert pace.limit == pace.highest


def test_pieces_that_come_in_bursts_over_a_thin_link_are_no_growth() -> None:
    pace = OriginPace()
    now = 0.0
    pace.began(now)
    seen = []
    for _ in range(60):
        burst = pace.limit
        now += burst * PIECE / 25e6
        for number in range(burst):
            pace.landed(PIECE, now + number * 0.001)
        seen.append(pace.limit)
    assert seen.count(pace.lowest) > 45
    assert max(seen) <= 2 * pace.lowest


def test_connections_that_bring_nothing_are_given_up() -> None:
    pace = OriginPace()
    clock = Clock(pace, per_connection=500e6, in_all=500e6)
    seen = set()
    tried = 0
    for _ in range(4000):
        before = pace.limit
        clock.pass_pieces(1)
        seen.add(pace.limit)
        tried += before < pace.limit
    assert seen == {LOWEST, 2 * LOWEST}, "more were tried"
    assert tried <= 10, "tried too often, in 34 s"


def test_more_connections_are_tried_again_after_a_while() -> None:
    pace = OriginPace()
    clock = Clock(pace, per_connection=500e6, in_all=500e6)
    clock.pass_pieces(100)
    assert pace.limit <= 2 * LOWEST
    clock.per_connection, clock.in_all = 90e6, 10e9
    clock.pass_pieces(LONGEST_RETRY_WINDOWS * 20)
    assert pace.limit == pace.highest


def test_a_few_refusals_cost_no_connection() -> None:
    pace = OriginPace(limit=16)
    for number in range(300):
        pace.began(0.0)
        if number % 10 == 9:
            pace.refused()
    assert pace.limit == 16


def test_a_wall_of_refusals_leaves_one_connection_and_many_come_back_later() -> None:
    pace = OriginPace(limit=16)
    for _ in range(5 * NOTABLE_REFUSALS):
        pace.refused()
    assert pace.limit == 1
    Clock(pace, per_connection=90e6, in_all=10e9).pass_pieces(LONGEST_RETRY_WINDOWS * 20)
    assert pace.limit == pace.highest


def test_after_a_wall_a_few_pieces_bring_back_the_least() -> None:
    pace = OriginPace(limit=16)
    for _ in range(5 * NOTABLE_REFUSALS):
        pace.refused()
    assert pace.limit == 1
    clock = Clock(pace, per_connection=90e6, in_all=10e9)
    clock.pass_pieces(16)
    assert pace.limit >= pace.lowest


def test_time_without_requests_says_nothing() -> None:
    pace = OriginPace()
    pace.began(0.0)
    pace.landed(PIECE, 0.1)
    pace.idle()
    pace.began(1000.0)
    for _ in range(2 * pace.limit):
        pace.landed(PIECE, 1000.2)
    assert pace.rate == 2 * LOWEST * PIECE / (1000.2 - 1000.0)


def test_requests_are_worth_their_first_byte_and_get_smaller_towards_the_end() -> None:
    pace = OriginPace()
    assert mean(pace) == pytest.approx(16 * MIB, rel=0.02), "nothing is known yet"
    clock = Clock(pace, per_connection=30e6, in_all=10e9)
    clock.pass_pieces(400)
    assert mean(pace) == pytest.approx(30e6, rel=0.05)
    assert pace.request_bytes(16 * PIECE) == PIECE
    assert pace.request_bytes(PIECE) < PIECE
    clock.per_connection, clock.in_all = 1e9, 1e12
    clock.pass_pieces(4000)
    largest = max(pace.request_bytes(1000 * PIECE) for _ in range(16))
    assert 0.9 * LARGEST_REQUEST_BYTES < largest <= LARGEST_REQUEST_BYTES


@pytest.mark.parametrize(("rate", "largest"), [(0.0, 24 * MIB), (10e9, LARGEST_REQUEST_BYTES)])
def test_requests_that_follow_each_other_differ_so_that_they_do_not_end_together(rate: float, largest: int) -> None:
    pace = OriginPace(rate=rate)
    sizes = sorted(pace.request_bytes(1000 * PIECE) for _ in range(16))
    assert largest / 3 <= sizes[0] < 0.4 * largest
    assert 0.9 * largest < sizes[-1] <= largest
    assert all(0 < larger - smaller < largest / 12 for smaller, larger in pairwise(sizes)), "spread evenly"


def mean(pace: OriginPace) -> float:
    """What requests ask for on average, far from the end."""
    return sum(pace.request_bytes(1000 * PIECE) for _ in range(100)) / 100


def test_the_next_download_begins_with_what_the_last_one_found_out() -> None:
    paces = Paces()
    assert paces.recall("http://a:1") == LOWEST
    pace = OriginPace()
    Clock(pace, per_connection=90e6, in_all=10e9).pass_pieces(400)
    paces.learn("http://a:1", pace)
    assert (paces.recall("http://a:1"), paces.recall("http://b:1")) == (HIGHEST, LOWEST)


def test_a_number_that_is_only_on_trial_is_not_remembered() -> None:
    paces, pace = Paces(), OriginPace()
    clock = Clock(pace, per_connection=500e6, in_all=500e6)
    while pace.limit == LOWEST:
        clock.pass_pieces(1)
    paces.learn("http://a:1", pace)
    assert paces.recall("http://a:1") == LOWEST


def test_not_more_origins_are_remembered_than_make_sense() -> None:
    paces = Paces()
    for number in range(REMEMBERED_ORIGINS + 1):
        paces.learn(f"http://{number}:1", OriginPace(limit=8))
    assert (paces.recall("http://0:1"), paces.recall("http://1:1")) == (LOWEST, 8)
