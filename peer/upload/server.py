"""The piece server: what this host holds of a version, to other hosts, by true sendfile; over TLS, through user space.

`GET /v1/pieces/{version_id}` with `Range: bytes=a-b` and `Authorization: Damselfly <token>`. It never waits for a piece
and never vouches for its own bytes: a child knows their digests from the scheduler, or from the announcements
(`peer.upload.announcements`), which pass on what came from whoever went to the origin, and which the scheduler checks.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Callable
from typing import Protocol

from aiohttp import web
from prometheus_client import Counter, Gauge

from p2p.announcements import ARRIVAL_SECONDS, parse_stripes
from p2p.auth import ClusterSecret, bearer_token
from p2p.control import SMALL_BYTES
from p2p.copyfile import copy_file
from p2p.errors import RangeNotSatisfiableError, StoreError, UnauthorizedError
from p2p.mtls import HANDSHAKE_SECONDS, ClusterTls
from p2p.pieces import Span
from p2p.ranges import ByteRange, format_content_range, parse_range
from p2p.sendfile import ReceiverStalledError, send_file
from p2p.telemetry import REGISTRY, logger
from p2p.urgency import BRIEF_BYTES, extra_for_brief
from peer.upload.announcements import Announced, Announcements
from peer.upload.limit import UploadLimit

log = logger(__name__)

RETRY_AFTER_SECONDS = 1
"""What a child is told when every slot is taken; the scheduler will have found it another parent by then."""

STALL_SECONDS = 10.0
"""A child that takes nothing for this long loses its connection: it holds a slot that others wait for."""

KEEP_ALIVE_SECONDS = 75.0
"""How long an idle connection of a child is kept: longer than the child keeps it, so that the child ends it."""

_LAST_WORDS_SECONDS = 0.1
"""How long a connection may take to end once its responses are over or cut off."""

SMALL_A_SLOT = 8
"""So many responses of small versions, which take no slot, may be under way for each slot there is. Schedulers do not
count them, so this is what keeps a burst of children within bounds; the others are sent elsewhere."""

_PATH = re.compile(r"/v1/(pieces|announcements)/([0-9a-f]{32})")

_RESPONSES = Counter(
    "damselfly_piece_responses", "Answers to other hosts' piece requests.", ["status"], registry=REGISTRY
)
_BYTES = Counter("damselfly_uploaded_bytes", "Piece bytes sent to other hosts.", registry=REGISTRY)
_CUT_OFF = Counter(
    "damselfly_piece_responses_cut_off", "Piece responses that ended early.", ["reason"], registry=REGISTRY
)
_SLOTS_USED = Gauge(
    "damselfly_upload_slots_used", "Piece responses under way, but for small versions.", registry=REGISTRY
)


class Held(Announced, Protocol):
    """What the piece server needs of a store's entry: a reference that it releases."""

    @property
    def fd(self) -> int:
        """The data file."""

    async def ensure_verified(self, span: Span) -> None:
        """Verify what was recorded before a crash of the operating system."""

    def release(self) -> None:
        """End the reference."""


class HostApi(Protocol):
    """The other requests of the cluster's members; `peer.hostapi.HostApi` answers them."""

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse | None:
        """Return the answer to a request, None if it is nothing that is known."""


class Holder(Protocol):
    """What the piece server needs of the store."""

    async def find(self, version_id: str) -> Held | None:
        """Return a reference to what is held of a version."""

    async def awaited(self, version_id: str) -> Held:
        """Return a reference to a version as soon as there is anything of it, be it only a download."""


