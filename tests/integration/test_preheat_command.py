"""`damselfly preheat`, `ls`, `stat`, `rm`, `pin` and `unpin` with a real cluster and a real origin."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench.cluster import LocalCluster
from bench.origin import Fault
from bench.origin_client import OriginClient, RemoteObject
from bench.reader import Reader
from damselfly.cli import app
from p2p.identity import identify
from tests.support.daemons import fetch
from tests.support.pieces import PIECE
from tests.support.servers import S3Server

MIB = 1024 * 1024
SIZE = 6 * PIECE + 99
LABELS = {"peer-1": ["--label", "zone=a"], "peer-2": ["--label", "zone=b"]}


@contextmanager
def a_cluster(
    directory: Path, *, peers: int = 2, seeds: int = 1, peer: tuple[str, ...] = (), seed: tuple[str, ...] = ()
) -> Iterator[LocalCluster]:
    arguments = {**LABELS, "peer": peer, "seed": seed}
    with LocalCluster(peers=peers, seeds=seeds, directory=directory, arguments=arguments) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A scheduler, a seed that has keys for S3, and two peers in zones a and b."""
    directory = tmp_path_factory.mktemp("labelled")
    keys = directory / "cloud_credential.json"
    keys.write_text(json.dumps({"s3": {"": {"key_id": "test", "secret_key": "test", "region": "us-east-1"}}}))
    with a_cluster(directory / "cluster", seed=("--cloud-credentials", str(keys))) as cluster:
        yield cluster


def run(cluster: LocalCluster, *arguments: str) -> tuple[int, str, str]:
    """Run a command; return its exit status, what it printed and what it complained of."""
    where = ["--scheduler-http", cluster["scheduler"].addresses["http"]]
    where += ["--cluster-secret-file", str(cluster.secret_file)]
    done = CliRunner().invoke(app, [*arguments, *where])
    assert "Signature" not in done.output
    return done.exit_code, done.stdout, done.stderr


def asked(cluster: LocalCluster, *arguments: str) -> dict[str, Any]:
    """Run a command that must succeed, with --json."""
    status, output, errors = run(cluster, *arguments, "--json")
    assert status == 0, errors
    answer: dict[str, Any] = json.loads(output)
    return answer


def holders(cluster: LocalCluster, url: str) -> set[str]:
    status, output, _ = run(cluster, "stat", url, "--json")
    rows = json.loads(output)["hosts"]
    assert (status == 0) == bool(rows)
    return {row["host_id"] for row in rows if row["pieces_held"] == row["pieces"]}


def read_locally(cluster: LocalCluster, origin: OriginClient, peer: str, thing: RemoteObject) -> None:
    """Read an object with another signature: its bytes are here, and the origin gives the one-byte check only."""
    origin.reset()
    reading = Reader(stall_seconds=30).read(origin.presign(thing.name), proxy=cluster[peer].addresses["proxy"])
    assert (reading.length, reading.xxh3_128) == (thing.length, thing.xxh3_128)
    assert origin.stats().body_bytes <= 1


def test_all_hosts_are_preheated_then_every_read_is_local_then_all_is_removed(
    labelled: LocalCluster, origin: OriginClient
) -> None:
    things = [origin.create(f"models/{name}", size) for name, size in (("big.bin", SIZE), ("config.pbtxt", 500))]
    status, output, errors = run(labelled, "preheat", *(thing.url for thing in things), "--wait")
    assert (status, errors) == (0, "")
    job, *table = output.splitlines()
    assert table[0] == f"preheat {job}: done, 2 objects"
    assert [line.split()[:3] for line in table[2:]] == [[host, "done", "2/2"] for host in table_hosts(table)]
    assert origin.stats().body_bytes <= 1.01 * (SIZE + 500)
    for peer in ("peer-1", "peer-2"):
        for thing in things:
            read_locally(labelled, origin, peer, thing)

    assert [job] == [row["id"] for row in asked(labelled, "preheat", "--list")["preheats"]]
    assert asked(labelled, "preheat", "--status", job)["state"] == "done"
    rows = asked(labelled, "ls")["versions"]
    assert {(row["length"], row["complete"], row["partial"]) for row in rows} == {(SIZE, 3, 0), (500, 3, 0)}
    (row,) = asked(labelled, "ls", identify(things[1].url).id[:10])["versions"]
    assert row["length"] == 500
    status, output, _ = run(labelled, "ls", things[0].url.partition("big.bin")[0])
    assert (status, len(output.splitlines())) == (0, 3)

    status, output, _ = run(labelled, "rm", things[0].url)
    assert (status, output) == (0, "removed from 3 hosts: peer-1, peer-2, seed-1\n")
    assert holders(labelled, things[0].url) == set()
    assert run(labelled, "rm", things[0].url)[0] == 1
    assert holders(labelled, things[1].url) == {"seed-1", "peer-1", "peer-2"}


def table_hosts(table: list[str]) -> list[str]:
    return [line.split()[0] for line in table[2:]]


def test_seeds_a_label_and_a_number_of_hosts(labelled: LocalCluster, origin: OriginClient) -> None:
    expected = {"seeds": {"seed-1"}, "zone=b": {"peer-2"}, "1": {"peer-1", "peer-2"}}
    for to, hosts in expected.items():
        thing = origin.create(f"to-{to.replace('=', '-')}", 5 * MIB)
        job = asked(labelled, "preheat", thing.url, "--to", to, "--wait")
        assert job["state"] == "done"
        # What a seed fetches on behalf of others it keeps.
        assert set(job["hosts"]) <= hosts
        assert set(job["hosts"]) <= holders(labelled, thing.url)
        if to == "zone=b":
            read_locally(labelled, origin, "peer-2", thing)
    status, _, errors = run(labelled, "preheat", thing.url, "--to", "zone=c")
    assert (status, "no host that is connected" in errors) == (1, True)


