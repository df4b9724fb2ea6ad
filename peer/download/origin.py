"""Asking an origin for a range of one version: the request, and what the answer means. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from http import HTTPStatus

from p2p.control import Source
from p2p.errors import BadRequestError, OriginError, OriginRefusedError, VersionChangedError
from p2p.fields import single
from p2p.identity import redact
from p2p.ranges import ByteRange, format_range, parse_content_range
from p2p.versions import Version, conditional_headers, matches
from peer.download.connection import Endpoint
from peer.source.client import REDIRECTS
from peer.source.fields import Fields, for_pieces, retry_after
from peer.source.urls import DEFAULT_PORTS, exact_url

_TRANSIENT = frozenset({408, 425, 429})
_LINE_BREAK = re.compile(r"[\r\n\0]")


@dataclass(frozen=True, slots=True)
class Redirect:
    """The bytes are elsewhere."""

    location: str = field(repr=False)  # may be signed


@dataclass(frozen=True, slots=True)
class Later:
    """The origin cannot answer now; `seconds` is for how long it wants to be left alone, 0 if it does not say."""

    status: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Unaccepted:
    """The origin may not accept what this host signed, or want it signed for another region."""

    status: int
    headers: Fields = field(repr=False)
    body: bytes = field(repr=False)


def endpoint_of(url: str) -> Endpoint:
    """Return where to connect for `url`. Raises BadRequestError for a URL that cannot be sent."""
    parsed = exact_url(url)
    return Endpoint(parsed.raw_host or "", parsed.port or 0, tls=parsed.scheme == "https")


def request_head(url: str, fields: Iterable[tuple[str, str]]) -> bytes:
    """Return the octets of a GET for `url`: its target byte for byte, `Host` without the default port, then `fields`.

    Surrogates in fields stand for octets that are not UTF-8. Raises BadRequestError for what cannot be sent.
    """
    scheme = exact_url(url).scheme
    rest = url.partition("#")[0].partition("://")[2]
    authority = re.split(r"[/?]", rest, maxsplit=1)[0]
    target = rest.removeprefix(authority)
    if not target.startswith("/"):
        target = "/" + target
    lines = [f"GET {target} HTTP/1.1", f"Host: {authority.removesuffix(DEFAULT_PORTS[scheme])}"]
    for name, value in fields:
        if _LINE_BREAK.search(name + value):
            raise BadRequestError(f"the header field {name[:64]!r} holds a line break or a NUL")
        lines.append(f"{name}: {value}")
    return "\r\n".join((*lines, "", "")).encode("utf-8", "surrogateescape")


def range_request(source: Source, version: Version, wanted: ByteRange) -> bytes:
    """Return the request for the bytes `wanted` of `version`, which the origin is to refuse if it has another."""
    # A validator is kept one character an octet; its octets go back as they came.
    conditions = tuple(
        (name, value.encode("latin-1", "replace").decode("utf-8", "surrogateescape"))
        for name, value in conditional_headers(version)
    )
    own = (("Range", format_range(wanted)), *conditions, ("Accept-Encoding", "identity"))
    return request_head(source.url, (*for_pieces(source.headers), *own))


def judge_origin(
    url: str, version: Version, wanted: ByteRange, status: int, headers: Fields
) -> Redirect | Later | None:
    """Return None if the body of an answer is exactly the bytes `wanted` of `version`, and what to do instead if not.

    Raises VersionChangedError, OriginRefusedError, and OriginError for an answer that makes no sense.
    """
    if status in (200, 206):
        _require_bytes(url, version, wanted, status, headers)
        return None
    if status in REDIRECTS and (location := single(headers, "location")):
        return Redirect(location)
    if status in _TRANSIENT or status >= 500:
        return Later(status, retry_after(headers))
    if status in (412, 416):
        raise VersionChangedError(f"the origin no longer has version {version.id} ({status}) of {redact(url)}")
    raise OriginRefusedError(status, f"{_phrase(status)} ({redact(url)})")


def _require_bytes(url: str, version: Version, wanted: ByteRange, status: int, headers: Fields) -> None:
    sent_length = single(headers, "content-length")
    body = int(sent_length) if sent_length and re.fullmatch(r"[0-9]{1,19}", sent_length) else None
    if status == 206:
        content_range = parse_content_range(single(headers, "content-range") or "")
        sent, whole = content_range.range, content_range.length
    else:
        sent, whole = (ByteRange(0, body), body) if body is not None else (None, None)
    if sent is None or whole is None:
        raise OriginError(f"the origin's {status} does not say which bytes of how many it holds ({redact(url)})")
    if not matches(version, headers, whole):
        raise VersionChangedError(f"the origin no longer has version {version.id} of {redact(url)}")
    if sent != wanted or body not in (None, len(wanted)):
        raise OriginError(
            f"the origin answered {status} with bytes {sent.start}-{sent.stop - 1} instead of "
            f"{wanted.start}-{wanted.stop - 1}: it does not serve ranges ({redact(url)})"
        )


def _phrase(status: int) -> str:
    # Not the origin's own words: error pages and phrases of stores quote what was signed.
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "unknown status"
