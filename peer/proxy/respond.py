"""P2P responses: the origin is asked for one byte, and the bytes come from wherever they are nearest.

The head goes out once the first piece is here, so that an early failure can still be a clean status. After that only a
reset can tell the client; the response is never ended short.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from email.utils import formatdate

from p2p.digests import ExpectedDigest
from p2p.errors import (
    ChecksumMismatchError,
    CredentialsError,
    DigestMismatchError,
    OriginError,
    StoreError,
    VersionChangedError,
)
from p2p.fields import entity_tags, http_date, single, values
from p2p.hostapi import Keepable, Refused, Stream
from p2p.linkfile import FILE
from p2p.ranges import ByteRange, if_range_matches, not_modified, parse_range
from p2p.telemetry import logger
from p2p.versions import Version, passthrough_headers
from peer.proxy.contract import Tasks
from peer.proxy.delivery import delivering
from peer.proxy.digest import expected_digest
from peer.proxy.exchange import Cache, Exchange
from peer.proxy.forward import Forwarder
from peer.proxy.freshness import Freshness, Judged, Standing
from peer.proxy.multipart import coalesced, compose, may_be_split
from peer.proxy.route import Wanted
from peer.proxy.signals import priority, wants_file, wants_prefetch
from peer.source.fields import Fields, across_hosts, end_to_end, for_origin

log = logger(__name__)

RESTARTS = 8
"""How often a request is begun anew because its object was overwritten before the client had a byte of it."""

SPOILT_VERSIONS = 1024
"""How many versions are remembered whose copies in the fleet were found not to have their digest."""

_CACHES = {"local": Cache.HIT_LOCAL, "remote": Cache.HIT_REMOTE, "origin": Cache.MISS}


@dataclass(frozen=True, slots=True)
class Selection:
    """What a request selects of the version at hand; `sent` are the ranges of a 206, and without any all is sent."""

    status: int
    sent: tuple[ByteRange, ...] = ()


def select(method: str, request: Fields, answer: Fields, length: int) -> Selection:
    """Apply a request's conditions and ranges to a version, given the origin's answer (RFC 9110 §13.2.2, §14.2).

    Ranges that overlap are joined. Raises RangeNotSatisfiableError.
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
    if ranges is None or (len(ranges) > 1 and not may_be_split(answer)):
        return Selection(200)
    return Selection(206, coalesced(ranges))


def _preconditions_hold(request: Fields, etag: str | None, modified: str | None) -> bool:
    if conditions := values(request, "if-match"):
        return "*" in conditions or any(tag == etag and tag[0] == '"' for c in conditions for tag in entity_tags(c))
    unmodified_since = http_date(single(request, "if-unmodified-since") or "")
    last = http_date(modified or "")
    return unmodified_since is None or last is None or last <= unmodified_since


