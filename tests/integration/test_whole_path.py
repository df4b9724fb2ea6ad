"""The whole path on real processes: origin, scheduler, seed and peers, through the proxy, with things breaking."""

from __future__ import annotations

import concurrent.futures
import hashlib
import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import pytest

from bench.cluster import LocalCluster
from bench.origin import Fault
from bench.origin_client import OriginClient, RemoteObject, running_origin
from bench.reader import Reader, ReadError, Reading
from tests.support.metrics import assert_one_copy
from tests.support.pieces import PIECE
from tests.support.thin_origin import thin_origin

MIB = 1024 * 1024
SIZE = 24 * PIECE + 4321
RATE = 20e6


@pytest.fixture
def slow_origin(tmp_path: Path) -> Iterator[OriginClient]:
    """Slow enough that something can be killed in mid-download."""
    with thin_origin(RATE, tmp_path) as client:
        yield client


def read(cluster: LocalCluster, peer: str, url: str) -> Reading:
    return Reader(stall_seconds=30).read(url, proxy=cluster[peer].addresses["proxy"])


def assert_whole(reading: Reading, thing: RemoteObject) -> None:
    assert (reading.length, reading.xxh3_128) == (thing.length, thing.xxh3_128)


class Streaming:
    """A client that can be held in mid-body: what is killed then is killed in mid-download. Leaving it hangs up."""

    def __init__(self, proxy: str, url: str) -> None:
        host, _, port = proxy.rpartition(":")
        self.connection = http.client.HTTPConnection(host, int(port), timeout=30)
        self.connection.putrequest("GET", url, skip_host=True, skip_accept_encoding=True)
        self.connection.putheader("Host", urlsplit(url).netloc)
        self.connection.putheader("User-Agent", "test")
        self.connection.endheaders()
        self.response = self.connection.getresponse()
        self.digest = hashlib.sha256()
        self.length = 0

    def take(self, count: int) -> None:
        while count > 0:
            data = self.response.read(min(count, MIB))
            if not data:
                raise http.client.IncompleteRead(b"")
            self.digest.update(data)
            self.length += len(data)
            count -= len(data)

    def rest(self) -> str:
        while data := self.response.read(MIB):
            self.digest.update(data)
            self.length += len(data)
        return self.digest.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.response.close()
        self.connection.close()


def stream(proxy: str, url: str) -> str:
    """Read a whole object; return its sha256."""
    with Streaming(proxy, url) as client:
        return client.rest()


def test_cold_remote_and_local_reads_cost_the_origin_one_copy(origin: OriginClient) -> None:
    thing = origin.create("model.bin", SIZE)
    with LocalCluster() as cluster:
        origin.reset()
        cold = read(cluster, "peer-1", thing.url)
        remote = read(cluster, "peer-2", thing.url)
        local = read(cluster, "peer-2", origin.presign("model.bin"))
        for reading in (cold, remote, local):
            assert_whole(reading, thing)
        assert (cold.cache, remote.cache, local.cache) == ("MISS", "HIT-REMOTE", "HIT-LOCAL")
        assert_one_copy(origin, cluster, SIZE)


def test_twenty_clients_at_two_peers_take_one_copy_from_the_origin(slow_origin: OriginClient) -> None:
    thing = slow_origin.create("model.bin", SIZE, sha256=True)
    with LocalCluster() as cluster:
        slow_origin.reset()
        proxies = [cluster[f"peer-{1 + number % 2}"].addresses["proxy"] for number in range(20)]
        with concurrent.futures.ThreadPoolExecutor(20) as clients:
            digests = list(clients.map(lambda proxy: stream(proxy, thing.url), proxies))
        assert digests == [thing.sha256] * 20
        assert_one_copy(slow_origin, cluster, SIZE)
        checks = slow_origin.stats().one_byte_requests
        assert 2 <= checks <= 20, "requests that come together with equal credentials share a question"


@pytest.mark.parametrize("victim", ["seed-1", "peer-2", "scheduler"])
def test_a_kill_in_mid_download_costs_no_client_its_bytes(slow_origin: OriginClient, victim: str) -> None:
    thing = slow_origin.create("model.bin", SIZE, sha256=True)
    with LocalCluster() as cluster:
        if victim == "peer-2":
            # A parent that holds all of it, so that the victim really is somebody's parent.
            assert_whole(read(cluster, "peer-2", thing.url), thing)
        with Streaming(cluster["peer-1"].addresses["proxy"], thing.url) as client:
            client.take(MIB)
            cluster.kill(victim)
            assert client.rest() == thing.sha256
        if victim == "scheduler":
            other = slow_origin.create("other.bin", 3 * PIECE)
            assert_whole(read(cluster, "peer-1", other.url), other)
        cluster.restart(victim)
        assert_whole(read(cluster, "peer-1", thing.url), thing)


