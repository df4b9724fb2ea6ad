"""Many small objects on real processes: what a host says to its scheduler about each, and hears."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.cluster import LocalCluster
from bench.origin_client import OriginClient, RemoteObject
from bench.reader import Reader
from tests.support.daemons import running_cluster
from tests.support.metrics import assert_one_copy, metric

FILES = 100
SIZE = 4096
SEED = "seed-1"
PEERS = ("peer-1", "peer-2")
ALL = (SEED, *PEERS)

A_FILE = 2
"""Frames a file and host: one with what is wanted (and what has landed), and one with where it is."""

BESIDE = 12
"""Frames of a host that no file is to blame for: the origin's budget, and reports that found no company in the end."""


def frames(cluster: LocalCluster) -> Mapping[str, float]:
    return {name: metric(cluster, name, "damselfly_control_frames_total") for name in ALL}


def read_serially(cluster: LocalCluster, things: list[RemoteObject]) -> None:
    """Read all objects at all peers at once, at each one after the other."""

    def read_all(name: str) -> None:
        for thing in things:
            read(cluster, name, thing)

    with ThreadPoolExecutor(len(PEERS)) as pool:
        for reading in [pool.submit(read_all, name) for name in PEERS]:
            reading.result()


def read_together(cluster: LocalCluster, things: list[RemoteObject]) -> None:
    """Read all objects at all peers at once, sixteen at a time at each."""
    with ThreadPoolExecutor(16 * len(PEERS)) as pool:
        for reading in [pool.submit(read, cluster, name, thing) for thing in things for name in PEERS]:
            reading.result()


def read(cluster: LocalCluster, name: str, thing: RemoteObject) -> None:
    reading = Reader(stall_seconds=30).read(thing.url, proxy=cluster[name].addresses["proxy"])
    assert (reading.length, reading.xxh3_128) == (thing.length, thing.xxh3_128)


@pytest.mark.parametrize("way", [read_serially, read_together])
def test_a_small_object_costs_a_host_two_frames(
    origin: OriginClient, tmp_path: Path, way: Callable[[LocalCluster, list[RemoteObject]], None]
) -> None:
    things = [origin.create(f"config-{number}.json", SIZE, seed=number) for number in range(FILES)]
    with running_cluster(tmp_path / "cluster") as cluster:
        origin.reset()
        before = frames(cluster)
        way(cluster, things)
        spent = {name: total - before[name] for name, total in frames(cluster).items()}
        print(f"frames a file: { {name: count / FILES for name, count in spent.items()} }")
        for name, count in spent.items():
            assert count <= A_FILE * FILES + BESIDE, f"{name}: {count} frames for {FILES} files"
        for name in PEERS:
            assert metric(cluster, name, "damselfly_downloaded_bytes_total") == FILES * SIZE
            assert metric(cluster, name, "damselfly_transfer_failures_total") == 0
        assert_one_copy(origin, cluster, FILES * SIZE)
