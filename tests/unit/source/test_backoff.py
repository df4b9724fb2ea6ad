"""Origins that cannot answer now; the pauses are taken down and not made."""

from __future__ import annotations

from collections.abc import AsyncIterator
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.control import Source
from p2p.hostapi import Keepable, Refused
from peer.source.backoff import Backoff
from peer.source.client import OriginClient, OriginSettings
from peer.source.http import Prober

from .raw_origin import RawOrigin, RawRequest, raw_origin, response, serving

TASK = "7" * 64


@given(st.integers(1, 10), st.floats(0, 10), st.integers(0, 2**32))
def test_pauses_are_long_enough_and_bounded(failures: int, wanted: float, seed: int) -> None:
    backoff = Backoff(attempts=4, first_seconds=0.2, longest_seconds=5.0)
    pause = backoff.pause(failures, wanted, Random(seed))
    assert (pause is None) == (failures >= 4 or wanted > 5.0)
    if pause is not None:
        least = 0.1 * 2 ** (failures - 1)
        assert max(wanted, least) <= pause <= max(wanted, 2 * least)


class Pauses(list[float]):
    async def sleep(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


@pytest.fixture
async def prober(pauses: Pauses) -> AsyncIterator[Prober]:
    async with OriginClient(OriginSettings(stall_seconds=5)) as client:
        yield Prober(client, random=Random(1), sleep=pauses.sleep)


@pytest.fixture
async def origin() -> AsyncIterator[RawOrigin]:
    async with raw_origin(serving(b"hello world")) as found:
        yield found


def failing(origin: RawOrigin, times: int, octets: bytes) -> None:
    """Answer with `octets` so many times, and with the object from then on."""
    served, left = serving(b"hello world"), [octets] * times

    def answer(request: RawRequest) -> bytes:
        if left:
            return left.pop()
        whole = served(request)
        assert isinstance(whole, bytes)
        return whole

    origin.answer = answer


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_what_may_pass_is_asked_again(prober: Prober, origin: RawOrigin, pauses: Pauses, status: int) -> None:
    failing(origin, 3, response(status))
    assert isinstance(await prober.probe(Source(origin.base), TASK), Keepable)
    assert len(pauses) == 3
    assert 0.1 <= pauses[0] <= 0.2 <= pauses[1] <= 0.4 <= pauses[2] <= 0.8


async def test_the_origin_is_left_alone_for_as_long_as_it_says(
    prober: Prober, origin: RawOrigin, pauses: Pauses
) -> None:
    failing(origin, 1, response(429, "Retry-After: 3"))
    assert isinstance(await prober.probe(Source(origin.base), TASK), Keepable)
    assert pauses == [3.0]


@pytest.mark.parametrize(
    ("status", "fields", "asked"),
    [
        (429, ("Retry-After: 3600",), 1),
        (503, ("Date: Thu, 01 Jan 2026 12:00:00 GMT", "Retry-After: Thu, 01 Jan 2026 13:00:00 GMT"), 1),
        (503, (), 4),
        (403, (), 1),
        (404, (), 1),
        (501, (), 1),
    ],
)
async def test_the_last_refusal_is_passed_on(
    prober: Prober, origin: RawOrigin, status: int, fields: tuple[str, ...], asked: int
) -> None:
    origin.answer = lambda _: response(status, *fields, body=b"<Error/>")
    refusal = await prober.probe(Source(origin.base), TASK)
    assert isinstance(refusal, Refused)
    assert (refusal.status, refusal.body) == (status, b"<Error/>")
    assert len(origin.requests) == asked