def test_a_killed_peer_serves_what_it_had_and_resumes_the_rest(slow_origin: OriginClient) -> None:
    thing = slow_origin.create("model.bin", SIZE, sha256=True)
    with LocalCluster(peers=1, seeds=0) as cluster:
        with Streaming(cluster["peer-1"].addresses["proxy"], thing.url) as client:
            client.take(12 * PIECE)
            cluster.kill("peer-1")
            with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                client.take(SIZE)
        cluster.restart("peer-1")
        slow_origin.reset()
        assert stream(cluster["peer-1"].addresses["proxy"], thing.url) == thing.sha256
        assert slow_origin.stats().body_bytes <= SIZE - 12 * PIECE + 1, "what was verified came from the disk"


def test_no_scheduler_at_all(origin: OriginClient) -> None:
    thing = origin.create("model.bin", SIZE)
    with LocalCluster() as cluster:
        cluster.kill("scheduler")
        assert_whole(read(cluster, "peer-1", thing.url), thing)


def test_an_origin_that_fails_in_mid_download_resets_the_client(tmp_path: Path) -> None:
    with running_origin("s3", tmp_path) as origin, LocalCluster() as cluster:
        # More than is asked for at first: what is under way goes on.
        thing = origin.create("model.bin", 256 * MIB)
        with Streaming(cluster["peer-1"].addresses["proxy"], thing.url) as client:
            client.take(MIB)
            origin.set_fault(Fault(kind="status", status=500, requests=1_000_000, after_bytes=1))
            with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                client.take(thing.length)
        origin.set_fault(None)
        assert_whole(read(cluster, "peer-1", thing.url), thing)


def test_a_refused_caller_gets_the_refusal_though_every_byte_is_here(origin: OriginClient) -> None:
    thing = origin.create("model.bin", 3 * PIECE)
    with LocalCluster() as cluster:
        assert_whole(read(cluster, "peer-1", thing.url), thing)
        with pytest.raises(ReadError, match="answered 403"):
            read(cluster, "peer-1", thing.url[:-4] + "0000")
        host, _, port = cluster["peer-1"].addresses["proxy"].rpartition(":")
        with socket.create_connection((host, int(port)), timeout=30) as triton:
            netloc = urlsplit(thing.url).netloc
            head = f"GET {thing.url[:-4]}0000 HTTP/1.1\r\nHost: {netloc}\r\nAccept: */*\r\n"
            triton.sendall((head + "Proxy-Connection: Keep-Alive\r\n\r\n").encode())
            with pytest.raises(ConnectionResetError):
                triton.recv(1)


def test_pieces_and_admin_need_the_cluster_secret(origin: OriginClient) -> None:
    thing = origin.create("model.bin", 3 * PIECE)
    with LocalCluster() as cluster:
        reading = read(cluster, "peer-1", thing.url)
        version = cluster_version(cluster, str(reading.task_id))
        for address, method, path in (
            (cluster["peer-1"].addresses["pieces"], "GET", f"/v1/pieces/{version}"),
            (cluster["peer-1"].addresses["http"], "DELETE", f"/v1/tasks/{reading.task_id}"),
            (cluster["scheduler"].addresses["http"], "GET", "/v1/swarms"),
        ):
            connection = http.client.HTTPConnection(address, timeout=30)
            connection.request(method, path, headers={"Range": "bytes=0-9", "Authorization": "Damselfly a.b.1.c"})
            assert connection.getresponse().status == 401
            connection.close()


def cluster_version(cluster: LocalCluster, task_id: str) -> str:
    connection = http.client.HTTPConnection(cluster["peer-1"].addresses["http"], timeout=30)
    connection.request("GET", f"/v1/tasks/{task_id}")
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return str(answer["versions"][0]["version_id"])


def test_readers_that_leave_and_come_back(slow_origin: OriginClient) -> None:
    thing = slow_origin.create("model.bin", SIZE, sha256=True)
    with LocalCluster() as cluster:
        slow_origin.reset()
        proxy = cluster["peer-1"].addresses["proxy"]
        for _ in range(3):
            with Streaming(proxy, thing.url) as leaving:
                leaving.take(MIB)
        assert stream(proxy, thing.url) == thing.sha256
        assert slow_origin.stats().body_bytes <= 1.2 * SIZE
