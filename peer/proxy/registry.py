"""The registry mirror: container images by way of the peer.

Blobs go through P2P under their digest, manifests come out of memory when the registry says that they are what was
kept, and everything else (the ping, tokens' challenges, tags, uploads) is forwarded.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import aiohttp

from p2p.control import Source
from p2p.digests import ExpectedDigest
from p2p.fields import is_strong_tag, single
from p2p.registry import Kind, Mirrored, blob_task, is_mirrored, mirrored
from p2p.versions import Unkeepable, ValidatorKind, passthrough_headers, read_version
from peer.core.rules import Action, Rule
from peer.proxy.exchange import Cache, Exchange
from peer.proxy.forward import Forwarder
from peer.proxy.route import Wanted
from peer.proxy.signals import USE_P2P, choice
from peer.source.client import OriginClient, fields_of, origin_errors, read_at_most
from peer.source.fields import Fields, end_to_end, for_origin, for_pieces
from peer.source.http import REFUSAL_BYTES

REGISTRY = "X-Dragonfly-Registry"

MANIFEST_BYTES = 4 * 1024 * 1024
"""The longest manifest that is kept; registries need not take longer ones (OCI Distribution Specification)."""

KEPT_BYTES = 64 * 1024 * 1024
"""How much of manifests is kept in memory, the least recently used forgotten first."""

# Such a request is about a part or a version that the client has already: the registry answers it best.
_PARTICULAR = ("Range", "If-None-Match", "If-Match", "If-Modified-Since", "If-Unmodified-Since")

SIGNED_MANIFEST = "application/vnd.docker.distribution.manifest.v1+prettyjws"
"""Docker's image manifest schema 1: its signatures are part of the document, but not of what its digest is taken of."""


def mirror_request(exchange: Exchange, default: str | None) -> Mirrored | None:
    """Return what a request asks of a registry, if it is one to a mirror; its target is the upstream's from then on.

    `default` is the upstream for requests that name none. Raises BadRequestError.
    """
    if not is_mirrored(exchange.target):
        return None
    found = mirrored(exchange.target, named=single(exchange.fields, REGISTRY), default=default)
    exchange.target = found.url
    return found


def wanted_blob(exchange: Exchange, found: Mirrored, rule: Rule) -> Wanted | None:
    """Return the blob that a request wants through P2P; None for what is to go another way."""
    if found.kind is not Kind.BLOB or found.digest is None or not _is_for_the_cache(exchange, rule):
        return None
    task = blob_task(exchange.url, found.digest)
    return Wanted(task, Source(exchange.url, for_pieces(exchange.fields)), rule, found.digest)


def wants_manifest(exchange: Exchange, found: Mirrored, rule: Rule) -> bool:
    """Tell whether a request is for a whole manifest, which `Manifests` answers."""
    return (
        found.kind is Kind.MANIFEST
        and exchange.method == "GET"
        and not any(name in exchange.request.headers for name in _PARTICULAR)
        and _is_for_the_cache(exchange, rule)
    )


def _is_for_the_cache(exchange: Exchange, rule: Rule) -> bool:
    if exchange.method not in {"GET", "HEAD"} or exchange.request.body_exists:
        return False
    chosen = choice(exchange.fields, USE_P2P)
    return rule.action is not Action.DIRECT if chosen is None else chosen


@dataclass(frozen=True, slots=True)
class _Manifest:
    """A manifest as the registry gave it; `etag` is what it calls this very document."""

    etag: str
    fields: Fields
    body: bytes


