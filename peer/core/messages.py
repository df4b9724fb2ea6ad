"""What a download's state machine hears (events) and says (commands)."""

from __future__ import annotations

from dataclasses import dataclass

from p2p.control import Assignment, FailureReason, Progress, Source, Unwant, Want
from p2p.pieces import Span


@dataclass(frozen=True, slots=True)
class Interest:
    """A reader wants these pieces and brings its own way to the origin."""

    reader: int
    spans: tuple[Span, ...]
    source: Source


@dataclass(frozen=True, slots=True)
class Disinterest:
    """A reader has what it wants, or is gone."""

    reader: int


@dataclass(frozen=True, slots=True)
class Assigned:
    """The scheduler says where to fetch pieces."""

    assignment: Assignment


@dataclass(frozen=True, slots=True)
class SchedulerUp:
    """The version's scheduler can be talked to."""


@dataclass(frozen=True, slots=True)
class SchedulerDown:
    """No scheduler can be talked to; what it assigned still stands."""


@dataclass(frozen=True, slots=True)
class PieceLanded:
    """A transfer's piece is verified and recorded by the store."""

    transfer: int
    index: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class TransferEnded:
    """A transfer is over; `reason` None means that it brought all its pieces or was aborted."""

    transfer: int
    reason: FailureReason | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class OriginOverloaded:
    """The origin asked for patience (429, 503) with a transfer's request, which is made again later."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The daemon is ending: want nothing, fetch nothing."""


Event = (
    Interest
    | Disinterest
    | Assigned
    | SchedulerUp
    | SchedulerDown
    | PieceLanded
    | OriginOverloaded
    | TransferEnded
    | Tick
    | Stop
)


@dataclass(frozen=True, slots=True)
class Tell:
    """Send this to the version's scheduler."""

    message: Want | Unwant | Progress


@dataclass(frozen=True, slots=True)
class StartTransfer:
    """Fetch `span` from a parent (`address`, `digests`) or, if `source` is given, from the origin."""

    transfer: int
    span: Span
    parent_id: str
    address: str = ""
    digests: tuple[bytes, ...] = ()
    source: Source | None = None


@dataclass(frozen=True, slots=True)
class AbortTransfer:
    """End the transfer; `TransferEnded` must still follow, when nothing writes for it any more."""

    transfer: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No way is left: every reader of now fails, with what ended `transfer` as the cause."""

    transfer: int | None
    detail: str


Command = Tell | StartTransfer | AbortTransfer | GiveUp
