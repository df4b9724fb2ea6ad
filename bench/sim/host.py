"""One simulated host: the download core that ships, and what the driver, the piece server and a client do around it.

The client asks for the whole file and reads it from the front as fast as it comes, so it is done when the last piece
has landed. Bytes do not exist: a piece is its index, and its digest is made of that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.sim.network import Link
from bench.sim.reports import SimulatedEntry, VirtualTimers
from bench.sim.transfer import Transfer, Watching
from p2p.control import (
    LAZY_REPORT_SECONDS,
    Assignment,
    FailureReason,
    Following,
    Hello,
    Holding,
    Holdings,
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
    Followed,
    GiveUp,
    Interest,
    ParentHas,
    ParentLost,
    PieceLanded,
    SchedulerDown,
    SchedulerUp,
    StartTransfer,
    Tell,
    Tick,
    TransferEnded,
    Unwatch,
    Watch,
)
from peer.download.driver import WORKING_SECONDS
from peer.download.reports import Reports

if TYPE_CHECKING:
    from bench.sim.origin import SimulatedOrigin
    from bench.sim.swarm import SimulatedSwarm

_READER = 1


def digest_of(index: int) -> bytes:
    """Return the digest of a piece's right bytes."""
    return index.to_bytes(16, "big")


class SimulatedHost:
    """A peer, or a seed peer, of one swarm."""

    __slots__ = (
        "_clock",
        "_connected",
        "_count",
        "_done",
        "_draw",
        "_front",
        "_half_trip",
        "_jitter",
        "_reports_seen",
        "_scenario",
        "_stored",
        "_swarm",
        "_timer_at",
        "_transfers",
        "_up",
        "_watched",
        "_working",
        "alive",
        "core",
        "corrupts",
        "down",
        "downlink",
        "followers",
        "id",
        "number",
        "reports",
        "seed",
        "uplink",
        "uploads",
        "zone",
    )

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
        self.followers: dict[Watching, None] = {}
        """Who hears which of its pieces land."""
        self._swarm = swarm
        self._scenario = swarm.scenario
        self._clock = swarm.clock
        self._half_trip, self._jitter, self._draw = swarm.scenario.rtt / 2, swarm.scenario.jitter, swarm.random.random
        layout = swarm.scenario.layout
        held = layout.everything() if seed and swarm.scenario.warm else ()
        landed = Bitmap(layout.count, held)
        self.core = DownloadCore(swarm.version, layout, landed, scheduler=True, seed=seed)
        self._up, self.down = swarm.channel(), swarm.channel()
        self._transfers: dict[int, Transfer] = {}
        self._watched: dict[str, Watching] = {}
        entry = SimulatedEntry(swarm.version, self.core.landed, swarm.digests)
        self.reports = Reports(entry, self._report, VirtualTimers(swarm.clock))
        self._timer_at: float | None = None
        self._working = False
        self._reports_seen = 0
        self._connected = True
        self._done = False
        self._stored = bytearray(landed.size)
        """1 for each piece that is here."""
        for index in landed:
            self._stored[index] = 1
        self._count = 0
        self._front = 0

    @property
    def hello(self) -> Hello:
        """What opens its session."""
        return Hello(self.id, f"{self.id}:1", self.seed, self._scenario.upload_slots, {"zone": str(self.zone)})

    @property
    def holdings(self) -> Holdings | None:
        """What it says of what it holds, if that is anything."""
        landed = self.core.landed
        if not landed:
            return None
        return Holdings((Holding(self._swarm.version, landed.copy(), tuple(map(digest_of, landed))),))

    def want(self) -> None:
        """Let a client ask for the whole file."""
        self._dispatch(Interest(_READER, self._scenario.layout.everything(), self._swarm.source))

    def die(self) -> None:
        """Vanish: connections break, and others notice when they hear of that."""
        self.alive = False
        for transfer in tuple(self._transfers.values()):
            if not transfer.over:
                transfer.cut(self._swarm.network)
        for transfer in tuple(self.uploads):
            transfer.cut(self._swarm.network)
            transfer.child.ending(transfer, FailureReason.UNREACHABLE)
        for watching in tuple(self._watched.values()):
            watching.over = True
            watching.parent.followers.pop(watching, None)
        for watching in tuple(self.followers):
            self._clock.after(self._delay(), watching.child.lose_parent, watching, FailureReason.UNREACHABLE)
        self._up.send(self._swarm.scheduler.lose, self.id, surely=True)

    def hear(self, message: SchedulerMessage) -> None:
        """Take what the scheduler says."""
        if not self.alive or not self._connected:
            return
        match message:
            case Assignment():
                self._dispatch(Assigned(message))
            case Following():
                self.reports.lazy_seconds = message.report_seconds
                self._dispatch(Followed(message))
            case _:
                pass

    def lose_scheduler(self) -> None:
        """Notice that the scheduler is gone."""
        self._connected = False
        if self.alive:
            self._dispatch(SchedulerDown())

    def find_scheduler(self) -> None:
        """Notice that there is a scheduler again, and tell it everything."""
        self._connected = True
        if self.alive:
            self.introduce()
            self._dispatch(SchedulerUp())

    def introduce(self) -> None:
        """Open a session with the scheduler and say what is held here."""
        self._send(self.hello, surely=True)
        holdings = self.holdings
        if holdings is not None:
            self._send(holdings, surely=True)

    # As a parent

    def serve(self, transfer: Transfer) -> None:
        """Answer a child's request as the piece server does: with the pieces, or with why not."""
        if transfer.over:
            return
        swarm, child, span = self._swarm, transfer.child, transfer.command.span
        reason: FailureReason | None = None
        if not self.alive:
            reason = FailureReason.UNREACHABLE
        elif len(self.uploads) >= self._scenario.upload_slots:
            reason = FailureReason.BUSY
        elif self._stored.find(0, span.start, span.stop) >= 0:
            reason = FailureReason.MISSING
        if reason is not None:
            transfer.over = True
            self._clock.after(transfer.delay, child.ended, transfer, reason)
            return
        transfer.parent = self
        self.uploads[transfer] = None
        if len(self.uploads) > swarm.record.most_uploads:
            swarm.record.most_uploads = len(self.uploads)
        near = self.zone == child.zone
        child.receive(transfer, (self.uplink, child.downlink) if near else swarm.path(self, child), self)

    def sent(self, transfer: Transfer, position: int) -> None:
        """Note that the piece at this position of a transfer's span has left."""
        swarm, child, span = self._swarm, transfer.child, transfer.command.span
        record = swarm.record
        index = span.start + position
        size = swarm.sizes[index]
        record.send(self.number, size, int(self._clock.now / record.slice_seconds))
        if self.seed:
            record.seed_bytes += size
        else:
            record.peer_bytes += size
        if self.zone != child.zone:
            record.crossing_bytes += size
        if self.corrupts and swarm.random.random() < self._scenario.corrupt:
            if index == span.stop - 1:
                transfer.flowing = False
            transfer.cut(swarm.network)
            child.ending(transfer, FailureReason.CORRUPT)
            return
        child.landing(transfer, index)

    def follow(self, watching: Watching) -> None:
        """Answer a child that asks to hear of some stripes: with all that is held of them, then each landing."""
        if watching.over:
            return
        if not self.alive:
            self._clock.after(self._delay(), watching.child.lose_parent, watching, FailureReason.UNREACHABLE)
            return
        self.followers[watching] = None
        held = watching.pieces(self.core.landed.size) & self.core.landed
        if held:
            self._announce(watching, ParentHas(self.id, held.spans()))

    def unfollow(self, watching: Watching) -> None:
        """Notice that a child wants to hear no more."""
        self.followers.pop(watching, None)

    def announce(self, index: int) -> None:
        """Tell the followers of a piece's stripe that it has landed."""
        heard: ParentHas | None = None
        clock, half, jitter, draw = self._clock, self._half_trip, self._jitter, self._draw
        for watching in self.followers:
            if index % watching.of in watching.stripes:
                if heard is None:
                    heard = ParentHas(self.id, self._swarm.alone[index])
                at = clock.now + half * (1 + jitter * draw())
                if at < watching.through:
                    at = watching.through
                watching.through = at
                clock.at(at, watching.child.hear_parent, watching, heard)

    def _announce(self, watching: Watching, heard: ParentHas) -> None:
        at = self._clock.now + self._delay()
        if at < watching.through:
            at = watching.through
        watching.through = at
        self._clock.at(at, watching.child.hear_parent, watching, heard)

    def _delay(self) -> float:
        """Return half a round trip with its jitter, in seconds."""
        return self._half_trip * (1 + self._jitter * self._draw())

    # As a child

    def receive(self, transfer: Transfer, links: tuple[Link, ...], sender: SimulatedHost | SimulatedOrigin) -> None:
        """Let the transfer's pieces flow over `links`; `sender` is told of each that has left."""
        swarm, span = self._swarm, transfer.command.span
        one = span.stop - span.start == 1
        sizes = swarm.sizes_alone[span.start] if one else swarm.sizes[span.start : span.stop]
        transfer.sender = sender
        transfer.flowing = True
        swarm.network.begin(transfer, links, sizes)

    def landing(self, transfer: Transfer, index: int) -> None:
        """Let a piece that is on its way arrive, and be verified and recorded; the last one ends the transfer."""
        at = self._clock.now + transfer.delay + self._scenario.landing_seconds
        last = index == transfer.command.span.stop - 1
        if last:
            transfer.flowing = False
            transfer.over = True
            parent = transfer.parent
            if parent is not None:
                del parent.uploads[transfer]
                transfer.parent = None
        self._clock.at(at, self._land, transfer, index, last)

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

    def hear_parent(self, watching: Watching, heard: ParentHas) -> None:
        """Take what a followed parent announces."""
        if self.alive and not watching.over:
            self._apply(heard)
            self._settle()

    def lose_parent(self, watching: Watching, reason: FailureReason) -> None:
        """Notice that a followed parent announces nothing any more."""
        if self.alive and not watching.over:
            watching.over = True
            del self._watched[watching.parent.id]
            self._dispatch(ParentLost(watching.parent.id, reason, reason.name))

    def _land(self, transfer: Transfer, index: int, last: bool) -> None:
        if not self.alive:
            return
        swarm, number = self._swarm, transfer.command.transfer
        record = swarm.record
        record.landed_pieces += 1
        record.fingerprint = hash((record.fingerprint, self.number, index, self._clock.now))
        self._apply(PieceLanded(number, index, swarm.digests[index]))
        if last:
            del self._transfers[number]
            self._apply(TransferEnded(number))
        self._settle()
        if self.followers:
            self.announce(index)
        stored = self._stored
        stored[index] = 1
        self._count += 1
        if index == self._front:
            self._front = stored.find(0, index)
            if self._front < 0:
                self._front = len(stored)
        record.contiguous += self._front / self._count
        if self._count == len(stored) and not self._done and not self.seed:
            self._done = True
            swarm.completed(self)
            self._dispatch(Disinterest(_READER))

    # What the driver does

    def _dispatch(self, event: Event) -> None:
        self._apply(event)
        self._settle()

    def _apply(self, event: Event) -> None:
        for command in self.core.apply(event, now=self._clock.now):
            # These two come for each piece, all others now and then.
            if isinstance(command, StartTransfer):
                self._start(command)
            elif isinstance(command, Tell):
                self.reports.tell(command.message, soon=command.soon)
            else:
                self._carry_out(command)
        if self._swarm.checking:
            self.core.check_invariants()

    def _settle(self) -> None:
        deadline = self.core.next_deadline()
        if deadline is not None and (self._timer_at is None or deadline < self._timer_at):
            self._timer_at = deadline
            self._clock.at(deadline, self._tick, deadline)
        if not self._working and self._transfers:
            self._working = True
            self._clock.after(WORKING_SECONDS, self._still_working)

    def _carry_out(self, command: Command) -> None:
        match command:
            case AbortTransfer(number):
                transfer = self._transfers.get(number)
                if transfer is not None and not transfer.over:
                    transfer.cut(self._swarm.network)
                    # What has arrived by now is recorded before anything else may write there.
                    self.ending(transfer, None)
            case Watch():
                self._unwatch(command.parent_id)
                watching = Watching(self, self._swarm.hosts[command.parent_id], command)
                self._watched[command.parent_id] = watching
                self._clock.after(self._delay(), watching.parent.follow, watching)
            case Unwatch(parent_id):
                self._unwatch(parent_id)
            case GiveUp(_, detail):
                self._done = True
                self._swarm.failed(self, detail)

    def _unwatch(self, parent_id: str) -> None:
        watching = self._watched.pop(parent_id, None)
        if watching is not None:
            watching.over = True
            self._clock.after(self._delay(), watching.parent.unfollow, watching)

    def _start(self, command: StartTransfer) -> None:
        swarm = self._swarm
        if command.source is not None:
            transfer = self._transfers[command.transfer] = Transfer(self, command, self._scenario.rtt / 2)
            self._clock.after(self._scenario.origin_latency, swarm.origin.serve, transfer)
            return
        delay = self._half_trip * (1 + self._jitter * self._draw())
        transfer = self._transfers[command.transfer] = Transfer(self, command, delay)
        clock = self._clock
        clock.at(clock.now + delay, swarm.hosts[command.parent_id].serve, transfer)

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

    def _still_working(self) -> None:
        self._working = bool(self._transfers) and self.alive
        if self._working:
            if self.core.awaited and self.reports.sent == self._reports_seen:
                self._send(Progress(self._swarm.version_id))
            self._reports_seen = self.reports.sent
            self._clock.after(WORKING_SECONDS, self._still_working)

    def _report(self, message: PeerMessage, *, soon: bool = True) -> None:
        if soon:
            self._send(message)
        else:
            self._clock.after(LAZY_REPORT_SECONDS, self._send, message)

    def _send(self, message: PeerMessage, *, surely: bool = False) -> None:
        if self._connected and self.alive:
            self._up.send(self._swarm.scheduler.hear, self.id, message, surely=surely)
            self._swarm.record.messages_up += 1
