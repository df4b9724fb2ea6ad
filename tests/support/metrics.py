"""What daemons say of themselves, and what an origin sent beside it."""

from __future__ import annotations

import re

from bench.cluster import LocalCluster
from bench.origin_client import OriginClient
from tests.support.daemons import fetch

HEDGED_BYTES = 4 * 1024 * 1024
"""What a hedge brings twice at the most: part of a request, and what is in the kernels' buffers."""


def metric(cluster: LocalCluster, name: str, metric: str) -> float:
    """Sum a metric of a daemon over its labels."""
    text = fetch(f"http://{cluster[name].addresses['http']}/metrics").body.decode()
    return sum(float(value) for value in re.findall(rf"^{metric}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))


def assert_one_copy(origin: OriginClient, cluster: LocalCluster, length: int) -> None:
    """Raise AssertionError unless the origin sent `length` bytes since it was reset, and one for each check.

    On a busy machine a host may find its own request slow and hedge it: what that brought twice is allowed for.
    """
    stats = origin.stats()
    once = length + stats.one_byte_requests
    hedges = sum(
        metric(cluster, name, "damselfly_origin_hedges_total") for name in cluster.daemons if name != "scheduler"
    )
    assert once <= stats.body_bytes <= once + hedges * HEDGED_BYTES
