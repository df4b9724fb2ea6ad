"""One request and its response on a client's connection.

The response's head is written here, octet by octet, and not by aiohttp: what the origin said must come out as it said
it, without a `Server`, a `Content-Type` or another spelling of ours. Framing is ours: a length or chunks, and the end
of the connection only for HTTP/1.0 clients that understand neither.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from ipaddress import ip_address

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from p2p.copyfile import copy_file
from p2p.errors import BadRequestError
from p2p.fields import single
from p2p.sendfile import send_file
from peer.core.rules import DEFAULT_RULE, Errors, Rule
from peer.source.fields import Fields, end_to_end

_FRAMING = frozenset({"content-length", "transfer-encoding", "connection"})
_BODYLESS = frozenset({204, 304})
_LINE_BREAK = re.compile(r"[\r\n\0]")


class Route(StrEnum):
    """Which way a request goes."""

    P2P = "p2p"
    FORWARD = "forward"
    CONNECT = "connect"
    REJECT = "reject"


class Cache(StrEnum):
    """Where a response's bytes came from: the value of `X-Cache`."""

    HIT_LOCAL = "HIT-LOCAL"
    HIT_REMOTE = "HIT-REMOTE"
    MISS = "MISS"
    BYPASS = "BYPASS"


@dataclass(frozen=True, slots=True)
class Inside:
    """The opened tunnel that requests come through: its `authority` (the default port left out), and who opened it.

    `ignores_status` tells whether the CONNECT was of the shape of a client that does.
    """

    authority: str
    ignores_status: bool

    def absolute(self, target: str) -> str:
        """Return the absolute form of a request target that came through the tunnel; other forms stay as they are."""
        return f"https://{self.authority}{target}" if target.startswith("/") else target

    def require_own(self, exchange: Exchange) -> None:
        """Raise BadRequestError for a request that is for another host than the tunnel, or for another tunnel."""
        if exchange.method == "CONNECT":
            raise BadRequestError("CONNECT inside of an opened tunnel is not supported; ask for it outside")
        host = single(exchange.fields, "host") or self.authority
        for named in (exchange.target.removeprefix("https://").partition("/")[0], host):
            if named.lower().removesuffix(":443") != self.authority.lower():
                raise BadRequestError(f"this tunnel leads to {self.authority}, and the request to {named!r}")