class PieceServer:
    """Serves pieces, to at most `slots` children at once, with at most `rate` bytes a second to all together.

    Small versions take no slot; of those SMALL_A_SLOT times as many are served at once.

    `clock` gives Unix seconds, for the tokens' expiry.

    `api` answers what is not about pieces. With `tls` whoever dials has to show a certificate of the cluster.
    """

    def __init__(
        self,
        store: Holder,
        *,
        secret: ClusterSecret | None,
        slots: int,
        rate: float | None = None,
        stall_seconds: float = STALL_SECONDS,
        arrival_seconds: float = ARRIVAL_SECONDS,
        clock: Callable[[], float] = time.time,
        api: HostApi | None = None,
        tls: ClusterTls | None = None,
    ) -> None:
        self._store = store
        self._tls = None if tls is None else tls.server
        self._secret = secret
        self._slots = slots
        self._limit = None if rate is None else UploadLimit(rate)
        self._stall_seconds = stall_seconds
        self._arrival_seconds = arrival_seconds
        self._announcements = Announcements(stall_seconds=stall_seconds)
        self._arriving: set[asyncio.Timeout] = set()
        self._clock = clock
        self._api = api
        self._used = 0
        self._small = 0
        self._busy: set[web.RequestHandler] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._http = web.Server(self._handle, access_log=None, keepalive_timeout=KEEP_ALIVE_SECONDS)
        self._listener: asyncio.Server | None = None

    async def start(self, sock: socket.socket) -> None:
        """Accept connections on a bound, listening socket, which belongs to the server from now on."""
        self._listener = await asyncio.get_running_loop().create_server(
            self._http,
            sock=sock,
            ssl=self._tls,
            ssl_handshake_timeout=None if self._tls is None else HANDSHAKE_SECONDS,
        )

    async def shutdown(self, grace_seconds: float) -> None:
        """Accept nothing more, let responses under way finish for `grace_seconds`, and then cut them off."""
        if self._listener is not None:
            self._listener.close()
        self._announcements.close()
        for patience in self._arriving:
            patience.reschedule(asyncio.get_running_loop().time())
        for connection in self._http.connections:
            if connection in self._busy:
                connection.close()  # when its response is over
            else:
                connection.force_close()
        try:
            async with asyncio.timeout(grace_seconds):
                await self._idle.wait()
        except TimeoutError:
            log.warning("piece responses cut off by shutdown", responses=len(self._busy), grace_seconds=grace_seconds)
        await self._http.shutdown(_LAST_WORDS_SECONDS)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self._busy.add(request.protocol)
        self._idle.clear()
        try:
            response = await self._answer(request)
        except _RefusalError as refusal:
            response = web.Response(status=refusal.status, text=f"{refusal}\n", headers=refusal.headers)
        finally:
            self._busy.discard(request.protocol)
            if not self._busy:
                self._idle.set()
        _RESPONSES.labels(str(response.status)).inc()
        return response

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        path = _PATH.fullmatch(request.path)
        if path is None:
            if self._api is not None and (answer := await self._api.answer(request)) is not None:
                return answer
            raise _RefusalError(404, "there is nothing here but /v1/pieces, /v1/announcements and the API of hosts")
        if request.method != "GET":
            raise _RefusalError(405, "pieces are read with GET", Allow="GET")
        what, version_id = path.groups()
        self._authorize(request, version_id)
        try:
            if what == "announcements":
                return await self._announce(request, version_id)
            entry = await self._store.find(version_id)
            if entry is None:
                raise _RefusalError(404, "nothing of this version is held here")
            try:
                return await self._send(request, version_id, entry)
            finally:
                entry.release()
        except StoreError as error:
            log.warning("pieces could not be served", version=version_id, error=str(error))
            raise _busy("the store cannot give it now") from error

    async def _announce(self, request: web.BaseRequest, version_id: str) -> web.StreamResponse:
        asked = parse_stripes(request.query.get("stripes", ""), request.query.get("of", ""))
        if asked is None:
            raise _RefusalError(400, "which stripes are followed? stripes=0,2&of=4")
        patience = asyncio.timeout(self._arrival_seconds)
        try:
            # A follower may be told of this host before this host is told to begin.
            async with patience:
                self._arriving.add(patience)
                entry = await self._store.awaited(version_id)
        except TimeoutError:
            raise _RefusalError(404, "nothing is known of this version here") from None
        finally:
            self._arriving.discard(patience)
        try:
            return await self._announcements.stream(request, entry, *asked)
        finally:
            entry.release()

    def _authorize(self, request: web.BaseRequest, version_id: str) -> None:
        if self._secret is None:
            return
        try:
            token = bearer_token(request.headers.get("Authorization", ""))
            self._secret.verify(token, "piece", now=self._clock(), subject=version_id)
        except UnauthorizedError as error:
            raise _RefusalError(401, str(error), **{"WWW-Authenticate": "Damselfly"}) from None

    async def _send(self, request: web.BaseRequest, version_id: str, entry: Held) -> web.StreamResponse:
        wanted = _wanted(request, entry.layout.length)
        if entry.layout.length <= SMALL_BYTES:
            if self._small >= SMALL_A_SLOT * self._slots:
                raise _busy(f"{self._small} small objects are being sent")
            self._small += 1
            try:
                return await self._send_held(request, version_id, entry, wanted)
            finally:
                self._small -= 1
        # A brief version does not wait until the children of a large one have taken their parts.
        extra = extra_for_brief(self._slots) if entry.layout.length <= BRIEF_BYTES else 0
        if self._used >= self._slots + extra:
            raise _busy(f"all {self._slots} upload slots are taken")
        self._used += 1
        try:
            with _SLOTS_USED.track_inprogress():
                return await self._send_held(request, version_id, entry, wanted)
        finally:
            self._used -= 1

    async def _send_held(
        self, request: web.BaseRequest, version_id: str, entry: Held, wanted: ByteRange
    ) -> web.StreamResponse:
        span = entry.layout.covering(wanted)
        await entry.ensure_verified(span)
        if not entry.landed.covers(span):
            raise _RefusalError(404, "not all of the range is held here")
        return await self._send_range(request, version_id, entry, wanted)

    async def _send_range(
        self, request: web.BaseRequest, version_id: str, entry: Held, wanted: ByteRange
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            status=206,
            headers={
                "Content-Range": format_content_range(wanted, entry.layout.length),
                "Content-Type": "application/octet-stream",
            },
        )
        response.content_length = len(wanted)
        transport = request.transport
        if transport is None:
            return response
        try:
            writer = await response.prepare(request)
            if writer is None:
                return response
            writer.send_headers()
            await self._send_bytes(response, transport, entry.fd, wanted)
        except (ConnectionError, StoreError) as error:
            # The head is out: only a broken connection can still say that the bytes did not follow.
            transport.abort()
            _CUT_OFF.labels(type(error).__name__).inc()
            log.info("piece response cut off", version=version_id, range=str(wanted), error=str(error))
        else:
            _BYTES.inc(len(wanted))
        return response

    async def _send_bytes(
        self, response: web.StreamResponse, transport: asyncio.Transport, fd: int, wanted: ByteRange
    ) -> None:
        async def write(block: bytes) -> None:
            try:
                async with asyncio.timeout(self._stall_seconds):
                    await response.write(block)
            except TimeoutError:
                raise ReceiverStalledError(f"the receiver took nothing for {self._stall_seconds:g} s") from None

        loop = asyncio.get_running_loop()
        step = len(wanted) if self._limit is None else self._limit.step
        for start in range(wanted.start, wanted.stop, step):
            count = min(step, wanted.stop - start)
            if self._limit is not None:
                delay = self._limit.reserve(count, loop.time()) - loop.time()
                if delay > 0:
                    await asyncio.sleep(delay)
            if self._tls is not None:
                await copy_file(write, fd, start, count)
                continue
            await send_file(transport, fd, start, count, stall_seconds=self._stall_seconds)


class _RefusalError(Exception):
    """The request is answered with a status other than 206, the text and these header fields."""

    def __init__(self, status: int, text: str, **headers: str) -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers


def _busy(text: str) -> _RefusalError:
    return _RefusalError(503, text, **{"Retry-After": str(RETRY_AFTER_SECONDS)})


def _wanted(request: web.BaseRequest, length: int) -> ByteRange:
    """Return the one range that a request names. Raises a 416 for any other number of them."""
    try:
        ranges = parse_range(request.headers.get("Range", ""), length)
    except RangeNotSatisfiableError:
        ranges = None
    if ranges is None or len(ranges) != 1:
        raise _RefusalError(
            416,
            "exactly one satisfiable range is needed: Range: bytes=first-last",
            **{"Content-Range": format_content_range(None, length)},
        )
    return ranges[0]
