"""`damselfly bench hits` as a command: on a cluster of its own, and on the user's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.cluster import LocalCluster
from bench.origin_client import OriginClient
from tests.support.commands import run

MIB = 1024 * 1024


def bench(directory: Path, *arguments: str) -> dict[str, Any]:
    """Run the benchmark; return the JSON it writes."""
    json_file = directory / "hits.json"
    done = run("bench", "hits", *arguments, "--json", str(json_file), "--chart", str(directory / "hits"))
    assert done.returncode == 0, done.stderr
    for name in ("direct", "cold", "remote", "local"):
        assert any(
            line.lstrip().startswith(name) and line.rstrip().endswith("right") for line in done.stdout.splitlines()
        )
    for file in (json_file, directory / "hits.png", directory / "hits.svg"):
        assert file.stat().st_size
    figures: dict[str, Any] = json.loads(json_file.read_text())
    return figures


def test_on_a_cluster_of_its_own(tmp_path: Path) -> None:
    size = 8 * MIB
    figures = bench(tmp_path, "--size", "8MiB", "--objects", "1", "--origin-profile", "unlimited")
    assert (figures["object_bytes"], figures["profile"]) == (size, "unlimited")
    assert {"machine", "commit", "command"} <= figures.keys()
    runs = {row["name"]: row for row in figures["runs"]}
    assert list(runs) == ["direct", "cold", "remote", "local"]
    for row in runs.values():
        for name in ("seconds", "bytes_per_second", "ratio", "cpu_seconds"):
            assert isinstance(row[name], float), name
        for name in ("origin_bytes", "origin_requests", "peak_rss_bytes"):
            assert isinstance(row[name], int), name
        assert row["digest_ok"] is True
        assert row["seconds"] > 0
        assert row["bytes_per_second"] * row["seconds"] > size * 0.99
    assert runs["direct"]["ratio"] == 1.0
    # One copy each for the direct and the cold read, and a byte to check the caller's right for each proxied one.
    assert [row["origin_bytes"] for row in runs.values()] == [size, size + 1, 1, 1]


def test_on_the_users_own_store_and_cluster(tmp_path: Path, origin: OriginClient, cluster: LocalCluster) -> None:
    thing = origin.create("model.bin", 8 * MIB)
    proxies = [cluster[name].addresses["proxy"] for name in ("peer-1", "peer-2")]
    through = [word for proxy in proxies for word in ("--proxy", f"http://{proxy}")]
    origin.reset()
    figures = bench(tmp_path, "--url", thing.url, *through, "--objects", "1")
    assert figures["object_bytes"] == thing.length
    runs = {row["name"]: row for row in figures["runs"]}
    assert [row["cache"] for row in runs.values()] == [None, "MISS", "HIT-REMOTE", "HIT-LOCAL"]
    assert all(row["origin_bytes"] is None for row in runs.values())
    assert origin.stats().body_bytes == 2 * thing.length + 3
    assert thing.url.rpartition("=")[2] not in (tmp_path / "hits.json").read_text()
