"""Sends chosen bytes of one version to a client as they land, the last of them only when their digest is verified."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Literal

from p2p.control import Source
from p2p.digests import ExpectedDigest
from p2p.identity import Task
from p2p.linkfile import HeldFile
from p2p.pieces import PieceLayout
from p2p.ranges import ByteRange
from p2p.urgency import DEFAULT_PRIORITY
from p2p.versions import Version
from peer.proxy.contract import Reader, Tasks, Verification
from peer.proxy.exchange import Exchange
from peer.proxy.multipart import Body

_REASSURE_SECONDS = 15.0


class Delivery:
    """A body on its way to one client; made by `delivering`."""

    def __init__(self, body: Body, readers: Sequence[Reader], verification: Verification | None, length: int) -> None:
        self._body = body
        self._readers = readers
        self._verification = verification
        last = body.parts[-1].wanted
        layout = PieceLayout.of(length)
        # Where the last piece of the response begins: until there bytes may go out on trust.
        self._withheld = max(last.start, layout.offset(layout.covering(last).stop - 1)) if verification else last.stop

    async def begin(self) -> Literal["local", "remote", "origin"]:
        """Wait until the first byte may go out, and return where it came from.

        Raises what ended the download, and DigestMismatchError: the client can still be told by a status.
        """
        first = self._body.parts[0].wanted.start
        await self._readers[0].ready(first)
        if self._verification is not None and len(self._readers) == 1 and self._withheld == first:
            await self._verification.verdict()
        return self._readers[0].origin_of_bytes

    async def hold(self, exchange: Exchange) -> HeldFile:
        """Wait until every byte of the body, which is the whole object, is here and verified; return its file.

        A client that waits long is told that the wait goes on. Raises as `send` does.
        """
        (reader,) = self._readers
        offset, told = 0, time.monotonic()
        while offset < self._body.length:
            offset = await reader.ready(offset)
            if time.monotonic() - told >= _REASSURE_SECONDS:
                await exchange.send_continue()
                told = time.monotonic()
        if self._verification is not None:
            await self._verification.verdict()
        return HeldFile.of(reader.entry.path, reader.entry.fd)

    async def send(self, exchange: Exchange) -> None:
        """Send the body. Raises what ended the download, DigestMismatchError, and ConnectionError."""
        *others, (last, reader) = zip(self._body.parts, self._readers, strict=True)
        for part, its in others:
            await exchange.send(part.head)
            await _send(exchange, its, part.wanted.start, part.wanted.stop)
        if last.head:
            await exchange.send(last.head)
        await _send(exchange, reader, last.wanted.start, self._withheld)
        if self._verification is not None:
            await self._verification.verdict()
            await _send(exchange, reader, self._withheld, last.wanted.stop)
        if self._body.tail:
            await exchange.send(self._body.tail)


async def _send(exchange: Exchange, reader: Reader, offset: int, stop: int) -> None:
    while offset < stop:
        ready = min(await reader.ready(offset), stop)
        await exchange.send_file(reader.entry.fd, offset, ready - offset)
        offset = ready


@asynccontextmanager
async def delivering(
    tasks: Tasks,
    task: Task,
    version: Version,
    source: Source,
    body: Body,
    expected: ExpectedDigest | None = None,
    *,
    priority: int = DEFAULT_PRIORITY,
) -> AsyncIterator[Delivery]:
    """Want the bytes of `body` of a version while the context lasts.

    With the digest that a user expects the whole object is wanted, to hash it; without one, what its store has said of
    it is compared where `body` is the whole object. Raises StoreError kinds, StoppingError, and ChecksumMismatchError
    for a version that is refused for wrong bytes.
    """
    async with AsyncExitStack() as stack:
        readers = [
            await stack.enter_async_context(await tasks.open(task, version, source, part.wanted, priority=priority))
            for part in body.parts
        ]
        verification = None
        if expected is None:
            if body.parts[0].wanted == ByteRange(0, version.length):
                claim = await tasks.check(task, version, source, priority=priority)
                verification = None if claim is None else await stack.enter_async_context(claim)
        else:
            verification = await stack.enter_async_context(
                await tasks.verify(task, version, source, expected, priority=priority)
            )
        yield Delivery(body, readers, verification, version.length)
