"""Tells a version's scheduler what landed and what failed: in spans, many pieces at once.

Three kinds of news have three kinds of hurry. What a scheduler assigned from another host keeps a window there open,
and a failure leaves a piece with nobody: both are told almost at once. What came from the origin is new to the whole
swarm, which waits for it, but every piece is: a few share a message. What came from a followed parent nobody waits for,
nor for a small version that came from another host: there was no slot to be given back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce
from heapq import nlargest
from operator import or_
from typing import Protocol

from p2p.control import (
    LAZY_REPORT_SECONDS,
    ORIGIN,
    SMALL_BYTES,
    Failed,
    FailureReason,
    Lagging,
    Landed,
    PeerMessage,
    Progress,
)
from p2p.digests import piece_digest
from p2p.errors import (
    CorruptPieceError,
    CredentialsError,
    DamselflyError,
    DeniedError,
    OriginError,
    OriginRefusedError,
    ParentBusyError,
    ParentError,
    ParentMissingError,
    ParentStalledError,
    StoreError,
    VersionChangedError,
)
from p2p.pieces import Bitmap, Span
from p2p.urgency import BRIEF_BYTES
from p2p.versions import Version
from peer.core.bits import bits_of, bits_of_bitmap, spans_of_bits
from peer.core.outbox import Timer, Timers

REPORT_SECONDS = 0.002
"""How long a report to the scheduler waits for company."""

SHREDS = 8
"""So many runs of pieces from followed parents are worth a report. Where a stripe lags there are hundreds of three
pieces each, which cost a scheduler more than they tell it: all but the longest wait until they have grown together."""

ORIGIN_REPORT_SECONDS = 0.010
"""The same for what came from the origin: at the rate of a fast link that is a piece or two."""


class Send(Protocol):
    """Takes what is said; what is not said `soon` may wait for company."""

    def __call__(self, message: PeerMessage, *, soon: bool = True) -> None:
        """Say it."""


class Reported(Protocol):
    """What is reported on; a store's entry."""

    @property
    def version(self) -> Version:
        """Of which bytes they are."""

    @property
    def landed(self) -> Bitmap:
        """The pieces that are here."""

    def digest(self, index: int) -> bytes:
        """Return the digest of one of them."""


