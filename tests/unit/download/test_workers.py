"""Places for exchanges: brief ones have some that large ones never take, and who gives up leaves no place taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from p2p.urgency import ORDINARY, Urgency, kept_for_brief
from peer.download.exchange import Workers

BRIEF = Urgency(brief=True)


@asynccontextmanager
async def filled(workers: Workers, count: int) -> AsyncIterator[AsyncExitStack]:
    """Have `count` large exchanges under way that do not end."""
    async with AsyncExitStack() as stack:
        for _ in range(count):
            await stack.enter_async_context(workers.place(ORDINARY, "model"))
        yield stack


async def held(workers: Workers, urgency: Urgency, task: str, order: list[str]) -> None:
    async with workers.place(urgency, task):
        order.append(task)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_brief_exchange_finds_a_place_among_large_ones_that_hang() -> None:
    workers, order = Workers(32), list[str]()
    async with filled(workers, 32 - kept_for_brief(32)):
        large = asyncio.create_task(held(workers, ORDINARY, "another model", order))
        await held(workers, BRIEF, "config", order)
        await settle()
        assert order == ["config"]
    await large
    assert order == ["config", "another model"]


async def test_tasks_take_turns_at_what_is_free() -> None:
    workers, order = Workers(1), list[str]()
    async with filled(workers, 1):
        waiting = [asyncio.create_task(held(workers, ORDINARY, task, order)) for task in ("a", "a", "b")]
        await settle()
    await asyncio.gather(*waiting)
    assert order == ["a", "b", "a"]


async def test_who_gives_up_takes_no_place() -> None:
    workers, order = Workers(1), list[str]()
    async with filled(workers, 1) as stack:
        first, second, third = (asyncio.create_task(held(workers, ORDINARY, "a", order)) for _ in range(3))
        await settle()
        first.cancel()
        await settle()
        await stack.aclose()
        second.cancel()  # it has been called by now, and does not know it yet
        await third
    assert (first.cancelled(), second.cancelled(), order) == (True, True, ["a"])
    await held(workers, ORDINARY, "b", order)
