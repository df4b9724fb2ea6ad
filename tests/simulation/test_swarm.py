"""The simulated swarm: it repeats exactly, loses nothing, and every scenario ends.

The invariants of both cores are checked throughout.
"""

from __future__ import annotations

import pytest

from bench.sim.record import Record
from bench.sim.report import Run
from bench.sim.scenario import Arrivals, CostModel, Scenario, Sharing
from bench.sim.swarm import SimulatedSwarm, SimulationError
from p2p.pieces import GIB
from tests.support.pieces import PIECE

SMALL = Scenario(nodes=8, size=32 * PIECE, rate=1.25e8, arrival_seconds=0.2)


def changed(**changes: object) -> Scenario:
    fields = {name: getattr(SMALL, name) for name in Scenario.__dataclass_fields__}
    return Scenario(**(fields | changes))


def run(scenario: Scenario) -> tuple[SimulatedSwarm, Record]:
    swarm = SimulatedSwarm(scenario, checking=True)
    return swarm, swarm.run()


def test_equal_seeds_give_equal_runs_and_others_do_not() -> None:
    prints = [SimulatedSwarm(changed(seed=seed)).run().fingerprint for seed in (1, 1, 2)]
    assert prints[0] == prints[1] != prints[2]


def test_a_node_alone_takes_as_long_as_its_link_and_the_way_to_it() -> None:
    scenario = changed(nodes=1, warm=True, arrival_seconds=0.0, size=GIB, jitter=0.0)
    _, record = run(scenario)
    # The question goes to the scheduler and the answer comes back, then one to the seed, which tells what it holds.
    # From one parent come as many pieces at a time as there are stripes, here in step, as nothing disturbs them:
    # between two such rounds are the landing of the one and the requests for the other.
    pause = scenario.rtt + scenario.landing_seconds
    rounds = scenario.layout.count / scenario.stripes
    seconds = scenario.single_node_seconds + 2 * scenario.rtt + rounds * pause
    assert record.completed[1] == pytest.approx(seconds, rel=0.001)


@pytest.mark.parametrize("nodes", [16, 64])
def test_of_a_short_file_the_seed_sends_little_more_than_a_copy(nodes: int) -> None:
    scenario = Scenario(nodes=nodes, size=GIB)
    record = SimulatedSwarm(scenario).run()
    assert len(record.completed) == nodes
    assert record.seed_bytes <= 1.05 * scenario.size


def test_sixteen_nodes_take_little_longer_than_one_and_the_seed_sends_little_more_than_a_copy() -> None:
    scenario = Scenario(nodes=16, size=10 * GIB)
    record = SimulatedSwarm(scenario).run()
    run_ = Run("damselfly", scenario, record, 0.0)
    assert run_.seconds[-1] <= 1.10 * scenario.single_node_seconds
    assert record.seed_bytes <= 1.05 * scenario.size
    assert record.origin_pieces == dict.fromkeys(range(scenario.layout.count), 1)
    assert record.messages_up + record.messages_down <= 0.1 * record.landed_pieces


def test_without_trees_the_scheduler_assigns_every_piece() -> None:
    scenario = changed(nodes=16, stripes=0)
    _, record = run(scenario)
    assert len(record.completed) == scenario.nodes
    assert record.origin_pieces == dict.fromkeys(range(scenario.layout.count), 1)
    assert record.messages_up + record.messages_down > record.landed_pieces


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_node_ends_with_every_piece_and_the_origin_sends_each_once(seed: int) -> None:
    scenario = changed(nodes=16, seed=seed)
    swarm, record = run(scenario)
    count = scenario.layout.count
    assert len(record.completed) == scenario.nodes
    assert all(host.core.landed.full for host in swarm.hosts.values())
    assert record.origin_pieces == dict.fromkeys(range(count), 1)
    assert record.landed_pieces == count * len(swarm.hosts)
    assert record.seed_bytes + record.peer_bytes == scenario.size * scenario.nodes
    assert record.most_uploads <= scenario.upload_slots
    assert record.failed == {}


