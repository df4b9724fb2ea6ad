"""What a simulated host lends the real reports (`peer/download/reports.py`): virtual time, and what it holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.sim.clock import Clock
from p2p.pieces import Bitmap
from p2p.versions import Version


class VirtualTimer:
    """A call that is yet to be made; the clock takes none back, so it is ignored."""

    __slots__ = ("_callback",)

    def __init__(self, callback: Callable[[], object]) -> None:
        self._callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        """Let it not be made."""
        self._callback = None

    def fire(self) -> None:
        """Make it, unless it was cancelled."""
        if self._callback is not None:
            self._callback()


class VirtualTimers:
    """The timers of a clock of virtual time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def call_later(self, delay: float, callback: Callable[[], object]) -> VirtualTimer:
        """Call in `delay` seconds."""
        timer = VirtualTimer(callback)
        self._clock.after(delay, timer.fire)
        return timer


class SimulatedEntry:
    """What is on a simulated host of a version: the pieces in `landed`, and the digests of all."""

    __slots__ = ("digest", "landed", "version")

    def __init__(self, version: Version, landed: Bitmap, digests: Sequence[bytes]) -> None:
        self.version = version
        self.landed = landed
        self.digest = digests.__getitem__
