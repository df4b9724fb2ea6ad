"""Transfers between simulated hosts, and streams on which parents announce what they hold."""

from __future__ import annotations

from functools import lru_cache
from math import inf
from typing import TYPE_CHECKING

from bench.sim.network import Flow, Network
from p2p.pieces import Bitmap
from peer.core.messages import StartTransfer, Watch

if TYPE_CHECKING:
    from bench.sim.host import SimulatedHost
    from bench.sim.origin import SimulatedOrigin


class Transfer(Flow):
    """One transfer under way, and the flow of its pieces; `delay` (seconds) is one way between the two hosts."""

    __slots__ = ("child", "command", "delay", "flowing", "over", "parent", "sender")

    sender: SimulatedHost | SimulatedOrigin
    """Who is told of each piece that has left, once they flow."""

    def __init__(self, child: SimulatedHost, command: StartTransfer, delay: float) -> None:
        # What a flow has besides is set when it begins: there are millions of these.
        self.next = 0
        self.rate = 0.0
        self.due = inf
        self.child = child
        self.command = command
        self.delay = delay
        self.parent: SimulatedHost | None = None
        """Who serves it, as long as that takes one of its upload slots."""
        self.flowing = False
        self.over = False
        """Whether the child will hear, or has heard, that it is over."""

    def arrived(self, position: int) -> None:
        """Let the sender note it."""
        self.sender.sent(self, position)

    def cut(self, network: Network) -> None:
        """Send no more of it, and free what it occupies."""
        self.over = True
        if self.flowing:
            network.stop(self)
            self.flowing = False
        self.release()

    def release(self) -> None:
        """Give the upload slot back."""
        if self.parent is not None:
            del self.parent.uploads[self]
            self.parent = None


class Watching:
    """A child's open request for what a parent announces of some stripes; messages on it keep their order."""

    __slots__ = ("child", "of", "over", "parent", "stripes", "through")

    def __init__(self, child: SimulatedHost, parent: SimulatedHost, command: Watch) -> None:
        self.child = child
        self.parent = parent
        self.stripes = _set(command.stripes)
        self.of = command.of
        self.over = False
        self.through = 0.0
        """When the latest message arrives."""

    def pieces(self, count: int) -> Bitmap:
        """Return all pieces of these stripes of a version of `count`; not to be changed, as others get the same."""
        return _pieces(self.stripes, self.of, count)


@lru_cache(maxsize=256)
def _set(stripes: tuple[int, ...]) -> frozenset[int]:
    return frozenset(stripes)


@lru_cache(maxsize=64)
def _pieces(stripes: frozenset[int], of: int, count: int) -> Bitmap:
    chosen = Bitmap(count)
    for stripe in stripes:
        for index in range(stripe, count, of):
            chosen.add_piece(index)
    return chosen