@pytest.mark.parametrize("arrivals", Arrivals)
def test_every_pattern_of_arrivals_ends(arrivals: Arrivals) -> None:
    _, record = run(changed(arrivals=arrivals, arrival_seconds=1.0))
    assert len(record.completed) == SMALL.nodes
    assert list(record.arrived.values()) == sorted(record.arrived.values())


@pytest.mark.parametrize(
    "faults",
    [
        {"stragglers": 0.3},
        {"churn": 6.0, "seed": 5},
        {"loss": 0.02},
        {"byzantine": 0.5, "corrupt": 0.5},
        {"restart_at": 0.6},
        {"restart_at": 0.6, "restart_seconds": 5.0},
        {"zones": 2, "zone_rate": 1.25e7},
        {"seeds": 3},
        {"origin_connection_rate": 1e7},
        {"cost": CostModel().scaled(0.0)},
        {"upload_slots": 2},
        {"sharing": Sharing.EVEN},
        {"nodes": 24, "stragglers": 0.1, "churn": 1.5},
    ],
    ids=lambda faults: "-".join(faults),
)
def test_every_scenario_ends_with_the_whole_file_at_every_living_node(faults: dict[str, object]) -> None:
    swarm, record = run(changed(**faults))
    count = swarm.scenario.nodes
    nodes = [host for host in swarm.hosts.values() if 0 < host.number <= count and host.alive and not host.seed]
    assert len(nodes) > count / 3
    assert record.failed == {}
    assert all(host.core.landed.full for host in nodes)
    assert record.most_uploads <= swarm.scenario.upload_slots


def test_a_dying_node_counts_for_no_percentile_nor_does_its_successor() -> None:
    swarm, record = run(changed(churn=6.0, seed=5))
    dead = {host.number for host in swarm.hosts.values() if not host.alive}
    assert dead
    assert dead <= record.unhealthy
    assert record.unhealthy - dead, "nobody came for the dead"


def test_corrupt_pieces_are_seen_and_fetched_again() -> None:
    _, record = run(changed(byzantine=0.5, corrupt=0.5))
    assert record.refusals["corrupt"] > 0


def test_a_restart_of_the_scheduler_costs_no_piece() -> None:
    scenario = changed(restart_at=0.6)
    swarm, record = run(scenario)
    assert record.landed_pieces == scenario.layout.count * len(swarm.hosts)
    assert record.origin_pieces == dict.fromkeys(range(scenario.layout.count), 1)


def test_what_crosses_between_zones_is_counted() -> None:
    scenario = changed(zones=2)
    _, record = run(scenario)
    assert record.crossing_bytes >= scenario.size


def test_a_zone_behind_a_fat_link_is_as_fast_as_the_other() -> None:
    scenario = Scenario(nodes=32, size=4 * GIB, zones=2, zone_rate=2e9)
    record = SimulatedSwarm(scenario).run()
    assert Run("damselfly", scenario, record, 0.0).seconds[-1] <= 1.15 * scenario.single_node_seconds
    assert record.crossing_bytes <= 1.2 * scenario.size


def test_a_zone_behind_a_thin_link_costs_the_other_little() -> None:
    scenario = Scenario(nodes=32, size=GIB, zones=2, zone_rate=1.25e8)
    swarm = SimulatedSwarm(scenario)
    record = swarm.run()
    last = max(record.arrived.values())
    near = [record.completed[host.number] - last for host in swarm.hosts.values() if host.zone == 0 and not host.seed]
    assert max(near) <= 1.3 * scenario.single_node_seconds
    assert record.crossing_bytes <= 1.05 * scenario.size


def test_a_run_that_does_not_end_says_how_to_see_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scenario, "give_up_seconds", 0.5)
    with pytest.raises(SimulationError, match=r"seed 7: [1-8] nodes had not got the file at 0\.\d+ s; .*--seed"):
        run(changed(seed=7))
