"""Whom a download follows, what they have announced, and which stripes lag. Pure.

Each stripe of the pieces (piece i is of stripe i modulo their number) has a parent, named by the scheduler, that
announces what lands there. What it has announced is asked for, piece by piece, as many transfers at a time from each
parent as it is followed in stripes; a request never waits for a piece, so no two hosts can wait for each other.

While all is well a parent is heard only in the stripes it is followed in: every host hears of each piece once. As soon
as a stripe lags or a parent is lost every parent but the seeds is heard in all stripes, for WIDE_SECONDS after the last
trouble, and one that has nothing of its own stripes gives what other parents ought to have given. A seed sends each
piece down its tree once: what it gave beyond that, it would have to send twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import inf

from p2p.control import FailureReason, Following
from p2p.pieces import Span
from peer.core.bits import bits_of, lowest
from peer.core.messages import Command, Unwatch, Watch

LAG_PIECES = 32
"""By how many pieces of the object a stripe is behind the foremost one when it lags."""

LAG_SECONDS = 0.3
"""How long it is so before that counts: pieces come in bursts."""

REPORT_LAG_SECONDS, LONGEST_REPORT_LAG_SECONDS = 0.5, 4.0
"""How often lagging stripes are reported at the most: half as often after each report, as long as some stripe lags. In
a swarm of thousands most of what lags lags because somebody up the tree came late, which no scheduler can mend."""

WIDE_SECONDS = 5.0
"""For how long after the last trouble parents are heard in all stripes."""

REWATCH_SECONDS = 1.0
"""After what time a parent that was lost is tried again, unless the scheduler has named another."""

BUSY_SECONDS, FAULTY_SECONDS = 0.25, 2.0
"""How long a parent is left in peace that had no time, or did not deliver."""

_NEEDS_REST = frozenset({FailureReason.BUSY, FailureReason.UNREACHABLE, FailureReason.STALLED})


@dataclass(slots=True)
class FollowedParent:
    """One parent: `own` are the pieces (bits) of the stripes it is followed in; a `seed` gives no others.

    `announced` is what may be asked of it, and `refused` what it offered with faults. It is `lost` since that
    time if it cannot be heard, and asked for nothing before `rests_until`.
    """

    parent_id: str
    address: str
    stripes: tuple[int, ...]
    own: int
    seed: bool = False
    announced: int = 0
    refused: int = 0
    lost: float | None = None
    rests_until: float = -inf


class Followings(dict[str, FollowedParent]):
    """The parents a download of `count` pieces follows, by id; watched from the time they are named."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.known = False
        """Whether the scheduler knows that these are followed."""
        self.live = False
        """Whether some parent can be heard."""
        self._everything = _everything(count)
        self._of = 0
        self._stripes: tuple[int, ...] = ()
        """The pieces of each stripe."""
        self._followed: tuple[int, ...] = ()
        self._fronts: list[int] = []
        """By stripe the lowest piece that is wanted, or `_end`."""
        self._end = 0
        self._ahead = 0
        self._behind_since: dict[int, float] = {}
        self._reported = -inf
        self._report_pause = REPORT_LAG_SECONDS
        self._wide_until: float | None = None
        self.troubled = False
        """Whether anything waits for a time: else there is no deadline, and nothing to review."""

    def follow(self, following: Following, wanted: int, now: float, commands: list[Command]) -> list[str]:
        """Follow these parents instead of those before, and return whom not any more."""
        self.known = True
        named = {parent.parent_id: parent for parent in following.parents if parent.stripes and following.stripes}
        if following.stripes != self._of:
            self._cut(following.stripes)
            self.wants(wanted, now)
        gone = [parent_id for parent_id in self if parent_id not in named]
        for parent_id in gone:
            del self[parent_id]
            commands.append(Unwatch(parent_id))
        for parent_id, parent in named.items():
            stripes = tuple(sorted({stripe % self._of for stripe in parent.stripes}))
            own = self._stripes[stripes[0]]
            for stripe in stripes[1:]:
                own |= self._stripes[stripe]
            known = self.get(parent_id)
            if known is not None and known.address == parent.address and known.lost is None:
                before = self._heard_in(known)
                known.stripes, known.own, known.seed = stripes, own, parent.seed
                if self._heard_in(known) != before:
                    self._watch(known, commands)
                continue
            self[parent_id] = FollowedParent(parent_id, parent.address, stripes, own, parent.seed)
            self._watch(self[parent_id], commands)
        self._followed = tuple(sorted({stripe for parent in self.values() for stripe in parent.stripes}))
        self._compare(now)
        return gone

    def leave(self, commands: list[Command]) -> None:
        """Follow nobody any more."""
        commands += [Unwatch(parent_id) for parent_id in self]
        self.clear()
        self.known = False
        self._cut(0)
        self._followed, self._fronts, self._wide_until = (), [], None
        self._behind_since.clear()
        self._take_stock()

    def wants(self, wanted: int, now: float) -> None:
        """Take note that other pieces are wanted now; stripes that lack nothing are no measure for others."""
        self._end = wanted.bit_length()
        self._fronts = [lowest(rest) if (rest := wanted & stripe) else self._end for stripe in self._stripes]
        self._ahead = max((front for front in self._fronts if front < self._end), default=0)
        self._compare(now)

    def heard(self, parent_id: str, spans: tuple[Span, ...]) -> FollowedParent | None:
        """Take note of an announcement; None if this parent is not heard."""
        parent = self.get(parent_id)
        if parent is None or parent.lost is not None:
            return None
        announced = bits_of(spans) & self._everything
        if parent.refused:
            announced &= ~parent.refused
        parent.announced |= announced
        return parent

    def lose(self, parent_id: str, now: float, commands: list[Command]) -> FollowedParent | None:
        """Take note that a parent cannot be heard; None if that is no news."""
        parent = self.get(parent_id)
        if parent is None or parent.lost is not None:
            return None
        parent.lost, parent.announced = now, 0
        self._reported = now
        self._listen_wide(now, commands)
        return parent

    def failed(self, parent_id: str, pieces: int, reason: FailureReason, now: float) -> None:
        """Take note that a parent did not bring these pieces: ask it for others, or for nothing for a time."""
        parent = self.get(parent_id)
        if parent is None:
            return
        if reason in _NEEDS_REST:
            parent.rests_until = now + (BUSY_SECONDS if reason is FailureReason.BUSY else FAULTY_SECONDS)
            self.troubled = True
            return
        parent.announced &= ~pieces
        if reason is not FailureReason.MISSING:
            parent.refused |= pieces

    def landed(self, index: int, wanted: int, now: float) -> None:
        """Take note that a piece has landed; `wanted` is what is left."""
        if not self._of:
            return
        stripe, fronts = index % self._of, self._fronts
        if fronts[stripe] != index:
            return
        rest = wanted & self._stripes[stripe]
        front = fronts[stripe] = (rest & -rest).bit_length() - 1 if rest else self._end
        if front > self._ahead:
            self._ahead = front
        if self._behind_since or self._ahead - min(fronts) > LAG_PIECES:
            self._compare(now)

    def choice(self, parent: FollowedParent, wanted: int) -> int:
        """Return what to ask a parent for, of what is wanted and in nobody's hands: some of these pieces, or none.

        Own stripes go first. Of the others, only what lies behind the foremost stripe: the rest comes by itself.
        """
        announced = parent.announced & wanted
        if own := announced & parent.own:
            return own
        if not announced or parent.seed:
            return 0
        fronts = [lowest(rest) for stripe in self._stripes if (rest := wanted & stripe)]
        return announced & ((1 << max(fronts)) - 1)

    def deadline(self) -> float:
        """Return when `review` has something to do; infinity if nothing is amiss."""
        if not self.troubled:
            return inf
        times = [parent.lost + REWATCH_SECONDS for parent in self.values() if parent.lost is not None]
        times += [parent.rests_until for parent in self.values()]
        if self._wide_until is not None:
            times.append(self._wide_until)
        if self._behind_since:
            times.append(max(min(self._behind_since.values()) + LAG_SECONDS, self._reported + self._report_pause))
        return min((time for time in times if time > -inf), default=inf)

    def review(self, now: float, commands: list[Command]) -> tuple[int, ...]:
        """Do what is due by now, and return the stripes that lag and are to be reported."""
        if not self.troubled:
            return ()
        for parent in self.values():
            if parent.rests_until <= now:
                parent.rests_until = -inf
            if parent.lost is not None and parent.lost + REWATCH_SECONDS <= now:
                parent.lost = None
                self._watch(parent, commands)
        if self._wide_until is not None and self._wide_until <= now:
            self._wide_until = None
            self._watch_again(commands)
        lagging: tuple[int, ...] = ()
        if self._reported + self._report_pause <= now:
            since = self._behind_since.items()
            lagging = tuple(sorted(stripe for stripe, began in since if began + LAG_SECONDS <= now))
            if lagging:
                self._reported = now
                self._report_pause = min(2 * self._report_pause, LONGEST_REPORT_LAG_SECONDS)
                self._listen_wide(now, commands)
        self._take_stock()
        return lagging

    def check_invariants(self, wanted: int) -> None:
        """Raise AssertionError unless what is derived from the parents and from what is wanted is so."""
        assert self.live == any(parent.lost is None for parent in self.values()), "miscounted who can be heard"
        for parent in self.values():
            assert not parent.announced & parent.refused, "a spoilt piece may be asked for again"
            assert parent.lost is None or not parent.announced, "a lost parent has something to offer"
            own = sum(self._stripes[stripe] for stripe in parent.stripes)
            assert parent.own == own, "a parent's own pieces are not those of its stripes"
        for stripe, front in zip(self._stripes, self._fronts, strict=True):
            rest = wanted & stripe
            assert front == (lowest(rest) if rest else self._end), "a stripe's front is elsewhere"
        assert set(self._behind_since) <= set(self._followed), "a stripe lags that nobody is followed in"

    def _cut(self, stripes: int) -> None:
        """Number the pieces of so many stripes."""
        self._of = stripes
        self._stripes = _stripes(self._everything.bit_length(), stripes)

    def _heard_in(self, parent: FollowedParent) -> tuple[int, ...]:
        """Return the stripes in which a parent is to be heard now."""
        return parent.stripes if self._wide_until is None or parent.seed else tuple(range(self._of))

    def _watch(self, parent: FollowedParent, commands: list[Command]) -> None:
        commands.append(Watch(parent.parent_id, parent.address, self._heard_in(parent), self._of))

    def _watch_again(self, commands: list[Command]) -> None:
        """Hear parents in more stripes than before, or in fewer."""
        for parent in self.values():
            if parent.lost is None and not parent.seed:
                self._watch(parent, commands)

    def _listen_wide(self, now: float, commands: list[Command]) -> None:
        narrow, self._wide_until = self._wide_until is None, now + WIDE_SECONDS
        if narrow:
            self._watch_again(commands)
        self._take_stock()

    def _compare(self, now: float) -> None:
        self._behind_since = {
            stripe: self._behind_since.get(stripe, now)
            for stripe in self._followed
            if self._ahead - self._fronts[stripe] > LAG_PIECES
        }
        if not self._behind_since:
            self._report_pause = REPORT_LAG_SECONDS
        self._take_stock()

    def _take_stock(self) -> None:
        self.live = any(parent.lost is None for parent in self.values())
        self.troubled = (
            self._wide_until is not None
            or bool(self._behind_since)
            or any(parent.lost is not None or parent.rests_until > -inf for parent in self.values())
        )


# The same for all downloads of as many pieces, so that a thousand of them share what would not fit into a CPU's cache.


@lru_cache(maxsize=64)
def _everything(count: int) -> int:
    """Return all of `count` pieces."""
    return (1 << count) - 1


@lru_cache(maxsize=64)
def _stripes(count: int, stripes: int) -> tuple[int, ...]:
    """Return the pieces of each stripe of `count` pieces."""
    comb = sum(1 << index for index in range(0, count, stripes)) if stripes else 0
    return tuple(comb << stripe & _everything(count) for stripe in range(stripes))
