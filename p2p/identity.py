"""Identity: which task a URL asks for (WIRE §5).

Two URLs are one task only where that is certain: a task split in two costs a copy, two objects merged into one could
cost a client the right bytes. Therefore:

- The scheme is part of it: bytes fetched in the clear never answer a request that asked for TLS.
- Escapes are brought to one form (`%7e` is `~`) for known stores, whose rules are known; but `+` is never taken for
  `%2B` or for a space, since stores disagree. The path and query of any other server are taken byte for byte, the
  parameters in their order.
- On a host that is not known, a bucket in the path and a bucket in the host name cannot be told apart: the host, the
  port and the whole path then stand for endpoint, bucket and key.
- The user and password of a URL are credentials, like request headers, and no part of it.

The canonical form goes to disks and logs, so it holds no secret: the value of a parameter that is not known to be
harmless appears as a hash. The task's id has the same strength with or without it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import quote, quote_from_bytes, unquote, unquote_to_bytes

from p2p.errors import BadRequestError
from p2p.native import is_native, parse_native
from p2p.stores import SIGNING_PARAMETERS, Place, Store, place_of, signed_for

__all__ = ["Store", "StoreObject", "Task", "identify", "origin_key", "parse_filters", "recognise", "redact"]


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked for: `id` is the SHA-256 (64 hexadecimal digits) of `canonical`, which holds no secret."""

    id: str
    canonical: str
    store: Store


@dataclass(frozen=True, slots=True)
class StoreObject:
    """An object of a known store, as a URL names it.

    `endpoint` is `scheme://host[:port]`, the same for every host name of the same buckets. `bucket` is empty where the
    URL does not show what of it is the bucket; `escaped_key`, percent-escaped in one way, is then the whole path.
    `query` holds the `name=value` segments that are not the signature's, sorted and escaped in the same way.
    `presigned` tells whether the URL carries a signature.
    """

    store: Store
    endpoint: str
    bucket: str
    escaped_key: str
    query: tuple[str, ...] = field(repr=False)
    presigned: bool

    @property
    def key(self) -> str:
        """The object's decoded name; bytes that are not UTF-8 are surrogate escapes."""
        return unquote(self.escaped_key, errors="surrogateescape")


_REMEMBERED = 256
"""Of how many URLs the meaning is kept, in memory only: a fleet asks for the same ones over and over."""


def identify(
    url: str, *, filters: Iterable[str] = (), tag: str = "", application: str = "", store: Store | None = None
) -> Task:
    """Return the task of a URL. Raises BadRequestError for one that cannot be fetched.

    `store` says in which dialect a plain URL is read whose host and query do not tell: it is then the task of the same
    URL with that store's signature. `filters` names query parameters (exactly, in their own case) that do not count,
    beside those of a known store's signature. `tag` and `application` keep apart what their users want kept apart.
    """
    return _identified(url, frozenset(filters), tag, application, store)


@lru_cache(maxsize=_REMEMBERED)
def _identified(url: str, unwanted: frozenset[str], tag: str, application: str, hint: Store | None) -> Task:
    parts, found = _understood(url, hint)
    if found is None:
        store, base, query = Store.HTTP, f"{parts.origin}{parts.path or '/'}", _segments(parts.query)
    else:
        bucket = f"{quote(found.bucket, safe='')}/" if found.bucket else ""
        store, base, query = found.store, f"{found.store}+{found.endpoint}/{bucket}{found.escaped_key}", found.query
    shown = "&".join(_without_secret(segment) for segment in query if _name(segment) not in unwanted)
    labels = "&".join(
        f"{name}={quote_from_bytes(_encode(value), safe='')}"
        for name, value in (("tag", tag), ("application", application))
        if value
    )
    canonical = base + (f"?{shown}" if shown else "") + (f"#{labels}" if labels else "")
    return Task(hashlib.sha256(canonical.encode()).hexdigest(), canonical, store)


def recognise(url: str, *, store: Store | None = None) -> StoreObject | None:
    """Return the known store's object that a URL names by its host, its signature or its reader's word (`store`).

    None for any other URL. Besides http and https, the native forms that `p2p.native` knows are understood. Raises
    BadRequestError for a URL that cannot be fetched.
    """
    return _understood(url, store)[1]


