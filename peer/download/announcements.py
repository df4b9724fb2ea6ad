"""Follows a parent: hears which pieces it holds, and of each that lands there, with the digests it announces.

One connection and one task a watched parent and version; what comes in one read is told at once. When a watch ends it
has been lost, and who asked for it decides what then.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import cast

from p2p.announcements import ARRIVAL_SECONDS, FRAME_BYTES, HEARTBEAT_SECONDS, NO_PIECE, frames, target
from p2p.auth import authorization
from p2p.config import parse_address
from p2p.digests import PIECE_DIGEST_BYTES
from p2p.errors import (
    ConfigError,
    DamselflyError,
    ParentError,
    ParentMissingError,
    ParentStalledError,
    ParentUnreachableError,
)
from p2p.mtls import REMEDY, explain
from p2p.pieces import Bitmap, Span, spans_of

CONNECT_SECONDS = 2.0
"""How long a parent may take to accept a connection."""

SILENCE_SECONDS = 3 * HEARTBEAT_SECONDS
"""A parent that announces nothing for this long is given up."""

_HEAD_BYTES = 8192


class DigestTable:
    """Digests of pieces of a version of `count` pieces, 16 bytes each, as they become known."""

    __slots__ = ("_data", "_known")

    def __init__(self, count: int) -> None:
        self._known = Bitmap(count)
        self._data = bytearray(PIECE_DIGEST_BYTES * count)

    def __bool__(self) -> bool:
        return bool(self._known)

    def __setitem__(self, index: int, digest: bytes) -> None:
        self._known.add_piece(index)
        self._data[PIECE_DIGEST_BYTES * index : PIECE_DIGEST_BYTES * (index + 1)] = digest

    def get(self, index: int) -> bytes | None:
        """Return a piece's, if it is known."""
        if index not in self._known:
            return None
        return bytes(self._data[PIECE_DIGEST_BYTES * index : PIECE_DIGEST_BYTES * (index + 1)])


async def watch(
    version_id: str,
    address: str,
    *,
    stripes: tuple[int, ...],
    of: int,
    token: str | None,
    digests: DigestTable,
    count: int,
    on_pieces: Callable[[tuple[Span, ...]], None],
    silence_seconds: float = SILENCE_SECONDS,
    arrival_seconds: float = ARRIVAL_SECONDS,
    tls: ssl.SSLContext | None = None,
) -> DamselflyError:
    """Follow the host at `address` ("host:port") in some of `of` stripes until it is lost; return why.

    `on_pieces` hears of each read's pieces, of the `count` there are, once `digests` has theirs. The parent may take
    `arrival_seconds` more than `silence_seconds` to answer: it may have to begin with the version first. Not so if
    `digests` has some of it already: it is the silence of a host that is stuck then.
    """
    if digests:
        arrival_seconds = 0.0
    lines = [f"GET {target(version_id, stripes, of)} HTTP/1.0", f"Host: {address}"]
    if token is not None:
        lines.append(f"Authorization: {authorization(token)}")
    request = "\r\n".join((*lines, "", "")).encode()
    loop = asyncio.get_running_loop()

    def follower() -> _Follower:
        return _Follower(address, request, digests, count, on_pieces, silence_seconds, arrival_seconds)

    try:
        dialled = parse_address(address)
        async with asyncio.timeout(CONNECT_SECONDS):
            transport, protocol = await loop.create_connection(follower, dialled.host, dialled.port, ssl=tls)
    except ConfigError as error:
        return ParentUnreachableError(str(error))
    except TimeoutError:
        return ParentUnreachableError(f"parent {address}: no connection within {CONNECT_SECONDS:g} s")
    except ssl.SSLError as error:
        return ParentUnreachableError(f"parent {address}: no connection: {explain(error)}")
    except (OSError, UnicodeError) as error:
        return ParentUnreachableError(f"parent {address}: no connection: {getattr(error, 'strerror', None) or error}")
    try:
        return await protocol.lost
    finally:
        transport.abort()


class _Follower(asyncio.Protocol):
    """The connection to a parent; `lost` gets why it ended."""

    def __init__(
        self,
        address: str,
        request: bytes,
        digests: DigestTable,
        count: int,
        on_pieces: Callable[[tuple[Span, ...]], None],
        silence_seconds: float,
        arrival_seconds: float,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[DamselflyError] = self._loop.create_future()
        self._address = address
        self._request = request
        self._digests = digests
        self._count = count
        self._on_pieces = on_pieces
        self._silence = silence_seconds
        self._deadline = self._loop.time() + silence_seconds + arrival_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._answered = False
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        cast(asyncio.Transport, transport).write(self._request)
        self._timer = self._loop.call_at(self._deadline, self._look)

    def data_received(self, data: bytes) -> None:
        """Take what the parent says."""
        self._buffer += data
        if not self._answered and not self._judge():
            return
        self._deadline = self._loop.time() + self._silence
        whole = len(self._buffer) - len(self._buffer) % FRAME_BYTES
        news: set[int] = set()
        for index, digest in frames(self._buffer[:whole]):
            if index == NO_PIECE:
                continue
            if index >= self._count:
                self._end(ParentError(f"parent {self._address} announces piece {index} of {self._count}"))
                return
            self._digests[index] = digest
            news.add(index)
        del self._buffer[:whole]
        if news and not self.lost.done():
            self._on_pieces(spans_of(sorted(news)))

    def connection_lost(self, exc: Exception | None) -> None:
        """Say that the parent is gone."""
        if isinstance(exc, ssl.SSLError):
            text = f"parent {self._address}: {explain(exc)}"
        elif self._answered:
            text = f"parent {self._address} ended its announcements"
        else:
            text = f"parent {self._address} did not answer who would follow it; if TLS is in use, {REMEDY}"
        self._end(ParentUnreachableError(text))
        if self._timer is not None:
            self._timer.cancel()

    def _judge(self) -> bool:
        """Read the answer's head, if it is here; tell whether frames follow."""
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _HEAD_BYTES:
                self._end(ParentError(f"parent {self._address} does not answer as a piece server does"))
            return False
        _, _, rest = bytes(self._buffer[:end]).partition(b" ")
        status = rest[:3]
        del self._buffer[: end + 4]
        self._answered = status == b"200"
        if status == b"404":
            self._end(ParentMissingError(f"parent {self._address} does not know the version"))
        elif status == b"401":
            text = f"parent {self._address} refuses the token (401); compare --cluster-secret-file and the clocks"
            self._end(ParentError(text))
        elif not self._answered:
            text = f"parent {self._address} answers {status.decode('latin-1')} to who would follow it"
            self._end(ParentError(text))
        return self._answered

    def _look(self) -> None:
        """Give a silent parent up; what comes meanwhile only moves the deadline."""
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._look)
        else:
            self._end(ParentStalledError(f"parent {self._address} has announced nothing for {self._silence:g} s"))

    def _end(self, error: DamselflyError) -> None:
        if not self.lost.done():
            self.lost.set_result(error)
