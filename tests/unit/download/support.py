"""A scripted HTTP server on a real socket, and a real file for pieces to land in."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from p2p.digests import piece_digest
from p2p.pieces import PieceLayout, Span
from p2p.ranges import ByteRange, format_content_range, parse_range
from p2p.versions import ValidatorKind, Version
from peer.source.governor import Governor

KIB = 1024
CONTENT = random.Random(11).randbytes(1000 * KIB + 321)
LAYOUT = PieceLayout(len(CONTENT), 100 * KIB)
EVERYTHING = Span(0, LAYOUT.count)
ETAG = '"v1-strong"'
VERSION = Version("ab" * 32, len(CONTENT), ValidatorKind.ETAG, ETAG)
DIGESTS = tuple(piece_digest(CONTENT[LAYOUT.offset(i) : LAYOUT.offset(i) + LAYOUT.size(i)]) for i in EVERYTHING)


class FileTarget:
    """The store's side of a transfer: a file."""

    def __init__(self, path: Path, version: Version = VERSION) -> None:
        self.version = version
        self.layout = LAYOUT
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT)

    def allocate(self, offset: int, length: int) -> None:
        os.posix_fallocate(self._fd, offset, length)

    def write(self, offset: int, data: memoryview) -> None:
        os.pwrite(self._fd, data, offset)

    def close(self) -> None:
        os.close(self._fd)

    def holds(self, span: Span) -> bool:
        wanted = LAYOUT.bytes_of(span)
        return self.path.read_bytes()[wanted.start : wanted.stop] == CONTENT[wanted.start : wanted.stop]


class Restless(Governor):
    """Leaves no origin alone: the pauses that transfers make themselves are what is looked at."""

    def refused(self, *_: object) -> None:
        pass


class Pieces(list[tuple[int, bytes]]):
    """What was reported."""

    def __call__(self, index: int, digest: bytes) -> None:
        self.append((index, digest))

    @property
    def indices(self) -> list[int]:
        return [index for index, _ in self]


@dataclass
class Request:
    """A request as it came, octet by octet."""

    head: bytes
    connection: int
    headers: dict[str, str] = field(init=False)
    target: str = field(init=False)

    def __post_init__(self) -> None:
        lines = self.head.decode("latin-1").split("\r\n")
        self.target = lines[0].removeprefix("GET ").removesuffix(" HTTP/1.1")
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:-2])}

    @property
    def wanted(self) -> ByteRange:
        ranges = parse_range(self.headers["range"], len(CONTENT))
        assert ranges is not None
        return ranges[0]


class StallError(Exception):
    """Raised by a script: send nothing more, and wait for the client to leave."""


class HangUpError(Exception):
    """Raised by a script: close the connection."""


Script = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


class ScriptedServer:
    """Answers each request with the next of its scripts, and with the last one when there are no more."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.requests: list[Request] = []
        self.connections = 0
        self.left = asyncio.Event()
        self.asked = asyncio.Event()
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}/object"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        try:
            while True:
                request = Request(await reader.readuntil(b"\r\n\r\n"), number)
                self.requests.append(request)
                self.asked.set()
                script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
                try:
                    await script(request, writer)
                    await writer.drain()
                except StallError:
                    await reader.read(1)
                    return
        except (asyncio.IncompleteReadError, ConnectionError, HangUpError):
            pass
        finally:
            self.left.set()
            writer.close()


@asynccontextmanager
async def serving(*scripts: Script) -> AsyncIterator[ScriptedServer]:
    """Run a scripted server on 127.0.0.1."""
    scripted = ScriptedServer(*scripts)
    server = await asyncio.start_server(scripted.serve, "127.0.0.1", 0)
    scripted.port = server.sockets[0].getsockname()[1]
    try:
        yield scripted
    finally:
        server.close()
        await server.wait_closed()


def head(status: int, length: int, *lines: str) -> bytes:
    return "\r\n".join((f"HTTP/1.1 {status} Whatever", f"Content-Length: {length}", *lines, "", "")).encode("latin-1")


def partial(request: Request, etag: str = ETAG) -> bytes:
    """The head of a sound answer."""
    wanted = request.wanted
    return head(206, len(wanted), f"Content-Range: {format_content_range(wanted, len(CONTENT))}", f"ETag: {etag}")


def body(request: Request) -> bytes:
    return CONTENT[request.wanted.start : request.wanted.stop]


async def sound(request: Request, writer: asyncio.StreamWriter) -> None:
    """A sound answer."""
    writer.write(partial(request) + body(request))


def status(code: int, *lines: str, text: bytes = b"no") -> Script:
    """An answer with a status and a short body."""

    async def script(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(code, len(text), *lines) + text)

    return script


def cut(after: int, how: type[Exception] = HangUpError) -> Script:
    """A sound answer, of which only the first `after` bytes of the body come."""

    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(partial(request) + body(request)[:after])
        await writer.drain()
        raise how

    return script


async def silent(_: Request, __: asyncio.StreamWriter) -> None:
    raise StallError


async def gone(_: Request, __: asyncio.StreamWriter) -> None:
    raise HangUpError
