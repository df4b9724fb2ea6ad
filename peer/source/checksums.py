"""Asking S3 for the checksum of a whole object, where this host signs: once a version, by a HEAD of its own.

Only there: `x-amz-checksum-mode` must be signed, so a caller's own presigned URL with it would be refused (403); and
the answer to a range says nothing of the whole object.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Protocol

from p2p.checksums import Checksum, read_checksum
from p2p.control import Source
from p2p.digests import ExpectedDigest
from p2p.errors import DamselflyError
from p2p.fields import single
from p2p.hostapi import Keepable, Probe
from p2p.stores import Store
from p2p.telemetry import logger
from p2p.versions import Version, matches
from peer.source.client import OriginClient, fields_of

log = logger(__name__)

REMEMBERED_ANSWERS = 4096

_MODE = (("x-amz-checksum-mode", "ENABLED"),)


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
        sent = await self._client.credentials.signed(source, method="HEAD", headers=_MODE)
        response = await self._client.request("HEAD", sent.url, (*sent.headers, ("Accept-Encoding", "identity")))
        fields = fields_of(response)
        response.release()
        length = single(fields, "content-length") or ""
        if response.status != 200 or not length.isdecimal() or not matches(version, fields, int(length)):
            return None
        return read_checksum(fields, whole=True)
