"""What is under a prefix of a store, page by page, and where a file of it goes.

Each store has its own listing: ListObjectsV2 of S3 ("Amazon S3 API Reference"), which OSS ("ListObjectsV2") and the XML
interface of Google ("List objects") speak too; the older ListObjects with markers of OBS ("Listing Objects in a
Bucket"); and Azure's List Blobs. An entry's URL is plain: whoever fetches it signs.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from random import Random
from urllib.parse import quote, unquote, unquote_plus
from xml.parsers import expat

import aiohttp

from p2p.control import Source
from p2p.errors import BadRequestError, OriginError, OriginRefusedError
from p2p.hostapi import Listed
from p2p.native import Bucket, bucket_of, native_name, object_url
from p2p.stores import Store
from peer.source.backoff import Backoff
from peer.source.client import OriginClient, fields_of, origin_errors, read_at_most
from peer.source.document import Document
from peer.source.fields import Fields, retry_after

PAGE_OBJECTS = 1000
"""How many objects a page may have: the most that S3, OSS and OBS give."""

PAGE_BYTES = 16 * 1024 * 1024
"""How long a page may be; keys have up to 1024 bytes, three times as many where they are escaped."""

_ENTRIES = ("Contents", "Blob")
_ERROR_BYTES = 64 * 1024
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_AZURE_VERSION = ("x-ms-version", "2021-12-02")
"""The first version that marks names which XML cannot hold (List Blobs, "Blob name encoding") is 2021-02-12."""


async def list_objects(
    client: OriginClient,
    url: str,
    store: Store,
    *,
    page_objects: int = PAGE_OBJECTS,
    backoff: Backoff | None = None,
    random: Random | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncGenerator[Listed, None]:
    """Yield every object under the prefix that a plain URL names, in the store's order.

    The prefix is a directory: with or without a slash at its end, `models` holds `models/a` and not `models2`. What
    stands only for a directory is left out. `client` signs; at most one page is in memory. A store that cannot answer
    now is asked again, as `backoff` says. Raises OriginRefusedError, which has the store's own code, also where there
    is no object, and what OriginClient raises; BadRequestError for what has no listing.
    """
    if store is Store.HTTP:
        raise BadRequestError(
            f"{url.partition('?')[0]!r} is no store's, so nothing lists it; name an object, or a store"
        )
    bucket = bucket_of(url, store)
    prefix = directory(bucket.key)
    ask = _Asking(client, store, native_name(object_url(bucket, prefix), store), backoff or Backoff(), random, sleep)
    token, found = "", False
    while True:
        page = await ask.page(_page_url(bucket, store, prefix, token, page_objects))
        for entry in page.entries:
            if not entry.is_directory:
                found = True
                yield Listed(entry.key, object_url(bucket, entry.key), entry.length, entry.etag)
        if not page.next:
            break
        if page.next == token:
            raise OriginError(
                f"the listing of {ask.name} comes back to the same page; the store does not list properly"
            )
        token = page.next
    if not found:
        raise OriginRefusedError(404, f"it lists no object under {ask.name}")


def directory(prefix: str) -> str:
    """Return a prefix as that of a directory: empty, or with one slash at its end more than its name."""
    return prefix if not prefix or prefix.endswith("/") else f"{prefix}/"


def relative_path(prefix: str, key: str) -> PurePosixPath:
    """Return where the object `key` of a listing of `prefix` goes, below the directory that its caller chose.

    Raises BadRequestError, which names the key, for one that would leave that directory, cannot be a file's name, or
    would be the same file as another key.
    """
    rest = key.removeprefix(directory(prefix))
    parts = rest.split("/")
    if not key.startswith(directory(prefix)) or any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise BadRequestError(f"the key {key!r} is no path of a file below {prefix!r}; fetch it by itself")
    return PurePosixPath(rest)


def _page_url(bucket: Bucket, store: Store, prefix: str, token: str, objects: int) -> str:
    parameters: dict[str, str]
    match store:
        case Store.AZURE:
            parameters = {"comp": "list", "restype": "container", "maxresults": str(objects), "marker": token}
        case Store.OBS:
            parameters = {"encoding-type": "url", "max-keys": str(objects), "marker": token}
        case _:
            parameters = {"continuation-token": token, "encoding-type": "url", "list-type": "2"}
            parameters["max-keys"] = str(objects)
    parameters["prefix"] = prefix
    query = "&".join(
        f"{name}={quote(value, safe='', errors='surrogateescape')}" for name, value in parameters.items() if value
    )
    # A host that stands for the bucket has an empty path, which no request can have.
    return f"{bucket.url}{'' if bucket.url.count('/') > 2 else '/'}?{query}"


@dataclass(slots=True)
class _Entry:
    key: str
    length: int
    etag: str
    is_directory: bool


@dataclass(slots=True)
class _Page:
    entries: list[_Entry]
    next: str


@dataclass(frozen=True, slots=True)
class _Asking:
    """Asks for pages of one listing; `name` is what it lists, for people."""

    client: OriginClient
    store: Store
    name: str
    backoff: Backoff
    random: Random | None
    sleep: Callable[[float], Awaitable[None]]

    async def page(self, url: str) -> _Page:
        failures = 0
        while True:
            answer = await self._ask(url)
            if isinstance(answer, _Page):
                return answer
            failures += 1
            refusal, wanted_seconds = answer
            pause = None
            if refusal.status in _TRANSIENT:
                random = self.random or Random()  # noqa: S311  # spreads retries out; keeps no secret
                pause = self.backoff.pause(failures, wanted_seconds, random)
            if pause is None:
                raise refusal
            await self.sleep(pause)

    async def _ask(self, url: str) -> _Page | tuple[OriginRefusedError, float]:
        """Return a page, or the refusal and the seconds after which the store wants to be asked again."""
        headers: Fields = (("Accept-Encoding", "identity"),)
        if self.store is Store.AZURE:
            headers += (_AZURE_VERSION,)
        response, source = await self.client.follow("GET", Source(url, headers, self.store))
        try:
            with origin_errors(source.url):
                if response.status != 200:
                    body = await read_at_most(response, _ERROR_BYTES)
                    fields = fields_of(response)
                    detail = f"{_error_code(fields, body)} to the listing of {self.name}"
                    return OriginRefusedError(response.status, detail), retry_after(fields)
                return await self._read(response)
        finally:
            response.release()

    async def _read(self, response: aiohttp.ClientResponse) -> _Page:
        document, size = Document(_ENTRIES), 0
        try:
            async for chunk in response.content.iter_any():
                size += len(chunk)
                if size > PAGE_BYTES:
                    raise OriginError(f"a page of the listing of {self.name} is longer than {PAGE_BYTES} bytes")
                document.feed(chunk)
            document.feed(b"", last=True)
            return _page(document, self.store)
        except (expat.ExpatError, LookupError, ValueError) as error:
            raise OriginError(f"the listing of {self.name} is not what the store's kind gives: {error!r}") from None


def _page(document: Document, store: Store) -> _Page:
    others = document.others
    if store is Store.AZURE:
        _require_root(document, "EnumerationResults")
        return _Page([_blob(each) for each in document.entries], others.get("NextMarker", ""))
    _require_root(document, "ListBucketResult")
    escaped = others.get("EncodingType") == "url"
    entries = [_object(each, escaped=escaped) for each in document.entries]
    if others.get("IsTruncated", "").strip().lower() != "true":
        return _Page(entries, "")
    if store is not Store.OBS:
        return _Page(entries, others["NextContinuationToken"])
    # Without a delimiter some leave it out: the listing goes on after the last key.
    marker = _unescaped(others.get("NextMarker", ""), escaped=escaped)
    return _Page(entries, marker or entries[-1].key)


def _require_root(document: Document, name: str) -> None:
    if document.root != name:
        raise ValueError(f"it is {document.root[:100]!r}, not {name!r}")


def _object(found: dict[str, str], *, escaped: bool) -> _Entry:
    key, length = _unescaped(found["Key"], escaped=escaped), int(found["Size"])
    return _Entry(key, length, _quoted(found.get("ETag", "")), length == 0 and key.endswith("/"))


def _blob(found: dict[str, str]) -> _Entry:
    encoded = found.get("Encoded") == "Name"
    key = unquote(found["Name"], errors="surrogateescape") if encoded else found["Name"]
    length = int(found["Content-Length"])
    # With a hierarchical namespace, directories are entries of their own.
    is_directory = found.get("ResourceType") == "directory" or (length == 0 and key.endswith("/"))
    return _Entry(key, length, _quoted(found.get("Etag", "")), is_directory)


def _unescaped(text: str, *, escaped: bool) -> str:
    return unquote_plus(text, errors="surrogateescape") if escaped else text


def _quoted(etag: str) -> str:
    return f'"{etag}"' if etag and not etag.endswith('"') else etag


def _error_code(fields: Fields, body: bytes) -> str:
    """Return the store's word for what is wrong. Its sentence is left out: it may quote what was signed."""
    code = next((value for name, value in fields if name.lower() == "x-ms-error-code"), "")
    document = Document()
    with suppress(expat.ExpatError, ValueError):  # some gateway before the store has pages of its own
        document.feed(body, last=True)
    code = code or document.others.get("Code", "")
    return code if re.fullmatch(r"[A-Za-z0-9._-]{1,100}", code) else "without a code"
