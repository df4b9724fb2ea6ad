"""What transfers need of whoever signs requests to origins."""

from __future__ import annotations

from typing import Protocol

from p2p.control import Source


class Signer(Protocol):
    """Signs requests to origins with this host's own credentials; `peer.source.credentials.Credentials` is it."""

    async def signed(self, source: Source) -> Source:
        """Return what to ask instead of a source with a store; other sources come back untouched."""

    def refused(self, source: Source, status: int) -> bool:
        """Take note that the origin refused what was signed for `source`; tell whether to sign once more."""


class Unsigned:
    """Has no credentials."""

    async def signed(self, source: Source) -> Source:
        """Return the source as it is."""
        return source

    def refused(self, source: Source, status: int) -> bool:
        """Know nothing that would help."""
        del source, status
        return False
