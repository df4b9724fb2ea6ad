"""P2P responses: the origin is asked for one byte, and the bytes come from wherever they are nearest.

The head goes out once the first piece is here, so that an early failure can still be a clean status. After that only a
reset can tell the client; the response is never ended short.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from email.utils import formatdate

from p2p.errors import StoreError, VersionChangedError
from p2p.fields import entity_tags, http_date, single, values
from p2p.ranges import ByteRange, format_content_range, if_range_matches, not_modified, parse_range
from p2p.telemetry import logger
from p2p.versions import passthrough_headers
from peer.proxy.contract import Tasks
from peer.proxy.exchange import Cache, Exchange
from peer.proxy.forward import Forwarder
from peer.proxy.route import Wanted
from peer.source.fields import Fields, end_to_end
from peer.source.http import Keepable, Prober, Refused, Stream

log = logger(__name__)

_CACHES = {"local": Cache.HIT_LOCAL, "remote": Cache.HIT_REMOTE, "origin": Cache.MISS}


@dataclass(frozen=True, slots=True)
class Selection:
    """What a request selects of the version at hand; `sent` is the part of a 206, and without it all is sent."""

    status: int
    sent: ByteRange | None = None


def select(method: str, request: Fields, answer: Fields, length: int) -> Selection:
    """Apply a request's conditions and ranges to a version, given the origin's answer (RFC 9110 §13.2.2, §14.2).

    Several ranges are answered with the whole object. Raises RangeNotSatisfiableError.
    """
    etag, modified, date = single(answer, "etag"), single(answer, "last-modified"), single(answer, "date")
    if not _preconditions_hold(request, etag, modified):
        return Selection(412)
    if not_modified(request, etag=etag, last_modified=modified):
        return Selection(304)
    wanted = single(request, "range")
    condition = single(request, "if-range")
    applies = condition is None or if_range_matches(condition, etag=etag, last_modified=modified, date=date)
    if method != "GET" or wanted is None or not applies:
        return Selection(200)
    ranges = parse_range(wanted, length)
    return Selection(206, ranges[0]) if ranges is not None and len(ranges) == 1 else Selection(200)


def _preconditions_hold(request: Fields, etag: str | None, modified: str | None) -> bool:
    if conditions := values(request, "if-match"):
        return "*" in conditions or any(tag == etag and tag[0] == '"' for c in conditions for tag in entity_tags(c))
    unmodified_since = http_date(single(request, "if-unmodified-since") or "")
    last = http_date(modified or "")
    return unmodified_since is None or last is None or last <= unmodified_since


class Responder:
    """Answers requests that go through P2P."""

    def __init__(self, tasks: Tasks, prober: Prober, forwarder: Forwarder, *, via: str) -> None:
        self._tasks = tasks
        self._prober = prober
        self._forwarder = forwarder
        self._via = via

    async def respond(self, exchange: Exchange, wanted: Wanted) -> None:
        """Answer one exchange. Raises DamselflyError kinds, and ConnectionError when the client is gone.

        An object that is overwritten before the first byte went out is asked for once more.
        """
        exchange.task_id = wanted.task.id
        if not await self._attempt(exchange, wanted, last=False):
            await self._attempt(exchange, wanted, last=True)

    async def _attempt(self, exchange: Exchange, wanted: Wanted, *, last: bool) -> bool:
        exchange.step = "probe"
        probe = await self._prober.probe(wanted.source, wanted.task.id, wanted.content)
        match probe:
            case Refused():
                await self._refuse(exchange, probe)
            case Stream():
                await self._pass_through(exchange, wanted, probe.reason)
            case Keepable():
                try:
                    await self._answer(exchange, wanted, probe)
                except VersionChangedError:
                    if last or exchange.head_sent:
                        raise
                    return False
                except StoreError as error:
                    if exchange.head_sent:
                        raise
                    log.warning("passing through what cannot be stored", task=wanted.task.id, error=str(error))
                    await self._pass_through(exchange, wanted, str(error))
        return True

    async def _answer(self, exchange: Exchange, wanted: Wanted, probe: Keepable) -> None:
        exchange.step = "select"
        length = probe.version.length
        selection = select(exchange.method, exchange.fields, probe.headers, length)
        fields = self._fields(wanted, probe)
        if selection.sent is not None:
            fields += (("Content-Range", format_content_range(selection.sent, length)),)
        body = selection.sent or ByteRange(0, length)
        if selection.status == 412:
            await exchange.send_whole(412, fields, b"damselfly: the object is another version\n")
        elif selection.status == 304 or exchange.method == "HEAD" or not body:
            await exchange.send_head(selection.status, fields, length=None if selection.status == 304 else len(body))
        else:
            await self._send(exchange, wanted, probe, selection.status, fields, body)
        await exchange.finish()

    async def _send(
        self, exchange: Exchange, wanted: Wanted, probe: Keepable, status: int, fields: Fields, body: ByteRange
    ) -> None:
        exchange.step = "download"
        async with await self._tasks.open(wanted.task, probe.version, probe.source, body) as reader:
            offset, ready = body.start, await reader.ready(body.start)
            exchange.cache = _CACHES[reader.origin_of_bytes]
            fields += (("X-Cache", exchange.cache),)
            if exchange.cache is not Cache.MISS:
                fields += (("Age", _age(probe.headers)),)
            await exchange.send_head(status, fields, length=len(body))
            while True:
                await exchange.send_file(reader.entry.fd, offset, ready - offset)
                offset = ready
                if offset >= body.stop:
                    return
                ready = await reader.ready(offset)

    async def _refuse(self, exchange: Exchange, refusal: Refused) -> None:
        if exchange.told_by_reset:
            exchange.reset()
            return
        fields = (*end_to_end(refusal.headers), ("Via", self._via), ("X-Dragonfly-Error-Type", "backend"))
        await exchange.send_whole(refusal.status, fields, refusal.body, reason=refusal.reason)
        await exchange.finish()

    async def _pass_through(self, exchange: Exchange, wanted: Wanted, reason: str) -> None:
        log.debug("not kept", task=wanted.task.id, reason=reason)
        exchange.cache = Cache.BYPASS
        extra = (("X-Dragonfly-Task-ID", wanted.task.id), ("X-Cache", Cache.BYPASS))
        await self._forwarder.forward(exchange, follow=True, extra=extra)

    def _fields(self, wanted: Wanted, probe: Keepable) -> Fields:
        return (
            *passthrough_headers(probe.headers),
            ("Date", single(probe.headers, "date") or formatdate(time.time(), usegmt=True)),
            ("Accept-Ranges", "bytes"),
            ("Via", self._via),
            ("X-Dragonfly-Task-ID", wanted.task.id),
        )


def _age(answer: Fields) -> str:
    """Return the age in seconds: that of the origin's own answer, for it has vouched for the version just now."""
    age = single(answer, "age") or ""
    return age if age.isdecimal() else "0"
