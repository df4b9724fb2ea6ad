"""`damselfly bench fanout` as a command, on objects so small that only its form is tested, and its namespaces."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bench.fanout_network import CONTROL, Network, remove_stale, unavailable
from tests.support.commands import DEADLINE, run

RATE = 25e6
WHY_NOT = unavailable()
needs_namespaces = pytest.mark.skipif(WHY_NOT is not None, reason=f"no network namespaces: {WHY_NOT}")

HOLD = """
import sys
from bench.fanout_network import Network
with Network(["peer-1"], 25e6) as network:
    import subprocess
    inside = subprocess.Popen([*network.command("peer-1"), sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    print("up", inside.pid, flush=True)
    sys.stdin.read()
"""


def namespaces() -> set[str]:
    return {path.name for path in Path("/run/netns").iterdir()}


def exchanged(network: Network, client: str, server: str) -> bytes:
    """Connect from one place to another, and return what the server there sends."""
    with network.inside(server):
        listener = socket.create_server((network.plan.places[server], 0))
    with listener:
        listener.settimeout(DEADLINE)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"x" * 100_000)

        thread = threading.Thread(target=serve)
        thread.start()
        with network.inside(client):
            connection = socket.create_connection(listener.getsockname(), timeout=DEADLINE)
        with connection, connection.makefile("rb") as file:
            data = file.read()
        thread.join()
    return data


@needs_namespaces
def test_places_reach_each_other_and_the_switch_counts() -> None:
    before = namespaces()
    with Network(["peer-1", "peer-2"], RATE) as network, network.counters() as counters:
        start = counters.sent()
        assert exchanged(network, "peer-1", "peer-2") == b"x" * 100_000
        assert exchanged(network, CONTROL, "peer-1") == b"x" * 100_000
        sent = {name: value - start[name] for name, value in counters.sent().items()}
        shaped = subprocess.run(
            [*network.command("peer-1"), "tc", "qdisc", "show"], capture_output=True, text=True, check=True
        ).stdout
    assert set(sent) == {CONTROL, "peer-1", "peer-2"}
    assert min(sent["peer-1"], sent["peer-2"]) > 100_000
    assert "tbf" in shaped
    assert "200Mbit" in shaped
    assert namespaces() <= before


@needs_namespaces
def test_what_a_killed_process_left_behind_is_removed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        word, pid = holder.stdout.readline().split()
        assert word == "up"
        own = {name for name in namespaces() if name.startswith(f"damselfly-{holder.pid}-")}
        os.kill(holder.pid, signal.SIGKILL)
    assert len(own) == 3
    assert own <= set(remove_stale())
    assert not own & namespaces()
    assert not Path(f"/proc/{pid}/exe").exists()  # a zombie at the most


@needs_namespaces
def test_an_error_within_leaves_nothing() -> None:
    made: set[str] = set()

    def fail() -> None:
        with Network(["peer-1"], RATE):
            made.update(name for name in namespaces() if name.startswith(f"damselfly-{os.getpid()}-"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert len(made) == 3
    assert not made & namespaces()


@needs_namespaces
def test_it_prints_every_run_and_writes_its_figures(tmp_path: Path) -> None:
    file, picture = tmp_path / "fanout.json", tmp_path / "fanout.png"
    done = run(
        *("bench", "fanout", "--nodes", "2", "--size", "4MiB", "--rate", "1gbit", "--runs", "single,all"),
        *("--origin-profile", "unlimited", "--json", str(file), "--plot", str(picture)),
    )
    assert done.returncode == 0, done.stderr
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if not line.startswith("wrote"))
    assert "limited both ways by tbf" in done.stdout
    figures = json.loads(file.read_text())
    assert (figures["bench"], figures["nodes"], figures["links"]) == ("fanout", 2, "namespaces")
    assert {"machine", "commit", "command", "t_star_seconds"} <= figures.keys()
    assert [(row["name"], row["nodes_completed"]) for row in figures["runs"]] == [("single", 1), ("all", 2)]
    assert all(row["seed_copies"] >= 1 and row["origin_copies"] >= 1 for row in figures["runs"])
    assert picture.stat().st_size > 0


def test_without_namespaces_the_peers_limit_their_uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    file = tmp_path / "fanout.json"
    done = run(
        *("bench", "fanout", "--nodes", "2", "--size", "4MiB", "--rate", "1gbit", "--runs", "all"),
        *("--origin-profile", "unlimited", "--json", str(file)),
    )
    assert done.returncode == 0, done.stderr
    assert "No network namespaces (ip and tc (iproute2) not found)" in done.stdout
    figures = json.loads(file.read_text())
    assert figures["links"] == "upload limit of the peers"
    assert figures["runs"][0]["nodes_completed"] == 2


def test_what_cannot_be_run_is_refused() -> None:
    for arguments, problem in (
        (("--runs", "sinlge"), "did you mean 'single'?"),
        (("--rate", "fast"), "is not a rate"),
        (("--size", "1KiB"), "too small to time"),
    ):
        done = run("bench", "fanout", *arguments)
        assert done.returncode == 2
        assert problem in done.stderr
