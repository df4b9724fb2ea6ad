"""This host's share of the cluster's budget of each origin: who may ask now, and how fast bytes may be read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Permit:
    """Leave for one request, for as long as it lasts."""

    def take(self, size: int) -> float:
        """Count `size` bytes of a body, from any thread, and return for how many seconds to read nothing."""
        del size
        return 0.0

    def refused(self, seconds: float = 0.0) -> None:
        """Note that the origin answered 429 or 503, and wants to be left alone for `seconds` (0: it does not say)."""


class Governor:
    """Gives leave for requests to origins, within this host's share of their budgets."""

    @asynccontextmanager
    async def request(self, url: str, *, check: bool = False) -> AsyncIterator[Permit]:
        """Wait for leave to send one request to the origin of `url`; leaving the context gives its slot back.

        `check` tells that it asks for one byte at most. Raises BadRequestError for a URL that cannot be fetched.
        """
        del url, check
        yield Permit()
