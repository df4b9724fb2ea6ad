"""The proxy between a fuzzed client and a strict origin, and what must hold after every input."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
from structlog.typing import EventDict

from peer.proxy.server import ProxySettings
from peer.source.client import OriginSettings
from tests.fuzz.clock import VirtualLoop
from tests.fuzz.grammar import SMUGGLED, Case, Fate
from tests.fuzz.wire import ESTABLISHED, Response, StrictOrigin, responses, strict_origin
from tests.unit.proxy.front import Front, MemoryTasks

CONTENT = bytes(range(256)) * 4
LONGEST_CASE_SECONDS = 3600.0
"""By the virtual clock: no limit of the proxy is longer, so who takes longer hangs."""

_PARSER = "peer.proxy.parser"
_UNDERSTOOD = ("BadHttp", "BadStatusLine", "LineTooLong", "InvalidHeader", "InvalidURLError", "ContentLengthError")


class _Conversation(asyncio.Protocol):
    """The client's end: everything that came, and whether more can."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.ended = False
        self.failed = False
        self.news = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.news.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.ended, self.failed = True, error is not None
        self.news.set()


class _Errors(logging.Handler):
    """Keeps what the proxy's parser reports beyond requests that it does not understand."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if not any(kind in text for kind in _UNDERSTOOD):
            self.lines.append(text)


@dataclass
class Field:
    """One proxy, one origin and their loop, for any number of inputs."""

    loop: VirtualLoop
    front: Front
    origin: StrictOrigin
    errors: _Errors
    log: list[EventDict]
    number: int = 0

    async def check(self, case: Case) -> list[Response]:
        """Send one input and a canary behind it; raise AssertionError for whatever must not be. Gives the answers."""
        self.number += 1
        canary = b"/canary/%d" % self.number
        name = b"127.0.0.1:%05d" % self.origin.port
        seen = len(self.origin.targets)
        async with asyncio.timeout(LONGEST_CASE_SECONDS):
            transport, client = await self.loop.create_connection(_Conversation, "127.0.0.1", self.front.port)
            try:
                for part in case.addressed_to(name):
                    if client.ended:
                        break
                    transport.write(part)
                    await self.loop.elapse(case.pause_seconds)
                transport.write(b"GET http://%b%b HTTP/1.1\r\nHost: %b\r\nUser-Agent: c\r\n\r\n" % (name, canary, name))
                got = await self._answers(client, b"seen %b with 0" % canary)
            finally:
                transport.abort()
        self._judge(case, client, got, canary, self.origin.targets[seen:])
        return got

    async def _answers(self, client: _Conversation, last: bytes) -> list[Response]:
        """Wait for the canary's answer, or for the end of the connection."""
        while True:
            found, _ = responses(bytes(client.received), ended=client.ended and not client.failed)
            if client.ended or any(last in one.body for one in found):
                return found
            client.news.clear()
            await client.news.wait()

    def _judge(
        self, case: Case, client: _Conversation, got: list[Response], canary: bytes, targets: list[bytes]
    ) -> None:
        shown = b"".join(case.parts)[:2000]
        assert self.origin.complaints == [], (self.origin.complaints, shown)
        assert self.loop.failures == [], (self.loop.failures, shown)
        assert self.errors.lines == [], (self.errors.lines, shown)
        unexpected = [line for line in self.log if line["log_level"] in ("error", "critical")]
        assert unexpected == [], (unexpected, shown)
        assert not any(SMUGGLED in target for target in targets), (targets, shown)
        answered = [one for one in got if b"seen " in one.body and one.reason != ESTABLISHED]
        forwarded = [one.body.split(b" ")[1] for one in answered]
        # Every answer is to the request it stands for: the origin's own story, in its order.
        stories = iter(targets)
        assert all(target in stories for target in forwarded), (forwarded, targets, shown)
        if canary in forwarded:
            assert forwarded.index(canary) == len(forwarded) - 1, (forwarded, shown)
        statuses = [one.status for one in got]
        match case.fate:
            case Fate.REFUSED:
                assert statuses[-1:] in ([400], [501]), (statuses, shown)
                assert client.ended, shown
                assert canary not in forwarded, shown
            case Fate.ANSWERED:
                assert canary in forwarded, (statuses, shown)
                assert len(got) == case.answers + 1, (statuses, shown)
                assert len(targets) == len(set(targets)) == len(forwarded), (targets, forwarded, shown)
            case Fate.ANY:
                pass
        self.log.clear()

    async def settled(self) -> None:
        """Let every deadline pass; raise AssertionError if the proxy keeps anything of clients that are gone."""
        await self.loop.elapse(LONGEST_CASE_SECONDS)
        assert not self.front.server._http.connections
        assert not self.front.server._active
        assert not self.front.tasks.readers

    def forget(self) -> None:
        """Drop what the doubles around the proxy remember, which is theirs and grows."""
        self.origin.targets.clear()
        self.front._clients.clear()
        self.front.tasks.openings.clear()
        self.front.tasks.close()
        self.front.tasks.downloads.clear()


@asynccontextmanager
async def field(loop: VirtualLoop) -> AsyncIterator[Field]:
    """Start a proxy and an origin on `loop`, and stop them when the context is left."""
    errors = _Errors()
    parser = logging.getLogger(_PARSER)
    with contextlib.ExitStack() as stack:
        parser.addHandler(errors)
        stack.callback(parser.removeHandler, errors)
        log = stack.enter_context(structlog.testing.capture_logs())
        async with strict_origin() as origin:
            front = Front(MemoryTasks(CONTENT), ProxySettings(), OriginSettings())
            await front.start()
            try:
                yield Field(loop, front, origin, errors, log)
            finally:
                await front.stop()
