"""An origin on a raw socket: it keeps the very octets of each request, and answers with the very octets of a test."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class RawRequest:
    head: bytes
    body: bytes
    connection: int

    @property
    def line(self) -> str:
        return self.head.split(b"\r\n", 1)[0].decode("latin-1")

    @property
    def target(self) -> str:
        return self.line.split(" ")[1]

    @property
    def fields(self) -> list[tuple[str, str]]:
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        return [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines if line)]

    def field(self, name: str) -> str | None:
        return next((value for key, value in self.fields if key.lower() == name.lower()), None)


CUT = b""
"""An answer of this instead of octets closes the connection with none."""

Answer = Callable[[RawRequest], bytes | Awaitable[bytes]]


class RawOrigin:
    """Serves until the block is left; `answer` may be exchanged at any time. With `hang_up` an answer is the last."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[RawRequest] = []
        self.connections = 0
        self.port = 0
        self.hang_up = False

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if re.search(rb"(?i)expect: 100-continue", head):
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                request = RawRequest(head[:-4], await self._body(head, reader), number)
                self.requests.append(request)
                answer = self.answer(request)
                octets = answer if isinstance(answer, bytes) else await answer
                if octets == CUT:
                    return
                writer.write(octets)
                await writer.drain()
                if b"\r\nConnection: close\r\n" in octets:
                    return
                if self.hang_up:
                    return
        except asyncio.CancelledError:
            # The end of a test. The loop may end right after it, too early for the farewells of TLS.
            writer.transport.abort()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    @staticmethod
    async def _body(head: bytes, reader: asyncio.StreamReader) -> bytes:
        if length := re.search(rb"(?i)content-length: *([0-9]+)", head):
            return await reader.readexactly(int(length[1]))
        body = b""
        if re.search(rb"(?i)transfer-encoding: *chunked", head):
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += await reader.readexactly(size)
                await reader.readexactly(2)
            await reader.readuntil(b"\r\n")
        return body


@asynccontextmanager
async def raw_origin(answer: Answer, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[RawOrigin]:
    origin = RawOrigin(answer)
    tasks: set[asyncio.Task[None]] = set()
    writers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        writers.add(writer)
        await origin._serve(reader, writer)
        tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    origin.port = server.sockets[0].getsockname()[1]
    try:
        yield origin
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # A connection that is closed is gone a turn of the loop later, which may have been the last.
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


def response(status: int, *fields: str, body: bytes = b"", length: bool = True) -> bytes:
    lines = [f"HTTP/1.1 {status} As Written", *fields]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join((*lines, "", "")).encode("latin-1") + body


def serving(content: bytes, *fields: str, etag: str = '"v1"') -> Answer:
    """Answer as a store does: ranges, and If-Match."""
    validators = (f"ETag: {etag}", *fields)

    def answer(request: RawRequest) -> bytes:
        if request.field("If-Match") not in (None, etag):
            return response(412)
        wanted = re.fullmatch(r"bytes=([0-9]+)-([0-9]*)", request.field("Range") or "")
        if wanted is None:
            return response(200, *validators, body=content)
        start, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
        if start >= len(content):
            return response(
                416, f"Content-Range: bytes */{len(content)}", "Content-Type: application/xml", body=b"<E/>"
            )
        part = content[start : last + 1]
        return response(
            206, *validators, f"Content-Range: bytes {start}-{start + len(part) - 1}/{len(content)}", body=part
        )

    return answer
