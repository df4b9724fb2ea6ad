"""What is made of a run, the comparisons, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.sim.policies import Policy, RarestFirst, Tree
from bench.sim.record import Record
from bench.sim.report import Run, percentile
from bench.sim.scenario import Scenario, parse_rate
from bench.sim.swarm import SimulatedSwarm
from p2p.errors import ConfigError
from p2p.pieces import GIB
from tests.support.pieces import PIECE

SMALL = Scenario(nodes=12, size=32 * PIECE, rate=1.25e8)


@pytest.mark.parametrize("policy", [Tree, RarestFirst])
def test_a_comparison_ends_with_every_piece_at_every_node_and_repeats(policy: type[Policy]) -> None:
    one, two = policy(SMALL), policy(SMALL)
    record = one.run()
    assert all(node.have.full for node in one.nodes)
    assert record.seed_bytes + record.peer_bytes == SMALL.size * SMALL.nodes
    assert record.fingerprint == two.run().fingerprint


@pytest.mark.parametrize("policy", [Tree, RarestFirst])
def test_one_node_takes_as_long_as_its_link_and_the_pauses_between_pieces(policy: type[Policy]) -> None:
    scenario = Scenario(nodes=1, size=GIB, rate=1.25e8, arrival_seconds=0.0)
    record = policy(scenario).run()
    assert record.completed[1] == pytest.approx(scenario.single_node_seconds, rel=0.02)


def test_slow_uplinks_are_given_to_their_share_of_nodes_and_bound_what_can_be() -> None:
    half = Scenario(nodes=12, size=32 * PIECE, rate=1.25e8, slow_uplinks=0.5, slow_uplink_rate=1.25e7)
    assert half.bound_seconds == pytest.approx(12 * half.size / (7 * 1.25e8 + 6 * 1.25e7))
    assert SMALL.bound_seconds == SMALL.single_node_seconds
    swarm = SimulatedSwarm(half)
    record = swarm.run()
    uplinks = sorted(host.uplink.capacity for host in swarm.hosts.values())
    assert uplinks == [1.25e7] * 6 + [1.25e8] * 7
    assert {host.downlink.capacity for host in swarm.hosts.values()} == {1.25e8}
    assert Run("damselfly", half, record, 1.0).figures()["p99_over_bound"] > 0.5


def test_the_lower_bound_is_that_of_the_formula() -> None:
    scenario = Scenario(nodes=7, size=100 * PIECE, rate=PIECE)
    assert scenario.single_node_seconds == 100
    assert scenario.t_star_seconds == 100 / 100 * (100 - 1 + 3)


def test_times_are_counted_from_the_last_arrival_and_leave_out_the_unhealthy() -> None:
    record = Record(arrived={1: 0.0, 2: 1.0, 3: 9.0}, completed={1: 3.0, 2: 5.0, 3: 90.0}, unhealthy={3})
    run = Run("x", SMALL, record, 0.0)
    assert run.seconds == [2.0, 4.0]
    assert run.own_seconds == [3.0, 4.0]
    assert run.figures()["makespan_seconds"] == 4.0


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.5, 2), (0.99, 4), (1.0, 4)])
def test_percentiles_are_nearest_ranks(share: float, value: int) -> None:
    assert percentile([1, 2, 3, 4], share) == value


def test_nothing_has_no_percentile() -> None:
    assert percentile([], 0.5) is None


@pytest.mark.parametrize(
    ("text", "rate"), [("10gbit", 1.25e9), ("200mbit", 2.5e7), ("8bit", 1.0), ("1.5 Gbit/s", 1.875e8)]
)
def test_rates_are_read_in_bits(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["10", "fast", "10gb", "0mbit", "-1mbit"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a rate"):
        parse_rate(text)


def test_the_command_prints_a_table_and_writes_figures_and_a_picture(tmp_path: Path) -> None:
    figures, picture = tmp_path / "sim.json", tmp_path / "sim.png"
    options = ["--nodes", "4", "--size", "64MiB", "--rate", "1gbit", "--json", str(figures), "--plot", str(picture)]
    result = CliRunner().invoke(app, ["sim", *options])
    assert result.exit_code == 0, result.output
    document = json.loads(figures.read_text())
    assert [run["policy"] for run in document["runs"]] == ["damselfly", "tree", "rarest-first"]
    assert document["scenario"]["pieces"] == 32
    assert document["runs"][0]["origin_copies"] == 1.0
    assert document["runs"][0]["p99_over_t_star"] > 0
    assert picture.stat().st_size > 1000


@pytest.mark.parametrize("options", [["--rate", "10"], ["--policy", "best"], ["--loss", "2"], ["--rtt", "soon"]])
def test_a_setting_that_cannot_work_is_told(options: list[str]) -> None:
    result = CliRunner().invoke(app, ["sim", *options])
    assert result.exit_code == 2, result.output
    assert "error:" in result.output
