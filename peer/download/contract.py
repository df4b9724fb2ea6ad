"""What transfers need of those who sign requests and of those who hold the origins' budgets; each may do nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from p2p.control import Source


class Signer(Protocol):
    """Signs requests to origins with this host's own credentials; `peer.source.credentials.Credentials` is it."""

    async def signed(self, source: Source, *, method: str = "GET") -> Source:
        """Return what to ask instead of a source with a store; other sources come back untouched."""

    def refused(self, source: Source, status: int) -> bool:
        """Take note that the origin refused what was signed for `source`; tell whether to sign once more."""


class Permit(Protocol):
    """Leave for one request."""

    def take(self, count: int) -> float:
        """Count bytes of the body, from any thread; return for how many seconds to read nothing."""

    def refused(self, seconds: float) -> None:
        """Take note that the origin asks for patience (429, 503): for so long, 0 if it does not say."""


class Governor(Protocol):
    """Holds this host to its share of each origin's budget; `peer.source.governor.Governor` is it."""

    def request(self, url: str, check: bool = False) -> AbstractAsyncContextManager[Permit]:
        """Wait until the origin may be asked."""


class Unsigned:
    """Has no credentials."""

    async def signed(self, source: Source, *, method: str = "GET") -> Source:
        """Return the source as it is."""
        return source

    def refused(self, source: Source, status: int) -> bool:
        """Know nothing that would help."""
        return False


class _Unbounded:
    def take(self, count: int) -> float:
        return 0.0

    def refused(self, seconds: float) -> None:
        pass


class Ungoverned:
    """Knows of no budget."""

    @asynccontextmanager
    async def request(self, url: str, check: bool = False) -> AsyncIterator[Permit]:
        """Let every request go at once."""
        yield _Unbounded()
