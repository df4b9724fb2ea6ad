"""The simulated scheduler hears what is urgent first, as the real one does."""

from __future__ import annotations

from bench.sim.host import SimulatedHost
from bench.sim.scenario import Scenario
from bench.sim.scheduler import SimulatedScheduler
from bench.sim.swarm import SimulatedSwarm
from p2p.control import Following, Landed, Progress, SchedulerMessage, Want
from p2p.digests import piece_digest
from p2p.pieces import Span
from tests.support.pieces import PIECE

REPORTS = 500


def test_a_burst_of_reports_does_not_delay_the_answer_to_who_asks() -> None:
    swarm = SimulatedSwarm(Scenario(nodes=1, size=8 * PIECE, warm=True, jitter=0.0))
    scheduler, clock = SimulatedScheduler(swarm), swarm.clock
    heard: list[tuple[float, SchedulerMessage]] = []

    class Listener(SimulatedHost):
        def hear(self, message: SchedulerMessage) -> None:
            heard.append((clock.now, message))

    hosts = [Listener(swarm, number, seed=number == 0, rate=1e9) for number in range(REPORTS + 2)]
    for host in hosts:
        swarm.hosts[host.id] = host
        scheduler.know(host)
    clock.run(1.0)
    heard.clear()
    began = clock.now
    proof = piece_digest(swarm.digests[0])
    for host in hosts[2:]:
        scheduler.hear(host.id, Progress(swarm.version_id, (Landed(Span(0, 1), "seed-0", proof=proof),)))
    scheduler.hear("node-1", Want(swarm.version, (Span(0, swarm.scenario.layout.count),), swarm.source))
    clock.run(began + 1.0)
    at = next(at for at, message in heard if isinstance(message, Following))
    assert at - began <= swarm.scenario.rtt + 0.01
    assert REPORTS * swarm.scenario.cost.message_seconds > 0.02, "hearing them all first would have taken longer"