class Reports:
    """Batches the reports of one version."""

    __slots__ = (
        "_brief",
        "_entry",
        "_failed",
        "_followed",
        "_landed",
        "_later",
        "_send",
        "_small",
        "_soon",
        "_soon_is_hurried",
        "_timers",
        "lazy_seconds",
        "sent",
    )

    def __init__(self, entry: Reported, send: Send, timers: Timers) -> None:
        """Report on `entry` by way of `send`."""
        self._entry = entry
        self._send = send
        self._timers = timers
        self._small = entry.version.length <= SMALL_BYTES
        self._brief = entry.version.length <= BRIEF_BYTES
        self._landed: list[Landed] = []
        self._failed: list[Failed] = []
        self._followed: dict[str, int] = {}
        """The pieces (bits) that came from each followed parent."""
        self._soon: Timer | None = None
        self._soon_is_hurried = False
        self._later: Timer | None = None
        self.lazy_seconds = LAZY_REPORT_SECONDS
        """How long what came from followed parents waits: the scheduler only keeps the books of it."""
        self.sent = 0
        """How many reports went out."""

    def tell(self, message: PeerMessage, *, soon: bool) -> None:
        """Say something: reports with others in a while, the sooner if somebody waits (`soon`), all else at once."""
        if isinstance(message, Progress):
            self._add(message, soon=soon)
        elif isinstance(message, Lagging):
            self._flush_runs()
            self._send(message)
        else:
            self.flush()
            self._send(message)

    def flush(self) -> None:
        """Send all there is; that a brief version came from a followed parent may wait for company even so."""
        self._flush(reduce(or_, self._followed.values(), 0))

    def _flush_runs(self) -> None:
        """Send all there is but shreds."""
        followed = reduce(or_, self._followed.values(), 0)
        spans = spans_of_bits(followed)
        self._flush(bits_of(nlargest(SHREDS, spans, key=len)) if len(spans) > SHREDS else followed)
        if self._followed:
            self._later = self._timers.call_later(self.lazy_seconds, self._flush_runs)

    def _flush(self, pieces: int) -> None:
        """Send all there is; of what came from followed parents these pieces (bits)."""
        if self._later is not None:
            self._later.cancel()
            self._later = None
        waited_for = bool(self._landed or self._failed or not self._brief)
        if pieces:
            self._landed += self._proven(pieces)
            self._followed = {parent: rest for parent, bits in self._followed.items() if (rest := bits & ~pieces)}
        self._flush_soon(soon=waited_for)

    def _add(self, news: Progress, *, soon: bool) -> None:
        if not soon:
            for landed in news.landed:
                self._followed[landed.parent_id] = self._followed.get(landed.parent_id, 0) | bits_of((landed.span,))
            if self._later is None:
                self._later = self._timers.call_later(self.lazy_seconds, self._flush_runs)
            return
        hurried = bool(news.failed) or any(landed.parent_id != ORIGIN for landed in news.landed)
        self._landed += news.landed
        self._failed += news.failed
        if self._small and hurried and not self._failed:
            self._flush_soon(soon=False)
            return
        if self._soon is not None and hurried and not self._soon_is_hurried:
            self._soon.cancel()
            self._soon = None
        if self._soon is None:
            self._soon_is_hurried = hurried
            delay = REPORT_SECONDS if hurried else ORIGIN_REPORT_SECONDS
            self._soon = self._timers.call_later(delay, self._flush_soon)

    def _flush_soon(self, *, soon: bool = True) -> None:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        landed, self._landed = self._landed, []
        failed, self._failed = self._failed, []
        if landed or failed:
            self.sent += 1
            self._send(Progress(self._entry.version.id, tuple(joined(landed)), tuple(failed)), soon=soon)

    def _proven(self, pieces: int) -> Iterator[Landed]:
        """Join pieces of several stripes, so of several parents, into spans; the first piece's parent is named."""
        followed = self._followed
        for span in spans_of_bits(bits_of_bitmap(self._entry.landed) & pieces):
            proof = piece_digest(b"".join([self._entry.digest(index) for index in span]))
            yield Landed(span, next(each for each, bits in followed.items() if bits >> span.start & 1), proof=proof)


def joined(landed: Iterable[Landed]) -> Iterable[Landed]:
    """Join neighbouring pieces from one parent, so that a report names spans; what has a proof is joined already."""
    previous: Landed | None = None
    for one in sorted(landed, key=lambda each: (each.parent_id, each.proof != b"", each.span)):
        if (
            previous
            and previous.parent_id == one.parent_id
            and previous.span.stop == one.span.start
            and not (previous.proof or one.proof)
        ):
            previous = Landed(Span(previous.span.start, one.span.stop), one.parent_id, previous.digests + one.digests)
            continue
        if previous:
            yield previous
        previous = one
    if previous:
        yield previous


def failure_reason(error: DamselflyError) -> FailureReason:
    """Return what the control plane calls this error."""
    kinds: tuple[tuple[type[DamselflyError], FailureReason], ...] = (
        (ParentBusyError, FailureReason.BUSY),
        (ParentMissingError, FailureReason.MISSING),
        (ParentStalledError, FailureReason.STALLED),
        (ParentError, FailureReason.UNREACHABLE),
        (CorruptPieceError, FailureReason.CORRUPT),
        (OriginRefusedError, FailureReason.ORIGIN_REFUSED),
        (DeniedError, FailureReason.ORIGIN_REFUSED),
        (CredentialsError, FailureReason.ORIGIN_REFUSED),
        (VersionChangedError, FailureReason.VERSION_CHANGED),
        (OriginError, FailureReason.ORIGIN_FAILED),
        (StoreError, FailureReason.LOCAL),
    )
    return next((reason for kind, reason in kinds if isinstance(error, kind)), FailureReason.LOCAL)
