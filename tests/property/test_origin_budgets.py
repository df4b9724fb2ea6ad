"""Shares of an origin's budget: never more than the budget in force, whatever hosts and messages do; and fair."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from p2p.budgets import LEASE_SECONDS, Budget
from p2p.control import Allowance, OriginLoad
from scheduler.core.budget import BudgetRule, OriginBudgets
from scheduler.core.sharing import deal, max_min

ORIGIN = "https://store.internal:443"
WHOLE = Budget(connections=5, requests_per_second=100.0, bytes_per_second=1e6)
HOSTS = st.sampled_from([f"{kind}{number}" for kind in ("seed", "host") for number in range(4)])


@dataclass
class Model:
    """A host as it is to behave: it goes by the last allowance that it heard of, for a lease at most."""

    serial: int = 0
    heard: int = 0
    ignored: int = 0
    share: Budget | None = None
    until: float = 0.0
    under_way: int = 0
    wanted: int = 0
    sent_at: dict[int, float] = field(default_factory=dict)
    down: deque[Allowance] = field(default_factory=deque)

    def load(self, now: float) -> OriginLoad:
        self.serial += 1
        self.sent_at[self.serial] = now
        return OriginLoad(
            ORIGIN,
            max(self.wanted, self.under_way),
            requests=3,
            bytes=1000,
            under_way=self.under_way,
            serial=self.serial,
            heard=self.heard,
        )

    def hear(self, allowance: Allowance) -> None:
        if allowance.answers > self.ignored:
            self.heard = allowance.answers
            self.share = Budget(allowance.connections, allowance.requests_per_second, allowance.bytes_per_second)
            self.until = self.sent_at[allowance.answers] + LEASE_SECONDS


class BudgetMachine(RuleBasedStateMachine):
    """Joins, losses, lost messages, slow messages and the passing of time, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.budgets = OriginBudgets([BudgetRule(re.compile("store"), WHOLE)])
        self.hosts: dict[str, Model] = {}
        self.now = 0.0

    @rule(host=HOSTS, wanted=st.integers(1, 9))
    def report(self, host: str, wanted: int) -> None:
        model = self.hosts.setdefault(host, Model())
        model.wanted = wanted
        allowance = self.budgets.used(host, model.load(self.now), seed=host.startswith("seed"), now=self.now)
        assert allowance is not None
        assert allowance.answers == model.serial
        model.down.append(allowance)

    @rule(host=HOSTS)
    def report_that_is_lost(self, host: str) -> None:
        self.hosts.setdefault(host, Model()).load(self.now)

    @rule(host=HOSTS)
    def deliver(self, host: str) -> None:
        model = self.hosts.setdefault(host, Model())
        if model.down:
            model.hear(model.down.popleft())

    @rule(host=HOSTS)
    def lose_the_session(self, host: str) -> None:
        self.hosts.setdefault(host, Model()).down.clear()
        self.budgets.host_left(host)

    @rule(host=HOSTS)
    def restart(self, host: str) -> None:
        self.hosts[host] = Model()
        self.budgets.host_left(host)

    @rule(host=HOSTS)
    def ask(self, host: str) -> None:
        model = self.hosts.setdefault(host, Model())
        share = model.share
        if share is not None and self.now < model.until and model.under_way < (share.connections or 0):
            model.under_way += 1

    @rule(host=HOSTS)
    def finish(self, host: str) -> None:
        self.hosts.setdefault(host, Model()).under_way = 0

    @rule(host=HOSTS)
    def let_go(self, host: str) -> None:
        model = self.hosts.setdefault(host, Model())
        model.share, model.under_way, model.wanted = None, 0, 0
        load = model.load(self.now)
        model.ignored = load.serial
        assert self.budgets.used(host, load, seed=False, now=self.now) is None

    @precondition(lambda self: self.hosts)
    @rule(seconds=st.sampled_from([0.05, 0.3, 2.0]))
    def let_time_pass(self, seconds: float) -> None:
        self._pass(seconds)

    def _pass(self, seconds: float) -> None:
        self.now += seconds
        for model in self.hosts.values():
            if self.now >= model.until:
                # What a host that is cut off still has under way by then is beyond anybody's reach.
                model.under_way = 0

    @rule(schedulers=st.integers(1, 3))
    def share_with_other_schedulers(self, schedulers: int) -> None:
        self.budgets.divide({}, 1 / schedulers)

    @rule()
    def let_leases_end(self) -> None:
        self._pass(LEASE_SECONDS)

    @invariant()
    def never_more_than_the_budget_in_force(self) -> None:
        live = [m.share for m in self.hosts.values() if m.share is not None and self.now < m.until]
        assert sum(share.connections or 0 for share in live) <= 5
        assert sum(share.requests_per_second or 0.0 for share in live) <= 100.0 * (1 + 1e-9)
        assert sum(share.bytes_per_second or 0.0 for share in live) <= 1e6 * (1 + 1e-9)

    @invariant()
    def never_more_requests_at_once(self) -> None:
        assert sum(model.under_way for model in self.hosts.values()) <= 5


