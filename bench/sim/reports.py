"""What a simulated host tells the scheduler, gathered as the real driver does."""

from __future__ import annotations

from collections.abc import Callable

from bench.sim.clock import Clock
from p2p.control import Failed, Landed, PeerMessage, Progress
from peer.download.driver import REPORT_SECONDS, joined

LAZY_SECONDS = 0.5
"""How long a report that nobody waits for is put off."""


class Reports:
    """Reports that are being put together; `send` takes what is said."""

    def __init__(self, clock: Clock, version_id: str, send: Callable[[PeerMessage], None]) -> None:
        self._clock = clock
        self._version_id = version_id
        self.send = send
        self._landed: list[Landed] = []
        self._failed: list[Failed] = []
        self._due: float | None = None

    def tell(self, message: PeerMessage, *, soon: bool) -> None:
        """Say something: at once, or with other reports in a while, after which nobody (`soon`) or somebody waits."""
        if not isinstance(message, Progress):
            self.flush()
            self.send(message)
            return
        self._landed += message.landed
        self._failed += message.failed
        due = self._clock.now + (REPORT_SECONDS if soon else LAZY_SECONDS)
        if self._due is None or due < self._due:
            self._due = due
            self._clock.at(due, self._flush_due, due)

    def flush(self) -> None:
        """Say now what has been gathered."""
        self._due = None
        if self._landed or self._failed:
            landed, failed = tuple(joined(self._landed)), tuple(self._failed)
            self._landed, self._failed = [], []
            self.send(Progress(self._version_id, landed, failed))

    def _flush_due(self, due: float) -> None:
        if due == self._due:
            self.flush()
