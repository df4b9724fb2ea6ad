"""One simulated host: the download core that ships, and what the driver, the piece server and a client do around it.

The client asks for the whole file and reads it from the front as fast as it comes, so it is done when the last piece
has landed. Bytes do not exist: a piece is its index, and its digest is made of that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from bench.sim.network import Flow, Link, Network
from p2p.control import (
    Assignment,
    Failed,
    FailureReason,
    Hello,
    Holding,
    Holdings,
    Landed,
    PeerMessage,
    Progress,
    SchedulerMessage,
)
from p2p.pieces import Bitmap
from peer.core.download import DownloadCore
from peer.core.messages import (
    AbortTransfer,
    Assigned,
    Command,
    Disinterest,
    Event,
    GiveUp,
    Interest,
    PieceLanded,
    SchedulerDown,
    SchedulerUp,
    StartTransfer,
    Tell,
    Tick,
    TransferEnded,
)
from peer.download.driver import REPORT_SECONDS, WORKING_SECONDS, joined

if TYPE_CHECKING:
    from bench.sim.swarm import SimulatedSwarm

_READER = 1


def digest_of(index: int) -> bytes:
    """Return the digest of a piece's right bytes."""
    return index.to_bytes(16, "big")


@dataclass(slots=True, eq=False)
class Transfer:
    """One transfer under way; `delay` (seconds) is one way between the two hosts."""

    child: SimulatedHost
    command: StartTransfer
    delay: float
    parent: SimulatedHost | None = None
    """Who serves it, as long as that takes one of its upload slots."""
    flow: Flow | None = None
    over: bool = False
    """Whether the child will hear, or has heard, that it is over."""

    def cut(self, network: Network) -> None:
        """Send no more of it, and free what it occupies."""
        self.over = True
        if self.flow is not None:
            network.stop(self.flow)
            self.flow = None
        self.release()

    def release(self) -> None:
        """Give the upload slot back."""
        if self.parent is not None:
            del self.parent.uploads[self]
            self.parent = None


