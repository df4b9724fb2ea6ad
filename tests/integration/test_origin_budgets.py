"""A budget holds for the whole cluster: what the origin counts never exceeds it, whoever asks."""

from __future__ import annotations

import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bench.cluster import LocalCluster
from bench.origin_client import OriginClient
from p2p.auth import authorization
from p2p.errors import ConfigError
from scheduler.settings import load_configuration
from tests.support.daemons import fetch

MIB = 1024 * 1024
CONNECTIONS = 4
REQUESTS_PER_SECOND = 40
BYTES_PER_SECOND = 16 * MIB
HOSTS = 3


@pytest.fixture
def budget_file(tmp_path: Path) -> Path:
    path = tmp_path / "scheduler.toml"
    path.write_text(
        f"""
        [[origin_budgets]]
        match = '^http://127\\.0\\.0\\.1:'
        connections = {CONNECTIONS}
        requests_per_second = {REQUESTS_PER_SECOND}
        bytes_per_second = "16MiB"
        """
    )
    return path


def test_two_seeds_and_their_peers_stay_within_the_budget(
    tmp_path: Path, budget_file: Path, origin: OriginClient
) -> None:
    files = [origin.create(f"model-{number}.bin", 12 * MIB, seed=number, sha256=True) for number in range(3)]
    arguments = {"scheduler": ["--config", str(budget_file)]}
    with LocalCluster(peers=1, seeds=2, directory=tmp_path / "cluster", arguments=arguments) as cluster:
        origin.reset()
        began = time.monotonic()
        proxy = cluster["peer-1"].addresses["proxy"]
        with ThreadPoolExecutor(3) as pool:
            answers = [pool.submit(fetch, file.url, proxy=proxy) for file in files]
            digests = [answer.result().sha256 for answer in answers]
        seconds = time.monotonic() - began
        stats, windows = origin.stats(), origin.windows()
        origins = shown(cluster)
    assert digests == [file.sha256 for file in files]
    assert stats.body_bytes < 1.02 * 3 * 12 * MIB
    assert stats.peak_requests <= CONNECTIONS
    for first in range(len(windows)):
        assert sum(windows[first : first + 10]) <= REQUESTS_PER_SECOND * 1.02 + HOSTS
    # The kernels' buffers on the way hold some of what nobody has read.
    assert stats.body_bytes <= BYTES_PER_SECOND * seconds + CONNECTIONS * 2 * MIB
    (shown_origin,) = origins
    assert shown_origin["origin"] == f"http://{origin.address}"
    assert shown_origin["budget"]["connections"] == CONNECTIONS
    assert 0 < shown_origin["requests"] <= stats.requests + stats.one_byte_requests
    assert sum(share["share"]["connections"] for share in shown_origin["shares"]) <= CONNECTIONS


def test_the_ceiling_of_a_host_holds_whatever_the_scheduler_says(tmp_path: Path, origin: OriginClient) -> None:
    config = tmp_path / "peer.toml"
    config.write_text("[origin]\nconnections = 2\n")
    made = origin.create("model.bin", 12 * MIB, sha256=True)
    with LocalCluster(
        peers=1,
        seeds=0,
        directory=tmp_path / "cluster",
        arguments={"peer": ["--config", str(config)]},
    ) as cluster:
        origin.reset()
        answer = fetch(made.url, proxy=cluster["peer-1"].addresses["proxy"])
    assert answer.sha256 == made.sha256
    assert origin.stats().peak_requests <= 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[[origin_budgets]]\nmatch = "x"\nconections = 3\n', "did you mean 'connections'?"),
        ('[[origin_budgets]]\nmatch = "x"\n', "bounds nothing"),
        ('[[origin_budgets]]\nmatch = "("\nconnections = 3\n', "not a regular expression"),
        ("[[origin_budgets]]\nconnections = 3\n", "has no 'match'"),
        ('[[origin_budgets]]\nmatch = "x"\nconnections = 0\n', "how many requests"),
        ('[[origin_budgets]]\nmatch = "x"\nbytes_per_second = "5"\n', "at least 1KiB"),
    ],
)
def test_what_cannot_work_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "scheduler.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_configuration(path)
    assert complaint in str(caught.value)
    assert str(path) in str(caught.value)


def shown(cluster: LocalCluster) -> list[dict[str, Any]]:
    address = cluster["scheduler"].addresses["http"]
    token = cluster.secret.sign("admin", "", now=time.time())
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("GET", "/v1/origins", headers={"Authorization": authorization(token)})
    found: list[dict[str, Any]] = json.loads(connection.getresponse().read())["origins"]
    connection.close()
    return found
