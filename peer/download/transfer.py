"""Transfers: one span of pieces, from another host or from the origin, whatever it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

from p2p.auth import authorization
from p2p.config import parse_address
from p2p.control import Source
from p2p.errors import (
    ConfigError,
    DamselflyError,
    ParentBusyError,
    ParentError,
    ParentMissingError,
    ParentStalledError,
    ParentUnreachableError,
)
from p2p.fields import single
from p2p.mtls import ClusterTls
from p2p.pieces import Span
from p2p.ranges import ByteRange, ContentRange, format_range, parse_content_range
from p2p.urgency import ORDINARY, Urgency
from p2p.versions import Version
from peer.download.announcements import DigestTable, watch
from peer.download.backsource import BackSource
from peer.download.connection import (
    Endpoint,
    ExchangeError,
    Limits,
    StalledError,
)
from peer.download.contract import Signer, Unsigned
from peer.download.exchange import Exchanges, Request
from peer.download.landing import Landing, PieceChecksums, Target
from peer.download.origin import request_head
from peer.download.pool import ConnectionPool
from peer.source.backoff import Backoff
from peer.source.client import OriginSettings
from peer.source.fields import Fields
from peer.source.governor import Governor
from peer.source.guard import Resolver
from peer.source.trust import Trust

Report = Callable[[int, bytes], None]

_PARENT_LIMITS = Limits(connect_seconds=2.0, stall_seconds=5.0)


@dataclass(frozen=True, slots=True)
class TransferSettings:
    """How transfers are made; times in seconds.

    `attempts` bounds how often an origin is asked in a row without getting anywhere, `overload_attempts` how often one
    that answers 429 or 503 is. Between two attempts there is a pause that doubles from `backoff_seconds` on; an origin
    that asks for more than `longest_pause_seconds` is given up.
    """

    workers: int = 32
    parent: Limits = _PARENT_LIMITS
    origin: OriginSettings = field(default_factory=OriginSettings)
    attempts: int = 4
    overload_attempts: int = 6
    backoff_seconds: float = 0.2
    longest_pause_seconds: float = 30.0
    idle_seconds: float = 30.0
    idle_per_endpoint: int = 16
    idle_total: int = 64


class Transfers:
    """Fetches spans from parents and origins, with bounded threads and bounded kept connections. Belongs to the loop.

    `resolver` decides which origins may be asked, `signer` signs for those that this host has credentials for, and
    `governor` holds their budgets. `random` jitters the pauses between attempts; `sleep` makes them. With `members`
    other hosts are spoken to by TLS.
    """

    def __init__(
        self,
        settings: TransferSettings | None = None,
        *,
        resolver: Resolver | None = None,
        signer: Signer | None = None,
        governor: Governor | None = None,
        random: Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        members: ClusterTls | None = None,
    ) -> None:
        self._members = None if members is None else members.client
        self._settings = settings = settings or TransferSettings()
        trust = Trust(settings.origin.ca_file, settings.origin.rules)
        idle = ConnectionPool(
            per_endpoint=settings.idle_per_endpoint, total=settings.idle_total, idle_seconds=settings.idle_seconds
        )
        self._exchanges = Exchanges(workers=settings.workers, idle=idle, trust=trust, members=self._members)
        self._origin = BackSource(
            self._exchanges,
            limits=Limits(settings.origin.connect_seconds, settings.origin.stall_seconds),
            backoff=Backoff(settings.attempts, settings.backoff_seconds, settings.longest_pause_seconds),
            overload_attempts=settings.overload_attempts,
            resolver=resolver or Resolver(),
            trust=trust,
            signer=signer or Unsigned(),
            governor=governor or Governor(),
            random=random or Random(),  # noqa: S311  # spreads retries out; keeps no secret
            sleep=sleep,
        )

    async def from_parent(
        self,
        entry: Target,
        span: Span,
        *,
        address: str,
        token: str | None,
        digests: Sequence[bytes],
        on_piece: Report,
        checksums: PieceChecksums | None = None,
        urgency: Urgency = ORDINARY,
    ) -> None:
        """Fetch the pieces of `span` from the host at `address` ("host:port"), each checked against its digest.

        `on_piece(index, digest)` is called on the loop as each piece is written and sound, in order, and never after
        this has returned or raised. Raises ParentError kinds, CorruptPieceError, StoreError and StoppingError. When
        this is cancelled the connection is closed, and the thread has ended before CancelledError leaves. Where all
        threads are busy, `urgency` says whose turn it is.
        """
        try:
            dialled = parse_address(address)
        except ConfigError as error:
            raise ParentUnreachableError(str(error)) from None
        landing = Landing(entry, span, digests, _on_loop(on_piece), checksums)
        wanted = landing.wanted
        fields = [("Range", format_range(wanted))]
        if token is not None:
            fields.append(("Authorization", authorization(token)))
        head = request_head(f"http://{address}/v1/pieces/{entry.version.id}", fields)

        def judge(status: int, headers: Fields, _: Callable[[], bytes]) -> None:
            judge_parent(address, entry.version, wanted, status, headers)

        with _parent_errors(address):
            endpoint = Endpoint(dialled.host, dialled.port, member=True)
            request: Request[None] = Request(
                endpoint, self._settings.parent, head, judge, urgency=urgency, task=entry.version.task_id
            )
            await self._exchanges.land(request, landing)

    async def follow(
        self,
        entry: Target,
        *,
        address: str,
        stripes: tuple[int, ...],
        of: int,
        token: str | None,
        digests: DigestTable,
        on_pieces: Callable[[tuple[Span, ...]], None],
    ) -> DamselflyError:
        """Hear what the host at `address` ("host:port") announces of the stripes, until it is lost; return why.

        `on_pieces` is called on the loop with what each read brought, once `digests` has what was announced.
        """
        count = entry.layout.count
        return await watch(
            entry.version.id,
            address,
            stripes=stripes,
            of=of,
            token=token,
            digests=digests,
            count=count,
            on_pieces=on_pieces,
            tls=self._members,
        )

    async def from_origin(
        self,
        entry: Target,
        span: Span,
        *,
        source: Source,
        on_piece: Report,
        on_overload: Callable[[], None] | None = None,
        checksums: PieceChecksums | None = None,
        urgency: Urgency = ORDINARY,
    ) -> None:
        """Fetch the pieces of `span` from the origin by way of `source`, all of them of the entry's version.

        Redirects are followed. What breaks off is taken up again at the first byte that is missing, and what stalls is
        asked for over another connection. `on_overload` is called on the loop whenever the origin asks for patience
        (429, 503). `on_piece`, `checksums`, `urgency` and cancelling are as with `from_parent`. Raises OriginError
        kinds (DeniedError for an origin that may not be asked, redirects included), BadRequestError for a URL or a
        header that cannot be sent, StoreError and StoppingError.
        """
        landing = Landing(entry, span, None, _on_loop(on_piece), checksums)
        await self._origin.fetch(landing, entry.version, source, on_overload, urgency)

    async def close(self) -> None:
        """End every transfer (StoppingError) and every connection, and wait for the threads."""
        await self._exchanges.close()


def judge_parent(address: str, version: Version, wanted: ByteRange, status: int, headers: Fields) -> None:
    """Raise ParentError kinds unless the body of a parent's answer is exactly the bytes `wanted` of `version`."""
    if status == 503:
        raise ParentBusyError(f"parent {address} has no free upload slot")
    if status in (404, 416):
        raise ParentMissingError(f"parent {address} does not hold all of bytes {wanted.start}-{wanted.stop - 1}")
    if status == 401:
        raise ParentError(f"parent {address} refuses the token (401); compare --cluster-secret-file and the clocks")
    sent = parse_content_range(single(headers, "content-range") or "")
    if status != 206 or sent != ContentRange(wanted, version.length):
        raise ParentError(f"parent {address} answered {status} with other bytes than those asked for")


@contextmanager
def _parent_errors(address: str) -> Iterator[None]:
    try:
        yield
    except StalledError as error:
        raise ParentStalledError(f"parent {address}: {error}") from None
    except ExchangeError as error:
        raise ParentUnreachableError(f"parent {address}: {error}") from None


def _on_loop(on_piece: Report) -> Report:
    """Return a function for threads that has `on_piece` called on the running loop."""
    loop = asyncio.get_running_loop()

    def report(index: int, digest: bytes) -> None:
        loop.call_soon_threadsafe(on_piece, index, digest)

    return report
