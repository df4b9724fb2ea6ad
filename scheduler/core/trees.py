"""The stripe trees of one swarm: who follows whom in which stripe.

Piece i belongs to stripe i modulo m. Each stripe spreads along a tree of its own, so that every host is *interior* (has
children) in one stripe and a leaf in the others: what a host sends equals what it receives, and no uplink idles (the
idea is that of SplitStream, Castro et al., SOSP 2003). The `root` stands for all seeds. A host that needs nothing more
of a stripe is the top of what follows it there. Nobody follows a host whose own chain does not end at such a top.

A host has slots for so many children in all. The sum of the free slots is that of the seeds, always: they are never
missing, though perhaps at a host that is interior elsewhere. A newcomer is given the place of a leaf near the top,
which follows the newcomer from then on; a slot of a host that is interior elsewhere is *lent*, until somebody
interior in the stripe has a free one. Where no slot is free at all a host has a child too many, and is relieved later.

Pure and deterministic. Each operation looks at a bounded number of hosts, and at their chains to the top.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice

from scheduler.core.forest import Forest
from scheduler.core.member import NOWHERE, Member

_LOOK = 32
"""So many hosts of a kind are compared at the most."""
_TRIES = 128
"""So many crowded hosts are asked for a place at the most, where no better one was found."""
_RELIEVED, _RELIEVING = 2, 4
"""So many crowded hosts are relieved at a time at the most, by so many of a kind that have slots."""
_MANY = 48
"""Where so many have new parents in one pass, the scheduler is what they wait for."""
_LATEST = 8
"""So many of those who came last to a depth are asked to give way before somebody is who knows its place."""
_DISPLACED_HAVE = 0.15
"""Who has more of the file than this part more than a newcomer never follows it: it would only wait."""
_DISPLACED_AT_ROOT = 0.05
"""The same below the root, which sends again to the newcomer what the displaced host has."""


class Trees(Forest):
    """All stripes' trees, and who is to have which place in them."""

    def want(self, host_id: str, zone: str, slots: int, needs: int) -> Member:
        """Let a host follow others in the stripes `needs` (bits), all it lacks now; it is taken in if it is new."""
        member = self.members.get(host_id) or self._enter(host_id, zone, slots)
        new = needs & ~member.needs
        for stripe in self._each(member.needs & ~needs):
            self._detach(member, stripe)
            self.homeless.pop((member, stripe), None)
        if needs and member.interior == NOWHERE:
            counts = self._interior[zone]
            member.interior = min(self._each(needs), key=lambda stripe: (counts[stripe], stripe))
            counts[member.interior] += self._counts(member)
            self._free_at(member, NOWHERE).pop(member, None)
        member.needs = needs
        self._tally(member)
        first = member.interior
        for stripe in sorted(self._each(new), key=lambda stripe: stripe != first):
            if stripe != first or not self._displace(member, stripe):
                self._place(member, stripe)
        self._fill(member)
        self._ease_root(member)
        return member

    def serve(self, host_id: str, zone: str, slots: int) -> Member:
        """Let others follow a host that needs nothing (any more)."""
        member = self.members.get(host_id) or self._enter(host_id, zone, slots)
        if member.interior != NOWHERE:
            self._interior[zone][member.interior] -= self._counts(member)
            self._free_at(member, member.interior).pop(member, None)
            member.interior = NOWHERE
        for stripe in range(self.stripes):
            self._detach(member, stripe)
            self.homeless.pop((member, stripe), None)
            for child in member.children[stripe]:
                self._lent[stripe].pop(child, None)
        member.needs = 0
        self._tally(member)
        self._fill(member)
        return member

    def leave(self, host_id: str) -> None:
        """Take a host out; its children are given other parents."""
        member = self.members.pop(host_id, None)
        if member is None:
            return
        if member.interior != NOWHERE:
            self._interior[member.zone][member.interior] -= self._counts(member)
        # First its own places become free, which may be the only way to the root.
        for stripe in range(self.stripes):
            self._detach(member, stripe)
            self.homeless.pop((member, stripe), None)
        orphans = [(stripe, child) for stripe in range(self.stripes) for child in member.children[stripe]]
        for stripe, child in orphans:
            self._detach(child, stripe)
        self._free_at(member, member.interior).pop(member, None)
        self.crowded.pop(member, None)
        self.changed.pop(member, None)
        self._zones[member.zone].remove(member)
        self._settle(orphans)

    def move(self, member: Member, stripe: int, *, fit: Callable[[Member], bool] | None = None) -> bool:
        """Give a host another parent in a stripe; with `fit` only one that fits and has a slot, never the root.

        Without `fit` the old parent is left in any case: the host may be without one afterwards.
        """
        if fit is not None:
            parent = self._best(member, stripe, fit=fit)
            if parent is None:
                return False
            self._attach(member, stripe, parent)
            return True
        self._detach(member, stripe)
        self._settle([(stripe, member)])
        return member.parents[stripe] is not None

    def spare(self, member: Member) -> None:
        """Take all children from a slow host, which has none from now on and takes no slot of its parents."""
        if member.slow:
            return
        if member.interior != NOWHERE:
            self._interior[member.zone][member.interior] -= self._counts(member)
        member.slow = True
        self._free_at(member, member.interior).pop(member, None)
        self.crowded.pop(member, None)
        for parent in member.parents:
            if parent is not None:
                self._tally(parent)
        orphans = [(stripe, child) for stripe in range(self.stripes) for child in member.children[stripe]]
        for stripe, child in orphans:
            self._detach(child, stripe)
        self._settle(orphans)
        for stripe in range(self.stripes):
            if member.parents[stripe] is self.root:
                self.move(member, stripe)

    def shelter(self) -> None:
        """Try again to find parents for those who have none in a stripe, and slots for those who are one too many."""
        for host in tuple(islice(self.crowded, _RELIEVED)):
            self._relieve(host)
        if self.homeless:
            waiting = tuple(islice(self.homeless, _LOOK))
            for member, stripe in waiting:
                del self.homeless[member, stripe]
            for member, stripe in waiting:
                self._place(member, stripe)

    def reseat(self, seats: int, zones: frozenset[str]) -> None:
        """Take note of how many seeds there are, and where; all that follow the root are named as changed."""
        self.seats, self.root_zones = seats, zones
        for kids in self.root.children:
            self.changed.update(dict.fromkeys(kids))
        if not seats:
            self._settle([(s, child) for s in range(self.stripes) for child in tuple(self._loosened(self.root, s))])

    def _settle(self, orphans: Iterable[tuple[int, Member]]) -> None:
        """Give each a parent, those with children of their own first: others may then follow below them."""
        for stripe, child in sorted(orphans, key=lambda orphan: -len(orphan[1].children[orphan[0]])):
            self._place(child, stripe)

    def _place(self, child: Member, stripe: int) -> None:
        """Give a host that has no parent in a stripe the best there is; if none, place its children apart from it."""
        loose = deque([child])
        while loose:
            child = loose.popleft()
            if child.parents[stripe] is not None or not child.needs >> stripe & 1:
                continue
            if child.host_id not in self.members:
                continue
            parent = self._best(child, stripe) or self._crowd(child, stripe) or self._abroad(child, stripe)
            if parent is not None:
                self._attach(child, stripe, parent)
            else:
                self.homeless[child, stripe] = None
                loose.extend(self._loosened(child, stripe))

    def _best(self, child: Member, stripe: int, *, fit: Callable[[Member], bool] | None = None) -> Member | None:
        """Return who has a free slot: first who needs nothing, then who is interior here, others, and the root."""
        zone, root = child.zone, self.root
        if parent := self._with_slot(child, stripe, zone, fit=fit):
            return parent
        if fit is None and self._near_root(zone) and self._root_open(stripe) and self._able(root, child, stripe):
            return root
        return None

    def _with_slot(
        self, child: Member, stripe: int, zone: str, *, fit: Callable[[Member], bool] | None = None
    ) -> Member | None:
        """Return who in a zone has a free slot: first who needs nothing, then who is interior here, then others."""
        for interior in (NOWHERE, stripe):
            if parent := self._shallowest(child, stripe, islice(self._free.get((zone, interior), ()), _LOOK), fit):
                return parent
        others = (
            member
            for interior in range(self.stripes)
            if interior != stripe
            for member in islice(self._free.get((zone, interior), ()), _LOOK)
        )
        return self._shallowest(child, stripe, others, fit)

    def _shallowest(
        self, child: Member, stripe: int, among: Iterable[Member], fit: Callable[[Member], bool] | None = None
    ) -> Member | None:
        best, key = None, (0, 0)
        for member in among:
            depth = self.depth(member, stripe, below=child)
            if depth == NOWHERE or not self._able(member, child, stripe) or not (fit is None or fit(member)):
                continue
            if best is None or (depth, member.used) < key:
                best, key = member, (depth, member.used)
        return best

    def _crowd(self, child: Member, stripe: int, zone: str | None = None) -> Member | None:
        """Return who may have one child too many, though no more than others: nobody of the child's zone has a slot."""
        ring = self._zones.get(child.zone if zone is None else zone)
        best, key, seen = None, (0, False, 0), 0
        for _ in range(min(len(ring), _TRIES) if ring else 0):
            assert ring is not None
            member = ring[0]
            ring.rotate(-1)
            if member.slow or not member.slots:
                continue
            depth = self.depth(member, stripe, below=child)
            if depth == NOWHERE or not self._able(member, child, stripe):
                continue
            rank = (member.used - member.slots, member.interior != stripe, depth)
            if best is None or rank < key:
                best, key = member, rank
            seen += 1
            if seen == _LOOK:
                break
        return best

    def _abroad(self, child: Member, stripe: int) -> Member | None:
        """Return a parent in another zone, for the first of its own zone.

        That takes a slot like any other child: if the link is thin, part of an uplink idles; if it is not, several
        such children of one host, each with all of its zone below it, would get no more than that host can send.
        """
        others = [zone for zone in self._zones if zone != child.zone]
        for zone in others:
            if parent := self._with_slot(child, stripe, zone):
                return parent
        for zone in others:
            if parent := self._crowd(child, stripe, zone):
                return parent
        root = self.root
        if (
            self.seats
            and (self._root_open(stripe) or not self._near_root(child.zone))
            and self._able(root, child, stripe)
        ):
            return root
        return None

    def _displace(self, member: Member, stripe: int) -> bool:
        """Let a newcomer take the place of a leaf near the top, which follows it then; False if there is a better."""
        if member.slow or not member.slots or member.children[stripe]:
            return False
        free = islice(self._free.get((member.zone, NOWHERE), ()), _LOOK)
        if self._shallowest(member, stripe, free) is not None:
            return False
        leaf = self._leaf(member, stripe)
        if leaf is None:
            return False
        above = leaf.parents[stripe]
        assert above is not None
        own = islice(self._free.get((member.zone, stripe), ()), _LOOK)
        other = self._shallowest(member, stripe, own)
        if other is not None and self.depth(other, stripe) <= self.depth(above, stripe):
            return False
        if not self._able(above, member, stripe) or not self._able(member, leaf, stripe):
            return False
        self._detach(leaf, stripe)
        self._attach(member, stripe, above)
        self._attach(leaf, stripe, member)
        return True

    def _leaf(self, member: Member, stripe: int) -> Member | None:
        """Return the leaf nearest to the top which is not far ahead.

        Where many come at once it is one that is hardly deeper and is to be told its parents anyway: to tell all who
        are displaced takes as long as to tell the newcomers.
        """
        leaves = self._leaves.get((member.zone, stripe))
        while leaves is not None and (nearest := leaves.first()) is not None:
            leaf, depth = nearest
            now = self.depth(leaf, stripe) if self._gives_way(leaf, stripe) else None
            if now == depth:
                if leaf not in self.changed and len(self.changed) >= _MANY:
                    for deeper in (depth, depth + 1):
                        for other in leaves.last(deeper, _LATEST):
                            untold = other in self.changed and other is not member and self._gives_way(other, stripe)
                            if untold and self.depth(other, stripe) == deeper:
                                return other
                return leaf if leaf is not member else None
            leaves.drop_first()
            if now is not None:
                leaves.add(leaf, now)
        return None

    def _gives_way(self, leaf: Member, stripe: int) -> bool:
        """Tell whether a host may be displaced: a leaf that is not far ahead."""
        parent = leaf.parents[stripe]
        if parent is None or leaf.interior == stripe or leaf.slow:
            return False
        return leaf.have <= (_DISPLACED_AT_ROOT if parent is self.root else _DISPLACED_HAVE)

    def _fill(self, member: Member) -> None:
        """Give a host with free slots children that are on lent slots, or one too many, elsewhere."""
        if member.slow or not member.slots:
            return
        if member.interior != NOWHERE:
            for child in tuple(islice(self._lent[member.interior], _LOOK)):
                self._take(member, child, member.interior)
        for host in tuple(islice(self.crowded, _LOOK)):
            if member.used >= member.slots:
                return
            if host is not member and host.zone == member.zone:
                self._take_from(member, host)

    def _relieve(self, host: Member) -> None:
        """Give a child of a host that has too many to somebody with a free slot, if there is anybody."""
        for interior in (host.interior, NOWHERE, *(s for s in range(self.stripes) if s != host.interior)):
            for member in tuple(islice(self._free.get((host.zone, interior), ()), _RELIEVING)):
                self._take_from(member, host)
                if host not in self.crowded:
                    return
        # Others get their turn.
        del self.crowded[host]
        self.crowded[host] = None

    def _take_from(self, member: Member, host: Member) -> None:
        """Let a host have children of another that has too many, those without children first, as far as both may."""
        for stripe in sorted(range(self.stripes), key=lambda stripe: stripe != member.interior):
            for child in sorted(host.children[stripe], key=lambda child: len(child.children[stripe])):
                if host in self.crowded and not child.slow:
                    self._take(member, child, stripe)

    def _ease_root(self, member: Member) -> None:
        """Let a host near the seeds stand between them and others of far zones, who came before any such host."""
        if not self._near_root(member.zone) or member.slow or not member.slots:
            return
        for stripe in range(self.stripes):
            for child in self.root.children[stripe]:
                if (
                    not self._near_root(child.zone)
                    and child.have <= _DISPLACED_AT_ROOT
                    and self.depth(member, stripe, below=child) != NOWHERE
                    and self._able(member, child, stripe)
                ):
                    self._attach(child, stripe, member)

    def _take(self, member: Member, child: Member, stripe: int) -> None:
        host = child.parents[stripe]
        assert host is not None
        if (
            member.used < member.slots
            and child is not member
            and member.zone in (child.zone, host.zone)
            and host is not member
            and child.have - member.have <= _DISPLACED_HAVE
            and self.depth(member, stripe, below=child) != NOWHERE
            and self._able(member, child, stripe)
        ):
            self._attach(child, stripe, member)
