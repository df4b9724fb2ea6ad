"""`damselfly bench data-plane`: what its sections do, on one cluster for all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from bench.cluster import LocalCluster
from bench.dataplane import cold, local, memory, origins, peers, small
from bench.dataplane.plan import Field
from bench.origin_client import running_origin
from bench.process import Meter
from bench.proxy import request_for
from bench.reserve import MemoryReserve
from bench.rivals import NGINX_FILES
from p2p.errors import DamselflyError
from p2p.pieces import MIB
from p2p.tls import CA_FILE

SIZE = 8 * MIB
PATIENCE = 100.0


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data-plane")


@pytest.fixture(scope="module")
def urls(directory: Path) -> Iterator[dict[str, str]]:
    with contextlib.ExitStack() as stack:
        yield {} if NGINX_FILES.find() is None else stack.enter_context(origins.servers(directory, SIZE))


@pytest.fixture(scope="module")
def field(directory: Path, urls: dict[str, str]) -> Iterator[Field]:
    """One cluster for all: each test has objects of its own."""
    trust = {"seed": ["--origin-ca-file", str(directory / "ca" / CA_FILE)]} if urls else {}
    with (
        LocalCluster(peers=1, directory=directory / "cluster", arguments=trust) as cluster,
        running_origin("unlimited", directory) as origin,
        MemoryReserve() as reserve,
    ):
        yield Field(origin, cluster, reserve)


def test_a_hop_moves_the_object_between_two_hosts_again_and_again(field: Field) -> None:
    made = field.origin.create("hop.bin", SIZE)
    peers.fetch_whole(made.url, field.cluster["seed-1"])
    field.origin.reset()
    for _ in range(2):
        found = peers.hop(field, made)
        assert min(found.values()) > 0
        assert found.keys() == {"bytes_per_second", "receive", "send"}
    assert field.origin.stats().requests == 0


def test_objects_come_from_nginx_by_http_and_https(field: Field, urls: dict[str, str]) -> None:
    if not urls:
        pytest.skip("nginx is not installed")
    for scheme, url in urls.items():
        assert url.startswith(f"{scheme.lower()}://")
        assert origins.from_origin(field, scheme, url, SIZE)[f"{scheme} cpu_seconds_per_gib"] > 0


def test_the_first_byte_comes_after_the_origins(field: Field) -> None:
    assert cold.delays(field, SIZE)["after the origin's"] > 0


def test_small_files_are_read_cold_and_as_hits(field: Field) -> None:
    requests = [request_for(url) for url in field.origin.create_tree("tree", 40, small.FILE_BYTES)]
    peer = field.cluster["peer-1"]
    assert small.read_once(peer, requests).requests == 40
    found = small.hits(field, peer, islice(requests, 40), PATIENCE)
    assert found["checks"] == 1.0


def test_readers_far_apart_wait_and_read(field: Field) -> None:
    made = field.origin.create("huge.bin", 16 * MIB)
    hosts = {name: field.cluster[name].child for name in ("peer-1", "seed-1")}
    with Meter(hosts) as meter:
        found = memory.many(field, meter, made, 4, 0)
    assert found.keys() == {"peer-1 wait", "seed-1 wait", "peer-1 read", "seed-1 read"}
    assert memory.beside_a_slow_one(field, made, 0.0)["slower"] > 0


def test_curl_reads_what_a_peer_holds_and_what_nginx_serves(field: Field, urls: dict[str, str]) -> None:
    if not urls or local.unavailable():
        pytest.skip("nginx or curl is not installed")
    made, peer = field.origin.create("local.bin", SIZE), field.cluster["peer-1"]
    servers = {
        "ours": local.Server(peer.child, peer.addresses["proxy"], {"it": made.url}),
        "nginx": local.Server(peer.child, None, {"it": urls["HTTP"]}),
    }
    for whose, server in servers.items():
        assert local.read_round(server, whose, "it", SIZE, 2, 2)[f"{whose} bytes_per_second"] > 0
    with pytest.raises(DamselflyError, match="did not read"):
        local.read_round(servers["nginx"], "nginx", "it", SIZE + 1, 1, 1)
