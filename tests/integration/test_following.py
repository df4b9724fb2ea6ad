"""A swarm of real processes with one seed: the hosts take most pieces from parents that they follow."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from bench.cluster import LocalCluster
from bench.origin_client import OriginClient, running_origin
from bench.reader import Reader, Reading
from scheduler.core.model import Limits
from tests.support.metrics import assert_one_copy, metric
from tests.support.pieces import PIECE

SIZE = 24 * PIECE + 4321
PEERS = 3

pytestmark = pytest.mark.skipif(Limits().stripes == 0, reason="the scheduler plans no trees by default")


def read_all(cluster: LocalCluster, url: str) -> dict[str, Reading]:
    """Read an object at all peers at once."""
    readings: dict[str, Reading] = {}
    together = threading.Barrier(PEERS)

    def read(name: str) -> None:
        together.wait()
        readings[name] = Reader(stall_seconds=60).read(url, proxy=cluster[name].addresses["proxy"])

    readers = [threading.Thread(target=read, args=(f"peer-{number}",)) for number in range(1, PEERS + 1)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return readings


@pytest.mark.parametrize("profile", ["s3", "unlimited"])
def test_peers_get_their_pieces_by_following(tmp_path: Path, profile: str) -> None:
    with running_origin(profile, tmp_path) as origin, LocalCluster(peers=PEERS, directory=tmp_path / "c") as cluster:
        thing = origin.create("model.bin", SIZE)
        origin.reset()
        readings = read_all(cluster, thing.url)
        assert len(readings) == PEERS
        for reading in readings.values():
            assert (reading.length, reading.xxh3_128) == (thing.length, thing.xxh3_128)
        assert_one_copy(origin, cluster, SIZE)
        names = [f"peer-{number}" for number in range(1, PEERS + 1)]
        assert metric(cluster, "seed-1", "damselfly_announced_pieces_total") > 0
        uploads = {name: metric(cluster, name, "damselfly_uploaded_bytes_total") for name in ("seed-1", *names)}
        assert sum(uploads.values()) >= PEERS * SIZE
        assert uploads["seed-1"] < PEERS * SIZE, "peers pass on what they have"
        assert all(metric(cluster, name, "damselfly_transfer_failures_total") == 0 for name in names)
        # Whoever has everything follows nobody, though others may go on following it.
        later = Reader(stall_seconds=60).read(origin.presign("model.bin"), proxy=cluster["peer-1"].addresses["proxy"])
        assert later.cache == "HIT-LOCAL"


def test_bytes_that_a_seed_held_are_remote_to_who_follows_it(origin: OriginClient) -> None:
    thing = origin.create("model.bin", SIZE)
    with LocalCluster(peers=2) as cluster:
        origin.reset()
        proxies = [cluster[f"peer-{number}"].addresses["proxy"] for number in (1, 2)]
        first, second = (Reader(stall_seconds=60).read(thing.url, proxy=proxy) for proxy in proxies)
        assert (first.cache, second.cache) == ("MISS", "HIT-REMOTE")
        assert second.xxh3_128 == thing.xxh3_128
        assert metric(cluster, "peer-2", "damselfly_downloaded_bytes_total") == SIZE
        assert_one_copy(origin, cluster, SIZE)