class Manifests:
    """Answers requests for manifests. The registry is asked every time, by its tag or its digest alike.

    It is asked with the caller's own headers, on the condition that it has not what is kept, and so says in one round
    trip whether the caller may read and whether the kept bytes are right. A manifest is at most a few hundred KiB and
    read to its end before it is sent, so that its digest is verified before the first byte leaves.
    """

    def __init__(self, client: OriginClient, forwarder: Forwarder, *, via: str, stall_seconds: float) -> None:
        self._client = client
        self._forwarder = forwarder
        self._via = ("Via", via)
        self._stall_seconds = stall_seconds
        self._kept: OrderedDict[str, _Manifest] = OrderedDict()
        self._bytes = 0

    async def answer(self, exchange: Exchange, digest: ExpectedDigest | None) -> None:
        """Answer one exchange, whose URL may name the manifest's `digest`.

        Raises OriginError kinds, DigestMismatchError, and ConnectionError when the client is gone.
        """
        exchange.step = "manifest"
        url, kept = exchange.url, self._kept.get(exchange.url)
        own: Fields = (self._via, ("Accept-Encoding", "identity"))
        if kept is not None:
            own += (("If-None-Match", kept.etag),)
        theirs = tuple(pair for pair in for_origin(exchange.fields) if pair[0].lower() != "accept-encoding")
        source = Source(url, theirs + own)
        response, source = await self._client.follow("GET", source, stall_seconds=self._stall_seconds)
        try:
            received = fields_of(response)
            if response.status == 304 and kept is not None:
                self._kept.move_to_end(url)
                await self._send(exchange, Cache.HIT_LOCAL, _renewed(kept.fields, received), kept.body)
            elif response.status == 200 and _length(received) <= MANIFEST_BYTES:
                with origin_errors(source.url):
                    body = await response.read()
                self._take(url, digest, received, body)
                await self._send(exchange, Cache.MISS, received, body)
            elif response.status == 200:
                # Whatever that is, it is no manifest: in bounded memory, as it comes.
                await self._forwarder.forward(exchange, follow=True)
            else:
                await self._refuse(exchange, response, source.url)
        finally:
            response.release()

    def _take(self, url: str, digest: ExpectedDigest | None, fields: Fields, body: bytes) -> None:
        """Verify a manifest, and keep it if the registry can be asked whether it still is what it was."""
        self._forget(url)
        if (single(fields, "content-type") or "") == SIGNED_MANIFEST:
            return
        if digest is not None:
            hasher = digest.hasher()
            hasher.update(body)
            digest.verify(hasher)
        version = read_version("", fields, length=len(body), content=digest)
        if isinstance(version, Unkeepable):
            return
        # A registry that gives no ETag may all the same know the one that most of them make of the digest.
        etag = version.validator
        if version.kind is ValidatorKind.CONTENT:
            etag = single(fields, "etag") or f'"{digest}"'
        if version.kind in (ValidatorKind.ETAG, ValidatorKind.CONTENT) and is_strong_tag(etag):
            self._kept[url] = _Manifest(etag, passthrough_headers(fields), body)
            self._bytes += len(body)
            while self._bytes > KEPT_BYTES:
                self._forget(next(iter(self._kept)))

    def _forget(self, url: str) -> None:
        if (known := self._kept.pop(url, None)) is not None:
            self._bytes -= len(known.body)

    async def _send(self, exchange: Exchange, cache: Cache, fields: Fields, body: bytes) -> None:
        exchange.cache = cache
        extra: Fields = (self._via, ("X-Cache", cache), *((("Age", "0"),) if cache is Cache.HIT_LOCAL else ()))
        await exchange.send_whole(200, (*end_to_end(fields), *extra), body)
        await exchange.finish()

    async def _refuse(self, exchange: Exchange, response: aiohttp.ClientResponse, url: str) -> None:
        """Pass on what is no manifest: above all the challenge that tells a client where to get its token."""
        if exchange.told_by_reset:
            exchange.reset()
            return
        with origin_errors(url):
            body = await read_at_most(response, REFUSAL_BYTES)
        fields = (*end_to_end(fields_of(response)), self._via, ("X-Dragonfly-Error-Type", "backend"))
        await exchange.send_whole(response.status, fields, body, reason=response.reason)
        await exchange.finish()


def _renewed(kept: Fields, received: Fields) -> Fields:
    """Return a kept manifest's fields, brought up to date by a 304 (RFC 9111 §3.2)."""
    newer = passthrough_headers(received) + tuple(pair for pair in received if pair[0].lower() == "date")
    replaced = {name.lower() for name, _ in newer}
    return (*(pair for pair in kept if pair[0].lower() not in replaced), *newer)


def _length(fields: Fields) -> float:
    """Return the bytes of an answer's body; infinity if they are not said."""
    value = single(fields, "content-length") or ""
    return int(value) if value.isdecimal() else float("inf")
