"""A value that expires and is fetched anew before it does, by one fetch at a time, in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Generic, TypeVar

from p2p.errors import CredentialsError
from p2p.telemetry import logger

log = logger(__name__)

T = TypeVar("T")

FETCH_SECONDS = 30.0
"""How long a token service may take to answer."""

USABLE_SECONDS = 75.0
"""What is handed out is good for at least this long: a minute of use, and clocks that differ a little."""

EARLY_SECONDS = 300.0
"""How long before its end a value is renewed, if it lasts much longer than that; else in its last fifth."""

FORGET_SECONDS = 60.0
"""How often a refusal may cost a new fetch: an origin that refuses every request must not flood the token service."""

GRACE_SECONDS = 30.0
"""For how long refusals may come of what was signed before the last renewal."""

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Lease(Generic[T]):
    """A value, and the Unix seconds until which it is good."""

    value: T = field(repr=False)
    expires: float


class Renewing(Generic[T]):
    """Keeps a lease fresh. `fetch` blocks, and raises CredentialsError when it comes to nothing.

    A `fixed` value is what it is: fetching it again after a refusal would bring the same.
    """

    def __init__(
        self, fetch: Callable[[], Lease[T]], *, clock: Clock, fixed: bool = False, random: Random | None = None
    ) -> None:
        self._fetch = fetch
        self._fixed = fixed
        self._clock = clock
        self._random = random or Random()  # noqa: S311  # spreads renewals out; keeps no secret
        self._lock = asyncio.Lock()
        self._lease: Lease[T] | None = None
        self._found: T | None = None
        self._renew_at = 0.0
        self._forgotten_at = float("-inf")

    @property
    def current(self) -> T | None:
        """What was fetched last, forgotten or not; None before that."""
        return self._found

    async def get(self) -> Lease[T]:
        """Return a lease that is good for USABLE_SECONDS, if its fetcher gives such ones. Raises CredentialsError."""
        if (lease := self._fresh()) is not None:
            return lease
        async with self._lock:
            if (lease := self._fresh()) is not None:
                return lease
            try:
                return await self._renewed()
            except CredentialsError as error:
                old = self._lease
                if old is None or old.expires < self._clock() + USABLE_SECONDS:
                    raise
                # There was a reason to come early: the next minutes are for trying again.
                log.warning("credentials not renewed yet", error=str(error))
                self._renew_at = self._clock() + FETCH_SECONDS
                return old

    def forget(self) -> bool:
        """Drop the value, which was refused; return whether signing once more is worth it.

        All who were refused with the dropped value may try again, and only the first of them drops it.
        """
        now = self._clock()
        if self._fixed:
            return False
        if now < self._forgotten_at + FORGET_SECONDS:
            return now < self._forgotten_at + GRACE_SECONDS
        self._forgotten_at = now
        self._lease = None
        return True

    def _fresh(self) -> Lease[T] | None:
        return self._lease if self._lease is not None and self._clock() < self._renew_at else None

    async def _renewed(self) -> Lease[T]:
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                lease = await asyncio.to_thread(self._fetch)
        except TimeoutError:
            raise CredentialsError(f"the token service did not answer within {FETCH_SECONDS:g} s") from None
        now = self._clock()
        early = min(EARLY_SECONDS, (lease.expires - now) / 5)
        # Hosts that were started at once must not come to the token service at once for ever.
        jitter = early * self._random.random() / 2
        self._lease, self._found, self._renew_at = lease, lease.value, lease.expires - early - jitter
        return lease
