"""Whom the origin is asked for, how often, and what is remembered; with a real client, origin and socket."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest

from p2p.control import Source
from p2p.errors import OriginUnreachableError
from p2p.hostapi import Keepable, Refused
from p2p.identity import identify
from peer.core.rules import DEFAULT_RULE, Rule, StaleIfError
from peer.proxy.freshness import Freshness, Judged, Standing
from peer.proxy.route import Wanted
from peer.source.backoff import Backoff
from peer.source.client import OriginClient, OriginSettings
from peer.source.http import Prober

from ..source.raw_origin import CUT, RawOrigin, RawRequest, response, serving
from .conftest import CONTENT

LASTING = Rule(authorize_ttl=60.0)
START = 1_767_268_800.0  # 2026-01-01T12:00:00Z


@dataclass
class Clock:
    """Both clocks; they move together, and only when told to."""

    now: float = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def freshness(clock: Clock) -> AsyncIterator[Freshness]:
    async with OriginClient(OriginSettings(stall_seconds=5)) as client:
        yield Freshness(Prober(client, backoff=Backoff(attempts=1)), clock=clock, wall=clock)


def wanted(
    origin: RawOrigin, *headers: tuple[str, str], query: str = "X-Amz-Signature=1", rule: Rule = DEFAULT_RULE
) -> Wanted:
    url = f"{origin.base}/model?X-Amz-Date=20260101T120000Z&X-Amz-Expires=30&{query}"
    return Wanted(identify(url), Source(url, headers), rule)


def tag_of(judged: Judged) -> str:
    assert isinstance(judged.probe, Keepable)
    return judged.probe.version.validator


class Gate:
    """Holds answers back until they are let go, and tells when questions arrive."""

    def __init__(self, origin: RawOrigin) -> None:
        self.held: list[asyncio.Future[bytes]] = []
        self.arrived = asyncio.Condition()
        origin.answer = self.answer

    def answer(self, request: RawRequest) -> Awaitable[bytes]:
        self.held.append(asyncio.get_running_loop().create_future())
        return self._held(self.held[-1])

    async def _held(self, answer: asyncio.Future[bytes]) -> bytes:
        async with self.arrived:
            self.arrived.notify_all()
        return await answer

    async def questions(self, count: int) -> None:
        async with self.arrived:
            await self.arrived.wait_for(lambda: len(self.held) >= count)

    def let_go(self, number: int, tag: str) -> None:
        content_range = f"Content-Range: bytes 0-0/{len(CONTENT)}"
        self.held[number].set_result(response(206, f'ETag: "{tag}"', content_range, body=b"x"))


async def together(freshness: Freshness, *all_wanted: Wanted) -> list[asyncio.Task[Judged]]:
    """Begin to judge them in this order; each has come as far as it can without the origin when this returns."""
    tasks = []
    for one in all_wanted:
        tasks.append(asyncio.create_task(freshness.judge(one)))
        await asyncio.sleep(0)
    return tasks


async def test_every_request_asks_by_default(freshness: Freshness, origin: RawOrigin) -> None:
    for _ in range(3):
        assert (await freshness.judge(wanted(origin))).standing is Standing.ASKED
    assert len(origin.requests) == 3


async def test_requests_that_come_together_share_a_question_asked_for_them(
    freshness: Freshness, origin: RawOrigin
) -> None:
    gate = Gate(origin)
    first, *others = await together(freshness, *(wanted(origin, ("Authorization", "a")) for _ in range(5)))
    await gate.questions(1)
    gate.let_go(0, "old")
    assert tag_of(await first) == '"old"', "and nobody else's: it was asked before they came"
    await gate.questions(2)
    gate.let_go(1, "new")
    answers = [await task for task in others]
    assert {tag_of(answer) for answer in answers} == {'"new"'}
    assert [answer.standing for answer in answers] == [Standing.ASKED, *[Standing.SHARED] * 3]
    assert len(gate.held) == 2


@pytest.mark.parametrize(
    ("header", "query"),
    [(("Authorization", "b"), "X-Amz-Signature=1"), (("Authorization", "a"), "X-Amz-Signature=2")],
)
async def test_other_credentials_ask_for_themselves(
    freshness: Freshness, origin: RawOrigin, header: tuple[str, str], query: str
) -> None:
    gate = Gate(origin)
    tasks = await together(freshness, wanted(origin, ("Authorization", "a")), wanted(origin, header, query=query))
    await gate.questions(2)
    gate.let_go(1, "second")
    gate.let_go(0, "first")
    # Which of the two asked first is the connection pool's affair.
    assert {tag_of(await task) for task in tasks} == {'"first"', '"second"'}


async def test_a_shared_question_may_fail(freshness: Freshness, origin: RawOrigin) -> None:
    gate = Gate(origin)
    first, *others = await together(freshness, *(wanted(origin) for _ in range(3)))
    await gate.questions(1)
    gate.let_go(0, "v1")
    await first
    await gate.questions(2)
    origin.answer = lambda _: CUT
    gate.held[1].set_result(CUT)
    for task in others:
        with pytest.raises(OriginUnreachableError):
            await task
    origin.answer = serving(CONTENT)
    assert (await freshness.judge(wanted(origin))).standing is Standing.ASKED


@pytest.mark.parametrize("leaving", [[0], [1], [0, 1], [1, 0], [2], [0, 1, 2], [1, 2, 3]])
async def test_a_client_that_leaves_costs_the_others_nothing(
    freshness: Freshness, origin: RawOrigin, leaving: list[int]
) -> None:
    gate = Gate(origin)
    tasks = await together(freshness, *(wanted(origin) for _ in range(4)))
    await gate.questions(1)
    origin.answer = serving(CONTENT)
    for number in leaving:
        tasks[number].cancel()
    gate.let_go(0, "v1")
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(end, Judged) for end in ends] == [number not in leaving for number in range(4)]


async def test_a_leave_is_remembered_for_its_credential_and_its_time(
    freshness: Freshness, origin: RawOrigin, clock: Clock
) -> None:
    rule = Rule(authorize_ttl=20.0)
    await freshness.judge(wanted(origin, rule=rule))
    clock.now += 19
    again = await freshness.judge(wanted(origin, rule=rule))
    assert (again.standing, again.age, tag_of(again)) == (Standing.REMEMBERED, 19.0, '"v1"')
    await freshness.judge(wanted(origin, ("Cookie", "c"), rule=rule))
    await freshness.judge(wanted(origin, query="X-Amz-Signature=2", rule=rule))
    assert len(origin.requests) == 3
    clock.now += 2
    assert (await freshness.judge(wanted(origin, rule=rule))).standing is Standing.ASKED


async def test_a_leave_never_outlives_its_url(freshness: Freshness, origin: RawOrigin, clock: Clock) -> None:
    await freshness.judge(wanted(origin, rule=LASTING))
    clock.now = START + 29
    assert (await freshness.judge(wanted(origin, rule=LASTING))).standing is Standing.REMEMBERED
    clock.now = START + 30
    origin.answer = lambda _: response(403)
    assert isinstance((await freshness.judge(wanted(origin, rule=LASTING))).probe, Refused)


async def test_a_refusal_ends_what_was_remembered(freshness: Freshness, origin: RawOrigin) -> None:
    await freshness.judge(wanted(origin, rule=LASTING))
    origin.answer = lambda _: response(403)
    assert isinstance((await freshness.judge(wanted(origin, rule=LASTING), anew=True)).probe, Refused)
    assert isinstance((await freshness.judge(wanted(origin, rule=LASTING))).probe, Refused)


async def test_a_new_version_seen_by_anyone_ends_every_leave_for_the_old(
    freshness: Freshness, origin: RawOrigin
) -> None:
    await freshness.judge(wanted(origin, rule=LASTING))
    origin.answer = serving(CONTENT, etag='"v2"')
    await freshness.judge(wanted(origin, ("Cookie", "c"), rule=LASTING))
    assert tag_of(await freshness.judge(wanted(origin, rule=LASTING))) == '"v2"'


async def test_never_is_never_again_for_who_was_let_in(freshness: Freshness, origin: RawOrigin, clock: Clock) -> None:
    never = Rule(revalidate=float("inf"))
    await freshness.judge(wanted(origin, rule=never))
    clock.now += 29
    assert (await freshness.judge(wanted(origin, rule=never))).standing is Standing.REMEMBERED
    origin.answer = lambda _: response(403)
    assert isinstance((await freshness.judge(wanted(origin, ("Cookie", "c"), rule=never))).probe, Refused)


@pytest.fixture(params=["unreachable", "failing"])
def broken(request: pytest.FixtureRequest, origin: RawOrigin) -> Callable[[], None]:
    def break_it() -> None:
        octets = CUT if request.param == "unreachable" else response(503)
        origin.answer = lambda _: octets

    return break_it


async def outcome(freshness: Freshness, one: Wanted) -> Standing | None:
    """Return how a request was answered, None for a failure that reaches the caller."""
    try:
        judged = await freshness.judge(one)
    except OriginUnreachableError:
        return None
    return None if isinstance(judged.probe, Refused) else judged.standing


@pytest.mark.parametrize(
    ("cover", "same", "other"),
    [
        (StaleIfError.OFF, None, None),
        (StaleIfError.SAME_CREDENTIAL, Standing.STALE, None),
        (StaleIfError.ANY, Standing.STALE, Standing.STALE),
    ],
)
async def test_a_failing_origin_is_covered_as_the_rule_says(
    freshness: Freshness,
    origin: RawOrigin,
    broken: Callable[[], None],
    cover: StaleIfError,
    same: Standing | None,
    other: Standing | None,
) -> None:
    rule = Rule(stale_if_error=cover)
    assert await outcome(freshness, wanted(origin, rule=rule)) is Standing.ASKED
    broken()
    assert await outcome(freshness, wanted(origin, rule=rule)) is same
    assert await outcome(freshness, wanted(origin, ("Cookie", "c"), rule=rule)) is other


def answering(octets: bytes, _: RawRequest) -> bytes:
    return octets


async def test_a_refusal_is_never_covered(freshness: Freshness, origin: RawOrigin) -> None:
    rule = Rule(stale_if_error=StaleIfError.ANY)
    await freshness.judge(wanted(origin, rule=rule))
    for refusal in [response(status) for status in (401, 403, 429, 404)]:
        origin.answer = functools.partial(answering, refusal)
        assert isinstance((await freshness.judge(wanted(origin, rule=rule))).probe, Refused)
