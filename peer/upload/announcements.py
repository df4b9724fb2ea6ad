"""Announcements: which pieces of a version this host holds, and each one that lands, to the hosts that follow it.

`p2p.announcements` has the wire's side. What a follower has not been told is computed from the bitmap of the pieces
that have landed: one that reads slowly costs no more memory than one that keeps up, and is told of many at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Protocol

from aiohttp import HttpVersion11, web
from prometheus_client import Counter, Gauge

from p2p.announcements import FRAME_BYTES, HEARTBEAT, HEARTBEAT_SECONDS, frame
from p2p.pieces import Bitmap, PieceLayout
from p2p.telemetry import REGISTRY, logger

log = logger(__name__)

_UNSENT_BYTES = 64 * 1024
"""A follower with more than this still to be sent is told nothing more until the next heartbeat."""

_FOLLOWERS = Gauge("damselfly_followers", "Hosts' streams of announcements under way.", registry=REGISTRY)
_FRAMES = Counter("damselfly_announced_pieces", "Pieces announced, to each follower.", registry=REGISTRY)


class Announced(Protocol):
    """What announcements need of a store's entry."""

    @property
    def layout(self) -> PieceLayout:
        """How the version is cut."""

    @property
    def landed(self) -> Bitmap:
        """The verified pieces."""

    @property
    def retired(self) -> bool:
        """Whether the version is gone."""

    def digest(self, index: int) -> bytes:
        """Return the digest of a landed piece."""

    def listen(self, listener: Callable[[], None]) -> None:
        """Have `listener` called when a piece has landed or the version is gone."""

    def unlisten(self, listener: Callable[[], None]) -> None:
        """End that."""


class Announcements:
    """The followers of this host; belongs to the event loop."""

    def __init__(self, *, stall_seconds: float) -> None:
        """Begin without followers; one that takes nothing for `stall_seconds` loses its connection."""
        self._stall_seconds = stall_seconds
        self._followers: set[_Follower] = set()
        self._closed = False

    async def stream(
        self, request: web.BaseRequest, entry: Announced, stripes: frozenset[int], of: int
    ) -> web.StreamResponse:
        """Announce pieces until the follower leaves, the version is gone, or `close` is called."""
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        # An answer without a length: HTTP/1.1 has it in chunks, HTTP/1.0 as it is.
        response.force_close()
        if request.version >= HttpVersion11:
            response.enable_chunked_encoding()
        try:
            writer = await response.prepare(request)
            transport = request.transport
            if writer is None or transport is None:
                return response
            writer.send_headers()
        except ConnectionError:
            # A follower leaves when it is told of other parents, which may be before there is anything to follow here.
            return response
        follower = _Follower(transport, entry, stripes, of, chunked=response.chunked, patience=self._stall_seconds)
        self._followers.add(follower)
        entry.listen(follower.hear)
        try:
            with _FOLLOWERS.track_inprogress():
                if self._closed:
                    follower.end()
                follower.begin()
                await follower.ended
        finally:
            follower.end()
            entry.unlisten(follower.hear)
            self._followers.discard(follower)
        return response

    def close(self) -> None:
        """End every stream, and those that come."""
        self._closed = True
        for follower in self._followers:
            follower.end()


class _Follower:
    """One stream: what its reader has been told, and when it was last seen to read."""

    def __init__(
        self,
        transport: asyncio.Transport,
        entry: Announced,
        stripes: frozenset[int],
        of: int,
        *,
        chunked: bool,
        patience: float,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._transport = transport
        self._entry = entry
        self._stripes = stripes
        self._of = of
        self._chunked = chunked
        self._patience = patience
        self._told = Bitmap(entry.layout.count)
        self._due: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._unsent = 0
        self._reading = self._loop.time()

    def begin(self) -> None:
        """Tell what is held, and go on with what lands."""
        if not self.ended.done():
            self._tell()
            self._timer = self._loop.call_later(HEARTBEAT_SECONDS, self._beat)

    def hear(self) -> None:
        """Tell of what is new once this turn of the loop is over: more may land in it."""
        if self._due is None and not self.ended.done():
            self._due = self._loop.call_soon(self._tell)

    def end(self) -> None:
        """Say nothing more; what a reader has not taken by now is not waited for."""
        if self.ended.done():
            return
        self.ended.set_result(None)
        for handle in (self._due, self._timer):
            if handle is not None:
                handle.cancel()
        # In this order, here and below: a connection over TLS that is closed cannot be asked.
        if self._transport.is_closing() or self._transport.get_write_buffer_size():
            self._transport.abort()

    def _tell(self) -> None:
        self._due = None
        if self._transport.is_closing() or self._entry.retired:
            self.end()
        elif self._transport.get_write_buffer_size() <= _UNSENT_BYTES:
            self._write(b"".join(self._news()))

    def _news(self) -> Iterator[bytes]:
        entry, stripes, of = self._entry, self._stripes, self._of
        news = entry.landed - self._told
        self._told = entry.landed.copy()
        for span in news.spans():
            for index in span:
                if index % of in stripes:
                    yield frame(index, entry.digest(index))

    def _write(self, frames: bytes) -> None:
        if frames:
            _FRAMES.inc(len(frames) // FRAME_BYTES)
            self._send(frames)

    def _send(self, data: bytes) -> None:
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def _beat(self) -> None:
        if self._transport.is_closing():
            self.end()
            return
        unsent, now = self._transport.get_write_buffer_size(), self._loop.time()
        if unsent == 0 or unsent < self._unsent:
            self._reading = now
        self._unsent = unsent
        if now - self._reading >= self._patience:
            log.info("a follower reads nothing", unsent_bytes=unsent)
            self.end()
        else:
            self._tell()
        if self.ended.done():
            return
        if not self._transport.get_write_buffer_size():
            self._send(HEARTBEAT)
        self._timer = self._loop.call_later(HEARTBEAT_SECONDS, self._beat)
