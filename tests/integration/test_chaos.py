"""Readers everywhere while daemons are killed: a read gives the right bytes or visibly fails, and nothing hangs.

What is read and who is killed follow from the seed, which a failure prints; a kill comes after a number of finished
reads, not after a time.
"""

from __future__ import annotations

import concurrent.futures
import queue
import random
from pathlib import Path

import pytest

from bench.cluster import LocalCluster
from bench.origin_client import running_origin
from bench.reader import Reader, ReadError
from tests.support.pieces import PIECE

PEERS = ("peer-1", "peer-2", "peer-3")
READERS = 6
READS = 12
READS_BETWEEN_KILLS = 9


@pytest.mark.parametrize("seed", [1, 2])
def test_kills_cost_no_wrong_byte_and_leave_nothing_broken(seed: int, tmp_path: Path) -> None:
    dice = random.Random(seed)
    victims = dice.sample(["peer-2", "peer-3", "seed-1", "seed-2", "scheduler"], k=4)
    with running_origin("s3", tmp_path) as origin, LocalCluster(peers=3, seeds=2, directory=tmp_path / "c") as cluster:
        things = [origin.create(f"model-{n}", dice.randrange(15 * PIECE), seed=n) for n in range(4)]
        proxies = {peer: cluster[peer].addresses["proxy"] for peer in PEERS}
        finished: queue.SimpleQueue[None] = queue.SimpleQueue()
        failures: list[tuple[str, str]] = []

        def client(number: int) -> None:
            choice = random.Random(f"{seed}/{number}")
            reader = Reader(stall_seconds=30)
            for _ in range(READS):
                thing, peer = choice.choice(things), choice.choice(PEERS)
                try:
                    reading = reader.read(thing.url, proxy=proxies[peer])
                except ReadError as error:
                    failures.append((peer, str(error)))
                else:
                    assert (reading.length, reading.xxh3_128) == (thing.length, thing.xxh3_128)
                finally:
                    finished.put(None)

        with concurrent.futures.ThreadPoolExecutor(READERS) as clients:
            reading = [clients.submit(client, number) for number in range(READERS)]
            for victim in victims:
                for _ in range(READS_BETWEEN_KILLS):
                    finished.get(timeout=60)
                cluster.kill(victim)
                cluster.restart(victim)
            for future in reading:
                future.result(timeout=60)
        assert not [failure for failure in failures if failure[0] not in victims], "a peer failed that was not killed"
        for thing in things:
            for proxy in proxies.values():
                after = Reader(stall_seconds=30).read(thing.url, proxy=proxy)
                assert (after.length, after.xxh3_128) == (thing.length, thing.xxh3_128)
