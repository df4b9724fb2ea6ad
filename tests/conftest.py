"""What holds for every test, and the fixtures that start real servers; each starts when a test first asks for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from bench.cluster import LocalCluster
from bench.origin_client import OriginClient, running_origin
from tests.support.azurite import BlobServer, running_azurite
from tests.support.daemons import running_cluster
from tests.support.forkserver import forking
from tests.support.moto import running_moto
from tests.support.radosgw import running_radosgw
from tests.support.secrets import WATCH, watching
from tests.support.servers import S3Server, tail
from tests.support.stalls import STALLS, watched

# Hypothesis draws the same examples in every run, and never judges by the clock.
settings.register_profile("deterministic", derandomize=True, deadline=None, database=None)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile("deterministic")


@pytest.fixture(scope="session")
def radosgw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real Ceph object gateway; it verifies presigned signatures."""
    with running_radosgw(tmp_path_factory.mktemp("radosgw")) as server:
        yield server


@pytest.fixture(scope="session")
def moto_s3() -> Iterator[S3Server]:
    """A thread with the S3 server of moto; it takes any signature."""
    with running_moto() as server:
        yield server


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlobServer]:
    """Azure's emulator of its blob service; it verifies shared access signatures."""
    with running_azurite(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[OriginClient]:
    """The bench's origin, unshaped, as a process of its own."""
    with running_origin("unlimited", tmp_path) as client:
        yield client


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    """A scheduler, a seed and two peers, each a process of its own; the test may kill them."""
    with running_cluster(tmp_path / "cluster") as started:
        yield started


@pytest.fixture(scope="session", autouse=True)
def _fork_processes() -> Iterator[None]:
    """Spare each of Damselfly's processes the second of CPU time that its imports take."""
    with forking():
        yield


@pytest.fixture(scope="session", autouse=True)
def _watch_for_secrets() -> Iterator[None]:
    """Have what every cluster leaves behind looked at; what was found is an error of the last test to run here.

    Each process of a run in parallel has a watch of its own, over the daemons that its tests started.
    """
    with watching(WATCH):
        yield
    assert not WATCH.findings, WATCH.report()


@pytest.fixture(scope="session", autouse=True)
def _watch_for_stalls(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have every daemon say what holds its loop up."""
    with watched(tmp_path_factory.mktemp("stalls") / "stalls") as file:
        request.config.stash[STALLS] = file
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Fail the test during which a daemon's loop was held up; its fixtures are gone by now, and what they started."""
    yield
    if file := item.config.stash.get(STALLS, None):
        file.check()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the ends of the servers' logs into the report of a test that failed."""
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        logs = [log for value in item.funcargs.values() if isinstance(value, S3Server) for log in value.logs]
        if isinstance(directory := item.funcargs.get("tmp_path"), Path):
            logs += sorted(directory.rglob("*.log"))
        report.sections += [(f"end of {log}", tail(log)) for log in logs]
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Say at once what has failed, so that a run that is cut short has said it."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\n{report.nodeid} failed ({report.when}):\n{report.longreprtext}", file=sys.__stderr__, flush=True)