TestBudgets = BudgetMachine.TestCase
TestBudgets.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def fleet(
    wanted: dict[str, int], *, rounds: int = 20, use: float = 1.0, whole: Budget = WHOLE, part: float = 1.0
) -> dict[str, Allowance]:
    """Let hosts report every quarter of a second, use that part of their shares, and return the last allowances."""
    budgets = OriginBudgets([BudgetRule(re.compile("store"), whole)])
    budgets.divide({ORIGIN: part}, 0.1)
    last: dict[str, Allowance] = {}
    for number in range(1, rounds + 1):
        for host, connections in wanted.items():
            mine = last.get(host, Allowance(ORIGIN, 0, 0.0, 0.0))
            load = OriginLoad(
                ORIGIN,
                connections,
                requests=round((mine.requests_per_second or 0) * use / 4),
                bytes=round((mine.bytes_per_second or 0) * use / 4),
                under_way=min(connections, mine.connections or 0),
                serial=number,
                heard=mine.answers,
            )
            answer = budgets.used(host, load, seed=host.startswith("seed"), now=number / 4)
            assert answer is not None
            last[host] = answer
    return last


def connections(allowances: dict[str, Allowance]) -> dict[str, int | None]:
    return {host: allowance.connections for host, allowance in allowances.items()}


def test_who_wants_little_gets_it_and_the_others_share_the_rest() -> None:
    whole = Budget(connections=20)
    assert connections(fleet({"a": 2, "b": 30, "c": 30}, whole=whole)) == {"a": 2, "b": 9, "c": 8}, "one is kept"


def test_a_scheduler_shares_out_its_part_of_the_budget_and_at_least_one_connection() -> None:
    assert connections(fleet({"a": 30, "b": 30}, whole=Budget(connections=20), part=0.5)) == {"a": 5, "b": 4}
    assert connections(fleet({"a": 30}, whole=Budget(connections=2), part=0.25)) == {"a": 1}


def test_seeds_come_first_once_everybody_has_one() -> None:
    whole = Budget(connections=20)
    assert connections(fleet({"a": 30, "seed": 14, "b": 30}, whole=whole)) == {"a": 3, "seed": 14, "b": 2}


def test_the_rates_are_used_up_and_seeds_have_most_of_them() -> None:
    got = fleet({"seed1": 9, "seed2": 9, "a": 9, "b": 9})
    rates = {host: allowance.bytes_per_second or 0.0 for host, allowance in got.items()}
    assert sum(rates.values()) == pytest.approx(1e6)
    assert rates["seed1"] == pytest.approx(rates["seed2"]) == pytest.approx(1e6 * (1 / 16 + 3 / 8))