def test_what_is_not_there_is_named_and_the_rest_is_brought(labelled: LocalCluster, origin: OriginClient) -> None:
    thing = origin.create("there", 5 * MIB)
    missing = thing.url.replace("there", "missing")
    status, output, errors = run(labelled, "preheat", missing, thing.url, "--to", "seeds", "--wait")
    assert status == 1
    assert "missing" in errors
    assert "the origin answered 40" in errors
    assert output.splitlines()[1].endswith("failed, 2 objects")
    assert holders(labelled, thing.url) == {"seed-1"}


def test_a_cancelled_preheat_ends_at_the_hosts(labelled: LocalCluster, origin: OriginClient) -> None:
    thing = origin.create("stalls", 64 * MIB)
    origin.set_fault(Fault(kind="stall", after_bytes=MIB, requests=1000))
    status, output, _ = run(labelled, "preheat", thing.url, "--to", "seeds")
    job = output.strip()
    assert status == 0
    while asked(labelled, "preheat", "--status", job)["items"][0]["hosts"][0]["state"] != "running":
        pass
    status, output, _ = run(labelled, "preheat", "--cancel", job)
    assert (status, output.splitlines()[0]) == (0, f"preheat {job}: cancelled, 1 object")
    origin.set_fault(None)
    assert holders(labelled, thing.url) == set()


def test_a_host_that_dies_is_named(tmp_path: Path, origin: OriginClient) -> None:
    with a_cluster(tmp_path / "cluster", peers=1) as cluster:
        let_one_die(cluster, origin)


def let_one_die(labelled: LocalCluster, origin: OriginClient) -> None:
    thing = origin.create("model", SIZE)
    origin.set_fault(Fault(kind="stall", after_bytes=MIB, requests=1000))
    job = run(labelled, "preheat", thing.url, "--to", "zone=a")[1].strip()
    while asked(labelled, "preheat", "--status", job)["items"][0]["hosts"][0]["state"] != "running":
        pass
    labelled.kill("peer-1")
    while (status := run(labelled, "preheat", "--status", job))[1].splitlines()[0].endswith("running, 1 object"):
        pass
    assert status[0] == 1
    assert "on peer-1: host peer-1 at" in status[2]
    origin.set_fault(None)
    # A host that is known to be gone is no host of the fleet any more.
    assert asked(labelled, "preheat", thing.url, "--wait")["hosts"] == ["seed-1"]


def test_what_is_pinned_survives_pressure_and_a_restart(tmp_path: Path, origin: OriginClient) -> None:
    with a_cluster(tmp_path / "cluster", peers=1, seeds=0, peer=("--capacity", "20MiB")) as cluster:
        pinned = origin.create("pinned", 8 * MIB)
        asked(cluster, "preheat", pinned.url, "--to", "zone=a", "--pin", "--wait")
        cluster.restart("peer-1")
        for number in range(3):
            thing = origin.create(f"other-{number}", 8 * MIB)
            Reader(stall_seconds=30).read(thing.url, proxy=cluster["peer-1"].addresses["proxy"])
        read_locally(cluster, origin, "peer-1", pinned)
        (row,) = (row for row in asked(cluster, "stat", pinned.url)["hosts"] if row["host_id"] == "peer-1")
        assert (row["pinned"], row["pieces_held"]) == (True, row["pieces"])
        assert run(cluster, "unpin", pinned.url)[1] == "unpinned on 1 host: peer-1\n"
        assert run(cluster, "pin", pinned.url)[0] == 0


def test_without_the_secret_nothing_is_told(labelled: LocalCluster) -> None:
    where = ["--scheduler-http", labelled["scheduler"].addresses["http"]]
    done = CliRunner().invoke(app, ["ls", *where])
    assert (done.exit_code, "answered 401" in done.stderr) == (1, True)


def test_a_tree_is_preheated_by_its_native_name_and_read_by_presigned_urls(
    labelled: LocalCluster, moto_s3: S3Server
) -> None:
    tree = {"resnet/config.pbtxt": b"name: 'resnet'\n", "resnet/1/model a+b.onnx": os.urandom(9 * MIB), "other": b"x"}
    bucket = f"models-{uuid.uuid4().hex[:8]}"
    for key, data in tree.items():
        moto_s3.put(bucket, key, data)
    prefix = f"s3://{moto_s3.endpoint}/{bucket}/resnet/"
    job = asked(labelled, "preheat", prefix, "--recursive", "--wait")
    assert (job["state"], len(job["items"])) == ("done", 2)
    assert len(asked(labelled, "ls", prefix)["versions"]) == 2
    for key in ("resnet/config.pbtxt", "resnet/1/model a+b.onnx"):
        answer = fetch(moto_s3.presign(bucket, key), proxy=labelled["peer-1"].addresses["proxy"])
        assert (answer.status, answer.headers["x-cache"], answer.body == tree[key]) == (200, "HIT-LOCAL", True)
    status, output, _ = run(labelled, "rm", prefix + "config.pbtxt")
    assert (status, output) == (0, "removed from 3 hosts: peer-1, peer-2, seed-1\n")
    status, _, errors = run(labelled, "preheat", f"{prefix}nothing/", "--recursive", "--wait")
    assert (status, bucket in errors) == (1, True)
