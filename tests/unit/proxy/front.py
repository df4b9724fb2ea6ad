"""A proxy on a real socket, with downloads that land when a test says so, and clients that speak octets."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from p2p.checksums import Checksum
from p2p.control import Source
from p2p.digests import ExpectedDigest
from p2p.errors import DamselflyError
from p2p.identity import Task
from p2p.ranges import ByteRange
from p2p.urgency import DEFAULT_PRIORITY
from p2p.versions import Version
from peer.proxy.server import ProxyServer, ProxySettings
from peer.source.client import OriginClient, OriginSettings

HOST_ID = "node-1"
SIGNED = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AK&X-Amz-SignedHeaders=host&X-Amz-Signature=5ec2e7"


class Download:
    """A version's file, in which bytes land from the front."""

    def __init__(self, content: bytes, landed: int) -> None:
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.flush()
            self.fd = os.dup(file.fileno())
        self.path = Path(f"/proc/self/fd/{self.fd}")
        self.landed = landed
        self.error: DamselflyError | None = None
        self._changed = asyncio.Event()

    def land(self, until: int) -> None:
        self.landed = until
        self._changed.set()

    def fail(self, error: DamselflyError) -> None:
        self.error = error
        self._changed.set()

    async def ready(self, offset: int) -> int:
        while self.landed <= offset:
            if self.error is not None:
                raise self.error
            self._changed.clear()
            await self._changed.wait()
        return self.landed


class MemoryReader:
    def __init__(self, tasks: MemoryTasks, download: Download, wanted: ByteRange) -> None:
        self.entry = download
        self.wanted = wanted
        self._tasks = tasks

    @property
    def origin_of_bytes(self) -> Literal["local", "remote", "origin"]:
        return self._tasks.whence

    async def ready(self, offset: int) -> int:
        return min(await self.entry.ready(offset), self.wanted.stop)

    async def __aenter__(self) -> Self:
        self._tasks.readers.add(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tasks.readers.discard(self)
        self._tasks.released.set()


class MemoryVerification:
    """Judges once everything has landed and the test allows it."""

    def __init__(self, tasks: MemoryTasks, expected: ExpectedDigest | Checksum) -> None:
        self._tasks = tasks
        self._expected = expected

    async def verdict(self) -> None:
        await self._tasks.may_judge.wait()
        await self._tasks.downloads[-1].ready(len(self._tasks.content) - 1)
        hasher = self._expected.hasher()
        hasher.update(self._tasks.content)
        self._expected.verify(hasher)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held."""


@dataclass
class Opening:
    task: Task
    version: Version
    source: Source
    wanted: ByteRange | None
    priority: int = DEFAULT_PRIORITY


@dataclass
class MemoryTasks:
    """Obeys `peer.proxy.contract.Tasks`; `refusals` are raised by the next openings, one each."""

    content: bytes = b""
    checksum: Checksum | None = None
    landed: int | None = None
    whence: Literal["local", "remote", "origin"] = "local"
    refusals: list[DamselflyError] = field(default_factory=list)
    openings: list[Opening] = field(default_factory=list)
    readers: set[MemoryReader] = field(default_factory=set)
    downloads: list[Download] = field(default_factory=list)
    prefetched: list[Opening] = field(default_factory=list)
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    may_judge: asyncio.Event = field(default_factory=asyncio.Event)

    async def open(
        self,
        task: Task,
        version: Version,
        source: Source,
        wanted: ByteRange | None = None,
        *,
        priority: int = DEFAULT_PRIORITY,
    ) -> MemoryReader:
        self.openings.append(Opening(task, version, source, wanted, priority))
        if self.refusals:
            raise self.refusals.pop(0)
        assert version.length == len(self.content)
        download = Download(self.content, len(self.content) if self.landed is None else self.landed)
        self.downloads.append(download)
        self.opened.set()
        return MemoryReader(self, download, wanted or ByteRange(0, version.length))

    async def verify(
        self,
        task: Task,
        version: Version,
        source: Source,
        expected: ExpectedDigest,
        *,
        priority: int = DEFAULT_PRIORITY,
    ) -> MemoryVerification:
        return MemoryVerification(self, expected)

    def note(self, version: Version, checksum: Checksum) -> None:
        self.checksum = checksum

    async def check(
        self, task: Task, version: Version, source: Source, *, priority: int = DEFAULT_PRIORITY
    ) -> MemoryVerification | None:
        return None if self.checksum is None else MemoryVerification(self, self.checksum)

    def prefetch(self, task: Task, version: Version, source: Source) -> None:
        self.prefetched.append(Opening(task, version, source, None))

    def close(self) -> None:
        for download in self.downloads:
            os.close(download.fd)


@dataclass(frozen=True)
class Reply:
    status: int
    reason: str
    fields: list[tuple[str, str]]
    body: bytes

    def field(self, name: str) -> str | None:
        found = [value for key, value in self.fields if key.lower() == name.lower()]
        assert len(found) < 2, f"{name} stands {len(found)} times"
        return found[0] if found else None


class Client:
    """One connection to the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, line: str, *fields: str, body: bytes = b"") -> None:
        self.writer.write("\r\n".join((line, *fields, "", "")).encode() + body)
        await self.writer.drain()

    async def head(self) -> Reply:
        octets = await self.reader.readuntil(b"\r\n\r\n")
        lines = octets[:-4].decode("latin-1").split("\r\n")
        _, status, reason = lines[0].split(" ", 2)
        fields = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines[1:])]
        return Reply(int(status), reason, fields, b"")

    async def reply(self, *, to_head: bool = False) -> Reply:
        head = await self.head()
        if to_head or head.status in (204, 304):
            body = b""
        elif (length := head.field("Content-Length")) is not None:
            body = await self.reader.readexactly(int(length))
        elif head.field("Transfer-Encoding") == "chunked":
            body = await self._chunks()
        else:
            body = await self.reader.read()
        return Reply(head.status, head.reason, head.fields, body)

    async def _chunks(self) -> bytes:
        body = b""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            body += await self.reader.readexactly(size)
            assert await self.reader.readexactly(2) == b"\r\n"
        assert await self.reader.readexactly(2) == b"\r\n"
        return body

    async def close(self) -> None:
        self.writer.close()
        await asyncio.gather(self.writer.wait_closed(), return_exceptions=True)


