"""Pieces that have a place to come from and no transfer yet: parts of assignments, and what is due from the origin."""

from __future__ import annotations

from dataclasses import dataclass, field

from p2p.control import ORIGIN, Part
from p2p.pieces import Span


@dataclass(slots=True)
class Plans:
    """What is planned, from which other host, and what is due from the origin; never both."""

    parts: dict[int, Part] = field(default_factory=dict)
    """By piece, a part of one piece each."""
    planned: int = 0
    """The pieces (bits) of `parts`."""
    due: int = 0
    """The pieces (bits) this host takes from the origin."""
    assigned_due: int = 0
    """Those of `due` that the scheduler assigned; the others are this host's own initiative."""

    @property
    def initiative(self) -> int:
        """What is due without the scheduler's knowing."""
        return self.due & ~self.assigned_due

    def add(self, index: int, part: Part) -> None:
        """Plan one piece of a part, in place of what was planned for it before."""
        bit = 1 << index
        if part.parent_id == ORIGIN:
            self.take(index)
            self.due |= bit
            self.assigned_due |= bit
            return
        self.strike(bit)
        digest = part.digests[index - part.span.start]
        self.parts[index] = Part(Span(index, index + 1), part.parent_id, part.parent_address, (digest,))
        self.planned |= bit

    def take(self, index: int) -> Part | None:
        """Remove one piece from the parts, and return what was planned for it."""
        part = self.parts.pop(index, None)
        if part is not None:
            self.planned &= ~(1 << index)
        return part

    def strike(self, bits: int) -> None:
        """Take pieces off what is due."""
        self.due &= ~bits
        self.assigned_due &= ~bits

    def landed(self, index: int, bit: int) -> None:
        """Forget a piece that is here."""
        if self.planned:
            self.take(index)
        if self.due:
            self.strike(bit)

    def forsake(self, parent_id: str) -> int:
        """Forget what is planned from one parent, and return those pieces (bits)."""
        before = self.planned
        for index in [index for index, part in self.parts.items() if part.parent_id == parent_id]:
            self.take(index)
        return before & ~self.planned

    def clear_parts(self) -> None:
        """Plan nothing from other hosts."""
        self.parts.clear()
        self.planned = 0

    def clear_due(self) -> None:
        """Take nothing from the origin."""
        self.due = self.assigned_due = 0

    def check_invariants(self, lacking: int) -> None:
        """Raise AssertionError unless every piece is in one place at the most, and is among those that are lacking."""
        planned = 0
        for index in self.parts:
            planned |= 1 << index
        assert planned == self.planned, "miscounted what is planned"
        assert not self.due & ~lacking, "a landed piece is due"
        assert not planned & ~lacking, "a landed piece is planned"
        assert not self.assigned_due & ~self.due, "assigned to the origin, yet not due"
        assert not planned & self.due, "a piece is planned and due"
