"""The simulated origin: one link for all, a limit for each connection, and a while until the first byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.sim.network import Link
from bench.sim.transfer import Transfer

if TYPE_CHECKING:
    from bench.sim.swarm import SimulatedSwarm


class SimulatedOrigin:
    """Sends any range to anybody, and counts how often each piece went out."""

    def __init__(self, swarm: SimulatedSwarm) -> None:
        self._swarm = swarm
        self._link = Link(swarm.scenario.origin_rate)

    def serve(self, transfer: Transfer) -> None:
        """Answer a request whose first byte is due now."""
        if transfer.over:
            return
        connection = Link(self._swarm.scenario.origin_connection_rate)
        child = transfer.child
        child.receive(transfer, (self._link, connection, child.downlink), self)

    def sent(self, transfer: Transfer, position: int) -> None:
        """Note that the piece at this position of a transfer's span has left."""
        index = transfer.command.span.start + position
        record = self._swarm.record
        record.origin_pieces[index] = record.origin_pieces.get(index, 0) + 1
        record.origin_bytes += self._swarm.sizes[index]
        transfer.child.landing(transfer, index)
