"""What a download has under way, and by which ways it can go to the origin. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from p2p.control import FailureReason, Source
from p2p.pieces import Bitmap, Span

_SOURCE_IS_USELESS = frozenset({FailureReason.ORIGIN_REFUSED, FailureReason.VERSION_CHANGED})


@dataclass(slots=True)
class Flight:
    """One transfer: from the origin if it has a `source`. Without `assigned` the scheduler does not know of it."""

    span: Span
    parent_id: str
    source: Source | None
    remaining: set[int]
    assigned: bool
    aborting: bool = False


class Flights(dict[int, Flight]):
    """The transfers under way, by number, of a version of `count` pieces."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count
        self._next_transfer = 1

    def take_off(self, span: Span, parent_id: str, source: Source | None, *, assigned: bool) -> int:
        """Add a transfer of `span` and return its number."""
        transfer, self._next_transfer = self._next_transfer, self._next_transfer + 1
        self[transfer] = Flight(span, parent_id, source, set(span), assigned)
        return transfer

    @property
    def from_origin(self) -> int:
        """How many transfers are from the origin."""
        return sum(flight.source is not None for flight in self.values())

    @property
    def from_parents(self) -> int:
        """How many transfers are from other hosts."""
        return len(self) - self.from_origin

    def pieces(self) -> Bitmap:
        """Return the pieces that are being fetched."""
        return self._of(tuple(self.values()))

    def unassigned(self) -> Bitmap:
        """Return the pieces that are being fetched without the scheduler's knowing."""
        return self._of([flight for flight in self.values() if not flight.assigned and not flight.aborting])

    def _of(self, flights: tuple[Flight, ...] | list[Flight]) -> Bitmap:
        return Bitmap(self._count, (Span(index, index + 1) for flight in flights for index in flight.remaining))


class Sources:
    """The ways to the origin: those that readers brought, and those that the scheduler lent."""

    def __init__(self) -> None:
        self._own: dict[int, Source] = {}
        self._lent: list[Source] = []
        self._useless: set[Source] = set()

    def bring(self, reader: int, source: Source) -> None:
        """Add a reader's, who has just proved that it may read the version."""
        self._own[reader] = source
        self._useless.discard(source)

    def leave(self, reader: int) -> None:
        """Forget a reader's."""
        self._own.pop(reader, None)

    def lend(self, source: Source) -> None:
        """Add one that the scheduler lent."""
        self._useless.discard(source)
        if source not in self._lent:
            self._lent.append(source)

    def failed(self, source: Source, reason: FailureReason) -> None:
        """Take note that a transfer failed; what is lent gets no second chance."""
        if reason in _SOURCE_IS_USELESS or source in self._lent:
            self._useless.add(source)

    def is_useless(self, source: Source) -> bool:
        """Tell whether this one has failed for good."""
        return source in self._useless

    def is_own(self, source: Source) -> bool:
        """Tell whether a reader brought it."""
        return source in self._own.values()

    def usable(self) -> list[Source]:
        """Return those that may work, the readers' first."""
        return [source for source in (*self._own.values(), *self._lent) if source not in self._useless]

    def own(self) -> Source | None:
        """Return a reader's that may work."""
        return next((own for own in self._own.values() if own not in self._useless), None)