def parse_filters(header_values: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct parameter names in filter header values, each of which is split on `&` and `,` (WIRE §3)."""
    names = (name.strip() for value in header_values for name in re.split("[&,]", value))
    return tuple(dict.fromkeys(name for name in names if name))


def origin_key(url: str) -> str:
    """Return `scheme://host:port` of a URL, the port always there: the key of connection pools and metrics.

    Raises BadRequestError for a URL that cannot be fetched.
    """
    parts, _ = _understood(url, None)
    return f"{parts.scheme}://{parts.host}:{parts.port}"


# Everything a person needs to recognise a request by, and nothing that opens a door.
_HARMLESS = frozenset(
    {"acl", "alt", "delimiter", "expires", "format", "generation", "lang", "list-type", "max-keys", "ns", "partnumber"}
    | {"prefix", "ref", "rev", "revision", "snapshot", "tagging", "uploads", "v", "version", "versionid", "versions"}
    | {f"response-{name}" for name in ("cache-control", "expires")}
    | {f"response-content-{name}" for name in ("disposition", "encoding", "language", "type")}
    | {f"x-amz-{name}" for name in ("algorithm", "checksum-mode", "date", "expires", "request-payer", "signedheaders")}
    | {f"x-goog-{name}" for name in ("algorithm", "date", "expires", "signedheaders")}
    | {f"x-oss-{name}" for name in ("date", "expires", "process", "signature-version")}
    | {f"x-obs-{name}" for name in ("algorithm", "date", "expires", "signedheaders")}
    | {"x-id", "rscc", "rscd", "rsce", "rscl", "rsct", "se", "sp", "spr", "sr", "sv"}
)
_HIDDEN = "***"


def redact(url: str) -> str:
    """Return a URL as logs and errors may show it: no user or password, no value that could be a secret.

    Never fails, whatever the text; the names of parameters stay.
    """
    head, _, query = url.partition("#")[0].partition("?")
    scheme, separator, rest = head.partition("://")
    if not separator:
        scheme, rest = "", head
    authority, slash, path = rest.partition("/")
    authority = authority.rpartition("@")[2]
    if separator and re.fullmatch(r"(\[[^\]]*\]|[^:]*)(:[0-9]*)?", authority) is None:
        authority = _HIDDEN
    shown = "&".join(_redacted(segment) for segment in _segments(query))
    return scheme + separator + authority + slash + path + (f"?{shown}" if shown else "")


@dataclass(frozen=True, slots=True)
class _Parts:
    """An http or https URL, taken apart and otherwise untouched; ASCII only."""

    scheme: str
    host: str
    port: int
    path: str
    query: str = field(repr=False)  # may be signed

    @property
    def has_default_port(self) -> bool:
        return self.port == _DEFAULT_PORTS[self.scheme]

    @property
    def origin(self) -> str:
        return f"{self.scheme}://{self.host}" + ("" if self.has_default_port else f":{self.port}")


_DEFAULT_PORTS = {"http": 80, "https": 443}
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))
_URL = re.compile(r"(?P<scheme>[^:/?#]+)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?(?:#.*)?")
# Characters on which URL parsers disagree (a backslash, a second "@") are refused, not interpreted.
_HOST = r"\[[0-9A-Za-z:.%]+\]|[A-Za-z0-9._~%!$&'()*+,;=-]+"
_AUTHORITY = re.compile(rf"(?:[^@\\]*@)?(?P<host>{_HOST})(?::(?P<port>[0-9]{{0,5}}))?")


def _parse(url: str) -> _Parts:
    match = None
    if re.search(r"[\x00-\x20\x7f]", url) is None:
        match = _URL.fullmatch(quote_from_bytes(_encode(url), safe=_PRINTABLE))
    authority = _AUTHORITY.fullmatch(match["authority"]) if match else None
    if match is None or authority is None:
        raise BadRequestError(f"{redact(url)!r} is not an absolute URL; percent-escape what is not allowed in one")
    scheme = match["scheme"].lower()
    if scheme not in _DEFAULT_PORTS:
        raise BadRequestError(
            f"{redact(url)!r} has the scheme {scheme!r}; use http, https, or a store's own, as s3 or gs"
        )
    port = int(authority["port"] or _DEFAULT_PORTS[scheme])
    if not 0 < port <= 0xFFFF:
        raise BadRequestError(f"{redact(url)!r} has the port {port}; there are 1 to 65535")
    return _Parts(scheme, authority["host"].lower(), port, match["path"], match["query"] or "")


def _recognise(parts: _Parts, hint: Store | None) -> StoreObject | None:
    segments = ["=".join(map(_escaped_once, segment.split("=", 1))) for segment in _segments(parts.query)]
    signer = signed_for(frozenset(_name(segment).lower() for segment in segments))
    place = place_of(parts.host) if parts.has_default_port else None
    if place is not None and _is_json_interface(place, parts.path):
        return None
    # A plain URL that its reader knows to be a store's is the same object as one with a signature. The signature comes
    # first, so that a URL means the same wherever nothing but the URL is known.
    store = place.store if place else signer or hint
    if store is None:
        return None
    # A store may be signed for in another's dialect: Google and Huawei take AWS' signatures.
    signing = SIGNING_PARAMETERS[store] | (SIGNING_PARAMETERS[signer] if signer else frozenset())
    query = tuple(sorted(segment for segment in segments if _name(segment).lower() not in signing))
    path = parts.path.removeprefix("/")
    if place is None:
        endpoint, bucket, key = parts.origin, "", path
    elif place.bucket is not None:
        endpoint, bucket, key = f"{parts.scheme}://{place.endpoint}", place.bucket, path
    else:
        endpoint = f"{parts.scheme}://{place.endpoint}"
        first, _, rest = path.partition("/")
        # Without a first segment there is no bucket; the key keeps its slash and so stays apart from every other.
        bucket, key = (unquote(first, errors="surrogateescape"), rest) if first else ("", path)
    return StoreObject(store, endpoint, bucket, _escaped_once(key), query, signer is not None)


@lru_cache(maxsize=_REMEMBERED)
def _understood(url: str, hint: Store | None) -> tuple[_Parts, StoreObject | None]:
    if is_native(url):
        location = parse_native(url)
        url, hint = location.url, location.store
    parts = _parse(url)
    return parts, _recognise(parts, None if hint is Store.HTTP else hint)


def _is_json_interface(place: Place, path: str) -> bool:
    """Tell Google's JSON interface, where `a%2Facl` is an object and `a/acl` is not, from its buckets."""
    return place.store is Store.GCS and place.bucket is None and path.startswith(("/storage/v1/", "/download/storage/"))


def _segments(query: str) -> tuple[str, ...]:
    return tuple(segment for segment in query.split("&") if segment)


def _name(segment: str) -> str:
    return unquote(segment.partition("=")[0])


def _escaped_once(text: str) -> str:
    """Escape everything but slashes and what never needs it, and leave `+` as it is."""
    return "+".join(quote_from_bytes(unquote_to_bytes(piece)) for piece in text.split("+"))


def _without_secret(segment: str) -> str:
    name, _, value = segment.partition("=")
    if _name(segment).lower() in _HARMLESS:
        return segment
    fingerprint = "~" + hashlib.sha256(segment.encode()).hexdigest()[:32]
    return fingerprint if _is_lone_word(value) else f"{name}={fingerprint}"


def _redacted(segment: str) -> str:
    name, _, value = segment.partition("=")
    if _name(segment).lower() in _HARMLESS:
        return segment
    return _HIDDEN if _is_lone_word(value) else f"{name}={_HIDDEN}"


def _is_lone_word(value: str) -> bool:
    """Tell whether the "name" before this value may itself be a token, which base64's padding made look like a name."""
    return not unquote(value).strip("=")


def _encode(text: str) -> bytes:
    """Return the bytes that came over the wire: UTF-8, or whatever surrogate escapes stand for."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise BadRequestError("a URL, tag or application holds half of a surrogate pair; send UTF-8") from error
