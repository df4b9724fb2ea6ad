"""Stripe trees of real processes while something goes wrong in mid-flight: the bytes are right, or it visibly fails.

The origin is behind a thin link, so that a download is under way for as long as a test needs; what happens then happens
at a number of bytes, not after a time.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bench.cluster import LocalCluster
from bench.content import SyntheticObject
from bench.origin_client import OriginClient, RemoteObject
from bench.reader import Reader, ReadError, Reading
from tests.support.daemons import fetch, open_url
from tests.support.metrics import assert_one_copy, metric
from tests.support.pieces import PIECE
from tests.support.thin_origin import thin_origin

SIZE = 12 * PIECE
RATE = 10e6
PEERS = ("peer-1", "peer-2", "peer-3", "peer-4")
DEADLINE = 60.0


@dataclass
class Field:
    """A seed and four peers, whom clients ask all at once."""

    origin: OriginClient
    cluster: LocalCluster
    pool: concurrent.futures.ThreadPoolExecutor = field(
        default_factory=lambda: concurrent.futures.ThreadPoolExecutor(100)
    )

    def proxy(self, name: str) -> str:
        return self.cluster[name].addresses["proxy"]

    def read(self, thing: RemoteObject, name: str) -> Reading:
        return Reader(stall_seconds=DEADLINE).read(thing.url, proxy=self.proxy(name))

    def begin(self, thing: RemoteObject, *names: str) -> list[concurrent.futures.Future[Reading]]:
        """Let a client at each of these hosts read an object."""
        return [self.pool.submit(self.read, thing, name) for name in names or PEERS]

    def metric(self, name: str, metric_name: str) -> float:
        return metric(self.cluster, name, metric_name)

    def corrupt(self) -> float:
        """Return how many transfers brought other bytes than were announced, to all peers."""
        name = 'damselfly_transfer_failures_total{reason="corrupt",source="parent"}'
        return sum(self.labelled(peer, name) for peer in PEERS)

    def from_origin(self) -> float:
        """Return how many bytes the peers have from the origin; the seed is none of them."""
        return sum(self.labelled(peer, 'damselfly_downloaded_bytes_total{source="origin"}') for peer in PEERS)

    def labelled(self, name: str, sample: str) -> float:
        """Return one sample of a host's metrics, 0 if there is none."""
        text = fetch(f"http://{self.cluster[name].addresses['http']}/metrics").body.decode()
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"{sample} "))

    def wait(self, what: str, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not holds():
            assert time.monotonic() < deadline, f"in vain: {what}"

    def wait_sent(self, part: float) -> None:
        """Return when that part of SIZE has left the origin since its counters were reset."""
        self.wait(f"{part} has left the origin", lambda: self.origin.stats().body_bytes >= part * SIZE)

    def task(self, thing: RemoteObject) -> str:
        """Return the id of an object's task, and so begin with it at peer-1."""
        with open_url(thing.url, proxy=self.proxy("peer-1"), headers={"Range": "bytes=0-0"}) as response:
            response.read()
            return str(response.getheader("X-Dragonfly-Task-Id"))


@pytest.fixture(scope="module")
def fire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    """One cluster for all: what a test kills it starts again."""
    with burning(tmp_path_factory.mktemp("fire")) as started:
        yield started


@contextlib.contextmanager
def burning(
    directory: Path, *, rate: float = RATE, arguments: Mapping[str, Sequence[str]] | None = None
) -> Iterator[Field]:
    with (
        thin_origin(rate, directory) as origin,
        LocalCluster(peers=len(PEERS), directory=directory / "cluster", arguments=arguments) as cluster,
    ):
        started = Field(origin, cluster)
        with started.pool:
            yield started


def right(thing: RemoteObject, readings: list[concurrent.futures.Future[Reading]]) -> None:
    """Check what clients got, once they have it."""
    for reading in readings:
        got = reading.result(timeout=2 * DEADLINE)
        assert (got.length, got.xxh3_128) == (thing.length, thing.xxh3_128)


def right_or_broken(things: Sequence[RemoteObject], readings: list[concurrent.futures.Future[Reading]]) -> None:
    """Check that each client got one of these objects whole, or a visible failure."""
    for reading in readings:
        try:
            got = reading.result(timeout=2 * DEADLINE)
        except ReadError:
            continue
        assert (got.length, got.xxh3_128) in [(thing.length, thing.xxh3_128) for thing in things]


def spoil(directory: Path) -> None:
    """Change a byte of every piece on a host's disk, of all versions."""
    for path in (directory / "data").rglob("*"):
        if path.is_file():
            with path.open("r+b") as file:
                for offset in range(100, path.stat().st_size, PIECE):
                    file.seek(offset)
                    (byte,) = file.read(1)
                    file.seek(offset)
                    file.write(bytes([byte ^ 1]))


def test_children_find_out_that_a_parents_disk_lies(fire: Field) -> None:
    thing = fire.origin.create("spoilt", SIZE)
    fire.origin.reset()
    readings = fire.begin(thing, "peer-1")
    fire.wait(
        "the seed has a few pieces", lambda: fire.metric("peer-1", "damselfly_downloaded_bytes_total") > 3 * PIECE
    )
    before = fire.corrupt()
    spoil(fire.cluster["seed-1"].directory)
    readings += fire.begin(thing, *PEERS[1:])
    right(thing, readings)
    assert fire.corrupt() > before


def test_a_seed_is_killed_and_comes_back(fire: Field) -> None:
    thing = fire.origin.create("seedless", SIZE)
    fire.origin.reset()
    before = fire.from_origin()
    readings = fire.begin(thing)
    fire.wait_sent(0.3)
    fire.cluster.kill("seed-1")
    fire.cluster.restart("seed-1")
    right(thing, readings)
    assert fire.from_origin() - before <= SIZE, "two peers fetched the same piece from the origin"


@pytest.mark.parametrize("part", [0.0, 0.3])
def test_a_scheduler_is_killed_and_comes_back(fire: Field, part: float) -> None:
    thing = fire.origin.create(f"unscheduled-{part}", SIZE)
    fire.origin.reset()
    readings = fire.begin(thing)
    fire.wait_sent(part)
    fire.cluster.kill("scheduler")
    fire.cluster.restart("scheduler")
    right(thing, readings)


def test_a_parent_is_stopped_for_a_while(fire: Field) -> None:
    thing = fire.origin.create("stopped", SIZE)
    fire.origin.reset()
    readings = fire.begin(thing)
    fire.wait_sent(0.3)
    pid = fire.cluster["peer-2"].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        right(thing, [reading for reading, name in zip(readings, PEERS, strict=True) if name != "peer-2"])
    finally:
        os.kill(pid, signal.SIGCONT)
    right(thing, readings)


def test_clients_leave_early_come_late_and_want_other_parts(fire: Field) -> None:
    thing = fire.origin.create("parts", SIZE)
    content = SyntheticObject("parts", SIZE)
    assert content.etag == thing.etag
    fire.origin.reset()

    def part(name: str, start: int, stop: int) -> bool:
        answer = fetch(thing.url, proxy=fire.proxy(name), headers={"Range": f"bytes={start}-{stop - 1}"})
        return answer.body == content.bytes(start, stop)

    parts = [
        fire.pool.submit(part, "peer-1", 5, 2 * PIECE + 1),
        fire.pool.submit(part, "peer-4", 7 * PIECE + 7, SIZE),
    ]
    readings = fire.begin(thing, "peer-3")
    with open_url(thing.url, proxy=fire.proxy("peer-2")) as response:
        assert response.read(1000) == content.bytes(0, 1000)
    readings += fire.begin(thing, "peer-1")
    assert all(found.result(timeout=DEADLINE) for found in parts)
    readings += fire.begin(thing, "peer-4", "peer-2")
    right(thing, readings)
    assert_one_copy(fire.origin, fire.cluster, SIZE)


def test_an_object_that_changes_is_never_mixed(fire: Field) -> None:
    old = fire.origin.create("changing", SIZE)
    fire.origin.reset()
    readings = fire.begin(old)
    fire.wait_sent(0.3)
    new = fire.origin.create("changing", SIZE, seed=1)
    right_or_broken((old, new), readings)
    right(new, fire.begin(new))


def test_a_task_is_removed_in_mid_flight(fire: Field) -> None:
    thing = fire.origin.create("removed", SIZE)
    task_id = fire.task(thing)
    fire.origin.reset()
    readings = fire.begin(thing)
    fire.wait_sent(0.3)
    fire.cluster.delete_task(task_id)
    right_or_broken((thing,), readings)
    right(thing, fire.begin(thing))


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1])
def test_the_smallest_objects_and_the_edges_of_a_piece(fire: Field, size: int) -> None:
    thing = fire.origin.create(f"edge-{size}", size)
    fire.origin.reset()
    right(thing, fire.begin(thing))
    checks = len(PEERS) if size else 0
    assert fire.origin.stats().body_bytes == size + checks


def test_many_objects_at_once(fire: Field) -> None:
    things = [fire.origin.create(f"many-{number}", 3 * PIECE // (3 + number % 5)) for number in range(20)]
    fire.origin.reset()
    begun = [(thing, fire.begin(thing)) for thing in things]
    for thing, readings in begun:
        right(thing, readings)
    assert_one_copy(fire.origin, fire.cluster, sum(thing.length for thing in things))


def test_a_host_that_can_keep_nothing_more_harms_no_other(tmp_path: Path) -> None:
    with burning(tmp_path, arguments={"peer-2": ["--capacity", f"{SIZE + 2 * PIECE}"]}) as fire:
        things = [fire.origin.create(f"full-{number}", SIZE) for number in range(2)]
        for thing, readings in [(thing, fire.begin(thing)) for thing in things]:
            right(thing, [reading for reading, name in zip(readings, PEERS, strict=True) if name != "peer-2"])
            right_or_broken((thing,), readings)
