"""What a download has under way. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from p2p.control import Source
from p2p.pieces import Span
from peer.core.bits import bits_of, indices


@dataclass(slots=True)
class Flight:
    """One transfer: from the origin if it has a `source`. Without `assigned` the scheduler does not know of it.

    `remaining` are the pieces (bits) that have not landed. With `followed` the pieces come from a followed parent that
    announced them; else from a part of an assignment, or this host's own initiative.
    """

    span: Span
    parent_id: str
    source: Source | None
    remaining: int
    assigned: bool
    followed: bool
    aborting: bool = False


class Flights(dict[int, Flight]):
    """The transfers under way, by number; what every event asks for is counted as they come and go."""

    def __init__(self) -> None:
        super().__init__()
        self._next_transfer = 1
        self.pieces = 0
        """All pieces (bits) that are being fetched."""
        self.from_origin = 0
        """How many transfers are from the origin."""
        self.from_parents = 0
        """How many transfers are parts of assignments, from other hosts."""
        self.followed: dict[str, int] = {}
        """How many transfers are from each followed parent that has any."""
        self.from_followed = 0
        """How many transfers are from followed parents, all together."""

    def take_off(
        self, span: Span, parent_id: str, source: Source | None, *, assigned: bool, followed: bool = False
    ) -> int:
        """Add a transfer of `span` and return its number."""
        transfer = self._next_transfer
        self._next_transfer = transfer + 1
        remaining = ((1 << (span.stop - span.start)) - 1) << span.start
        self[transfer] = Flight(span, parent_id, source, remaining, assigned, followed)
        self.pieces |= remaining
        if followed:
            self.followed[parent_id] = self.followed.get(parent_id, 0) + 1
            self.from_followed += 1
        elif source is not None:
            self.from_origin += 1
        else:
            self.from_parents += 1
        return transfer

    def landed(self, flight: Flight, piece: int) -> None:
        """Take note that a piece (its bit) has landed, which this flight brought."""
        # Toggling a bit that is set costs less than masking it out: no negative number of the whole width is made.
        if flight.remaining & piece:
            flight.remaining ^= piece
            self.pieces ^= piece

    def end(self, transfer: int) -> Flight:
        """Remove a transfer and return what was known of it."""
        flight = self.pop(transfer)
        if flight.remaining:
            self.pieces &= ~flight.remaining
        if flight.followed:
            self.from_followed -= 1
            others = self.followed[flight.parent_id] - 1
            if others:
                self.followed[flight.parent_id] = others
            else:
                del self.followed[flight.parent_id]
        elif flight.source is not None:
            self.from_origin -= 1
        else:
            self.from_parents -= 1
        return flight

    def unassigned(self) -> int:
        """Return the pieces that are being fetched without the scheduler's knowing."""
        bits = 0
        for flight in self.values():
            if not flight.assigned and not flight.aborting:
                bits |= flight.remaining
        return bits

    def check_invariants(self) -> None:
        """Raise AssertionError unless no piece flies twice, and all that is counted is so."""
        flying = 0
        for flight in self.values():
            assert not flying & flight.remaining, "a piece flies twice"
            assert not flight.remaining & ~bits_of((flight.span,)), "a transfer fetches what it was not asked for"
            flying |= flight.remaining
        assert self.pieces == flying, f"miscounted what flies: {list(indices(self.pieces ^ flying))}"
        followed = Counter(flight.parent_id for flight in self.values() if flight.followed)
        from_origin = sum(flight.source is not None for flight in self.values())
        assert self.followed == followed, "miscounted what comes from each followed parent"
        assert self.from_followed == followed.total(), "miscounted what comes from followed parents"
        assert self.from_origin == from_origin, "miscounted what comes from the origin"
        assert self.from_parents == len(self) - from_origin - self.from_followed, "miscounted what comes in parts"