class Front:
    """The proxy under test."""

    def __init__(self, tasks: MemoryTasks, settings: ProxySettings, origin: OriginSettings) -> None:
        self.tasks = tasks
        self._client = OriginClient(origin)
        self.server = ProxyServer(tasks, self._client, host_id=HOST_ID, settings=settings)
        self.port = 0
        self._clients: list[Client] = []

    async def start(self) -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setblocking(False)
        self.port = listening.getsockname()[1]
        await self.server.start(listening)

    async def stop(self) -> None:
        for client in self._clients:
            await client.close()
        await self.server.shutdown(0.0)
        await self._client.close()
        self.tasks.close()

    async def connect(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self._clients.append(client)
        return client

    async def get(self, url: str, *fields: str, method: str = "GET", body: bytes = b"") -> Reply:
        """Make one request as curl would, on a connection of its own."""
        client = await self.connect()
        host = re.sub(r"^https?://([^/?]*).*", r"\1", url)
        await client.send(f"{method} {url} HTTP/1.1", f"Host: {host}", "User-Agent: curl/8", *fields, body=body)
        return await client.reply(to_head=method == "HEAD")

    async def get_as_agent(self, url: str, *fields: str) -> Reply:
        """Make one request in the shape of Triton's published agent."""
        client = await self.connect()
        host = re.sub(r"^https?://([^/?]*).*", r"\1", url)
        shape = (f"Host: {host}", "Accept: */*", "Proxy-Connection: Keep-Alive")
        await client.send(f"GET {url} HTTP/1.1", *shape, *fields)
        return await client.reply()
