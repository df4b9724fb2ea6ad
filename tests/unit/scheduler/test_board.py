"""Preheats and pins that outlive their scheduler, in a real Redis and over the real API of hosts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from p2p.fetches import State
from p2p.identity import identify
from p2p.tasks import TaskScope
from scheduler.board import Board
from scheduler.jobs import Order
from scheduler.preheat import Patience, Preheats
from scheduler.shared import Shared
from tests.support.redis import RedisServer, running_redis
from tests.unit.scheduler.test_preheat import URL, World, _keepable, a_world
from tests.unit.scheduler.test_shared import sharing

PLAIN = "http://origin/model.bin"


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path) as server:
        yield server


def a_board(shared: Shared, world: World, name: str, members: tuple[str, ...] = ("one:1", "other:1")) -> Board:
    return Board(shared, name, world.preheats, world.fleet, lambda: members)


async def lost(shared: Shared, job_id: str) -> None:
    """Let the lease on a job be over."""
    await shared.written()
    await shared.ask("DEL", f"damselfly:job:{job_id}:owner")


async def test_a_lost_schedulers_job_is_taken_up_with_what_is_known(redis: RedisServer, tmp_path: Path) -> None:
    async with a_world(tmp_path, "seed-1", "peer-1") as world, sharing(redis) as shared, TaskScope() as scope:
        world.hosts["seed-1"].origin.says = _keepable(PLAIN)
        world.hosts["peer-1"].peer.network.gate.clear()
        first = a_board(shared, world, "one:1")
        job = world.preheats.begin(Order((PLAIN,), pin=True))
        await world.ordered(job, "peer-1")
        await first.look()
        await lost(shared, job.id)
        asked = len(world.hosts["seed-1"].origin.asked)
        world.preheats = Preheats(world.fleet, scope, patience=Patience(poll=0.0, silence=0.0))
        second = a_board(shared, world, "other:1")
        await second.look()
        world.hosts["peer-1"].peer.network.gate.set()
        taken = world.preheats.job(job.id)
        assert taken is not None
        assert taken.order == job.order
        await world.over(taken)
        assert taken.state is State.DONE
        assert len(world.hosts["seed-1"].origin.asked) == asked, "the version was known"
        for host in world.hosts.values():
            (held,) = await host.peer.store.held()
            assert held.pinned


async def test_what_may_be_secret_is_not_written_down_and_said_to_be_lost(redis: RedisServer, tmp_path: Path) -> None:
    async with a_world(tmp_path, "seed-1") as world, sharing(redis) as shared, TaskScope() as scope:
        world.hosts["seed-1"].peer.network.gate.clear()
        job = world.preheats.begin(Order((URL,), headers=(("Authorization", "secret"),)))
        await a_board(shared, world, "one:1").look()
        await lost(shared, job.id)
        for key in await shared.ask("KEYS", "*"):
            kind = await shared.ask("TYPE", key.decode())
            assert b"secret" not in (await shared.ask("GET", key.decode()) or b"" if kind == b"string" else b"")
        world.hosts["seed-1"].peer.network.gate.set()
        await world.over(job)
        world.preheats = Preheats(world.fleet, scope)
        second = a_board(shared, world, "other:1")
        await second.look()
        await shared.written()
        detail = await second.detail(job.id)
        assert detail is not None
        assert (detail["state"], "start it again" in detail["error"]) == ("failed", True)
        assert [row["id"] for row in second.summaries()] == [job.id]


async def test_a_job_is_seen_and_cancelled_at_another_scheduler(redis: RedisServer, tmp_path: Path) -> None:
    async with a_world(tmp_path, "seed-1", "peer-1") as world, sharing(redis) as shared, TaskScope() as scope:
        world.hosts["seed-1"].origin.says = _keepable(PLAIN)
        world.hosts["peer-1"].peer.network.gate.clear()
        job = world.preheats.begin(Order((PLAIN,), to="1"))
        await world.ordered(job, "peer-1")
        ours = a_board(shared, world, "one:1")
        await ours.look()
        await shared.written()
        theirs = Board(shared, "other:1", Preheats(world.fleet, scope), world.fleet, lambda: ("other:1",))
        await theirs.look()
        detail = await theirs.detail(job.id)
        assert detail is not None
        assert detail["id"] == job.id
        await theirs.cancel(job.id)
        await ours.look()
        world.hosts["peer-1"].peer.network.gate.set()
        assert job.cancelled
        assert await theirs.detail("f" * 16) is None


async def test_pins_reach_hosts_that_were_away(redis: RedisServer, tmp_path: Path) -> None:
    async with a_world(tmp_path, "seed-1", "peer-1") as world, sharing(redis) as shared:
        await world.over(world.preheats.begin(Order((URL,))))
        returned = world.members.pop()
        board = a_board(shared, world, "one:1", ("one:1",))
        await board.look()
        board.pin(identify(URL).id, True)
        await shared.written()
        world.members.append(returned)
        await board.look()
        (held,) = await world.hosts["peer-1"].peer.store.held()
        assert held.pinned
        board.pin(identify(URL).id, False)
        await shared.written()
        assert await shared.ask("SMEMBERS", "damselfly:pins") in (set(), [])