class Exchange:
    """A request, and what has been answered to it so far.

    `target` is the request's as it came (in absolute form, if through an opened tunnel), `url` where it leads under
    `rule`.
    """

    def __init__(self, request: web.BaseRequest, *, stall_seconds: float, inside: Inside | None = None) -> None:
        self.request = request
        self.method = request.method
        self.inside = inside
        self.target = request.raw_path if inside is None else inside.absolute(request.raw_path)
        self.url = self.target
        self.rule: Rule = DEFAULT_RULE
        self.fields: Fields = tuple(request.headers.items())
        self.started = time.monotonic()
        self.route = Route.REJECT
        self.step = "request"
        self.task_id: str | None = None
        self.cache: Cache | None = None
        self.status: int | None = None
        self.body_bytes = 0
        self.first_byte_seconds: float | None = None
        self.keep_alive = request.keep_alive
        self.was_reset = False
        self._length: int | None = None
        self._stall_seconds = stall_seconds

    @property
    def head_sent(self) -> bool:
        """Whether the status is out, so that only a reset can still tell of a failure."""
        return self.status is not None

    @property
    def is_whole(self) -> bool:
        """Whether everything was sent that the head has announced."""
        return self.head_sent and self.body_bytes == self._length

    @property
    def ignores_status(self) -> bool:
        """Whether the client looks like Triton's published agent, which writes any body to disk (WIRE §1)."""
        headers, inside = self.request.headers, self.inside
        proxied = "Proxy-Connection" in headers if inside is None else inside.ignores_status
        return proxied and "User-Agent" not in headers

    @property
    def told_by_reset(self) -> bool:
        """Whether failures are told by a reset instead of a status."""
        if self.rule.errors is Errors.AUTO:
            # Nobody takes the answer to a CONNECT for an object.
            return self.ignores_status and self.method != "CONNECT"
        return self.rule.errors is Errors.RESET

    @property
    def is_of_this_machine(self) -> bool:
        """Whether the client is connected by the loopback interface, or by what looks like it from here."""
        peername = self.transport.get_extra_info("peername")
        return bool(peername) and ip_address(peername[0].partition("%")[0]).is_loopback

    @property
    def transport(self) -> asyncio.Transport:
        """The client's connection. Raises ConnectionResetError when it is gone."""
        transport = self.request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has closed the connection")
        return transport

    async def send_head(
        self, status: int, fields: Fields, *, length: int | None, reason: str | None = None, hop: Fields = ()
    ) -> None:
        """Write the status line and `fields`, with framing for a body of `length` bytes (None: not known).

        Only what is in `hop` may be about this connection. HEAD, 204 and 304 have no body, whatever the length.
        """
        bodyless = self.method == "HEAD" or status in _BODYLESS
        if reason is None or _LINE_BREAK.search(reason):
            reason = _phrase(status)
        lines = [f"HTTP/1.1 {status} {reason}"]
        lines += (f"{name}: {value}" for name, value in (*end_to_end(fields), *hop) if _may_stand(name, value))
        modern = self.request.version >= (1, 1)
        chunked = length is None and not bodyless and modern
        if length is not None and status != 204:
            lines.append(f"Content-Length: {length}")
        elif chunked:
            lines.append("Transfer-Encoding: chunked")
        elif not bodyless:
            self.keep_alive = False
        if modern and not self.keep_alive:
            lines.append("Connection: close")
        elif not modern and self.keep_alive:
            lines.append("Connection: keep-alive")
        self.status, self._length = status, length
        self.first_byte_seconds = time.monotonic() - self.started
        await self._write("\r\n".join((*lines, "", "")).encode("latin-1", "surrogateescape"))
        if chunked:
            self._writer.enable_chunking()

    async def send(self, data: bytes) -> None:
        """Write a part of the body. Raises ConnectionError when the client is gone or takes nothing any more."""
        await self._write(data)
        self.body_bytes += len(data)

    async def send_file(self, descriptor: int, offset: int, count: int) -> None:
        """Send `count` bytes of a file from `offset` on, by the way that suits the client best."""
        transport = self.transport
        if transport.get_extra_info("sslcontext") is not None:
            await copy_file(self._write, descriptor, offset, count)
            self._count(count)
        else:
            stall_seconds = self._stall_seconds
            await send_file(transport, descriptor, offset, count, stall_seconds=stall_seconds, on_sent=self._count)

    def _count(self, count: int) -> None:
        self.body_bytes += count

    async def send_whole(
        self, status: int, fields: Fields, body: bytes, *, reason: str | None = None, hop: Fields = ()
    ) -> None:
        """Answer with a short body in one go."""
        await self.send_head(status, fields, length=len(body), reason=reason, hop=hop)
        if self.method != "HEAD" and status not in _BODYLESS:
            await self.send(body)

    async def finish(self) -> None:
        """End the body: nothing but the last chunk, where there are chunks."""
        async with self._progress():
            await self._writer.write_eof()

    async def send_continue(self) -> None:
        """Tell a client that waits for it (`Expect: 100-continue`) to send its body."""
        await self._write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def reset(self) -> None:
        """Cut the connection so that the client cannot take what it has for the whole: RST, not FIN."""
        self.was_reset = True
        self.keep_alive = False
        if (transport := self.request.transport) is not None:
            reset(transport)

    def answered(self) -> web.StreamResponse:
        """Return what aiohttp wants from a handler; everything has been written already."""
        return Answered(keep_alive=self.keep_alive)

    @property
    def _writer(self) -> AbstractStreamWriter:
        return self.request.writer

    async def _write(self, data: bytes) -> None:
        async with self._progress():
            await self._writer.write(data)

    @asynccontextmanager
    async def _progress(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._stall_seconds):
                yield
        except TimeoutError:
            raise ConnectionAbortedError(f"the client took nothing for {self._stall_seconds:g} s") from None


class Answered(web.StreamResponse):
    """A response that is on the wire already."""

    def __init__(self, *, keep_alive: bool) -> None:
        super().__init__()
        self._keeps_alive = keep_alive

    @property
    def keep_alive(self) -> bool:
        """Whether the connection takes another request."""
        return self._keeps_alive

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Do nothing: the head is out."""
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Do nothing: the body is out."""


def reset(transport: asyncio.Transport) -> None:
    """Close a connection with RST: whatever is not yet sent is dropped, and the other side sees an error."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:  # it may be closed already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _may_stand(name: str, value: str) -> bool:
    """Tell whether a field can be written: framing is ours, and a line break within would start a field of its own."""
    return name.lower() not in _FRAMING and _LINE_BREAK.search(value) is None


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