def test_what_a_host_leaves_unused_of_a_rate_goes_to_others() -> None:
    whole = Budget(bytes_per_second=1e6)
    budgets = OriginBudgets([BudgetRule(re.compile("store"), whole)])
    shares = {"busy": 0.0, "idle": 0.0}
    for number in range(1, 60):
        for host, used in (("busy", shares["busy"] / 4), ("idle", 1000.0)):
            load = OriginLoad(ORIGIN, 1, bytes=round(used), under_way=1, serial=number, heard=number - 1)
            answer = budgets.used(host, load, seed=False, now=number / 4)
            assert answer is not None
            shares[host] = answer.bytes_per_second or 0.0
    assert shares["busy"] > 0.95e6
    assert shares["idle"] >= 4 * 1000


def test_hosts_take_turns_where_there_are_fewer_connections() -> None:
    whole = Budget(connections=2)
    budgets = OriginBudgets([BudgetRule(re.compile("store"), whole)])
    last: dict[str, Allowance] = {}
    turns: dict[str, int] = dict.fromkeys("abcde", 0)
    for number in range(1, 401):
        for host in turns:
            mine = last.get(host)
            has = (mine.connections or 0) if mine else 0
            load = OriginLoad(ORIGIN, 3, under_way=has, serial=number, heard=number - 1)
            answer = budgets.used(host, load, seed=False, now=number / 4)
            assert answer is not None
            last[host] = answer
            turns[host] += bool(answer.connections)
    assert min(turns.values()) > 0.5 * max(turns.values())
    assert sum(turns.values()) > 0.75 * 800


def test_an_origin_without_a_budget_has_no_bounds() -> None:
    budgets = OriginBudgets([BudgetRule(re.compile("store"), WHOLE)])
    load = OriginLoad("https://elsewhere:443", 3, serial=7)
    assert budgets.used("a", load, seed=False, now=0.0) == Allowance("https://elsewhere:443", answers=7)
    assert budgets.view(0.0) == ()


def test_operators_see_who_does_what() -> None:
    budgets = OriginBudgets([BudgetRule(re.compile("store"), WHOLE)])
    budgets.used("a", OriginLoad(ORIGIN, 2, requests=5, checks=3, refused=1, bytes=70, serial=1), seed=True, now=0.0)
    (view,) = budgets.view(1.0)
    assert (view.requests, view.checks, view.refused, view.bytes) == (5, 3, 1, 70)
    (share,) = view.shares
    assert (share.host_id, share.wanted) == ("a", 2)
    budgets.used("b", OriginLoad(ORIGIN, 1, serial=1), seed=True, now=100.0)
    assert [share.host_id for view in budgets.view(100.0) for share in view.shares] == ["b"]
    budgets.used("b", OriginLoad("https://elsewhere:443", 1, serial=1), seed=True, now=200.0)
    assert budgets.view(200.0) == ()


@given(st.floats(0, 1e9), st.lists(st.floats(0, 1e9) | st.just(float("inf")), max_size=12))
def test_max_min_is_fair(total: float, demands: list[float]) -> None:
    shares = max_min(total, demands)
    assert sum(shares) <= total * (1 + 1e-9)
    assert all(share <= demand for share, demand in zip(shares, demands, strict=True))
    hungry = [share for share, demand in zip(shares, demands, strict=True) if share < demand * (1 - 1e-9)]
    if hungry:
        assert sum(shares) == pytest.approx(total)
        assert min(hungry) >= max(shares) * (1 - 1e-9)


@given(st.integers(0, 200), st.lists(st.integers(0, 50), max_size=12))
def test_dealing_is_fair(total: int, wants: list[int]) -> None:
    shares = deal(total, wants)
    assert sum(shares) == min(total, sum(wants))
    hungry = [share for share, want in zip(shares, wants, strict=True) if share < want]
    assert not hungry or min(hungry) >= max(shares) - 1
