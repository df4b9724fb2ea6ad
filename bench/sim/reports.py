"""What a simulated host tells the scheduler, gathered by the rules of the real one (`peer/download/reports.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from bench.sim.clock import Clock
from p2p.control import LAZY_REPORT_SECONDS, ORIGIN, Failed, Landed, PeerMessage, Progress
from p2p.digests import piece_digest
from p2p.pieces import spans_of
from peer.download.reports import ORIGIN_REPORT_SECONDS, REPORT_SECONDS, joined


class Reports:
    """Reports that are being put together; `send` takes what is said, `digests` are those of all pieces."""

    def __init__(
        self, clock: Clock, version_id: str, digests: Sequence[bytes], send: Callable[[PeerMessage], None]
    ) -> None:
        self.send = send
        self._clock = clock
        self._version_id = version_id
        self._digests = digests
        self._landed: list[Landed] = []
        self._failed: list[Failed] = []
        self._followed: dict[int, str] = {}
        """The parents of pieces that nobody waits to hear of."""
        self.lazy_seconds = LAZY_REPORT_SECONDS
        """How long what came from followed parents waits."""
        self.sent = 0
        """How many reports went out."""
        self._soon: float | None = None
        self._later: float | None = None

    def tell(self, message: PeerMessage, *, soon: bool) -> None:
        """Say something: reports with others in a while, the sooner if somebody waits (`soon`), all else at once."""
        if not isinstance(message, Progress):
            self.flush()
            self.send(message)
        elif soon:
            self._landed += message.landed
            self._failed += message.failed
            hurried = message.failed or any(landed.parent_id != ORIGIN for landed in message.landed)
            due = self._clock.now + (REPORT_SECONDS if hurried else ORIGIN_REPORT_SECONDS)
            if self._soon is None or due < self._soon:
                self._soon = due
                self._clock.at(due, self._flush_soon, due)
        else:
            for landed in message.landed:
                for index in landed.span:
                    self._followed[index] = landed.parent_id
            if self._later is None:
                self._later = self._clock.now + self.lazy_seconds
                self._clock.at(self._later, self._flush_later, self._later)

    def flush(self) -> None:
        """Say now what has been gathered."""
        self._later = None
        if self._followed:
            self._landed += self._proven()
            self._followed = {}
        self._say()

    def _flush_later(self, due: float) -> None:
        if due == self._later:
            self.flush()

    def _flush_soon(self, due: float) -> None:
        if due == self._soon:
            self._say()

    def _say(self) -> None:
        self._soon = None
        if self._landed or self._failed:
            landed, failed = tuple(joined(self._landed)), tuple(self._failed)
            self._landed, self._failed = [], []
            self.sent += 1
            self.send(Progress(self._version_id, landed, failed))

    def _proven(self) -> Iterator[Landed]:
        for span in spans_of(sorted(self._followed)):
            proof = piece_digest(b"".join(self._digests[span.start : span.stop]))
            yield Landed(span, self._followed[span.start], proof=proof)
