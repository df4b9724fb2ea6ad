"""Runs one version's download: carries the core's commands out and tells it what came of them.

The core (`peer.core.download`) decides; this module owns the transfers' tasks, those that follow parents, and the
timer. Everything here happens on the event loop; bytes move in the transfers' threads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prometheus_client import Counter

from p2p.auth import ClusterSecret
from p2p.control import Progress, Source
from p2p.errors import DamselflyError
from p2p.pieces import Bitmap, Span
from p2p.tasks import TaskScope
from p2p.telemetry import REGISTRY, logger
from p2p.urgency import DEFAULT_PRIORITY
from peer.core.download import DownloadCore
from peer.core.messages import (
    AbortTransfer,
    Assigned,
    Command,
    Disinterest,
    Event,
    Followed,
    GiveUp,
    Interest,
    OriginOverloaded,
    PieceLanded,
    StartTransfer,
    Stop,
    Tell,
    Tick,
    TransferEnded,
    Unwatch,
    Watch,
)
from peer.core.pace import Paces
from peer.download.contract import TransferPool
from peer.download.landing import PieceChecksums
from peer.download.parents import FollowedParents
from peer.download.reports import Reports, Send, failure_reason
from peer.store import Entry

log = logger(__name__)

WORKING_SECONDS = 1.0
"""How often the scheduler hears that transfers go on: each has a progress deadline of its own, so being under way means
that bytes arrive, and a slow link is not taken for a dead one."""

TOKEN_REUSE_SECONDS = 10.0
"""How long one token serves for requests to other hosts: little, compared with how far clocks may be apart."""

_BYTES = Counter(
    "damselfly_downloaded_bytes_total", "Verified bytes, by where they came from", ["source"], registry=REGISTRY
)
_FAILURES = Counter(
    "damselfly_transfer_failures_total", "Transfers that ended early", ["source", "reason"], registry=REGISTRY
)
_FROM_ORIGIN, _FROM_PARENT = _BYTES.labels("origin"), _BYTES.labels("parent")
_DOWNLOADS = Counter("damselfly_downloads_total", "Downloads that ended, by outcome", ["outcome"], registry=REGISTRY)


@dataclass(slots=True)
class Tally:
    """Bytes of one version this host has landed since it first heard of it, by where they came from."""

    origin: int = 0
    parents: int = 0


class Download:
    """One version's download on this host, from the first wanted piece to the last transfer's end.

    `cold` says that the cluster lacked something of what was wanted. `send` takes messages for the version's scheduler
    (and drops them while there is none); `on_idle` is called once, when nothing is wanted, due or under way any more.
    `checksums` keeps those of the pieces that land, `paces` what is learnt of origins.
    """

    def __init__(
        self,
        entry: Entry,
        transfers: TransferPool,
        scope: TaskScope,
        *,
        send: Send,
        scheduler: str | None,
        scheduler_lost_at: float,
        seed: bool,
        secret: ClusterSecret | None,
        tally: Tally,
        on_idle: Callable[[Download], None],
        checksums: PieceChecksums | None = None,
        paces: Paces | None = None,
    ) -> None:
        self.entry = entry
        self.scheduler = scheduler
        self.cold = False
        self.from_origin = Bitmap(entry.layout.count)
        self._transfers = transfers
        self._scope = scope
        self._send = send
        self._secret = secret
        self._tally = tally
        self._began_with = (tally.origin, tally.parents)
        self._on_idle = on_idle
        self._checksums = checksums
        self._began = time.monotonic()
        self._core = DownloadCore(
            entry.version,
            entry.layout,
            entry.landed,
            scheduler=scheduler is not None,
            scheduler_lost_at=scheduler_lost_at,
            seed=seed,
            paces=paces,
        )
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._at_origin: dict[int, Span] = {}
        self._errors: dict[int, DamselflyError] = {}
        self._last_origin_error: DamselflyError | None = None
        self._waiters: dict[int, Callable[[DamselflyError], None]] = {}
        self._next_reader = 1
        self._landing = 0
        """How many pieces are being recorded."""
        self._leaving: dict[int, Bitmap] = {}
        """Readers that have left, and what had landed then that the core had not heard of."""
        self._timer: asyncio.TimerHandle | None = None
        self._wake_at = 0.0
        self._signed: tuple[str, float] | None = None
        self._working: asyncio.TimerHandle | None = None
        self._reports = Reports(entry, send, asyncio.get_running_loop())
        self._reports_seen = 0
        self._parents = FollowedParents(entry, transfers, scope, token=self._token, tell=self.dispatch)
        self._failure: DamselflyError | None = None
        self.closed = False
        entry.retain()

    @property
    def at_origin(self) -> tuple[Span, ...]:
        """The pieces that are being fetched from the origin now."""
        under_way = Bitmap(self.entry.layout.count, tuple(self._at_origin.values()))
        return (under_way - self.entry.landed).spans()

    def join(
        self,
        spans: tuple[Span, ...],
        source: Source,
        fail: Callable[[DamselflyError], None],
        priority: int = DEFAULT_PRIORITY,
    ) -> int:
        """Want `spans` for a reader; `fail` is called when no way is left. Returns the number to `leave` with."""
        reader, self._next_reader = self._next_reader, self._next_reader + 1
        self._waiters[reader] = fail
        self.dispatch(Interest(reader, spans, source, priority))
        return reader

    def leave(self, reader: int) -> None:
        """End a reader's interest."""
        self._waiters.pop(reader, None)
        self._leaving[reader] = self.entry.landed - self._core.landed
        self._let_go()

    def _let_go(self) -> None:
        """Let the core know who has left, once it knows of all that had landed by then.

        A piece that lands wakes its readers first. The core would take one that has read it by now to have given up.
        """
        for reader, untold in tuple(self._leaving.items()):
            if not self._landing or not untold - self._core.landed:
                del self._leaving[reader]
                if not self.closed:
                    self.dispatch(Disinterest(reader))

    def dispatch(self, event: Event) -> None:
        """Give the core an event and carry out what it answers."""
        if isinstance(event, Assigned):
            self.cold |= event.assignment.cold
        elif isinstance(event, Followed):
            self.cold |= event.following.cold
            self._parents.learn(event.following.known)
            self._reports.lazy_seconds = event.following.report_seconds
        for command in self._core.apply(event, now=time.monotonic()):
            self._carry_out(command)
        self._set_timer()
        if self._working is None and self._tasks:
            self._working = asyncio.get_running_loop().call_later(WORKING_SECONDS, self._still_working)
        if self._core.idle and not self.closed:
            self._close()

    async def stop(self, error: DamselflyError) -> None:
        """Fail every reader, abort every transfer, and wait until none writes any more."""
        self._failure = error
        self._fail_readers(error)
        following = self._parents.end()
        self.dispatch(Stop())
        await asyncio.gather(*self._tasks.values(), *following, return_exceptions=True)

    def _carry_out(self, command: Command) -> None:
        match command:
            case StartTransfer():
                name = f"transfer {command.transfer} of {self.entry.version.id}"
                if command.source is not None:
                    self._at_origin[command.transfer] = command.span
                task = self._tasks[command.transfer] = self._scope.spawn(self._transfer(command), name=name)
                task.add_done_callback(lambda _: self._over(command, None))
            case AbortTransfer(transfer):
                if transfer in self._tasks:
                    self._tasks[transfer].cancel()
            case Watch():
                self._parents.watch(command)
            case Unwatch(parent_id):
                self._parents.unwatch(parent_id)
            case Tell(message, soon):
                self._reports.tell(message, soon=soon)
            case GiveUp(transfer, detail):
                self._failure = self._errors.get(transfer or 0) or self._last_origin_error or DamselflyError(detail)
                self._fail_readers(self._failure)

    def _fail_readers(self, error: DamselflyError) -> None:
        for fail in tuple(self._waiters.values()):
            fail(error)
        self.entry.fail(error)

    async def _transfer(self, command: StartTransfer) -> None:
        landings: list[asyncio.Task[DamselflyError | None]] = []

        def on_piece(index: int, digest: bytes) -> None:
            landing = self._land(command, index, digest)
            landings.append(self._scope.spawn(landing, name=f"landing of piece {index} of {self.entry.version.id}"))

        error: DamselflyError | None = None
        try:
            await self._fetch(command, on_piece)
        except DamselflyError as failure:
            error = failure
        except Exception as failure:  # a defect costs this transfer, not the daemon with all its clients
            log.exception("defect in a transfer", version=self.entry.version.id, transfer=command.transfer)
            error = DamselflyError(f"internal error: {type(failure).__name__}")
        finally:
            # Also when aborted: pieces that are already on disk are recorded before anybody else writes here.
            try:
                await _finish(landings)
            finally:
                outcomes = [one.result() for one in landings if not one.cancelled() and one.exception() is None]
                self._over(command, next((bad for bad in outcomes if bad is not None), error))

    async def _fetch(self, command: StartTransfer, on_piece: Callable[[int, bytes], None]) -> None:
        if command.source is not None:
            await self._transfers.from_origin(
                self.entry,
                command.span,
                source=command.source,
                on_piece=on_piece,
                on_overload=lambda: self.dispatch(OriginOverloaded()),
                checksums=self._checksums,
                urgency=self._core.urgency,
            )
            return
        await self._transfers.from_parent(
            self.entry,
            command.span,
            address=command.address,
            token=self._token(),
            digests=command.digests or self._parents.digests(command.span, command.parent_id),
            on_piece=on_piece,
            checksums=self._checksums,
            urgency=self._core.urgency,
        )

    def _token(self) -> str | None:
        """Return a token for this version, a fresh one now and then."""
        if self._secret is None:
            return None
        now = time.time()
        if self._signed is None or not 0 <= now - self._signed[1] < TOKEN_REUSE_SECONDS:
            self._signed = self._secret.sign("piece", self.entry.version.id, now=now), now
        return self._signed[0]

    async def _land(self, command: StartTransfer, index: int, digest: bytes) -> DamselflyError | None:
        if command.source is not None:
            self.from_origin.add_piece(index)
        self._landing += 1
        try:
            await self.entry.commit([(index, digest)])
            self._landed(command, index, digest)
        except DamselflyError as error:
            return error
        finally:
            self._landing -= 1
            self._let_go()
        return None

    def _landed(self, command: StartTransfer, index: int, digest: bytes) -> None:
        size = self.entry.layout.size(index)
        if command.source is not None:
            self._tally.origin += size
            _FROM_ORIGIN.inc(size)
        else:
            self._tally.parents += size
            _FROM_PARENT.inc(size)
        self.dispatch(PieceLanded(command.transfer, index, digest))

    def _over(self, command: StartTransfer, error: DamselflyError | None) -> None:
        """Tell the core that a transfer is over; once, also when it was aborted before it ever ran."""
        if self._tasks.pop(command.transfer, None) is None:
            return
        self._at_origin.pop(command.transfer, None)
        reason = None if error is None else failure_reason(error)
        if error is not None and reason is not None:
            self._errors[command.transfer] = error
            if command.source is not None:
                self._last_origin_error = error
            source = "origin" if command.source is not None else "parent"
            _FAILURES.labels(source, reason.name.lower()).inc()
            log.warning(
                "transfer failed",
                task=self.entry.version.task_id,
                version=self.entry.version.id,
                pieces=f"{command.span.start}-{command.span.stop - 1}",
                parent=command.parent_id or "origin",
                reason=reason.name.lower(),
                error=str(error),
            )
        self.dispatch(TransferEnded(command.transfer, reason, str(error or "")))
        self._errors.pop(command.transfer, None)

    def _still_working(self) -> None:
        self._working = None
        if self._tasks:
            if self._core.awaited and self._reports.sent == self._reports_seen:
                self._send(Progress(self.entry.version.id))
            self._reports_seen = self._reports.sent
            self._working = asyncio.get_running_loop().call_later(WORKING_SECONDS, self._still_working)

    def _set_timer(self) -> None:
        """Be woken when the core wants to be, or earlier: its deadlines mostly move on with each landing."""
        deadline = self._core.next_deadline()
        if deadline is None or self.closed:
            return
        if self._timer is not None:
            if self._wake_at <= deadline:
                return
            self._timer.cancel()
        self._wake_at = deadline
        delay = max(0.0, deadline - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(delay, self._wake)

    def _wake(self) -> None:
        self._timer = None
        deadline = self._core.next_deadline()
        if deadline is not None and deadline <= time.monotonic():
            self.dispatch(Tick())
        else:
            self._set_timer()

    def _close(self) -> None:
        self.closed = True
        self._parents.end()
        self._reports.flush()
        if self._timer is not None:
            self._timer.cancel()
        if self._working is not None:
            self._working.cancel()
        outcome = "failed" if self._failure else "complete" if self.entry.landed.full else "partial"
        _DOWNLOADS.labels(outcome).inc()
        origin, parents = self._began_with
        log.info(
            "download finished",
            task=self.entry.version.task_id,
            object=self.entry.task.canonical,
            version=self.entry.version.id,
            outcome=outcome,
            error=str(self._failure) if self._failure else None,
            seconds=round(time.monotonic() - self._began, 3),
            bytes_origin=self._tally.origin - origin,
            bytes_parents=self._tally.parents - parents,
            pieces_held=len(self.entry.landed),
            pieces=self.entry.layout.count,
        )
        self._on_idle(self)
        self.entry.release()


async def _finish(tasks: Sequence[asyncio.Task[DamselflyError | None]]) -> None:
    """Wait until all of `tasks` have ended; being cancelled meanwhile cancels none of them, and is raised afterwards.

    The last reader may leave, and so abort the transfer, in the very turn of the loop in which its piece has landed:
    the piece must be counted and reported all the same.
    """
    cancelled: asyncio.CancelledError | None = None
    while pending := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
