"""One version's download on one host, as a pure state machine.

Every missing piece that somebody here wants is in exactly one place:

    asked for     the scheduler knows that it is wanted, and will assign it
    planned       the scheduler named a parent for it, no transfer has it yet
    due           to be taken from the origin by this host, no transfer has it yet
    flying        one transfer is fetching it

A seed's *duty* (pieces the scheduler told it to bring from the origin for others) lives in `due` and `flying` too,
wanted by nobody here. No two transfers ever fetch one piece: both would write the same bytes of the same file, and a
faulty one could damage what the other had verified.

With a scheduler the machine follows assignments. Without one, GRACE_SECONDS after it went away, or when it leaves the
download without a landed piece for PATIENCE_SECONDS, the download is *alone* and takes what it wants from the origin
itself.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from math import inf

from p2p.control import ORIGIN, Assignment, Failed, FailureReason, Landed, Part, Progress, Source, Unwant, Want
from p2p.pieces import MIB, Bitmap, PieceLayout, Span, spans_of
from p2p.versions import Version
from peer.core.flights import Flight, Flights, Sources
from peer.core.messages import (
    AbortTransfer,
    Assigned,
    Command,
    Disinterest,
    Event,
    GiveUp,
    Interest,
    OriginOverloaded,
    PieceLanded,
    SchedulerDown,
    SchedulerUp,
    StartTransfer,
    Stop,
    Tell,
    Tick,
    TransferEnded,
)
from peer.core.pace import OriginPace, Paces

PARENT_BYTES = 16 * MIB
"""How much one request asks a parent for at the most: its first byte is never far."""

PARENT_TRANSFERS = 4
"""Concurrent transfers from other hosts, all parents of one download together."""

GRACE_SECONDS = 2.0
"""How long a download that a scheduler has planned waits for it, or another, to come back: a restart takes less, and
the peers would otherwise all go to the origin for the same pieces."""

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
        self.pace = OriginPace()
        self._paces = paces or Paces()
        self._origin: str | None = None
        """Where `pace` is learnt; None as long as nothing has been asked of an origin."""
        self.alone = False
        self._scheduler = scheduler
        self._seed = seed
        self._everything = Bitmap(layout.count, layout.everything())
        self._readers: dict[int, Bitmap] = {}
        self._readers_pieces = Bitmap(layout.count)
        """The union of `_readers`, kept because every event asks for it several times."""
        self._sources = Sources()
        self._planned: dict[int, Part] = {}
        self._due = Bitmap(layout.count)
        self._assigned_due = Bitmap(layout.count)
        self._flights = Flights(layout.count)
        self._last_landing = 0.0
        self._alone_at = scheduler_lost_at + GRACE_SECONDS

    @property
    def wanted(self) -> Bitmap:
        """The pieces some reader waits for that have not landed."""
        return self._readers_pieces - self.landed

    @property
    def idle(self) -> bool:
        """Whether nothing is wanted, due or under way: the download may be forgotten."""
        return not (self._flights or self._due or self._planned or self.wanted)

    def apply(self, event: Event, *, now: float) -> list[Command]:
        """Take an event at `now` (monotonic seconds) and return what is to be done, in order."""
        commands: list[Command] = []
        match event:
            case Interest():
                self._interest(event, now, commands)
            case Disinterest(reader):
                self._disinterest({reader}, commands)
            case Assigned(assignment):
                self._assigned(assignment, now, commands)
            case SchedulerUp():
                self._scheduler_up(now, commands)
            case SchedulerDown():
                self._scheduler, self._alone_at = False, now + GRACE_SECONDS
            case PieceLanded():
                self._piece_landed(event, now, commands)
            case OriginOverloaded():
                self.pace.refused()
            case TransferEnded():
                self._transfer_ended(event, commands)
            case Stop():
                self._stop(commands)
            case Tick():
                pass
        self._lose_patience(now)
        self._take_what_nobody_plans()
        self._hand_back_what_has_no_source(commands)
        self._start(now, commands)
        self._despair(commands)
        return commands

    def next_deadline(self) -> float | None:
        """Return when a Tick is due (monotonic seconds), or None."""
        if self.alone or not self.wanted:
            return None
        if not self._scheduler:
            return self._alone_at
        return None if self._flights else self._last_landing + PATIENCE_SECONDS

    def check_invariants(self) -> None:
        """Raise AssertionError unless every piece is where the module's header says."""
        pieces = {index for bitmap in self._readers.values() for index in bitmap}
        assert set(self._readers_pieces) == pieces, "what readers want is miscounted"
        flying: set[int] = set()
        for flight in self._flights.values():
            assert flying.isdisjoint(flight.remaining), "a piece flies twice"
            assert flight.remaining <= set(flight.span), "a transfer fetches what it was not asked for"
            flying |= flight.remaining
        assert not any(index in self.landed for index in flying), "a landed piece is being overwritten"
        assert not self._due & self.landed, "a landed piece is due"
        assert not any(index in self.landed for index in self._planned), "a landed piece is planned"
        assert not self._assigned_due - self._due, "assigned to the origin, yet not due"
        assert not any(index in self._due for index in self._planned), "a piece is planned and due"
        if self.alone and self._sources.usable():
            hands = flying | set(self._due) | set(self._planned)
            assert set(self.wanted) <= hands, "alone, and a wanted piece is in no hand"
        assert self._flights.from_origin <= self.pace.highest, "too many requests at the origin"
        assert self._flights.from_parents <= PARENT_TRANSFERS, "too many transfers from parents"

    # Events

    def _interest(self, event: Interest, now: float, commands: list[Command]) -> None:
        known = self.wanted
        if not known:
            self._last_landing = now
        self._readers[event.reader] = Bitmap(self.layout.count, event.spans)
        self._readers_pieces |= self._readers[event.reader]
        self._sources.bring(event.reader, event.source)
        self._ask(self.wanted - known - self._own_initiative(), commands)

    def _disinterest(self, readers: Iterable[int], commands: list[Command]) -> None:
        before = self.wanted
        for reader in readers:
            self._readers.pop(reader, None)
            self._sources.leave(reader)
        self._readers_pieces = Bitmap(self.layout.count)
        for bitmap in self._readers.values():
            self._readers_pieces |= bitmap
        wanted = self.wanted
        if before == wanted:
            return
        if self._scheduler:
            commands.append(Tell(Unwant(self.version.id)))
        # With that the scheduler has forgotten what it assigned, but for a seed's duty. What flies already goes on,
        # if it is wanted, on this host's own initiative; of the rest the scheduler is told anew.
        self._planned.clear()
        if not self._seed:
            self._due.clear()
            self._assigned_due.clear()
        for transfer, flight in self._flights.items():
            if self._seed and flight.source is not None:
                continue
            flight.assigned = False
            if not any(index in wanted for index in flight.remaining):
                self._abort(transfer, flight, commands)
        self._ask(wanted - self._own_initiative(), commands)

    def _scheduler_up(self, now: float, commands: list[Command]) -> None:
        """Start afresh with a scheduler that knows nothing of this download: it was away, or is another one."""
        self._scheduler, self.alone = True, False
        self._planned.clear()
        self._due.clear()
        self._assigned_due.clear()
        for flight in self._flights.values():
            flight.assigned = False
        self._last_landing = now
        self._ask(self.wanted - self._own_initiative(), commands)

    def _assigned(self, assignment: Assignment, now: float, commands: list[Command]) -> None:
        if self.alone and self._scheduler:
            # It plans again: what this host meant to take on its own initiative, and has not begun, is its business.
            self.alone, self._last_landing = False, now
            initiative = self._due - self._assigned_due
            self._due -= initiative
            self._ask(initiative & self.wanted, commands)
        if assignment.source is not None:
            self._sources.lend(assignment.source)
        wanted = self.wanted
        for part in assignment.parts:
            for index in part.span:
                if index not in self.landed and (part.parent_id == ORIGIN or index in wanted):
                    self._plan(index, part, commands)

    def _plan(self, index: int, part: Part, commands: list[Command]) -> None:
        for transfer, flight in self._flights.items():
            if index in flight.remaining and not flight.aborting:
                if flight.parent_id == part.parent_id or not flight.assigned:
                    return
                self._abort(transfer, flight, commands)
        if part.parent_id == ORIGIN:
            self._planned.pop(index, None)
            self._due.add_piece(index)
            self._assigned_due.add_piece(index)
            return
        self._due.discard_piece(index)
        self._assigned_due.discard_piece(index)
        digest = part.digests[index - part.span.start]
        self._planned[index] = Part(Span(index, index + 1), part.parent_id, part.parent_address, (digest,))

    def _piece_landed(self, event: PieceLanded, now: float, commands: list[Command]) -> None:
        self.landed.add_piece(event.index)
        self._last_landing = now
        self._planned.pop(event.index, None)
        self._due.discard_piece(event.index)
        self._assigned_due.discard_piece(event.index)
        flight = self._flights[event.transfer]
        flight.remaining.discard(event.index)
        if flight.source is not None:
            self.pace.landed(self.layout.size(event.index), now)
        if self._scheduler:
            digests = (event.digest,) if flight.source is not None else ()
            landed = Landed(Span(event.index, event.index + 1), flight.parent_id, digests)
            commands.append(Tell(Progress(self.version.id, (landed,))))

    def _transfer_ended(self, event: TransferEnded, commands: list[Command]) -> None:
        flight = self._flights.pop(event.transfer)
        if self._origin is not None and not self._flights.from_origin:
            self.pace.idle()
            self._paces.learn(self._origin, self.pace)
        unfinished = Bitmap(self.layout.count, spans_of(sorted(flight.remaining)))
        if not unfinished:
            return
        if event.reason is None:
            self._ask_again(unfinished, commands)
        elif flight.source is None:
            self._parent_failed(event, event.reason, flight, unfinished, commands)
        else:
            self._origin_failed(event, event.reason, flight, flight.source, unfinished, commands)

    def _parent_failed(
        self, event: TransferEnded, reason: FailureReason, flight: Flight, unfinished: Bitmap, commands: list[Command]
    ) -> None:
        lost = unfinished.copy()
        if reason in _SHUNNED:
            # The rest that is planned from this parent would only wait for its own deadline, piece after piece.
            for index in [index for index, part in self._planned.items() if part.parent_id == flight.parent_id]:
                del self._planned[index]
                lost.add_piece(index)
        self._report([Failed(span, flight.parent_id, reason, event.detail) for span in lost.spans()], commands)
        if reason is FailureReason.LOCAL:
            self._give_up(event.transfer, event.detail, commands)
        elif not flight.assigned:
            self._ask_again(unfinished, commands)

    def _origin_failed(
        self,
        event: TransferEnded,
        reason: FailureReason,
        flight: Flight,
        source: Source,
        unfinished: Bitmap,
        commands: list[Command],
    ) -> None:
        self._sources.failed(source, reason)
        if self._sources.usable() and reason is not FailureReason.LOCAL and self._sources.is_useless(source):
            # Another way to the same bytes is left: another reader's URL, or the one the scheduler lent.
            self._due |= unfinished
            if flight.assigned:
                self._assigned_due |= unfinished
            return
        lost = unfinished | self._due
        ours = bool(lost & self.wanted)
        self._due.clear()
        self._assigned_due.clear()
        self._report([Failed(span, ORIGIN, reason, event.detail) for span in lost.spans()], commands)
        if ours and (self._sources.is_own(source) or self.alone or reason is FailureReason.LOCAL):
            self._give_up(event.transfer, event.detail, commands)
        elif ours and not flight.assigned:
            self._ask_again(unfinished, commands)

    def _stop(self, commands: list[Command]) -> None:
        self._disinterest(tuple(self._readers), commands)
        self._planned.clear()
        self._due.clear()
        self._assigned_due.clear()
        for transfer, flight in self._flights.items():
            self._abort(transfer, flight, commands)

    # Parts of several events

    def _own_initiative(self) -> Bitmap:
        """The pieces this host fetches without the scheduler's knowing: asking for them would fetch them twice."""
        return self._flights.unassigned() | (self._due - self._assigned_due)

    def _ask(self, pieces: Bitmap, commands: list[Command]) -> None:
        if self._scheduler and pieces:
            commands.append(Tell(Want(self.version, pieces.spans(), self._sources.own())))

    def _ask_again(self, pieces: Bitmap, commands: list[Command]) -> None:
        planned = Bitmap(self.layout.count, spans_of(sorted(self._planned)))
        self._ask((pieces & self.wanted) - self._due - planned, commands)

    def _report(self, failed: Iterable[Failed], commands: list[Command]) -> None:
        if self._scheduler and (failed := tuple(failed)):
            commands.append(Tell(Progress(self.version.id, (), failed)))

    def _give_up(self, transfer: int | None, detail: str, commands: list[Command]) -> None:
        commands.append(GiveUp(transfer, detail))
        self._disinterest(tuple(self._readers), commands)

    @staticmethod
    def _abort(transfer: int, flight: Flight, commands: list[Command]) -> None:
        if not flight.aborting:
            flight.aborting = True
            commands.append(AbortTransfer(transfer))

    def _lose_patience(self, now: float) -> None:
        deadline = self.next_deadline()
        if deadline is not None and now >= deadline:
            self.alone = True

    def _take_what_nobody_plans(self) -> None:
        if self.alone and self._sources.usable():
            planned = Bitmap(self.layout.count, spans_of(sorted(self._planned)))
            self._due |= self.wanted - self._flights.pieces() - planned

    def _hand_back_what_has_no_source(self, commands: list[Command]) -> None:
        if self._due and not self._sources.usable():
            reason = FailureReason.ORIGIN_REFUSED
            detail = "the request that brought the way to the origin is gone"
            self._report([Failed(span, ORIGIN, reason, detail) for span in self._due.spans()], commands)
            self._due.clear()
            self._assigned_due.clear()

    def _despair(self, commands: list[Command]) -> None:
        """Fail the readers that are left when the last way to the origin went with another reader."""
        if self.alone and not self._flights and not self._planned and not self._sources.usable() and self.wanted:
            self._give_up(None, "no way to the origin is left", commands)

    def _start(self, now: float, commands: list[Command]) -> None:
        flying = self._flights.pieces()
        while self._flights.from_parents < PARENT_TRANSFERS:
            first = min((index for index in self._planned if index not in flying), default=None)
            if first is None:
                break
            self._start_parent(first, flying, commands)
        if self._due and self._origin is None:
            self._origin = self._sources.usable()[0].origin
            self.pace.limit = self._paces.recall(self._origin)
        while self._flights.from_origin < self.pace.limit:
            first = (self._due - flying).first()
            if first is None:
                break
            self._start_origin(first, flying, self._sources.usable()[0], now, commands)

    def _start_parent(self, first: int, flying: Bitmap, commands: list[Command]) -> None:
        part = self._planned[first]
        same = {
            index
            for index, other in self._planned.items()
            if (other.parent_id, other.parent_address) == (part.parent_id, part.parent_address)
        }
        span = self._run(first, same, flying, PARENT_BYTES)
        digests = tuple(self._planned.pop(index).digests[0] for index in span)
        transfer = self._flights.take_off(span, part.parent_id, None, assigned=True)
        flying.add(span)
        commands.append(StartTransfer(transfer, span, part.parent_id, part.parent_address, digests))

    def _start_origin(self, first: int, flying: Bitmap, source: Source, now: float, commands: list[Command]) -> None:
        assigned = first in self._assigned_due
        candidates = self._assigned_due if assigned else self._due - self._assigned_due
        # What a seed fetches for others is assigned piecemeal: for all it knows, everything that is missing will be.
        wanted = self.wanted
        missing = wanted - flying if first in wanted else self._everything - self.landed - flying
        span = self._run(first, candidates, flying, self.pace.request_bytes(len(missing) * self.layout.piece_length))
        self._due.discard(span)
        self._assigned_due.discard(span)
        self.pace.began(now)
        transfer = self._flights.take_off(span, ORIGIN, source, assigned=assigned)
        flying.add(span)
        commands.append(StartTransfer(transfer, span, ORIGIN, source=source))

    def _run(self, first: int, candidates: Container[int], flying: Bitmap, most_bytes: int) -> Span:
        """Return as many consecutive candidates from `first` on as one transfer of so many bytes may take."""
        most = max(1, most_bytes // self.layout.piece_length)
        stop = first + 1
        while stop - first < most and stop in candidates and stop not in flying:
            stop += 1
        return Span(first, stop)
