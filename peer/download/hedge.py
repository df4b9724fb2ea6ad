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


async def hedged(ask: Ask[T], landing: Landing, patience: Patience) -> T | None:
    """Make a request with `ask(progress, None)`, and hedge it when it outlasts the origin's `patience`.

    Returns and raises what the request does that won.
    """
    patience.asked()
    async with TaskScope() as scope:
        outcome = await _first_to_deliver(ask, landing, patience, scope)
    return outcome.get()


async def _first_to_deliver(ask: Ask[T], landing: Landing, patience: Patience, scope: TaskScope) -> _Outcome[T]:
    progress = Progress()
    first = scope.spawn(_Outcome.of(ask(progress, None)), name="request to an origin")
    while True:
        limit = patience.limit(progress)
        waited = 0.0 if isinf(progress.waiting_since) else time.monotonic() - progress.waiting_since
        # At once, when the limit is over and no hedge is to be had, would be a busy loop.
        await asyncio.wait((first,), timeout=limit - waited if waited < limit else limit / 2)
        if first.done():
            outcome = first.result()
            if outcome.error is None and outcome.value is None:
                patience.ended(progress)
            return outcome
        stalled = time.monotonic() - progress.waiting_since >= patience.limit(progress)
        if (stalled or patience.is_straggler(progress)) and patience.spend():
            race = _Race(ask, landing, patience, first, progress)
            won = await race.run(scope, stalled=stalled)
            if won is not None:
                return won


class _Race(Generic[T]):
    """One hedge against the request that it was made for."""

    def __init__(
        self,
        ask: Ask[T],
        landing: Landing,
        patience: Patience,
        first: asyncio.Task[_Outcome[T]],
        progress: Progress,
    ) -> None:
        self._ask = ask
        self._landing = landing
        self._patience = patience
        self._first = first
        self._progress = progress
        self._claimed = False

    async def run(self, scope: TaskScope, *, stalled: bool) -> _Outcome[T] | None:
        """Return what became of the hedge if it won, and None if the first request is to go on.

        A request that `stalled` wins by any byte that comes before the hedge's first; one that is merely slow does not.
        """
        seen = self._progress.received
        wanted = self._landing.wanted
        if not wanted:
            return None
        progress = Progress()
        rivalry = Rivalry(wanted, self._progress.address, self._claim, self._wasted)
        hedge = scope.spawn(_Outcome.of(self._ask(progress, rivalry)), name="hedge of a request to an origin")
        while not hedge.done():
            await asyncio.wait((hedge,), timeout=POLL_SECONDS)
            over = self._first.done() or (stalled and self._progress.received > seen)
            if over and not self._claimed and not hedge.done():
                hedge.cancel()
                await asyncio.wait((hedge,))
                self._wasted(progress.received)
                _HEDGES.labels("lost").inc()
                return None
        if not self._claimed:
            _HEDGES.labels("failed").inc()
            return None
        outcome = hedge.result()
        if outcome.error is None:
            self._patience.ended(progress)
        return outcome

    async def _claim(self) -> None:
        self._claimed = True
        _HEDGES.labels("won").inc()
        self._first.cancel()
        await asyncio.wait((self._first,))

    def _wasted(self, count: int) -> None:
        self._patience.wasted(count)
        _WASTED.inc(count)
