"""One host in the stripe trees of a swarm: what it needs, whom it follows and who follows it.

There is one for each host and version, so it is kept small: hosts have few children, and most have them in one stripe.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeVar

_T = TypeVar("_T")

NOWHERE = -1
"""No stripe, or no way to a top."""


class Member:
    """One host in the trees, or the root."""

    __slots__ = (
        "children",
        "follows",
        "had",
        "have",
        "host_id",
        "interior",
        "needs",
        "parents",
        "since",
        "slots",
        "slow",
        "zone",
    )

    def __init__(self, host_id: str, zone: str, slots: int, stripes: int) -> None:
        self.host_id = host_id
        self.zone = zone
        self.slots = slots
        self.needs = 0
        """The stripes of which it lacks something, as bits."""
        self.follows = 0
        """The stripes in which it has a parent, as bits."""
        self.interior = NOWHERE
        """The stripe in which it is to have its children."""
        self.have = 0.0
        """How much of the file it has, 0 to 1, as far as is known."""
        self.had, self.since = 0.0, 0.0
        """How much it had when it was taken in, and when that was."""
        self.slow = False
        """Whether it is too slow to have children; it then takes no slot of its parents."""
        self.parents = _no_parents(stripes)
        """By stripe."""
        self.children = _no_children(stripes)
        """By stripe, in the order in which they came."""

    @property
    def used(self) -> int:
        """How many slots its children take: none for those that are slow."""
        return sum([not child.slow for kids in self.children for child in kids])

    def join(self, parent: Member, stripe: int) -> None:
        """Follow `parent` in a stripe in which this host follows nobody."""
        self.parents = _replaced(self.parents, stripe, parent)
        self.follows |= 1 << stripe
        parent.children = _replaced(parent.children, stripe, (*parent.children[stripe], self))

    def quit(self, stripe: int) -> Member | None:
        """Follow nobody in a stripe any more; return who was followed there."""
        parent = self.parents[stripe]
        if parent is not None:
            self.parents = _replaced(self.parents, stripe, None)
            self.follows &= ~(1 << stripe)
            left = tuple([child for child in parent.children[stripe] if child is not self])
            parent.children = _replaced(parent.children, stripe, left)
        return parent

    def __repr__(self) -> str:
        return f"Member({self.host_id!r})"


@lru_cache
def _no_parents(stripes: int) -> tuple[Member | None, ...]:
    return (None,) * stripes


@lru_cache
def _no_children(stripes: int) -> tuple[tuple[Member, ...], ...]:
    return ((),) * stripes


def _replaced(values: tuple[_T, ...], index: int, value: _T) -> tuple[_T, ...]:
    return (*values[:index], value, *values[index + 1 :])
