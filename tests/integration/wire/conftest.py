"""Daemons and origins for the wire contract's tests. No test kills these daemons, so that one cluster serves all."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.cluster import LocalCluster
from tests.support.daemons import running_cluster
from tests.support.origins import running_raw_origin
from tests.unit.source.raw_origin import RawOrigin, serving

CONTENT = random.Random(3).randbytes(300_000)
"""What `store` serves at every URL."""

SIGNED = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AK&X-Amz-SignedHeaders=host&X-Amz-Signature=5ec2e7"

RULES = """
[[rules]]
match = "/direct/"
action = "direct"

[[rules]]
match = "/p2p/"
action = "p2p"

[[rules]]
match = "/status/"
errors = "status"

[proxy]
# No test may reach them: what identity they have is told without asking them.
deny = ["*.amazonaws.com", "*.googleapis.com", "*.windows.net", "*.aliyuncs.com", "*.myhuaweicloud.com"]

[proxy.limits]
forward_stall = "500ms"
"""


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A scheduler, a seed and two peers with nothing configured."""
    with running_cluster(tmp_path_factory.mktemp("fleet")) as started:
        yield started


@pytest.fixture
def proxy(fleet: LocalCluster) -> str:
    """The address ("host:port") of peer-1's proxy."""
    return fleet["peer-1"].addresses["proxy"]


@pytest.fixture
def other_proxy(fleet: LocalCluster) -> str:
    """The address of peer-2's proxy."""
    return fleet["peer-2"].addresses["proxy"]


@pytest.fixture(scope="session")
def ruled_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The proxy of a lone peer with RULES."""
    directory = tmp_path_factory.mktemp("ruled")
    configuration = directory / "peer.toml"
    configuration.write_text(RULES)
    arguments = {"peer-1": ("--config", str(configuration))}
    with LocalCluster(peers=1, seeds=0, directory=directory, arguments=arguments) as started:
        yield started["peer-1"].addresses["proxy"]


@pytest.fixture
def store() -> Iterator[RawOrigin]:
    """An origin that serves CONTENT at every URL, whoever asks, and keeps the octets of every request."""
    with running_raw_origin(serving(CONTENT)) as origin:
        yield origin


@pytest.fixture
def signed(store: RawOrigin) -> str:
    """A URL of `store` that looks presigned."""
    return f"{store.base}/models/a/1/model.onnx?{SIGNED}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a client may put what it downloads."""
    return tmp_path / "downloaded"
