import json
import sys
import time
from pathlib import Path

import pytest

from bench.cluster import LocalCluster
from bench.process import ChildError
from p2p.auth import ClusterSecret
from p2p.errors import UnauthorizedError

STANDIN = (sys.executable, str(Path(__file__).with_name("standin.py")))


def argv(cluster: LocalCluster, name: str) -> list[str]:
    words: list[str] = json.loads((cluster.directory / name / "argv").read_text())
    return words


def test_starts_what_was_asked_for_and_stops_it_in_reverse(tmp_path: Path) -> None:
    with LocalCluster(
        program=STANDIN, directory=tmp_path, arguments={"peer": ["--a", "1"], "peer-2": ["--b", "2"]}
    ) as cluster:
        assert list(cluster.daemons) == ["scheduler", "seed-1", "peer-1", "peer-2"]
        assert set(cluster["scheduler"].addresses) == {"grpc", "http"}
        assert set(cluster["peer-1"].addresses) == {"proxy", "pieces", "http"}
        ports = [address for daemon in cluster.daemons.values() for address in daemon.addresses.values()]
        assert len(set(ports)) == 11
        grpc = cluster["scheduler"].addresses["grpc"]
        assert argv(cluster, "seed-1")[:2] == ["peer", "--seed"]
        for name in ("seed-1", "peer-1", "peer-2"):
            words = argv(cluster, name)
            assert words[words.index("--scheduler") + 1] == grpc
            assert words[words.index("--host-id") + 1] == name
            assert words[words.index("--cluster-secret-file") + 1] == str(cluster.secret_file)
        assert argv(cluster, "peer-1")[-2:] == ["--a", "1"]
        assert argv(cluster, "peer-2")[-4:] == ["--a", "1", "--b", "2"]
        children = [daemon.child for daemon in cluster.daemons.values()]
        assert all(child.is_running() for child in children)
    assert not any(child.is_running() for child in children)
    assert (tmp_path / "peer-1.log").exists()


def test_a_temporary_directory_is_removed() -> None:
    with LocalCluster(program=STANDIN, peers=1, seeds=0) as cluster:
        directory = cluster.directory
        assert directory.is_dir()
    assert not directory.exists()


def test_a_restarted_daemon_keeps_its_ports_and_its_end_is_not_a_surprise() -> None:
    with LocalCluster(program=STANDIN, peers=1, seeds=0) as cluster:
        before = cluster["peer-1"]
        cluster.kill("peer-1")
        assert not before.child.is_running()
        after = cluster.restart("peer-1")
        assert after.addresses == before.addresses
        assert after.pid != before.pid
        assert cluster.stop("scheduler") == 0
        # Nobody but this test ended the peer for good: of all that ended, only it counts.
        cluster["peer-1"].child.terminate()
        assert cluster.wait() == "peer-1"


def test_one_that_does_not_start_stops_the_rest(tmp_path: Path) -> None:
    cluster = LocalCluster(program=STANDIN, directory=tmp_path, peers=1, arguments={"peer-1": ["--fail"]})
    with pytest.raises(ChildError, match=r"peer-1 ended with code 1(.|\n)*told to fail"):
        cluster.__enter__()
    assert len(cluster.daemons) == 3
    assert not any(daemon.child.is_running() for daemon in cluster.daemons.values())


def test_delete_task_asks_every_running_peer_and_proves_who_asks() -> None:
    with LocalCluster(program=STANDIN, peers=2, seeds=0) as cluster:
        cluster.kill("peer-2")
        cluster.delete_task("known")
        cluster.delete_task("unknown")
        lines = (cluster.directory / "peer-1" / "deleted").read_text().splitlines()
        assert [line.split()[0] for line in lines] == ["/v1/tasks/known", "/v1/tasks/unknown"]
        token = lines[0].split()[2]
        assert cluster.secret.verify(token, "admin", now=time.time()) == "bench"
        with pytest.raises(UnauthorizedError):
            ClusterSecret(b"another secret of some length").verify(token, "admin", now=time.time())
        assert not (cluster.directory / "peer-2" / "deleted").exists()
        with pytest.raises(ChildError, match="peer-1 answered 500"):
            cluster.delete_task("bad")
