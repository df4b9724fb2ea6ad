"""HTTP/1.1 as strictly as RFC 9112 has it, to judge what leaves the proxy on either side."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rb"(%s) ([\x21-\x7e\x80-\xff]+) HTTP/1\.1" % _TOKEN)
_FIELD_LINE = re.compile(rb"(%s): ?((?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)[ \t]*" % _TOKEN)
_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ([\t\x20-\x7e\x80-\xff]*)")
_CHUNK_SIZE = re.compile(rb"[0-9a-fA-F]{1,16}")
_HEAD_END = b"\r\n\r\n"
ESTABLISHED = b"Connection established"


class MalformedError(AssertionError):
    """What came is not HTTP/1.1."""


@dataclass(frozen=True)
class Response:
    status: int
    reason: bytes
    fields: dict[bytes, list[bytes]]
    body: bytes


def fields_of(lines: list[bytes]) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for line in lines:
        match = _FIELD_LINE.fullmatch(line)
        if match is None:
            raise MalformedError(f"field line {line[:200]!r}")
        found.setdefault(match[1].lower(), []).append(match[2])
    return found


def framing(fields: dict[bytes, list[bytes]]) -> int | None:
    """Return the body's length, None for chunks, -1 where neither is said; raise for two answers to the question."""
    lengths, codings = fields.get(b"content-length", []), fields.get(b"transfer-encoding", [])
    if len(lengths) + len(codings) > 1 or not all(length.isdigit() for length in lengths):
        raise MalformedError(f"ambiguous framing: {lengths} {codings}")
    if codings:
        if codings != [b"chunked"]:
            raise MalformedError(f"transfer coding {codings}")
        return None
    return int(lengths[0]) if lengths else -1


def responses(octets: bytes, *, ended: bool) -> tuple[list[Response], bytes]:
    """Return the complete responses in what a client received, and the rest; `ended`: nothing follows."""
    found: list[Response] = []
    while True:
        head, separator, rest = octets.partition(_HEAD_END)
        if not separator:
            return found, octets
        line, *lines = head.split(b"\r\n")
        match = _STATUS_LINE.fullmatch(line)
        if match is None:
            raise MalformedError(f"status line {line[:200]!r}")
        status, fields = int(match[1]), fields_of(lines)
        if match[2] == ESTABLISHED:
            return [*found, Response(status, match[2], fields, rest)], b""
        length = framing(fields)
        body: bytes | None
        if status < 200 or status in (204, 304):
            body = b""
        elif length is None:
            body, rest = _chunks(rest)
        elif length >= 0:
            body, rest = (rest[:length], rest[length:]) if len(rest) >= length else (None, rest)
        else:
            body, rest = (rest, b"") if ended else (None, rest)
        if body is None:
            return found, octets
        found.append(Response(status, match[2], fields, body))
        octets = rest


def _chunks(octets: bytes) -> tuple[bytes | None, bytes]:
    body = b""
    while True:
        size, separator, rest = octets.partition(b"\r\n")
        if not separator:
            return None, octets
        if _CHUNK_SIZE.fullmatch(size) is None:
            raise MalformedError(f"chunk size {size[:200]!r}")
        count = int(size, 16)
        if len(rest) < count + 2:
            return None, octets
        if rest[count : count + 2] != b"\r\n":
            raise MalformedError("a chunk without its end")
        body, octets = body + rest[:count], rest[count + 2 :]
        if count == 0:
            return body, octets


@dataclass
class StrictOrigin:
    """An origin that takes nothing but well-formed requests, answers each with its own target, and keeps the story."""

    port: int = 0
    targets: list[bytes] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(_HEAD_END)
                method, target, fields = self._judge(head[:-4])
                self.targets.append(target)
                body = await self._body(reader, framing(fields))
                writer.write(self._answer(method, target, fields, len(body)))
                await writer.drain()
        except MalformedError as error:
            self.complaints.append(str(error))
        except asyncio.LimitOverrunError:
            self.complaints.append("a head without an end")
        except asyncio.IncompleteReadError as error:
            # A client that goes away in the middle of its body takes the request to the origin with it.
            if error.partial and b"HTTP/1.1" not in error.partial and error.expected is None:
                self.complaints.append(f"half a head: {error.partial[:200]!r}")
        except (ConnectionError, asyncio.CancelledError):
            return
        finally:
            writer.close()

    @staticmethod
    def _judge(head: bytes) -> tuple[bytes, bytes, dict[bytes, list[bytes]]]:
        line, *lines = head.split(b"\r\n")
        match = _REQUEST_LINE.fullmatch(line)
        if match is None:
            raise MalformedError(f"request line {line[:200]!r}")
        fields = fields_of(lines)
        if len(fields.get(b"host", [])) != 1:
            raise MalformedError(f"Host: {fields.get(b'host')}")
        for name in fields:
            if name.startswith((b"x-dragonfly-", b"proxy-")):
                raise MalformedError(f"{name!r} is not for origins")
        return match[1], match[2], fields

    @staticmethod
    async def _body(reader: asyncio.StreamReader, length: int | None) -> bytes:
        if length is not None:
            return await reader.readexactly(max(0, length))
        body = b""
        while True:
            size = (await reader.readuntil(b"\r\n"))[:-2]
            if _CHUNK_SIZE.fullmatch(size) is None:
                raise MalformedError(f"chunk size {size[:200]!r}")
            body += await reader.readexactly(int(size, 16))
            if await reader.readexactly(2) != b"\r\n":
                raise MalformedError("a chunk without its end")
            if int(size, 16) == 0:
                return body

    @staticmethod
    def _answer(method: bytes, target: bytes, fields: dict[bytes, list[bytes]], length: int) -> bytes:
        body = b"seen %b with %d" % (target, length)
        if method == b"HEAD":
            body = b""
        if fields.get(b"range") == [b"bytes=0-0"]:
            head = b'HTTP/1.1 206 Partial Content\r\nETag: "v1"\r\nContent-Range: bytes 0-0/1024\r\n'
            return head + b"Content-Length: 1\r\n\r\n\0"
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@asynccontextmanager
async def strict_origin() -> AsyncIterator[StrictOrigin]:
    """Serve on a free port of 127.0.0.1 while the context lasts."""
    origin = StrictOrigin()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await origin.serve(reader, writer)
        finally:
            tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1024 * 1024)
    origin.port = server.sockets[0].getsockname()[1]
    try:
        yield origin
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
