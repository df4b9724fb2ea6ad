"""Preheats over the real API of hosts: real stores, task managers and sockets; only the origin is played."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from p2p.control import Source
from p2p.errors import BadRequestError, DeniedError, OriginError
from p2p.fetches import State, asked_for
from p2p.hostapi import Keepable, Listed, Probe, Refused, Stream
from p2p.identity import identify
from p2p.stores import Store
from p2p.tasks import TaskScope
from p2p.versions import Version
from scheduler.fleet import Fleet, Member
from scheduler.jobs import Job, Order, chosen
from scheduler.preheat import Patience, Preheats
from tests.unit.peer.test_hostapi import OURS, SECRET, Host, a_host
from tests.unit.peer.test_tasks import CONTENT, DIGESTS, VERSION

URL = "http://origin/model.bin?X-Amz-Signature=secret"
MODELS = "s3://bucket/key"
SEED = Member("seed-1", "127.0.0.1:1", True, {"zone": "a"})
PEERS = tuple(Member(f"peer-{n}", "127.0.0.1:1", False, {"zone": "ab"[n % 2]}) for n in range(4))


@dataclass
class World:
    hosts: dict[str, Host]
    fleet: Fleet
    preheats: Preheats
    members: list[Member]

    async def over(self, job: Job) -> Job:
        assert job.running is not None
        await asyncio.wait([job.running])
        return job

    async def ordered(self, job: Job, host_id: str) -> None:
        """Return when the host has been told."""
        for _ in range(10_000):
            if host_id in job.items[0].hosts and job.items[0].hosts[host_id].state is State.RUNNING:
                return
            await self.hosts[host_id].fleet.fetches(self.hosts[host_id].member)
        pytest.fail("the host was never told")

    def version_of(self, task_id: str) -> Version:
        return Version(task_id, VERSION.length, VERSION.kind, VERSION.validator)


@contextlib.asynccontextmanager
async def a_world(directory: Path, *names: str) -> AsyncIterator[World]:
    async with asyncio.timeout(20), contextlib.AsyncExitStack() as stack:
        hosts = {name: await stack.enter_async_context(a_host(directory / name)) for name in names}
        members = [
            Member(name, host.member.address, name.startswith("seed"), {"name": name}) for name, host in hosts.items()
        ]
        fleet = Fleet(lambda: members, SECRET)
        stack.push_async_callback(fleet.close)
        scope = await stack.enter_async_context(TaskScope())
        for host in hosts.values():
            host.origin.says = _keepable(URL)
        yield World(hosts, fleet, Preheats(fleet, scope, patience=Patience(poll=0.0, silence=0.0)), members)


def _keepable(url: str) -> Probe:
    task, source = asked_for(url)
    return Keepable(Version(task.id, VERSION.length, VERSION.kind, VERSION.validator), (), source)


async def test_every_target_brings_the_object(tmp_path: Path) -> None:
    async with a_world(tmp_path, "seed-1", "peer-1", "peer-2") as world:
        job = await world.over(world.preheats.begin(Order((URL,), pin=True)))
        assert job.state is State.DONE
        (item,) = job.detail()["items"]
        assert [(row["state"], row["pieces_held"], row["bytes_held"]) for row in item["hosts"]] == [
            ("done", len(DIGESTS), len(CONTENT))
        ] * 3
        assert [len(host.origin.asked) for host in world.hosts.values()] == [1, 0, 0]
        for host in world.hosts.values():
            (held,) = await host.peer.store.held()
            assert (held.task_id, held.pinned) == (identify(URL).id, True)
            assert {source.url for source in host.peer.network.sources} == {URL}
        assert "secret" not in repr(job)
        assert "secret" not in str(job.detail())


async def test_a_prefix_is_listed_and_its_objects_are_named_as_presigned_requests_name_them(tmp_path: Path) -> None:
    async with a_world(tmp_path, "seed-1", "peer-1") as world:
        seed = world.hosts["seed-1"].origin
        url = f"{OURS.url}/config.pbtxt"
        seed.listed = [Listed("key/config.pbtxt", url, len(CONTENT), "")]
        seed.says = _keepable("s3://bucket/key/config.pbtxt")
        job = await world.over(world.preheats.begin(Order((MODELS,), recursive=True, to="1")))
        assert job.state is State.DONE
        (item,) = job.items
        assert item.task == identify(f"{url}?X-Amz-Signature=abc")
        assert (item.source, list(item.hosts)) == (Source(url, (), Store.S3), ["peer-1"])


@pytest.mark.parametrize(
    ("says", "error"),
    [
        (Refused(404, "Not Found", (), b""), "the origin answered 404 Not Found"),
        (Stream("no validator"), "it cannot be kept: no validator"),
        (DeniedError("not that one"), "not that one"),
    ],
)
async def test_an_object_that_cannot_be_asked_for(tmp_path: Path, says: Probe | Exception, error: str) -> None:
    async with a_world(tmp_path, "peer-1") as world:
        world.hosts["peer-1"].origin.says = says
        job = await world.over(world.preheats.begin(Order((URL,))))
        assert (job.state, job.items[0].error) == (State.FAILED, error)


async def test_a_listing_that_fails(tmp_path: Path) -> None:
    async with a_world(tmp_path, "peer-1") as world:
        world.hosts["peer-1"].origin.listed = [OriginError("NoSuchBucket")]
        job = await world.over(world.preheats.begin(Order((MODELS,), recursive=True)))
        assert (job.state, job.items[0].error) == (State.FAILED, "NoSuchBucket")


async def test_a_host_whose_download_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    async with a_world(tmp_path, "peer-1", "peer-2") as world:
        world.hosts["peer-2"].peer.network.failures = [DeniedError("not from there") for _ in range(100)]
        job = await world.over(world.preheats.begin(Order((URL,))))
        cells = job.items[0].hosts
        assert job.state is State.FAILED
        assert (cells["peer-1"].state, cells["peer-2"].state) == (State.DONE, State.FAILED)
        assert "not from there" in cells["peer-2"].error


async def test_a_dead_host_is_given_up(tmp_path: Path) -> None:
    async with a_world(tmp_path, "seed-1") as world:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            world.members.append(Member("dead", f"127.0.0.1:{nobody.getsockname()[1]}", False, {}))
            job = await world.over(world.preheats.begin(Order((URL,))))
        cells = job.items[0].hosts
        assert (cells["seed-1"].state, cells["dead"].state) == (State.DONE, State.FAILED)
        assert "host dead at" in cells["dead"].error


async def test_another_seed_is_asked_where_one_does_not_answer(tmp_path: Path) -> None:
    async with a_world(tmp_path, "seed-1") as world:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{nobody.getsockname()[1]}"
            world.members += [Member(f"seed-dead-{n}", address, True, {}) for n in range(2)]
            job = await world.over(world.preheats.begin(Order((URL,), to="name=seed-1")))
        assert job.state is State.DONE


async def test_a_cancelled_job_stops_what_runs_and_keeps_what_landed(tmp_path: Path) -> None:
    async with a_world(tmp_path, "peer-1") as world:
        host = world.hosts["peer-1"]
        host.peer.network.gate.clear()
        job = world.preheats.begin(Order((URL,)))
        await host.peer.network.asked.wait()
        await world.ordered(job, "peer-1")
        await world.preheats.cancel(job)
        assert (job.state, job.items[0].hosts["peer-1"].state) == (State.CANCELLED, State.CANCELLED)
        await host.until(world.version_of(identify(URL).id), State.CANCELLED)
        await world.preheats.cancel(job)


async def test_what_another_job_wants_too_goes_on(tmp_path: Path) -> None:
    async with a_world(tmp_path, "peer-1") as world:
        host = world.hosts["peer-1"]
        host.peer.network.gate.clear()
        first, second = (world.preheats.begin(Order((URL,))) for _ in range(2))
        for job in (first, second):
            await world.ordered(job, "peer-1")
        await world.preheats.cancel(first)
        host.peer.network.gate.set()
        assert (await world.over(second)).state is State.DONE


@pytest.mark.parametrize(
    ("to", "ids"),
    [
        ("all", {"seed-1", "peer-0", "peer-1", "peer-2", "peer-3"}),
        ("seeds", {"seed-1"}),
        ("zone=b", {"peer-1", "peer-3"}),
        ("4", {"peer-0", "peer-1", "peer-2", "peer-3"}),
    ],
)
def test_whom_a_target_means(to: str, ids: set[str]) -> None:
    assert {member.host_id for member in chosen([SEED, *PEERS], to, key="x")} == ids


@pytest.mark.parametrize("to", ["", "some", "0", "-1", "6", "zone=c", "=b", "٣"])
def test_targets_that_mean_nobody(to: str) -> None:
    with pytest.raises(BadRequestError):
        chosen([SEED, *PEERS], to, key="x")


async def test_orders_that_cannot_be(tmp_path: Path) -> None:
    async with a_world(tmp_path, "peer-1") as world:
        for order in (Order(()), Order(("ftp://x/y",)), Order((URL,), recursive=True), Order((URL,), to="seeds")):
            with pytest.raises(BadRequestError) as caught:
                world.preheats.begin(order)
            assert "secret" not in str(caught.value)
        assert world.preheats.jobs() == ()
