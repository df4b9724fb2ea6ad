"""Several schedulers with a real Redis: one is killed, one comes, Redis goes, all in the middle of downloads.

No download fails, every byte is right, and the origin sends none twice. It is behind a thin link, so that the downloads
are under way for as long as what happens takes.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.cluster import LocalCluster
from bench.origin_client import OriginClient, RemoteObject
from bench.reader import Reader
from tests.support.metrics import HEDGED_BYTES
from tests.support.pieces import PIECE
from tests.support.redis import RedisServer, running_redis
from tests.support.servers import free_port
from tests.support.thin_origin import thin_origin

SIZE = 10 * PIECE
RATE = 40e6
OBJECTS = 6
PEERS = ("peer-1", "peer-2", "peer-3")
HOSTS = ("seed-1", "seed-2", *PEERS)
PASSWORD = "not-to-be-logged"
DEADLINE = 60.0


@dataclass
class Fixture:
    origin: OriginClient
    cluster: LocalCluster

    def ready(self, name: str) -> dict[str, Any]:
        """What a daemon's /readyz says."""
        connection = http.client.HTTPConnection(self.cluster[name].addresses["http"], timeout=DEADLINE)
        with contextlib.closing(connection):
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            assert answer.status == 200
            body: dict[str, Any] = json.loads(answer.read())
            return body

    def metric(self, name: str, metric: str) -> float:
        connection = http.client.HTTPConnection(self.cluster[name].addresses["http"], timeout=DEADLINE)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{metric} ", f"{metric}{{")))

    def of_hosts(self, metric: str) -> float:
        return sum(self.metric(name, metric) for name in HOSTS)

    def wait(self, what: str, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not holds():
            assert time.monotonic() < deadline, f"in vain: {what}"
            self.ready("peer-1")

    def wait_schedulers(self, count: int, *names: str) -> None:
        """Return when these schedulers know of `count`, and every host has a session with as many."""
        for name in names:
            self.wait_ready(name, lambda state: len(state["schedulers"]) == count)
        for name in HOSTS:
            self.wait_ready(name, lambda state: list(state["schedulers"].values()) == ["connected"] * count)

    def wait_ready(self, name: str, holds: Callable[[dict[str, Any]], bool]) -> None:
        """Return when what a daemon's /readyz says is as it is to be."""
        self.wait(f"{name} is as it should be", lambda: holds(self.ready(name)))

    def in_mid_swarm(self, happens: Callable[[], object], *, prefix: str = "model", again: int = 0) -> None:
        """Read fresh objects everywhere at once, let something happen in the middle, and check what came of it.

        The origin may send `again` bytes twice.
        """
        things = [self.origin.create(f"{prefix}-{number}", SIZE, seed=number) for number in range(OBJECTS)]
        before = self.origin.stats()
        hedges = self.of_hosts("damselfly_origin_hedges_total")
        landed = self.of_hosts('damselfly_downloaded_bytes_total{source="origin"}')
        total = SIZE * OBJECTS

        def read(thing: RemoteObject, peer: str) -> None:
            reading = Reader(stall_seconds=DEADLINE).read(thing.url, proxy=self.cluster[peer].addresses["proxy"])
            assert (reading.length, reading.xxh3_128) == (thing.length, thing.xxh3_128)

        with concurrent.futures.ThreadPoolExecutor(OBJECTS * len(PEERS)) as pool:
            reading = [pool.submit(read, thing, peer) for thing in things for peer in PEERS]
            self.wait("a third has left the origin", lambda: self.origin.stats().since(before).body_bytes > total / 3)
            happens()
            for future in reading:
                future.result(timeout=2 * DEADLINE)
        after = self.origin.stats().since(before)
        assert 0 <= self.of_hosts('damselfly_downloaded_bytes_total{source="origin"}') - landed - total <= again
        # Every request has its one-byte check, which is no piece; on a busy machine a host may hedge its own request.
        extra = (
            again + after.one_byte_requests + (self.of_hosts("damselfly_origin_hedges_total") - hedges) * HEDGED_BYTES
        )
        assert after.repeated_bytes <= extra, "a piece was fetched twice"
        assert after.body_bytes <= total + extra


@contextlib.contextmanager
def running(directory: Path, schedulers: int) -> Iterator[tuple[Fixture, RedisServer]]:
    with (
        thin_origin(RATE, directory) as origin,
        running_redis(directory, PASSWORD) as redis,
        LocalCluster(
            peers=len(PEERS),
            seeds=2,
            schedulers=schedulers,
            directory=directory / "cluster",
            arguments={"scheduler": ["--redis", redis.url]},
        ) as cluster,
    ):
        fixture = Fixture(origin, cluster)
        fixture.wait_schedulers(schedulers, *_names(schedulers))
        yield fixture, redis
        logs = [path.read_text() for path in (directory / "cluster").glob("*.log")]
        assert not any(PASSWORD in log for log in logs), "the password of Redis is in a log"


def _names(count: int) -> list[str]:
    return ["scheduler", *(f"scheduler-{number}" for number in range(2, count + 1))]


@pytest.mark.parametrize("schedulers", [2, 3])
def test_a_scheduler_is_killed_in_mid_swarm(schedulers: int, tmp_path: Path) -> None:
    with running(tmp_path, schedulers) as (fixture, _):
        fixture.in_mid_swarm(lambda: fixture.cluster.kill("scheduler"))
        rest = _names(schedulers)[1:]
        fixture.wait_schedulers(schedulers - 1, *rest)
        assert fixture.metric(rest[0], "damselfly_scheduler_members") == schedulers - 1


@pytest.mark.parametrize("schedulers", [2, 3])
def test_redis_goes_in_mid_swarm_and_comes_back_empty(schedulers: int, tmp_path: Path) -> None:
    with running(tmp_path, schedulers) as (fixture, redis):
        fixture.in_mid_swarm(redis.stop)
        for name in _names(schedulers):
            fixture.wait_ready(name, lambda state: "degraded" in state)
            assert len(fixture.ready(name)["schedulers"]) == schedulers, "the last known ones count"
            assert fixture.metric(name, "damselfly_scheduler_redis_up") == 0
        fixture.in_mid_swarm(redis.start, prefix="later")
        for name in _names(schedulers):
            fixture.wait_ready(name, lambda state: "degraded" not in state)
            assert fixture.metric(name, "damselfly_scheduler_redis_up") == 1
        fixture.wait_schedulers(schedulers, *_names(schedulers))


def test_redis_is_away_and_a_scheduler_is_killed(tmp_path: Path) -> None:
    with running(tmp_path, 2) as (fixture, redis):
        redis.stop()
        fixture.in_mid_swarm(lambda: fixture.cluster.kill("scheduler-2"))


@pytest.mark.parametrize("schedulers", [1, 2])
def test_a_scheduler_comes_in_mid_swarm(schedulers: int, tmp_path: Path) -> None:
    with running(tmp_path, schedulers) as (fixture, _):
        fixture.in_mid_swarm(fixture.cluster.add_scheduler)
        fixture.wait_schedulers(schedulers + 1, *_names(schedulers + 1))
        fixture.in_mid_swarm(lambda: None, prefix="later")


def test_schedulers_of_the_configuration_need_no_redis(tmp_path: Path) -> None:
    listen = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    members = [flag for address in listen for flag in ("--member", address)]
    with (
        thin_origin(RATE, tmp_path) as origin,
        LocalCluster(
            peers=len(PEERS),
            seeds=2,
            schedulers=2,
            directory=tmp_path / "cluster",
            arguments={
                "scheduler": [*members, "--grpc-listen", listen[0]],
                "scheduler-2": ["--grpc-listen", listen[1]],
            },
        ) as cluster,
    ):
        fixture = Fixture(origin, cluster)
        fixture.wait_schedulers(2, *_names(2))
        fixture.in_mid_swarm(lambda: cluster.kill("scheduler-2"))
        # Without Redis a scheduler that comes back knows what hosts tell it, and not what is on its way to them.
        fixture.in_mid_swarm(lambda: cluster.restart("scheduler-2"), prefix="later", again=8 * PIECE)
        fixture.wait_schedulers(2, *_names(2))


def test_what_a_dead_scheduler_knew_is_not_asked_of_the_origin_again(tmp_path: Path) -> None:
    with running(tmp_path, 2) as (fixture, _):
        things = [fixture.origin.create(f"known-{number}", 2 * PIECE, seed=number) for number in range(8)]
        for thing in things:
            Reader().read(thing.url, proxy=fixture.cluster["peer-1"].addresses["proxy"])
        before = fixture.origin.stats()
        fixture.cluster.kill("scheduler")
        fixture.wait_schedulers(1, "scheduler-2")
        for thing in things:
            reading = Reader().read(thing.url, proxy=fixture.cluster["peer-2"].addresses["proxy"])
            assert reading.xxh3_128 == thing.xxh3_128
        after = fixture.origin.stats().since(before)
        assert after.body_bytes == after.one_byte_requests, "a piece was fetched again"
