"""Hedges: a second request for the bytes of one that makes no progress, over another connection.

The first that delivers wins. No two requests ever write the same bytes: the loser's thread has ended before the winner
lands anything (`peer.download.exchange.Rivalry`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import isinf
from typing import Generic, TypeVar

from prometheus_client import Counter

from p2p.errors import DamselflyError
from p2p.tasks import TaskScope
from p2p.telemetry import REGISTRY
from peer.download.connection import ExchangeError, Progress
from peer.download.exchange import Rivalry
from peer.download.landing import Landing
from peer.download.patience import Patience

POLL_SECONDS = 0.02
"""How often two requests that race each other are looked at."""

_HEDGES = Counter(
    "damselfly_origin_hedges_total",
    "Second requests for the bytes of one that made no progress, by outcome (won, lost, failed)",
    ["outcome"],
    registry=REGISTRY,
)
_WASTED = Counter(
    "damselfly_origin_wasted_bytes_total",
    "Bytes that an origin sent although another request brought them too",
    registry=REGISTRY,
)

T = TypeVar("T")
Ask = Callable[[Progress, Rivalry | None], Awaitable[T | None]]
"""Makes the request; what it returns is what an exchange does."""


@dataclass(frozen=True, slots=True)
class _Outcome(Generic[T]):
    """What became of a request that another one is compared with: an error of one must not end both."""

    value: T | None
    error: DamselflyError | ExchangeError | None = None

    @classmethod
    async def of(cls, work: Awaitable[T | None]) -> _Outcome[T]:
        try:
            return cls(await work)
        except (DamselflyError, ExchangeError) as error:
            return cls(None, error)

    def get(self) -> T | None:
        if self.error is not None:
            raise self.error
        return self.value


@dataclass(frozen=True, slots=True)
class _Runner(Generic[T]):
    """A request that is under way, and how it gets on."""

    task: asyncio.Task[_Outcome[T]]
    progress: Progress

    @property
    def silent_seconds(self) -> float:
        """For how long nothing has come; 0 while nothing is waited for."""
        since = self.progress.waiting_since
        return 0.0 if isinf(since) else time.monotonic() - since

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.wait((self.task,))


async def hedged(ask: Ask[T], landing: Landing, patience: Patience) -> T | None:
    """Make a request with `ask(progress, None)`, and hedge it whenever it outlasts the origin's `patience`.

    A hedge that has won is watched like the request whose place it took. Returns and raises what the request does that
    is left in the end.
    """
    patience.asked()
    async with TaskScope() as scope:
        progress = Progress()
        first = scope.spawn(_Outcome.of(ask(progress, None)), name="request to an origin")
        runner = _Runner(first, progress)
        while not runner.task.done():
            limit = patience.limit(runner.progress)
            waited = runner.silent_seconds
            # At once, when the limit is over and no hedge is to be had, would be a busy loop.
            await asyncio.wait((runner.task,), timeout=limit - waited if waited < limit else limit / 2)
            if runner.task.done():
                break
            silent = runner.silent_seconds
            stalled = silent >= patience.limit(runner.progress)
            if (stalled or patience.is_straggler(runner.progress)) and patience.spend(silent) and landing.wanted:
                runner = await _Race(ask, landing, patience, runner).run(scope, stalled=stalled)
    outcome = runner.task.result()
    if outcome.error is None and outcome.value is None:
        patience.ended(runner.progress)
    return outcome.get()


class _Race(Generic[T]):
    """One hedge against the request that it is made for."""

    def __init__(self, ask: Ask[T], landing: Landing, patience: Patience, first: _Runner[T]) -> None:
        self._ask = ask
        self._patience = patience
        self._first = first
        self._claimed = asyncio.Event()
        self._rivalry = Rivalry(landing.wanted, first.progress.address, self._claim, self._wasted)

    async def run(self, scope: TaskScope, *, stalled: bool) -> _Runner[T]:
        """Return the one of the two that goes on; the other has ended.

        A request that `stalled` wins by any byte that comes before the hedge's first; one that is merely slow does not.
        A hedge that is itself silent for too long has lost.
        """
        seen = self._first.progress.received
        progress = Progress()
        task = scope.spawn(_Outcome.of(self._ask(progress, self._rivalry)), name="hedge of a request to an origin")
        hedge = _Runner(task, progress)
        while not (task.done() or self._claimed.is_set()):
            await asyncio.wait((task,), timeout=POLL_SECONDS)
            over = self._first.task.done() or (stalled and self._first.progress.received > seen)
            if over or hedge.silent_seconds >= self._patience.limit(progress):
                if self._claimed.is_set() or task.done():
                    break
                await hedge.end()
                self._wasted(progress.received)
                _HEDGES.labels("lost").inc()
                return self._first
        if not self._claimed.is_set():
            _HEDGES.labels("failed").inc()
            return self._first
        await asyncio.wait((self._first.task,))
        return hedge

    async def _claim(self) -> None:
        self._claimed.set()
        _HEDGES.labels("won").inc()
        await self._first.end()

    def _wasted(self, count: int) -> None:
        self._patience.wasted(count)
        _WASTED.inc(count)
