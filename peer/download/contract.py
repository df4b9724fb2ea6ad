"""What downloads need of transfers, and transfers of whoever signs requests to origins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from p2p.control import Source
from p2p.errors import DamselflyError, OriginError, OriginRefusedError
from p2p.identity import redact
from p2p.pieces import Span
from p2p.urgency import ORDINARY, Urgency
from peer.download.announcements import DigestTable
from peer.download.landing import PieceChecksums
from peer.source.fields import Fields
from peer.store import Entry


class TransferPool(Protocol):
    """What moves one span's bytes into the store; `peer.download.transfer.Transfers` is it."""

    async def from_parent(
        self,
        entry: Entry,
        span: Span,
        *,
        address: str,
        token: str | None,
        digests: Sequence[bytes],
        on_piece: Callable[[int, bytes], None],
        checksums: PieceChecksums | None = None,
        urgency: Urgency = ORDINARY,
    ) -> None:
        """Fetch the pieces of `span` from another host, each checked against its digest; `checksums` keeps theirs."""

    async def from_origin(
        self,
        entry: Entry,
        span: Span,
        *,
        source: Source,
        on_piece: Callable[[int, bytes], None],
        on_overload: Callable[[], None],
        checksums: PieceChecksums | None = None,
        urgency: Urgency = ORDINARY,
    ) -> None:
        """Fetch the pieces of `span` from the origin; `on_overload` hears of each time that it asks for patience."""

    async def follow(
        self,
        entry: Entry,
        *,
        address: str,
        stripes: tuple[int, ...],
        of: int,
        token: str | None,
        digests: DigestTable,
        on_pieces: Callable[[tuple[Span, ...]], None],
    ) -> DamselflyError:
        """Hear what another host announces, until it is lost; return why. `digests` has those of what was heard of."""


class Signer(Protocol):
    """Signs requests to origins with this host's own credentials; `peer.source.credentials.Credentials` is it."""

    async def signed(self, source: Source) -> Source:
        """Return what to ask instead of a source with a store; other sources come back untouched."""

    async def refused(self, source: Source, status: int, headers: Fields, body: bytes) -> bool:
        """Learn from an answer to what was signed for `source`; tell whether to sign and ask once more."""

    def explained(self, source: Source, status: int, headers: Fields, body: bytes) -> OriginError:
        """Return the error for an answer that stands."""


class Unsigned:
    """Has no credentials."""

    async def signed(self, source: Source) -> Source:
        """Return the source as it is."""
        return source

    async def refused(self, source: Source, status: int, headers: Fields, body: bytes) -> bool:
        """Know nothing that would help."""
        del source, status, headers, body
        return False

    def explained(self, source: Source, status: int, headers: Fields, body: bytes) -> OriginError:
        """Say that the origin was asked without credentials."""
        del headers, body
        return OriginRefusedError(status, f"it was asked without credentials ({redact(source.url)})")
