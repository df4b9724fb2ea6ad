"""One version's download on one host, as a pure state machine.

Every missing piece that somebody here wants is in exactly one place:

    asked for     the scheduler knows that it is wanted, and will assign it, or has named whom to follow for it
    planned       the scheduler named a parent for it, no transfer has it yet
    due           to be taken from the origin by this host, no transfer has it yet
    flying        one transfer is fetching it

A seed's *duty* (pieces the scheduler told it to bring from the origin for others) lives in `due` and `flying` too,
wanted by nobody here. No two transfers ever fetch one piece: both would write the same bytes of the same file, and a
faulty one could damage what the other had verified.

What is only asked for, and a followed parent has announced, flies as soon as that parent has not too much else to send
here (`peer.core.following`); the scheduler has no part in that, and is told in its own good time.

With a scheduler the machine follows assignments. When it has left the download without a landed piece for
PATIENCE_SECONDS, the download is *alone* and takes what it wants from the origin itself. The same holds without a
scheduler as long as some followed parent can be heard; else the download is alone GRACE_SECONDS after the scheduler
went away.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from p2p.control import (
    ORIGIN,
    Assignment,
    Failed,
    FailureReason,
    Following,
    Lagging,
    Landed,
    Progress,
    Source,
    Unwant,
    Want,
)
from p2p.pieces import Bitmap, PieceLayout, Span, one_piece
from p2p.urgency import BRIEF_BYTES, LOWEST_PRIORITY, Urgency
from p2p.versions import Version
from peer.core.bits import bitmap_of, bits_of, bits_of_bitmap, spans_of_bits
from peer.core.flights import Flight
from peer.core.following import Followings
from peer.core.messages import (
    Assigned,
    Command,
    Disinterest,
    Event,
    Followed,
    GiveUp,
    Interest,
    OriginOverloaded,
    ParentHas,
    ParentLost,
    PieceLanded,
    PiecesLost,
    SchedulerDown,
    SchedulerUp,
    Stop,
    Tell,
    Tick,
    TransferEnded,
)
from peer.core.pace import Paces
from peer.core.plans import Plans
from peer.core.readers import Readers, Sources
from peer.core.transfers import Transfers

GRACE_SECONDS = 3.0
"""How long a download that a scheduler has planned waits for it, or another, to come back: a restart takes less,
together with the second at the most between two attempts to reach it. The peers would otherwise all go to the origin
for the same pieces."""

PATIENCE_SECONDS = 30.0
"""How long a download bears without a landed piece what its scheduler plans, before it goes to the origin itself."""

_SHUNNED = frozenset({FailureReason.UNREACHABLE, FailureReason.STALLED, FailureReason.BUSY})


class DownloadCore:
    """The state machine; `apply` is the only way in, commands the only way out.

    Without a scheduler from the start, `scheduler_lost_at` says when there was one last. `seed` hosts keep bringing
    what they were assigned from the origin when their own readers leave. Cost per event: O(pieces / 64) machine words
    plus the pieces the event names.
    """

    def __init__(
        self,
        version: Version,
        layout: PieceLayout,
        landed: Bitmap,
        *,
        scheduler: bool,
        scheduler_lost_at: float = -inf,
        seed: bool = False,
        paces: Paces | None = None,
    ) -> None:
        self.version = version
        self.layout = layout
        self.landed = landed.copy()
        self.alone = False
        self._scheduler = scheduler
        self._seed = seed
        self._lacking = bits_of(layout.everything()) & ~bits_of_bitmap(landed)
        self._wanted = 0
        """What some reader waits for, of what is lacking."""
        self._readers = Readers()
        self._sources = Sources()
        self._told_priority: int | None = None
        """What the scheduler was told of how urgent this is; None where it plans nothing."""
        self._others_priority = LOWEST_PRIORITY
        self._plans = Plans()
        self._followings = Followings(layout.count)
        paces = paces or Paces()
        self._transfers = Transfers(layout, self._readers, self._sources, self._plans, self._followings, paces)
        self._flights = self._transfers.flights
        self._last_landing = 0.0
        self._alone_at = scheduler_lost_at + GRACE_SECONDS

    @property
    def wanted(self) -> Bitmap:
        """The pieces some reader waits for that have not landed."""
        return bitmap_of(self._wanted, self.layout.count)

    @property
    def urgency(self) -> Urgency:
        """How urgent this is to this host's readers, and to those of other hosts that it fetches for."""
        brief = self.layout.length <= BRIEF_BYTES or self._readers.want_little(self.layout.piece_length)
        return Urgency(max(self._readers.priority, self._others_priority), brief)

    @property
    def idle(self) -> bool:
        """Whether nothing is wanted, due or under way: the download may be forgotten."""
        return not (self._wanted or self._flights or self._plans.due or self._plans.planned)

    @property
    def awaited(self) -> bool:
        """Whether some transfer is one whose end the scheduler waits for: none that came of following a parent."""
        return self._flights.from_parents > 0 or self._flights.from_origin > 0

    def apply(self, event: Event, *, now: float) -> list[Command]:
        """Take an event at `now` (monotonic seconds) and return what is to be done, in order."""
        commands: list[Command] = []
        # The first three come for each piece of a followed parent: what they cannot have changed is not looked at.
        match event:
            case ParentHas():
                if (parent := self._followings.heard(event.parent_id, event.spans)) is not None:
                    self._transfers.pull(parent, self._wanted, now, commands)
                return commands
            case PieceLanded():
                if self._piece_landed(event, now, commands).followed:
                    return commands
            case TransferEnded():
                flight = self._transfer_ended(event, now, commands)
                if flight.followed and not flight.remaining:
                    self._transfers.pull_after(flight, self._wanted, now, commands)
                    return commands
            case PiecesLost(spans):
                self._pieces_lost(spans, now, commands)
            case Interest():
                self._interest(event, now, commands)
            case Disinterest(reader):
                self._disinterest((reader,), now, commands)
            case Assigned(assignment):
                self._assigned(assignment, now, commands)
            case Followed(following):
                self._followed(following, now, commands)
            case ParentLost():
                self._parent_lost(event, now, commands)
            case SchedulerUp():
                self._scheduler_up(now, commands)
            case SchedulerDown():
                self._scheduler, self._alone_at = False, now + GRACE_SECONDS
            case OriginOverloaded():
                self._transfers.pace.refused()
            case Stop():
                self._stop(now, commands)
            case Tick():
                self._lose_patience(now)
                lagging = self._followings.review(now, commands)
                if lagging and self._scheduler:
                    commands.append(Tell(Lagging(self.version.id, lagging)))
        self._lose_patience(now)
        self._take_what_nobody_plans()
        self._hand_back_what_has_no_source(commands)
        self._transfers.start(self._wanted, self._lacking, now, commands)
        self._despair(now, commands)
        return commands

    def next_deadline(self) -> float | None:
        """Return when a Tick is due (monotonic seconds), or None."""
        followings = self._followings
        if not self._wanted or (self._flights and not followings.troubled and (self._scheduler or followings.live)):
            # What is under way has deadlines of its own.
            return None
        deadline = min(self._followings.deadline(), self._patient_until())
        return deadline if deadline < inf else None

    def check_invariants(self) -> None:
        """Raise AssertionError unless every piece is where the module's header says."""
        lacking = bits_of(self.layout.everything()) & ~bits_of_bitmap(self.landed)
        assert self._lacking == lacking, "miscounted what is lacking"
        self._readers.check_invariants()
        assert self._wanted == self._readers.pieces & lacking, "what readers want is miscounted"
        self._transfers.check_invariants(lacking)
        self._plans.check_invariants(lacking)
        if self.alone and self._sources.usable:
            hands = self._flights.pieces | self._plans.due | self._plans.planned
            assert not self._wanted & ~hands, "alone, and a wanted piece is in no hand"
        self._followings.check_invariants(self._wanted)
        assert self._wanted or not self._followings, "parents are followed for nothing"

    # Events

    def _interest(self, event: Interest, now: float, commands: list[Command]) -> None:
        known = self._wanted
        if not known:
            self._last_landing = now
        self._readers.come(event.reader, event.spans, event.priority)
        self._wanted = self._readers.pieces & self._lacking
        self._followings.wants(self._wanted, now)
        self._sources.bring(event.reader, event.source)
        self._ask(self._wanted & ~known & ~self._own_initiative(), commands)
        self._say_how_urgent(commands)

    def _disinterest(self, readers: Iterable[int], now: float, commands: list[Command]) -> None:
        before = self._wanted
        for reader in readers:
            self._readers.leave(reader)
            self._sources.leave(reader)
        wanted = self._wanted = self._readers.pieces & self._lacking
        if before == wanted:
            self._say_how_urgent(commands)
            return
        if self._scheduler:
            commands.append(Tell(Unwant(self.version.id)))
            self._told_priority = None
        # With that the scheduler has forgotten what it assigned, but for a seed's duty. What flies already goes on,
        # if it is wanted, on this host's own initiative; of the rest the scheduler is told anew.
        self._plans.clear_parts()
        if not self._seed:
            self._plans.clear_due()
        for transfer, flight in self._flights.items():
            if self._seed and flight.source is not None:
                continue
            flight.assigned = False
            if not flight.remaining & wanted:
                self._transfers.abort(transfer, commands)
        self._followings.known = False
        self._followings.wants(wanted, now)
        if not wanted:
            self._followings.leave(commands)
        self._ask(wanted & ~self._own_initiative(), commands)

    def _scheduler_up(self, now: float, commands: list[Command]) -> None:
        """Start afresh with a scheduler that knows nothing of this download: it was away, or is another one.

        Parents are followed on until it names others.
        """
        self._scheduler, self.alone, self._told_priority = True, False, None
        self._plans.clear_parts()
        self._plans.clear_due()
        self._followings.known = False
        for flight in self._flights.values():
            flight.assigned = False
        self._last_landing = now
        self._ask(self._wanted & ~self._own_initiative(), commands)

    def _assigned(self, assignment: Assignment, now: float, commands: list[Command]) -> None:
        self._heard_of_scheduler(now, commands)
        self._others_priority = assignment.priority
        if assignment.source is not None:
            self._sources.lend(assignment.source)
        self._transfers.assign(assignment, self._wanted, self._lacking, commands)

    def _followed(self, following: Following, now: float, commands: list[Command]) -> None:
        self._heard_of_scheduler(now, commands)
        if self._wanted:
            for parent_id in self._followings.follow(following, self._wanted, now, commands):
                self._transfers.abort_from(parent_id, commands)

    def _parent_lost(self, event: ParentLost, now: float, commands: list[Command]) -> None:
        parent = self._followings.lose(event.parent_id, now, commands)
        if parent is None:
            return
        self._alone_at = max(self._alone_at, min(now + GRACE_SECONDS, self._last_landing + PATIENCE_SECONDS))
        pieces = self._transfers.abort_from(event.parent_id, commands)
        self._report(pieces, event.parent_id, event.reason, event.detail, commands)
        if self._scheduler and parent.own & self._wanted:
            commands.append(Tell(Lagging(self.version.id, parent.stripes)))

    def _piece_landed(self, event: PieceLanded, now: float, commands: list[Command]) -> Flight:
        index = event.index
        bit = 1 << index
        flight = self._transfers.landed(event, bit, now)
        self.landed.add_piece(index)
        self._last_landing = now
        if self._lacking & bit:
            self._lacking ^= bit
        if self._wanted & bit:
            self._wanted ^= bit
        self._plans.landed(index, bit)
        if self._wanted:
            self._followings.landed(index, self._wanted, now)
        else:
            self._followings.leave(commands)
        if self._scheduler:
            digests = (event.digest,) if flight.source is not None else ()
            landed = Landed(one_piece(index), flight.parent_id, digests)
            commands.append(Tell(Progress(self.version.id, (landed,)), soon=not flight.followed))
        return flight

    def _pieces_lost(self, spans: tuple[Span, ...], now: float, commands: list[Command]) -> None:
        for span in spans:
            self.landed.discard(span)
        self._lacking |= bits_of(spans)
        known, self._wanted = self._wanted, self._readers.pieces & self._lacking
        if self._wanted != known:
            if not known:
                self._last_landing = now
            self._followings.wants(self._wanted, now)
            self._ask(self._wanted & ~known & ~self._own_initiative(), commands)

    def _transfer_ended(self, event: TransferEnded, now: float, commands: list[Command]) -> Flight:
        flight = self._transfers.end(event.transfer)
        if flight.remaining:
            told = flight.followed and flight.aborting
            if event.reason is None or (told and event.reason is not FailureReason.LOCAL):
                # What a named parent was to give is still promised, or was reported when that parent was lost.
                if not (flight.followed and flight.assigned):
                    self._ask_again(flight.remaining, commands)
            elif flight.source is None:
                self._parent_failed(event, event.reason, flight, now, commands)
            else:
                self._origin_failed(event, event.reason, flight, flight.source, now, commands)
        return flight

    def _parent_failed(
        self, event: TransferEnded, reason: FailureReason, flight: Flight, now: float, commands: list[Command]
    ) -> None:
        lost = flight.remaining
        if flight.followed:
            self._followings.failed(flight.parent_id, lost, reason, now)
        elif reason in _SHUNNED:
            # The rest that is planned from this parent would only wait for its own deadline, piece after piece.
            lost |= self._plans.forsake(flight.parent_id)
        self._report(lost, flight.parent_id, reason, event.detail, commands)
        if reason is FailureReason.LOCAL:
            self._give_up(event.transfer, event.detail, now, commands)
        elif not flight.assigned:
            self._ask_again(flight.remaining, commands)

    def _origin_failed(
        self,
        event: TransferEnded,
        reason: FailureReason,
        flight: Flight,
        source: Source,
        now: float,
        commands: list[Command],
    ) -> None:
        self._sources.failed(source, reason)
        plans = self._plans
        if self._sources.usable and reason is not FailureReason.LOCAL and self._sources.is_useless(source):
            # Another way to the same bytes is left: another reader's URL, or the one the scheduler lent.
            plans.due |= flight.remaining
            if flight.assigned:
                plans.assigned_due |= flight.remaining
            return
        lost = flight.remaining | plans.due
        ours = bool(lost & self._wanted)
        plans.clear_due()
        self._report(lost, ORIGIN, reason, event.detail, commands)
        if ours and (self._sources.is_own(source) or self.alone or reason is FailureReason.LOCAL):
            self._give_up(event.transfer, event.detail, now, commands)
        elif ours and not flight.assigned:
            self._ask_again(flight.remaining, commands)

    def _stop(self, now: float, commands: list[Command]) -> None:
        self._disinterest(self._readers, now, commands)
        self._plans.clear_parts()
        self._plans.clear_due()
        for transfer in self._flights:
            self._transfers.abort(transfer, commands)

    # Parts of several events

    def _own_initiative(self) -> int:
        """The pieces this host fetches without the scheduler's knowing: asking for them would fetch them twice."""
        return self._flights.unassigned() | self._plans.initiative

    def _ask(self, pieces: int, commands: list[Command]) -> None:
        if self._scheduler and pieces:
            self._told_priority = self._readers.priority
            spans = spans_of_bits(pieces)
            commands.append(Tell(Want(self.version, spans, self._sources.own(), priority=self._told_priority)))

    def _say_how_urgent(self, commands: list[Command]) -> None:
        """Tell the scheduler if another reader is the most urgent one now."""
        if self._scheduler and self._wanted and self._told_priority not in (None, self._readers.priority):
            self._told_priority = self._readers.priority
            commands.append(Tell(Want(self.version, (), None, priority=self._told_priority)))

    def _ask_again(self, pieces: int, commands: list[Command]) -> None:
        self._ask(pieces & self._wanted & ~self._plans.due & ~self._plans.planned, commands)

    def _report(self, lost: int, parent_id: str, reason: FailureReason, detail: str, commands: list[Command]) -> None:
        if self._scheduler and lost:
            failed = tuple(Failed(span, parent_id, reason, detail) for span in spans_of_bits(lost))
            commands.append(Tell(Progress(self.version.id, (), failed)))

    def _give_up(self, transfer: int | None, detail: str, now: float, commands: list[Command]) -> None:
        commands.append(GiveUp(transfer, detail))
        self._disinterest(self._readers, now, commands)

    def _heard_of_scheduler(self, now: float, commands: list[Command]) -> None:
        """Leave to a scheduler that plans again what this host meant to do on its own initiative, and has not begun."""
        if self.alone and self._scheduler:
            self.alone, self._last_landing = False, now
            initiative = self._plans.initiative
            self._plans.strike(initiative)
            self._ask(initiative & self._wanted, commands)

    def _patient_until(self) -> float:
        """Return when this download is alone, if nothing happens."""
        if self.alone or not self._wanted:
            return inf
        if not self._scheduler and not self._followings.live:
            return self._alone_at
        if self._flights:
            return inf
        patience = self._last_landing + PATIENCE_SECONDS
        return patience if self._scheduler else max(self._alone_at, patience)

    def _lose_patience(self, now: float) -> None:
        if now >= self._patient_until():
            self.alone = True

    def _take_what_nobody_plans(self) -> None:
        if self.alone and self._sources.usable:
            self._plans.due |= self._wanted & ~self._flights.pieces & ~self._plans.planned

    def _hand_back_what_has_no_source(self, commands: list[Command]) -> None:
        if self._plans.due and not self._sources.usable:
            reason = FailureReason.ORIGIN_REFUSED
            detail = "the request that brought the way to the origin is gone"
            self._report(self._plans.due, ORIGIN, reason, detail, commands)
            self._plans.clear_due()

    def _despair(self, now: float, commands: list[Command]) -> None:
        """Fail the readers that are left when the last way to the origin went with another reader."""
        if self.alone and self._wanted and not (self._flights or self._plans.planned or self._sources.usable):
            self._give_up(None, "no way to the origin is left", now, commands)