class Responder:
    """Answers requests that go through P2P."""

    def __init__(self, tasks: Tasks, freshness: Freshness, forwarder: Forwarder, *, via: str) -> None:
        self._tasks = tasks
        self._freshness = freshness
        self._forwarder = forwarder
        self._via = via
        self._spoilt: OrderedDict[str, None] = OrderedDict()
        agent = via.rpartition(" ")[2]
        self._warning = ("Warning", f'110 {agent} "Response is Stale", 111 {agent} "Revalidation Failed"')

    async def respond(self, exchange: Exchange, wanted: Wanted) -> None:
        """Answer one exchange. Raises DamselflyError kinds, and ConnectionError when the client is gone.

        An object that is overwritten before the first byte went out is asked for anew, and so are one that the origin
        does not give any more though its leave was still remembered, and one whose bytes are not what its store says.
        """
        exchange.task_id = wanted.task.id
        # Where this leads may be this peer again: only its name in the request tells it so.
        headers = (*wanted.source.headers, ("Via", self._via))
        wanted = replace(wanted, source=replace(wanted.source, headers=headers))
        expected = expected_digest(exchange.method, exchange.fields, wanted.content)
        for restart in range(RESTARTS + 1):
            if await self._attempt(exchange, wanted, expected, anew=restart > 0, last=restart == RESTARTS):
                return

    async def _attempt(
        self, exchange: Exchange, wanted: Wanted, expected: ExpectedDigest | None, *, anew: bool, last: bool
    ) -> bool:
        """Answer, and return True; False if nothing was sent and it is worth beginning anew."""
        exchange.step = "probe"
        judged = await self._freshness.judge(wanted, anew=anew)
        match judged.probe:
            case Refused() as refusal:
                await self._refuse(exchange, refusal)
            case Stream(reason):
                await self._pass_through(exchange, wanted, reason)
            case Keepable(version) if version.id in self._spoilt:
                await self._pass_through(exchange, wanted, "what the fleet holds of it does not have its digest")
            case Keepable() as probe:
                try:
                    await self._answer(exchange, wanted, expected, judged, probe)
                except OriginError as error:
                    if last or exchange.head_sent:
                        raise
                    changed = await self._is_gone(wanted, probe.version, error)
                    if not (changed or judged.standing is Standing.REMEMBERED):
                        raise
                    if changed:
                        self._freshness.changed(wanted)
                    return False
                except ChecksumMismatchError:
                    # The bytes are gone: once more, from the origin.
                    if anew or exchange.head_sent:
                        raise
                    return False
                except DigestMismatchError as error:
                    if wanted.content is not None:
                        self._take_as_spoilt(probe.version.id)
                    if wanted.content is None or exchange.head_sent:
                        raise
                    await self._pass_through(exchange, wanted, str(error))
                except StoreError as error:
                    if exchange.head_sent:
                        raise
                    log.warning("passing through what cannot be stored", task=wanted.task.id, error=str(error))
                    await self._pass_through(exchange, wanted, str(error))
        return True

    async def _is_gone(self, wanted: Wanted, version: Version, error: OriginError) -> bool:
        """Tell whether a download failed because the origin has another version by now, or none.

        Who may not ask by itself only hears that it may not, when the seeds have given the version up.
        """
        if not isinstance(error, CredentialsError) or wanted.source.store is None:
            return isinstance(error, VersionChangedError)
        probe = (await self._freshness.judge(wanted, anew=True)).probe
        return not (isinstance(probe, Keepable) and probe.version.id == version.id)

    async def _answer(
        self, exchange: Exchange, wanted: Wanted, expected: ExpectedDigest | None, judged: Judged, probe: Keepable
    ) -> None:
        exchange.step = "select"
        prefetch = wants_prefetch(exchange.fields, by_rule=wanted.rule.prefetch)
        length = probe.version.length
        selection = select(exchange.method, exchange.fields, probe.headers, length)
        body, fields = compose(selection.sent, length, self._fields(wanted, judged, probe))
        if expected is not None and not length:
            expected.verify(expected.hasher())
        if selection.status == 412:
            await exchange.send_whole(412, fields, b"damselfly: the object is another version\n")
        elif selection.status == 304 or exchange.method == "HEAD" or not body.length:
            await exchange.send_head(selection.status, fields, length=None if selection.status == 304 else body.length)
        else:
            exchange.step = "download"
            if probe.checksum is not None:
                self._tasks.note(probe.version, probe.checksum)
            async with delivering(
                self._tasks,
                wanted.task,
                probe.version,
                probe.source,
                body,
                expected,
                priority=priority(exchange.fields),
            ) as delivery:
                exchange.cache = _CACHES[await delivery.begin()]
                fields += (("X-Cache", exchange.cache),)
                if exchange.cache is not Cache.MISS:
                    fields += (("Age", _age(probe.headers, judged.age)),)
                if selection.status == 200 and wants_file(exchange.fields) and exchange.is_of_this_machine:
                    held = await delivery.hold(exchange)
                    await exchange.send_head(204, (*fields, (FILE, held.field())), length=0)
                else:
                    await exchange.send_head(selection.status, fields, length=body.length)
                    await delivery.send(exchange)
        await exchange.finish()
        if selection.sent and prefetch:
            self._tasks.prefetch(wanted.task, probe.version, probe.source)

    def _take_as_spoilt(self, version_id: str) -> None:
        """Go to the origin from now on: what is named by its digest has no other version that could follow.

        Other hosts may hold the wrong bytes, too, and would give them again and again.
        """
        self._spoilt[version_id] = None
        if len(self._spoilt) > SPOILT_VERSIONS:
            self._spoilt.popitem(last=False)

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
        # A part cannot be compared with the digest of the whole; only its client can put the parts together.
        content = None if single(exchange.fields, "range") else wanted.content
        source = None
        if wanted.source.store is not None:
            # Nothing of the caller's but what it wants to have, and from which version.
            conditions = across_hosts(for_origin(exchange.fields))
            source = replace(wanted.source, headers=conditions)
        try:
            await self._forwarder.forward(
                exchange, follow=True, method="GET", extra=extra, content=content, source=source
            )
        except CredentialsError as error:
            # A seed may have been let in: only bytes that can be kept come by way of one.
            raise CredentialsError(
                f"{error}; this peer asked for itself, because the object is not kept ({reason})",
                error.status,
            ) from None

    def _fields(self, wanted: Wanted, judged: Judged, probe: Keepable) -> Fields:
        return (
            *((self._warning,) if judged.standing is Standing.STALE else ()),
            *passthrough_headers(probe.headers),
            ("Date", single(probe.headers, "date") or formatdate(time.time(), usegmt=True)),
            ("Accept-Ranges", "bytes"),
            ("Via", self._via),
            ("X-Dragonfly-Task-ID", wanted.task.id),
        )


def _age(answer: Fields, seconds: float) -> str:
    """Return the age in seconds of the origin's word: the age its answer had, and how long ago that was."""
    age = single(answer, "age") or ""
    return str((int(age) if re.fullmatch(r"[0-9]{1,9}", age) else 0) + int(seconds))
