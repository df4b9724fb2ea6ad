"""Who waits for which pieces of a download here, and by which ways it can go to the origin. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from p2p.control import FailureReason, Source
from p2p.pieces import Span
from p2p.urgency import BRIEF_BYTES, LOWEST_PRIORITY
from peer.core.bits import bits_of, lowest

_SOURCE_IS_USELESS = frozenset({FailureReason.ORIGIN_REFUSED, FailureReason.VERSION_CHANGED})

_URGENT_READERS = 16
"""Among how many readers, those of the fewest pieces, the most urgent one is looked for."""


class Readers:
    """The pieces that each reader waits for, or waited for.

    A client that asks for a range is stopped until that range is here, while one that reads the whole object has other
    pieces to go on with: the fewer pieces a reader asked for, the sooner it gets them.
    """

    def __init__(self) -> None:
        self._bits: dict[int, int] = {}
        self._priorities: dict[int, int] = {}
        self._urgent: tuple[int, ...] = ()
        self.pieces = 0
        """All pieces that some reader asked for."""

    def __iter__(self) -> Iterator[int]:
        return iter(tuple(self._bits))

    @property
    def priority(self) -> int:
        """The priority of the most urgent reader; the lowest there is if there is none."""
        return max(self._priorities.values(), default=LOWEST_PRIORITY)

    def want_little(self, piece_length: int) -> bool:
        """Tell whether all readers together asked for what is brief, in pieces of that length."""
        return 0 < self.pieces.bit_count() <= max(1, BRIEF_BYTES // piece_length)

    def come(self, reader: int, spans: tuple[Span, ...], priority: int) -> None:
        """Add a reader."""
        self._bits[reader] = bits_of(spans)
        self._priorities[reader] = priority
        self._count()

    def leave(self, reader: int) -> None:
        """Forget a reader, if it is there."""
        self._bits.pop(reader, None)
        self._priorities.pop(reader, None)
        self._count()

    def first(self, candidates: int) -> int:
        """Return the piece to fetch first among some, at least one: the lowest that the most urgent reader wants."""
        for bits in self._urgent:
            if urgent := candidates & bits:
                return lowest(urgent)
        return lowest(candidates)

    def check_invariants(self) -> None:
        """Raise AssertionError unless the union is that of the readers' pieces."""
        union = 0
        for bits in self._bits.values():
            union |= bits
        assert self.pieces == union, "what readers want is miscounted"

    def _count(self) -> None:
        distinct = sorted(set(self._bits.values()), key=int.bit_count)
        self.pieces = 0
        for bits in distinct:
            self.pieces |= bits
        # Who wants all that anybody wants is served in order anyway.
        self._urgent = tuple(bits for bits in distinct[:_URGENT_READERS] if bits != self.pieces)


class Sources:
    """The ways to the origin: those that readers brought, and those that the scheduler lent."""

    def __init__(self) -> None:
        self._own: dict[int, Source] = {}
        self._lent: list[Source] = []
        self._useless: set[Source] = set()
        self.usable: tuple[Source, ...] = ()
        """Those that may work, the readers' first."""

    def bring(self, reader: int, source: Source) -> None:
        """Add a reader's, who has just proved that it may read the version."""
        self._own[reader] = source
        self._useless.discard(source)
        self._sort_out()

    def leave(self, reader: int) -> None:
        """Forget a reader's."""
        self._own.pop(reader, None)
        self._sort_out()

    def lend(self, source: Source) -> None:
        """Add one that the scheduler lent."""
        self._useless.discard(source)
        if source not in self._lent:
            self._lent.append(source)
        self._sort_out()

    def failed(self, source: Source, reason: FailureReason) -> None:
        """Take note that a transfer failed; what is lent gets no second chance."""
        if reason in _SOURCE_IS_USELESS or source in self._lent:
            self._useless.add(source)
            self._sort_out()

    def is_useless(self, source: Source) -> bool:
        """Tell whether this one has failed for good."""
        return source in self._useless

    def is_own(self, source: Source) -> bool:
        """Tell whether a reader brought it."""
        return source in self._own.values()

    def own(self) -> Source | None:
        """Return a reader's that may work."""
        return next((own for own in self._own.values() if own not in self._useless), None)

    def _sort_out(self) -> None:
        self.usable = tuple(
            source for source in (*self._own.values(), *self._lent) if not self._useless or source not in self._useless
        )
