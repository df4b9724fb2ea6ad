"""The stripe trees of one swarm as they stand, and the tallies that say who has room: for `trees`, which decides.

Pure and deterministic.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

from scheduler.core.member import NOWHERE, Member


class Leaves:
    """Who may be displaced in one zone and stripe, by depth, which may have grown wrong since."""

    __slots__ = ("_by_depth",)

    def __init__(self) -> None:
        self._by_depth: dict[int, list[Member]] = {}

    def add(self, member: Member, depth: int) -> None:
        """Take somebody in, behind all who are at the same depth."""
        self._by_depth.setdefault(depth, []).append(member)

    def first(self) -> tuple[Member, int] | None:
        """Return who is nearest to the top, and how near, or None if nobody is left."""
        if not self._by_depth:
            return None
        depth = min(self._by_depth)
        return self._by_depth[depth][0], depth

    def last(self, depth: int, count: int) -> Iterator[Member]:
        """Yield at most `count` of those who came last to a depth, the latest first."""
        return islice(reversed(self._by_depth.get(depth, ())), count)

    def drop_first(self) -> None:
        """Forget who is nearest to the top."""
        depth = min(self._by_depth)
        at_depth = self._by_depth[depth]
        # Short lists take a fraction of the memory of what has a fast front.
        del at_depth[0]
        if not at_depth:
            del self._by_depth[depth]


class Forest:
    """All stripes' trees. `able(parent, child, stripe)` tells whether a host has, or will have, what another lacks."""

    def __init__(self, stripes: int, able: Callable[[Member, Member, int], bool]) -> None:
        self.stripes = stripes
        self.root = Member("", "", 0, stripes)
        self.seats = 0
        """How many children a stripe the root may have: one a seed."""
        self.root_zones: frozenset[str] = frozenset()
        """The zones that the seeds are in; one without a name is near to all."""
        self.members: dict[str, Member] = {}
        self.changed: dict[Member, None] = {}
        """Whose parents are others than when this was last emptied."""
        self.homeless: dict[tuple[Member, int], None] = {}
        """Who needs a stripe and found no parent in it."""
        self.crowded: dict[Member, None] = {}
        """Who has more children than slots."""
        self._able = able
        self._free: dict[tuple[str, int], dict[Member, None]] = {}
        """Who has a free slot, by zone and interior stripe; NOWHERE: who needs nothing."""
        self._lent: list[dict[Member, None]] = [{} for _ in range(stripes)]
        """The children, by stripe, that have a slot of a host which is interior elsewhere."""
        self._leaves: dict[tuple[str, int], Leaves] = {}
        """Who may be displaced, by zone and stripe."""
        self._zones: dict[str, deque[Member]] = {}
        """Everybody, by zone, in an order that goes round."""
        self._interior: dict[str, list[int]] = {}
        """How many hosts are interior in each stripe, by zone: those that are not slow and need something."""

    def depth(self, member: Member, stripe: int, *, below: Member | None = None) -> int:
        """Return how many steps it is to the top; NOWHERE if there is none, or if the way is through `below`."""
        bit, steps = 1 << stripe, 0
        at = member
        while at is not below:
            if not at.needs & bit:
                return steps
            parent = at.parents[stripe]
            if parent is None:
                return NOWHERE
            at = parent
            steps += 1
        return NOWHERE

    def _each(self, bits: int) -> Iterator[int]:
        return (stripe for stripe in range(self.stripes) if bits >> stripe & 1)

    def _enter(self, host_id: str, zone: str, slots: int) -> Member:
        member = self.members[host_id] = Member(host_id, zone, min(slots, self.stripes), self.stripes)
        self._zones.setdefault(zone, deque()).append(member)
        self._interior.setdefault(zone, [0] * self.stripes)
        return member

    @staticmethod
    def _counts(member: Member) -> bool:
        """Tell whether a host counts among those that are interior in its stripe."""
        return member.slots > 0 and not member.slow

    def _free_at(self, member: Member, interior: int) -> dict[Member, None]:
        return self._free.setdefault((member.zone, interior), {})

    def _tally(self, member: Member) -> None:
        """Note anew whether a host has slots left, or too many children."""
        if member is self.root or member.host_id not in self.members:
            return
        left = 0 if member.slow else member.slots - member.used
        free = self._free_at(member, member.interior)
        if left > 0:
            free[member] = None
        else:
            free.pop(member, None)
        if left < 0:
            self.crowded[member] = None
        else:
            self.crowded.pop(member, None)

    def _near_root(self, zone: str) -> bool:
        return not zone or "" in self.root_zones or zone in self.root_zones

    def _root_open(self, stripe: int) -> bool:
        taken = sum(not child.slow and self._near_root(child.zone) for child in self.root.children[stripe])
        return taken < self.seats

    def _attach(self, child: Member, stripe: int, parent: Member) -> None:
        old = child.parents[stripe]
        if old is parent:
            return
        if old is not None:
            self._detach(child, stripe)
        child.join(parent, stripe)
        self._tally(parent)
        if parent is not self.root and stripe != parent.interior != NOWHERE:
            self._lent[stripe][child] = None
        if child.interior != stripe:
            self._leaves.setdefault((child.zone, stripe), Leaves()).add(child, self.depth(child, stripe))
        self.homeless.pop((child, stripe), None)
        self.changed[child] = None

    def _detach(self, child: Member, stripe: int) -> None:
        parent = child.quit(stripe)
        if parent is None:
            return
        self._lent[stripe].pop(child, None)
        self._tally(parent)
        self.changed[child] = None

    def _loosened(self, parent: Member, stripe: int) -> Iterator[Member]:
        for child in parent.children[stripe]:
            self._detach(child, stripe)
            yield child