class SimulatedHost:
    """A peer, or a seed peer, of one swarm."""

    def __init__(
        self,
        swarm: SimulatedSwarm,
        number: int,
        *,
        seed: bool = False,
        rate: float,
        zone: int = 0,
        corrupts: bool = False,
    ) -> None:
        self.number = number
        self.id = f"{'seed' if seed else 'node'}-{number}"
        self.seed = seed
        self.zone = zone
        self.corrupts = corrupts
        self.alive = True
        self.uplink = Link(rate)
        self.downlink = Link(rate)
        self.uploads: dict[Transfer, None] = {}
        """What it is sending, as the piece server counts it: one slot each."""
        self._swarm = swarm
        self._scenario = swarm.scenario
        self._clock = swarm.clock
        layout = swarm.scenario.layout
        landed = Bitmap(layout.count, layout.everything() if seed and swarm.scenario.warm else ())
        self.core = DownloadCore(swarm.version, layout, landed, scheduler=True, seed=seed)
        self._up, self.down = swarm.channel(), swarm.channel()
        self._transfers: dict[int, Transfer] = {}
        self._landed: list[Landed] = []
        self._failed: list[Failed] = []
        self._report = 0
        """Number of the report that is being put together; a timer for an earlier one has nothing to do."""
        self._report_due = False
        self._timer_at: float | None = None
        self._working = False
        self._connected = True
        self._done = False
        self._front = 0

    def join(self) -> None:
        """Open a session with the scheduler, say what is held here, and ask for the file unless this is a seed."""
        self._introduce()
        if not self.seed:
            layout = self._scenario.layout
            self._dispatch(Interest(_READER, layout.everything(), self._swarm.source))

    def die(self) -> None:
        """Vanish: connections break, and others notice when they hear of that."""
        self.alive = False
        for transfer in tuple(self._transfers.values()):
            if not transfer.over:
                transfer.cut(self._swarm.network)
        for transfer in tuple(self.uploads):
            transfer.cut(self._swarm.network)
            transfer.child.ending(transfer, FailureReason.UNREACHABLE)
        self._up.send(self._swarm.scheduler.lose, self.id, surely=True)

    def hear(self, message: SchedulerMessage) -> None:
        """Take what the scheduler says."""
        if self.alive and self._connected and isinstance(message, Assignment):
            self._dispatch(Assigned(message))

    def lose_scheduler(self) -> None:
        """Notice that the scheduler is gone."""
        self._connected = False
        if self.alive:
            self._dispatch(SchedulerDown())

    def find_scheduler(self) -> None:
        """Notice that there is a scheduler again, and tell it everything."""
        self._connected = True
        if self.alive:
            self._introduce()
            self._dispatch(SchedulerUp())

    def serve(self, transfer: Transfer) -> None:
        """Answer a child's request as the piece server does: with the pieces, or with why not."""
        if transfer.over:
            return
        child, span = transfer.child, transfer.command.span
        reason: FailureReason | None = None
        if not self.alive:
            reason = FailureReason.UNREACHABLE
        elif len(self.uploads) >= self._scenario.upload_slots:
            reason = FailureReason.BUSY
        elif not self.core.landed.covers(span):
            reason = FailureReason.MISSING
        if reason is not None:
            transfer.over = True
            self._clock.after(transfer.delay, child.ended, transfer, reason)
            return
        transfer.parent = self
        self.uploads[transfer] = None
        self._swarm.record.most_uploads = max(self._swarm.record.most_uploads, len(self.uploads))
        child.receive(transfer, self._swarm.path(self, child), partial(self._sent, transfer))

    def receive(self, transfer: Transfer, links: tuple[Link, ...], arrived: Callable[[int], None]) -> None:
        """Let the transfer's pieces flow over `links`; `arrived` gets the position of each in its span."""
        layout = self.core.layout
        sizes = [layout.size(index) for index in transfer.command.span]
        transfer.flow = self._swarm.network.start(
            links, sizes, arrived=arrived, ended=partial(self._all_sent, transfer)
        )

    def landing(self, transfer: Transfer, index: int) -> None:
        """Let a piece that is on its way arrive, and be verified and recorded."""
        self._clock.after(transfer.delay + self._scenario.landing_seconds, self._land, transfer, index)

    def ending(self, transfer: Transfer, reason: FailureReason | None) -> None:
        """Let the end of a transfer arrive, after what has been sent of it before."""
        self._clock.after(transfer.delay + self._scenario.landing_seconds, self.ended, transfer, reason)

    def ended(self, transfer: Transfer, reason: FailureReason | None) -> None:
        """Notice that a transfer is over."""
        if not self.alive:
            return
        del self._transfers[transfer.command.transfer]
        if reason is not None:
            refusals = self._swarm.record.refusals
            refusals[reason.name.lower()] = refusals.get(reason.name.lower(), 0) + 1
        self._dispatch(TransferEnded(transfer.command.transfer, reason, reason.name if reason else ""))

    # As a parent

    def _sent(self, transfer: Transfer, position: int) -> None:
        swarm, child, span = self._swarm, transfer.child, transfer.command.span
        index = span.start + position
        size = self.core.layout.size(index)
        swarm.record.upload(self.number, size, self._clock.now)
        if self.seed:
            swarm.record.seed_bytes += size
        else:
            swarm.record.peer_bytes += size
        if self.zone != child.zone:
            swarm.record.crossing_bytes += size
        if self.corrupts and swarm.random.random() < self._scenario.corrupt:
            if index == span.stop - 1:
                transfer.flow = None
            transfer.cut(swarm.network)
            child.ending(transfer, FailureReason.CORRUPT)
            return
        child.landing(transfer, index)

    # As a child

    def _all_sent(self, transfer: Transfer) -> None:
        transfer.flow = None
        if not transfer.over:
            transfer.over = True
            transfer.release()
            self.ending(transfer, None)

    def _land(self, transfer: Transfer, index: int) -> None:
        if not self.alive:
            return
        swarm = self._swarm
        swarm.record.landing(self.number, index, self._clock.now)
        self._dispatch(PieceLanded(transfer.command.transfer, index, digest_of(index)))
        landed = self.core.landed
        while self._front in landed:
            self._front += 1
        swarm.record.contiguous += self._front / len(landed)
        if landed.full and not self.seed and not self._done:
            self._done = True
            swarm.completed(self)
            self._dispatch(Disinterest(_READER))

    # What the driver does

    def _dispatch(self, event: Event) -> None:
        for command in self.core.apply(event, now=self._clock.now):
            self._carry_out(command)
        if self._swarm.checking:
            self.core.check_invariants()
        deadline = self.core.next_deadline()
        if deadline is not None and (self._timer_at is None or deadline < self._timer_at):
            self._timer_at = deadline
            self._clock.at(deadline, self._tick, deadline)
        if not self._working and self._transfers:
            self._working = True
            self._clock.after(WORKING_SECONDS, self._still_working)

    def _carry_out(self, command: Command) -> None:
        match command:
            case StartTransfer():
                self._start(command)
            case AbortTransfer(number):
                transfer = self._transfers.get(number)
                if transfer is not None and not transfer.over:
                    transfer.cut(self._swarm.network)
                    # What has arrived by now is recorded before anything else may write there.
                    self.ending(transfer, None)
            case Tell(message):
                self._tell(message)
            case GiveUp(_, detail):
                self._done = True
                self._swarm.failed(self, detail)

    def _start(self, command: StartTransfer) -> None:
        swarm = self._swarm
        if command.source is not None:
            transfer = self._transfers[command.transfer] = Transfer(self, command, self._scenario.rtt / 2)
            self._clock.after(self._scenario.origin_latency, swarm.origin.serve, transfer)
            return
        jitter = 1 + self._scenario.jitter * swarm.random.random()
        transfer = self._transfers[command.transfer] = Transfer(self, command, self._scenario.rtt / 2 * jitter)
        self._clock.after(transfer.delay, swarm.hosts[command.parent_id].serve, transfer)

    def _tick(self, at: float) -> None:
        if at != self._timer_at or not self.alive:
            return
        self._timer_at = None
        deadline = self.core.next_deadline()
        if deadline is None:
            return
        if deadline > at:
            self._timer_at = deadline
            self._clock.at(deadline, self._tick, deadline)
            return
        self._dispatch(Tick())

    def _tell(self, message: PeerMessage) -> None:
        if not isinstance(message, Progress):
            self._flush()
            self._send(message)
            return
        self._landed += message.landed
        self._failed += message.failed
        if not self._report_due:
            self._report_due = True
            self._clock.after(REPORT_SECONDS, self._report_after, self._report)

    def _report_after(self, number: int) -> None:
        if number == self._report:
            self._flush()

    def _flush(self) -> None:
        self._report += 1
        self._report_due = False
        if self._landed or self._failed:
            self._send(Progress(self._swarm.version.id, tuple(joined(self._landed)), tuple(self._failed)))
            self._landed, self._failed = [], []

    def _still_working(self) -> None:
        self._working = bool(self._transfers) and self.alive
        if self._working:
            self._send(Progress(self._swarm.version.id))
            self._clock.after(WORKING_SECONDS, self._still_working)

    def _introduce(self) -> None:
        labels = {"zone": str(self.zone)}
        hello = Hello(self.id, f"{self.id}:1", self.seed, self._scenario.upload_slots, labels)
        self._send(hello, surely=True)
        landed = self.core.landed
        if landed:
            digests = tuple(digest_of(index) for index in landed)
            self._send(Holdings((Holding(self._swarm.version, landed.copy(), digests),)), surely=True)

    def _send(self, message: PeerMessage, *, surely: bool = False) -> None:
        if self._connected and self.alive:
            self._up.send(self._swarm.scheduler.hear, self.id, message, surely=surely)
            self._swarm.record.messages_up += 1
