from __future__ import annotations

import asyncio
import threading

import pytest

from p2p.errors import CredentialsError
from peer.source.credentials.renewing import (
    EARLY_SECONDS,
    FETCH_SECONDS,
    FORGET_SECONDS,
    GRACE_SECONDS,
    Lease,
    Renewing,
)
from tests.unit.source.credentials.conftest import SECRET, Clock


class Fetches:
    def __init__(self, clock: Clock, seconds: float = 3600.0) -> None:
        self.clock = clock
        self.seconds = seconds
        self.count = 0
        self.fails = False

    def __call__(self) -> Lease[str]:
        self.count += 1
        if self.fails:
            raise CredentialsError("the service is down")
        return Lease(f"{SECRET}{self.count}", self.clock() + self.seconds)


async def test_a_value_is_renewed_before_it_ends(clock: Clock) -> None:
    fetch = Fetches(clock)
    renewing = Renewing(fetch, clock=clock)
    first = await renewing.get()
    clock.now += 3600 - 2 * EARLY_SECONDS
    assert await renewing.get() is first
    clock.now += EARLY_SECONDS + 1
    assert (await renewing.get()).value != first.value
    assert fetch.count == 2


async def test_short_lives_are_renewed_in_their_last_fifth(clock: Clock) -> None:
    fetch = Fetches(clock, seconds=100)
    renewing = Renewing(fetch, clock=clock)
    await renewing.get()
    clock.now += 69
    await renewing.get()
    assert fetch.count == 1
    clock.now += 12
    await renewing.get()
    assert fetch.count == 2


async def test_one_fetch_serves_all_who_wait(clock: Clock) -> None:
    fetches, go = [], threading.Event()

    def fetch() -> Lease[str]:
        fetches.append(threading.current_thread())
        go.wait(10)
        return Lease("token", clock() + 3600)

    renewing = Renewing(fetch, clock=clock)
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(renewing.get()) for _ in range(20)]
        await asyncio.sleep(0)
        go.set()
    assert {task.result().value for task in waiting} == {"token"}
    assert len(fetches) == 1
    assert fetches[0] is not threading.main_thread()


async def test_a_service_that_is_down_at_renewal_leaves_the_old_value(clock: Clock) -> None:
    fetch = Fetches(clock)
    renewing = Renewing(fetch, clock=clock)
    first = await renewing.get()
    fetch.fails = True
    clock.now += 3600 - 200
    assert await renewing.get() is first
    assert await renewing.get() is first
    assert fetch.count == 2  # and it is left alone for a while
    clock.now += FETCH_SECONDS
    assert await renewing.get() is first
    assert fetch.count == 3
    clock.now += 150
    with pytest.raises(CredentialsError):
        await renewing.get()


async def test_a_refused_value_is_fetched_anew_but_not_over_and_over(clock: Clock) -> None:
    fetch = Fetches(clock)
    renewing = Renewing(fetch, clock=clock)
    await renewing.get()
    assert renewing.forget()
    await renewing.get()
    assert fetch.count == 2
    # Others were refused with the first value as well: they get the second one.
    assert renewing.forget()
    await renewing.get()
    assert fetch.count == 2
    clock.now += GRACE_SECONDS
    assert not renewing.forget()
    clock.now += FORGET_SECONDS - GRACE_SECONDS
    assert renewing.forget()
    await renewing.get()
    assert fetch.count == 3


async def test_what_cannot_change_is_not_fetched_again(clock: Clock) -> None:
    renewing = Renewing(Fetches(clock), clock=clock, fixed=True)
    await renewing.get()
    assert not renewing.forget()


async def test_no_repr_shows_the_value(clock: Clock) -> None:
    assert SECRET not in repr(await Renewing(Fetches(clock), clock=clock).get())
