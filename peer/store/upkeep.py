"""What a store does by itself: it makes room ahead of need, lets go of what nobody uses, and verifies what it holds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from p2p.errors import StoreError
from p2p.tasks import TaskScope
from p2p.telemetry import logger
from peer.store.index import StoreStats
from peer.store.metrics import SCRUB_DAMAGED, SCRUBBED_BYTES
from peer.store.records import Due
from peer.store.store import Scrubbed

_LOG = logger(__name__)

DAY_SECONDS = 86400.0

FASTEST_BYTES = 32 * 1024 * 1024
"""How much is read a second at most: after a crash, and if a pass would take too long otherwise."""

_SLOWEST_BYTES = 1024 * 1024
_HASTE = 4  # a pass is done in a quarter of the time that it may take: this host may be off for the rest
_STEP_BYTES = 8 * 1024 * 1024
_LEAST_BYTES = 256 * 1024  # what a step counts for at least, by its seeks
_PATIENCE_SECONDS = 60  # for how long each step waits while versions are in use
_LOOK_SECONDS = 600.0
_RETRY_SECONDS = 60.0
_START = (-1.0, 0)


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """What a store is told; times in seconds, marks as shares of its capacity.

    `scrub_seconds`: within this time all is verified, None for nothing at all. `ttl_seconds`: what nobody uses for so
    long goes, None for nothing.
    """

    scrub_seconds: float | None = 30 * DAY_SECONDS
    ttl_seconds: float | None = None
    high: float = 1.0
    low: float = 63 / 64


class Kept(Protocol):
    """The store that is kept up; `peer.store.Store` is it, and says what each of these does."""

    @property
    def busy(self) -> bool:
        """Whether any version is in use."""

    @property
    def doubted(self) -> float:
        """What was verified before this time is to be verified soon."""

    def now(self) -> float:
        """Return the store's time."""

    def stats(self) -> StoreStats:
        """Return how much is held."""

    async def mark_time(self) -> None:
        """Record which time it is."""

    async def room_ahead(self) -> None:
        """Wait until more is held than the high mark, and evict down to the low one."""

    async def expire(self, ttl_seconds: float) -> int:
        """Remove what nobody has used for so long."""

    async def due(self, after: tuple[float, int], before: float) -> Due | None:
        """Return which version was verified longest ago."""

    async def mark_verified(self, version: Due, when: float) -> None:
        """Record that all of a version was verified."""

    async def scrub(self, version_id: str, first: int, size: int) -> Scrubbed:
        """Verify some pieces."""


class Upkeep:
    """Keeps one store up for as long as `run` runs."""

    def __init__(
        self, store: Kept, settings: StoreSettings, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        """Describe it; `sleep` waits for so many seconds."""
        self._store = store
        self._settings = settings
        self._sleep = sleep

    async def run(self) -> None:
        """Go on until cancelled. What fails is told, and tried again later."""
        async with TaskScope() as scope:
            duties = [scope.spawn(self._ever(self._store.room_ahead), name="room ahead")]
            duties.append(scope.spawn(self._ever(self._look_after_age), name="age of versions"))
            if self._settings.scrub_seconds is not None:
                duties.append(scope.spawn(self._ever(self.scrub_all), name="scrub"))
            await asyncio.gather(*duties)

    async def _ever(self, duty: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await duty()
            except StoreError as error:
                _LOG.warning("the store could not be kept up", error=str(error))
                await self._sleep(_RETRY_SECONDS)

    async def _look_after_age(self) -> None:
        await self._store.mark_time()
        if self._settings.ttl_seconds is not None:
            await self._store.expire(self._settings.ttl_seconds)
        await self._sleep(_LOOK_SECONDS)

    async def scrub_all(self) -> None:
        """Verify all that is due, what was verified longest ago first, and wait until there may be more.

        A version that cannot be read now has its turn in the next round.
        """
        after = _START
        while (version := await self._next(after)) is not None:
            after = (version.verified, version.row)
            try:
                await self._scrub(version)
            except StoreError as error:
                _LOG.warning("a version could not be verified", version=version.version_id, error=str(error))
                await self._sleep(_RETRY_SECONDS)
        await self._sleep(_LOOK_SECONDS)

    async def _next(self, after: tuple[float, int]) -> Due | None:
        store, period = self._store, self._settings.scrub_seconds
        return None if period is None else await store.due(after, max(store.doubted, store.now() - period))

    async def _scrub(self, version: Due) -> None:
        begun, piece = self._store.now(), 0
        while True:
            await self._idleness()
            seen = await self._store.scrub(version.version_id, piece, _STEP_BYTES)
            SCRUBBED_BYTES.inc(seen.bytes)
            SCRUB_DAMAGED.inc(seen.damaged)
            await self._sleep(max(seen.bytes, _LEAST_BYTES) / self._rate(version))
            if seen.next is None:
                break
            piece = seen.next
        await self._store.mark_verified(version, begun)

    def _rate(self, version: Due) -> float:
        """Return how many bytes a second to read: no more than it takes, and what is in doubt as fast as allowed."""
        period = self._settings.scrub_seconds
        if period is None or version.verified < self._store.doubted:
            return FASTEST_BYTES
        return min(FASTEST_BYTES, max(_SLOWEST_BYTES, _HASTE * self._store.stats().bytes / period))

    async def _idleness(self) -> None:
        """Wait until no version is in use; not for ever: some hosts are never idle."""
        for _ in range(_PATIENCE_SECONDS):
            if not self._store.busy:
                return
            await self._sleep(1.0)
