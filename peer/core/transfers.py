"""Which piece a download fetches next, from where, as places for transfers come free. Pure."""

from __future__ import annotations

from p2p.control import ORIGIN, Assignment, Source
from p2p.pieces import MIB, PieceLayout, Span, one_piece
from peer.core.bits import bits_of, lowest
from peer.core.flights import Flight, Flights
from peer.core.following import FollowedParent, Followings
from peer.core.messages import AbortTransfer, Command, PieceLanded, StartTransfer
from peer.core.pace import OriginPace, Paces
from peer.core.plans import Plans
from peer.core.readers import Readers, Sources

PARENT_BYTES = 16 * MIB
"""How much one part asks a parent for at the most: its first byte is never far."""

PARENT_TRANSFERS = 4
"""Concurrent transfers of parts from other hosts, all parents of one download together."""

FOLLOWED_TRANSFERS = 16
"""Concurrent transfers from followed parents, of which each gives as many as there are stripes it is followed in."""


class Transfers:
    """Starts and ends transfers, by the plans and by what followed parents have announced; knows what is `flying`."""

    def __init__(
        self,
        layout: PieceLayout,
        readers: Readers,
        sources: Sources,
        plans: Plans,
        followings: Followings,
        paces: Paces,
    ) -> None:
        self.flights = Flights()
        self.pace = OriginPace()
        self._layout = layout
        self._readers = readers
        self._sources = sources
        self._plans = plans
        self._followings = followings
        self._paces = paces
        self._origin: str | None = None
        """Where `pace` is learnt; None as long as nothing has been asked of an origin."""

    def assign(self, assignment: Assignment, wanted: int, lacking: int, commands: list[Command]) -> None:
        """Plan the parts of an assignment, and end what fetches their pieces from elsewhere."""
        for part in assignment.parts:
            useful = lacking if part.parent_id == ORIGIN else wanted
            for index in part.span:
                if useful >> index & 1 and self._gives_way(index, part.parent_id, commands):
                    self._plans.add(index, part)

    def start(self, wanted: int, lacking: int, now: float, commands: list[Command]) -> None:
        """Start whatever may start; `wanted` and `lacking` are what readers wait for and what has not landed."""
        plans, flights = self._plans, self.flights
        while flights.from_parents < PARENT_TRANSFERS and (ready := plans.planned & ~flights.pieces):
            self._start_parent(self._readers.first(ready), commands)
        if plans.due and self._origin is None:
            self._origin = self._sources.usable[0].origin
            self.pace.limit = self._paces.recall(self._origin)
        while flights.from_origin < self.pace.limit and (ready := plans.due & ~flights.pieces):
            first = self._readers.first(ready)
            # What a seed fetches for others is assigned piecemeal: for all it knows, all that is missing will be.
            missing = (wanted if wanted >> first & 1 else lacking) & ~flights.pieces
            self._start_origin(first, missing, self._sources.usable[0], now, commands)
        for parent in self._followings.values():
            self.pull(parent, wanted, now, commands)

    def pull(self, parent: FollowedParent, wanted: int, now: float, commands: list[Command]) -> None:
        """Ask a followed parent for the next pieces, as many as it has and may be sending at a time."""
        flights, plans, followings = self.flights, self._plans, self._followings
        offered = parent.announced & wanted
        if not offered:
            return
        parent_id = parent.parent_id
        free = min(len(parent.stripes) - flights.followed.get(parent_id, 0), FOLLOWED_TRANSFERS - flights.from_followed)
        if free <= 0 or now < parent.rests_until:
            return
        while free > 0 and offered & ~flights.pieces:
            ready = followings.choice(parent, wanted & ~(flights.pieces | plans.planned | plans.due))
            if not ready:
                return
            span = one_piece(self._readers.first(ready))
            assigned = followings.known and bool(ready & parent.own)
            transfer = flights.take_off(span, parent_id, None, assigned=assigned, followed=True)
            commands.append(StartTransfer(transfer, span, parent_id, parent.address))
            free -= 1

    def pull_after(self, flight: Flight, wanted: int, now: float, commands: list[Command]) -> None:
        """Ask for the next piece after a followed parent's transfer, which is over."""
        flights, followings = self.flights, self._followings
        if flights.from_followed < FOLLOWED_TRANSFERS - 1:
            # No other parent waited for this transfer's end.
            parent = followings.get(flight.parent_id)
            if parent is not None:
                self.pull(parent, wanted, now, commands)
            return
        # The place goes to who sends least: a few parents in all stripes must not keep all others idle.
        for parent in sorted(followings.values(), key=lambda each: flights.followed.get(each.parent_id, 0)):
            self.pull(parent, wanted, now, commands)

    def landed(self, event: PieceLanded, bit: int, now: float) -> Flight:
        """Take note that a piece has landed, and return the flight that brought it."""
        flight = self.flights[event.transfer]
        self.flights.landed(flight, bit)
        if flight.source is not None:
            self.pace.landed(self._layout.size(event.index), now)
        return flight

    def end(self, transfer: int) -> Flight:
        """Take note that a transfer is over, and return what was known of it."""
        flight = self.flights.end(transfer)
        if self._origin is not None and not self.flights.from_origin:
            self.pace.idle()
            self._paces.learn(self._origin, self.pace)
        return flight

    def abort(self, transfer: int, commands: list[Command]) -> None:
        """Have a transfer end, unless it is ending."""
        flight = self.flights[transfer]
        if not flight.aborting:
            flight.aborting = True
            commands.append(AbortTransfer(transfer))

    def abort_from(self, parent_id: str, commands: list[Command]) -> int:
        """End all that comes from a followed parent, and return the pieces (bits) that it has not brought."""
        pieces = 0
        if parent_id in self.flights.followed:
            for transfer, flight in self.flights.items():
                if flight.followed and flight.parent_id == parent_id:
                    self.abort(transfer, commands)
                    pieces |= flight.remaining
        return pieces

    def check_invariants(self, lacking: int) -> None:
        """Raise AssertionError if there are too many transfers, or one fetches what is here."""
        flights, followings = self.flights, self._followings
        flights.check_invariants()
        assert not flights.pieces & ~lacking, "a landed piece is being overwritten"
        assert flights.from_origin <= self.pace.highest, "too many requests at the origin"
        assert flights.from_parents <= PARENT_TRANSFERS, "too many transfers from parents"
        assert flights.from_followed <= FOLLOWED_TRANSFERS, "too many transfers from followed parents"
        for flight in flights.values():
            elsewhere = self._plans.due | self._plans.planned
            assert flight.aborting or not flight.remaining & elsewhere, (
                "a piece flies, and is to come from elsewhere too"
            )
            assert not flight.followed or flight.aborting or not flight.remaining or flight.parent_id in followings, (
                "a parent that is not followed any more is asked for pieces"
            )

    def _gives_way(self, index: int, parent_id: str, commands: list[Command]) -> bool:
        """Tell whether a piece may be planned from this parent: what flies from another ends, if that was assigned."""
        if not self.flights.pieces >> index & 1:
            return True
        for transfer, flight in self.flights.items():
            if flight.remaining >> index & 1 and not flight.aborting:
                if flight.parent_id == parent_id or not flight.assigned:
                    return False
                self.abort(transfer, commands)
        return True

    def _start_parent(self, first: int, commands: list[Command]) -> None:
        plans = self._plans
        part = plans.parts[first]
        same = 0
        for index in range(first, min(first + PARENT_BYTES // self._layout.piece_length + 1, self._layout.count)):
            other = plans.parts.get(index)
            if other is None or other.parent_id != part.parent_id or other.parent_address != part.parent_address:
                break
            same |= 1 << index
        span = self._run(first, same, PARENT_BYTES)
        digests = tuple(taken.digests[0] for index in span if (taken := plans.take(index)) is not None)
        transfer = self.flights.take_off(span, part.parent_id, None, assigned=True)
        commands.append(StartTransfer(transfer, span, part.parent_id, part.parent_address, digests))

    def _start_origin(self, first: int, missing: int, source: Source, now: float, commands: list[Command]) -> None:
        plans = self._plans
        assigned = bool(plans.assigned_due >> first & 1)
        candidates = plans.assigned_due if assigned else plans.initiative
        span = self._run(first, candidates, self.pace.request_bytes(missing.bit_count() * self._layout.piece_length))
        plans.strike(bits_of((span,)))
        self.pace.began(now)
        transfer = self.flights.take_off(span, ORIGIN, source, assigned=assigned)
        commands.append(StartTransfer(transfer, span, ORIGIN, source=source))

    def _run(self, first: int, candidates: int, most_bytes: int) -> Span:
        """Return as many consecutive candidates from `first` on as one transfer of so many bytes may take."""
        rest = (candidates & ~self.flights.pieces) >> first
        run = lowest(~rest)
        return Span(first, first + min(run, max(1, most_bytes // self._layout.piece_length)))
