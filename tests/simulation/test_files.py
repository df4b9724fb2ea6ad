"""Many small files in virtual time: what each costs in control messages, and that none waits for a timer."""

from __future__ import annotations

import pytest

from bench.sim.files import SimulatedFiles
from bench.sim.scenario import Scenario
from p2p.control import LAZY_REPORT_SECONDS, SMALL_BYTES
from p2p.errors import ConfigError
from p2p.pieces import MIB

FILES = 100
KIB = 1024


@pytest.mark.parametrize("arrival_seconds", [0.0, 1.0], ids=["in step", "one after the other"])
@pytest.mark.parametrize("seeds", [1, 2])
def test_a_file_costs_a_node_two_frames_and_no_timers(arrival_seconds: float, seeds: int) -> None:
    scenario = Scenario(nodes=8, seeds=seeds, size=4 * KIB, arrival_seconds=arrival_seconds)
    record = SimulatedFiles(scenario, FILES).run()
    figures = record.figures()
    assert figures["control_frames_per_file_per_node"] <= 2
    assert figures["origin_copies"] == 1
    assert figures["seed_control_frames_per_file"] <= 2 + 4 * seeds / FILES
    assert figures["longest_seconds"] < scenario.origin_latency + 10 * scenario.rtt < LAZY_REPORT_SECONDS


def test_nodes_that_come_one_after_the_other_get_files_from_each_other() -> None:
    record = SimulatedFiles(Scenario(nodes=8, size=SMALL_BYTES, arrival_seconds=20.0), FILES).run()
    assert record.sent["seed-0"] < 0.3 * 8 * FILES
    assert len(record.sent) > 6, "children are spread over the holders"


def test_equal_seeds_give_equal_runs() -> None:
    scenario = Scenario(nodes=4, size=4 * KIB)
    assert SimulatedFiles(scenario, 20).run() == SimulatedFiles(scenario, 20).run()


def test_only_small_files_are_simulated_like_that() -> None:
    with pytest.raises(ConfigError, match="--size"):
        SimulatedFiles(Scenario(size=MIB), FILES)
