"""Asking S3 for the checksum of a whole object, where this host signs: once a version, by requests of its own.

Only there: `x-amz-checksum-mode` must be signed, so a caller's own presigned URL with it would be refused (403); and
the answer to a range says nothing of the whole object. A HEAD tells the checksum. Where that is composite, the parts
are asked for too: GetObjectAttributes tells their lengths and checksums (which takes a right of its own), a HEAD of the
first one its length and their number.

Sources: AWS "Checking object integrity", "GetObjectAttributes", "HeadObject" (partNumber).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Protocol
from xml.parsers import expat

import aiohttp

from p2p.checksums import Checksum, Unparted, read_checksum, read_composite
from p2p.control import Source
from p2p.digests import ExpectedDigest
from p2p.errors import DamselflyError
from p2p.fields import single
from p2p.hostapi import Keepable, Probe
from p2p.parts import MAX_PARTS
from p2p.stores import Store
from p2p.telemetry import logger
from p2p.versions import Version, matches
from peer.source.client import OriginClient, fields_of, origin_errors, read_at_most
from peer.source.document import Document
from peer.source.fields import Fields

log = logger(__name__)

REMEMBERED_ANSWERS = 4096

_MODE: Fields = (("x-amz-checksum-mode", "ENABLED"),)
_ATTRIBUTES: Fields = (("x-amz-object-attributes", "Checksum,ObjectParts"),)
_PAGE_BYTES = 1024 * 1024
"""How long a page of parts may be; S3 gives a thousand of them, 200 bytes each."""

_MOST_PAGES = 2 * MAX_PARTS // 1000


class Prober(Protocol):
    """Who asks an origin for one byte; `peer.source.http.Prober` is it."""

    async def probe(self, source: Source, task_id: str, content: ExpectedDigest | None = None) -> Probe:
        """Return what the origin's answer means."""


class ChecksumProber:
    """Asks as `prober` does, and S3 for the checksum too where it was not in the answer. Belongs to one event loop."""

    def __init__(self, prober: Prober, client: OriginClient) -> None:
        self._prober = prober
        self._client = client
        self._answers: OrderedDict[str, Checksum | None] = OrderedDict()

    async def probe(self, source: Source, task_id: str, content: ExpectedDigest | None = None) -> Probe:
        """Return what the origin's answer means; raises as the prober does. No checksum is no reason to fail."""
        probe = await self._prober.probe(source, task_id, content)
        if not isinstance(probe, Keepable) or probe.checksum or probe.source.store is not Store.S3 or content:
            return probe
        version = probe.version
        if version.id not in self._answers:
            try:
                self._answers[version.id] = await self._ask(probe.source, version)
            except DamselflyError as error:
                log.info("no checksum of a version was had", version=version.id, error=str(error))
                return probe
        self._answers.move_to_end(version.id)
        if len(self._answers) > REMEMBERED_ANSWERS:
            self._answers.popitem(last=False)
        return replace(probe, checksum=self._answers[version.id])

    async def _ask(self, source: Source, version: Version) -> Checksum | None:
        fields = await self._head(source)
        if not matches(version, fields, _number(fields, "content-length")):
            return None
        checksum = read_checksum(fields, whole=True)
        if checksum is not None or (composite := read_composite(fields)) is None:
            return checksum
        checksum = await self._of_listed_parts(source, composite)
        if checksum is None or checksum.parts is None or checksum.parts.total != version.length:
            checksum = await self._of_equal_parts(source, composite, version.length)
        return checksum

    async def _of_listed_parts(self, source: Source, composite: Unparted) -> Checksum | None:
        """Return the checksum with the parts that the store lists, page by page; None if it lists none that fit."""
        parts: list[tuple[int, str]] = []
        for _ in range(_MOST_PAGES):
            marker: Fields = (("x-amz-part-number-marker", str(len(parts))),) if parts else ()
            page = await self._page(source, marker, composite)
            parts += page
            if not page or len(parts) >= composite.count:
                break
        return composite.of(parts)

    async def _page(self, source: Source, marker: Fields, composite: Unparted) -> list[tuple[int, str]]:
        response = await self._send("GET", source, _ATTRIBUTES + marker, query=(("attributes", ""),))
        try:
            if response.status != 200:
                return []
            with origin_errors(source.url):
                body = await read_at_most(response, _PAGE_BYTES)
        finally:
            response.release()
        document = Document(("Part",))
        try:
            document.feed(body, last=True)
            name = f"Checksum{composite.kind.upper()}"
            return [(int(part["Size"]), part[name]) for part in document.entries if int(part["Size"]) > 0]
        except (expat.ExpatError, LookupError, ValueError):
            return []

    async def _of_equal_parts(self, source: Source, composite: Unparted, length: int) -> Checksum | None:
        """Return the checksum with as many parts as the store says, all as long as the first but for the last."""
        fields = await self._head(source, query=(("partNumber", "1"),))
        first = _number(fields, "content-length")
        if first is None or _number(fields, "x-amz-mp-parts-count") != composite.count:
            return None
        return composite.assuming(first, length)

    async def _head(self, source: Source, query: Fields = ()) -> Fields:
        """Return the fields that a HEAD is answered with; none where it is refused."""
        response = await self._send("HEAD", source, _MODE, query=query)
        response.release()
        return fields_of(response) if response.status in (200, 206) else ()

    async def _send(self, method: str, source: Source, headers: Fields, *, query: Fields) -> aiohttp.ClientResponse:
        sent = await self._client.credentials.signed(source, method=method, headers=headers, query=query)
        return await self._client.request(method, sent.url, (*sent.headers, ("Accept-Encoding", "identity")))


def _number(fields: Fields, name: str) -> int | None:
    text = single(fields, name) or ""
    return int(text) if text.isdecimal() and len(text) < 20 else None
