"""The probe: one request for one byte, with the caller's own URL and headers (WIRE §4, §5).

It settles in one round trip whether the caller may read, which bytes the object has now, and whether they can be kept.
Never a HEAD: a presigned URL binds the method.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from random import Random

import aiohttp

from p2p.checksums import read_checksum
from p2p.control import Source
from p2p.digests import ExpectedDigest
from p2p.fields import single
from p2p.hostapi import Keepable, Probe, Refused, Stream
from p2p.ranges import ByteRange, parse_content_range
from p2p.versions import Unkeepable, read_version
from peer.source.backoff import Backoff
from peer.source.client import OriginClient, fields_of, origin_errors, read_at_most
from peer.source.fields import Fields, for_pieces, retry_after

REFUSAL_BYTES = 64 * 1024
"""How much of an origin's error page is passed on."""

_IDENTITY: Fields = (("Accept-Encoding", "identity"),)
_ONE_BYTE: Fields = (("Range", "bytes=0-0"), *_IDENTITY)
_FIRST_BYTE = ByteRange(0, 1)
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that say nothing of the object, and may be another in a moment."""


class Prober:
    """Asks origins for one byte. `random` jitters the pauses between attempts; `sleep` makes them."""

    def __init__(
        self,
        client: OriginClient,
        *,
        backoff: Backoff | None = None,
        random: Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._client = client
        self._backoff = backoff or Backoff()
        self._random = random or Random()  # noqa: S311  # spreads retries out; keeps no secret
        self._sleep = sleep

    async def probe(self, source: Source, task_id: str, content: ExpectedDigest | None = None) -> Probe:
        """Ask for the first byte of `source` and return what the answer means for task `task_id`.

        `content` is the digest that the request names, if it does: it is the version then.

        An origin that cannot answer now (429, 503 and their kin) is asked again after a pause, a few times; the last
        answer counts. Raises BadRequestError, OriginUnreachableError, OriginStalledError, and OriginError for
        redirects that lead nowhere. A kept-alive connection that turns out to be dead is replaced once, by aiohttp.
        """
        source = replace(source, headers=for_pieces(source.headers))
        failures = 0
        while True:
            probe = await self._probe(source, task_id, content)
            if not (isinstance(probe, Refused) and probe.status in _TRANSIENT):
                return probe
            failures += 1
            pause = self._backoff.pause(failures, retry_after(probe.headers), self._random)
            if pause is None:
                return probe
            await self._sleep(pause)

    async def _probe(self, source: Source, task_id: str, content: ExpectedDigest | None) -> Probe:
        probe = await self._ask(source, task_id, content, _ONE_BYTE)
        if isinstance(probe, Refused) and _says_empty(probe):
            # A 416 describes its own error page, not the object: ask for the whole, which is nothing.
            return await self._ask(source, task_id, content, _IDENTITY)
        return probe

    async def _ask(self, source: Source, task_id: str, content: ExpectedDigest | None, extra: Fields) -> Probe:
        response, source = await self._client.follow("GET", source, extra)
        try:
            with origin_errors(source.url):
                return await self._judge(response, source, task_id, content)
        finally:
            # An answer read to its end returns its connection to the pool; any other is cut off.
            response.release()

    async def _judge(
        self, response: aiohttp.ClientResponse, source: Source, task_id: str, content: ExpectedDigest | None
    ) -> Probe:
        fields = fields_of(response)
        if response.status >= 400:
            body = await read_at_most(response, REFUSAL_BYTES)
            return Refused(response.status, response.reason or "", fields, body)
        if response.status == 206:
            # Azurite answers so for an empty blob: a part of nothing, "bytes 0--1/0".
            is_empty = single(fields, "content-length") == "0"
            length = 0 if is_empty else _length_of_first_byte(fields)
            if length is None:
                return Stream("the Content-Range of the origin's answer does not tell the object's length")
            await response.read()
        elif response.status == 200 and single(fields, "content-length") == "0":
            length = 0
        else:
            return Stream(f"the origin answered {response.status} to a request for one byte")
        version = read_version(task_id, fields, length=length, content=content)
        if isinstance(version, Unkeepable):
            return Stream(version.reason)
        return Keepable(version, fields, source, read_checksum(fields, whole=response.status == 200))


def _says_empty(refusal: Refused) -> bool:
    """Tell whether an object has no first byte; some stores say no length with a 416 (radosgw), and it is asked for."""
    length = parse_content_range(single(refusal.headers, "content-range") or "").length
    return refusal.status == 416 and length in (0, None)


def _length_of_first_byte(fields: Fields) -> int | None:
    """Return the object's length from the Content-Range of an answer that holds exactly its first byte."""
    content_range = parse_content_range(single(fields, "content-range") or "")
    return content_range.length if content_range.range == _FIRST_BYTE else None
