"""What operators see of a cluster: health, metrics, one line a download, and never a secret."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bench.cluster import LocalCluster
from bench.origin_client import OriginClient, RemoteObject
from tests.support.daemons import fetch

README = Path(__file__).parents[2] / "README.md"
SIZE = 9 * 1024 * 1024
HEADER = "the-callers-own-secret-header"


@dataclass(frozen=True, slots=True)
class Metrics:
    """What a daemon's /metrics says, as Prometheus reads it: all names, and the samples by name and labels."""

    names: set[str]
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float]

    def __call__(self, name: str, **labels: str) -> float:
        """Return one sample."""
        return self.samples[name, frozenset(labels.items())]


def metrics(cluster: LocalCluster, name: str) -> Metrics:
    text = fetch(f"http://{cluster[name].addresses['http']}/metrics").body.decode()
    families = tuple(text_string_to_metric_families(text))
    assert all(family.documentation for family in families)
    return Metrics(
        {f"{family.name}_total" if family.type == "counter" else family.name for family in families},
        {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples},
    )


def lines(cluster: LocalCluster, name: str, event: str) -> Iterator[dict[str, object]]:
    """Yield the log lines of a daemon with this event; every line it has logged must be JSON."""
    for text in cluster[name].log.read_text().splitlines():
        line = json.loads(text)
        if line["event"] == event:
            yield line


@pytest.fixture
def thing(origin: OriginClient, cluster: LocalCluster) -> RemoteObject:
    """An object that two peers have, and that a caller without the right to it has asked for."""
    found = origin.create("model.bin", SIZE)
    credentials = {"Authorization": f"Bearer {HEADER}", "X-Amz-Security-Token": HEADER}
    for name in ("peer-1", "peer-2", "peer-1"):
        answer = fetch(found.url, proxy=cluster[name].addresses["proxy"], headers=credentials)
        assert len(answer.body) == SIZE
    proxy = cluster["peer-1"].addresses["proxy"]
    assert fetch(f"{found.url[:-4]}0000", proxy=proxy).status == 403
    assert fetch(found.url, proxy=proxy, method="POST", headers={"Content-Length": "0"}).status >= 400
    return found


def test_health_and_readiness(cluster: LocalCluster) -> None:
    for daemon in cluster.daemons.values():
        for path, key in (("healthz", "healthy"), ("readyz", "ready")):
            answer = fetch(f"http://{daemon.addresses['http']}/{path}")
            assert (answer.status, json.loads(answer.body)[key]) == (200, True)


def test_the_metrics_that_the_readme_names(cluster: LocalCluster, thing: RemoteObject) -> None:
    named = set(re.findall(r"`(damselfly_[a-z_]+)", README.read_text()))
    assert named
    found = {name: metrics(cluster, name) for name in cluster.daemons}
    assert named <= {name for one in found.values() for name in one.names}

    seed, peer, scheduler = found["seed-1"], found["peer-1"], found["scheduler"]
    assert seed("damselfly_downloaded_bytes_total", source="origin") == SIZE
    assert peer("damselfly_downloaded_bytes_total", source="parent") == SIZE
    assert peer("damselfly_proxy_requests_total", route="p2p", outcome="ok") == 2
    assert peer("damselfly_proxy_requests_total", route="p2p", outcome="refused") == 1
    assert peer("damselfly_store_bytes") == SIZE
    assert peer("damselfly_scheduler_up", scheduler=cluster["scheduler"].addresses["grpc"]) == 1
    assert scheduler("damselfly_scheduler_hosts") == 3


def test_one_line_a_download(cluster: LocalCluster, thing: RemoteObject) -> None:
    for name in ("peer-1", "peer-2"):
        assert cluster.stop(name) == 0
        (line,) = lines(cluster, name, "download finished")
        assert re.fullmatch("[0-9a-f]{64}", str(line["task"]))
        assert re.fullmatch("[0-9a-f]{32}", str(line["version"]))
        assert isinstance(line["seconds"], float)
        assert (line["outcome"], line["bytes_origin"], line["bytes_parents"]) == ("complete", 0, SIZE)
    assert cluster.stop("seed-1") == 0
    assert sum(int(str(line["bytes_origin"])) for line in lines(cluster, "seed-1", "download finished")) == SIZE


def test_no_secret_is_ever_written(cluster: LocalCluster, thing: RemoteObject) -> None:
    said = [
        fetch(f"http://{daemon.addresses['http']}/{path}").body
        for daemon in cluster.daemons.values()
        for path in ("metrics", "readyz", "healthz")
    ]
    for name in cluster.daemons:
        cluster.stop(name)
    files = {path: path.read_bytes() for path in cluster.directory.rglob("*") if path.is_file()}
    assert any(b"model.bin" in content for path, content in files.items() if path.suffix == ".log")
    key = files.pop(cluster.secret_file).strip()
    query = thing.url.partition("?")[2]
    secrets = (query.rpartition("=")[2][:-4].encode(), b"X-Amz-Credential=", HEADER.encode(), key)
    for where, content in (
        *((str(path), content) for path, content in files.items()),
        *(("HTTP", body) for body in said),
    ):
        assert [secret for secret in secrets if secret in content] == [], where
