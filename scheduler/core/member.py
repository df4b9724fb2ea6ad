"""One host in the stripe trees of a swarm: what it needs, whom it follows and who follows it."""

from __future__ import annotations

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
        self.parents: list[Member | None] = [None] * stripes
        self.children: list[dict[Member, None]] = [{} for _ in range(stripes)]

    @property
    def used(self) -> int:
        """How many slots its children take: none for those that are slow."""
        return sum(not child.slow for kids in self.children for child in kids)

    def __repr__(self) -> str:
        return f"Member({self.host_id!r})"
