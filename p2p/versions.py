"""Versions: which bytes a task's object has, as the origin says.

What the origin may say, best first (WIRE §5): a strong entity tag; a generation or version id; a digest; the time of
the last modification. Whatever the origin made from a date (the last of these, and the tags that file servers derive
from a modification time) counts only once that second is over (RFC 9110 §8.8.2.2). A weak tag never counts, since it
promises equal meaning, not equal bytes; nor does a tag without quotes, which the origin itself would not recognise in
`If-Match`. An object with only such a tag goes by its other validators, or is not kept.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from enum import StrEnum

from p2p.digests import ExpectedDigest
from p2p.fields import Headers, http_date, is_strong_date, is_strong_tag, pairs, single, values


class ValidatorKind(StrEnum):
    """What the origin's word for the version is made of."""

    ETAG = "etag"
    LAST_MODIFIED = "last-modified"
    GENERATION = "generation"
    DIGEST = "digest"
    CONTENT = "content"
    """The digest that the request itself names: whoever sends the bytes, the whole is verified against it."""


@dataclass(frozen=True, slots=True)
class Version:
    """The bytes of one task at one time: a strong validator and the length in bytes.

    `task_id` is 64 hexadecimal digits. Two versions with equal fields have equal bytes.
    """

    task_id: str
    length: int
    kind: ValidatorKind
    validator: str
    id: str = field(init=False, repr=False, compare=False)
    """32 hexadecimal digits that every host computes alike from the fields."""

    def __post_init__(self) -> None:
        text = "\0".join((self.task_id, str(self.length), self.kind, self.validator))
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        object.__setattr__(self, "id", digest)


@dataclass(frozen=True, slots=True)
class Unkeepable:
    """The answer names no version that may be kept; `reason` is a phrase for the log."""

    reason: str


# Where stores put the id of one write of an object. An unversioned bucket says "null", which names no write at all.
_WRITE_IDS = ("x-goog-generation", "x-amz-version-id", "x-ms-version-id", "x-oss-version-id", "x-obs-version-id")

_DIGEST = re.compile(r"[a-z0-9][a-z0-9+._-]*:[0-9a-f]{32,}")


def read_version(
    task_id: str, headers: Headers, *, length: int, content: ExpectedDigest | None = None
) -> Version | Unkeepable:
    """Return the version that an origin's 200 or 206 speaks of, or why its bytes must not be kept.

    `length` is that of the whole object in bytes. The request must have asked for the identity coding, so that one
    validator never stands for two codings of the object; a `Content-Encoding` of the object's own is then part of it.
    `content` is the digest that the request names: it then is the version, whatever a storage behind it says.
    """
    if length < 0:
        raise ValueError(f"an object cannot have {length} bytes")
    if directive := _forbidding_directive(headers):
        return Unkeepable(f"Cache-Control says {directive}")
    if _is_transcoded(headers):
        return Unkeepable("the origin decompresses the object as it sends it; its validators are the stored object's")
    if content is not None:
        if _digest(headers) not in (None, str(content)):
            return Unkeepable(f"{content} was asked for, and the origin's answer has another Docker-Content-Digest")
        return Version(task_id, length, ValidatorKind.CONTENT, str(content))

    etag, modified = single(headers, "etag") or "", single(headers, "last-modified")
    in_the_past = is_strong_date(modified, single(headers, "date"))
    if is_strong_tag(etag) and (in_the_past or not _is_made_of_date(etag, length, modified)):
        return Version(task_id, length, ValidatorKind.ETAG, etag)
    if write_id := _write_id(headers):
        return Version(task_id, length, ValidatorKind.GENERATION, write_id)
    if digest := _digest(headers):
        return Version(task_id, length, ValidatorKind.DIGEST, digest)
    if modified is None:
        return Unkeepable("the answer has no strong ETag, version id, digest or Last-Modified")
    if not in_the_past:
        return Unkeepable("the object was modified in the very second of the answer, or the answer has no Date")
    if selectors := _vary(headers) - {"accept-encoding", "origin"}:
        return Unkeepable(f"only Last-Modified tells versions apart, and the answer varies by {min(selectors)!r}")
    return Version(task_id, length, ValidatorKind.LAST_MODIFIED, modified)


def matches(version: Version, headers: Headers, length: int | None) -> bool:
    """Tell whether an answer carries bytes of `version`: its validator and whole length are that version's.

    An answer without that validator, or without a length (`Content-Range: bytes 0-9/*`), never matches; only of a
    CONTENT version the answer need not say the digest, for storages that registries redirect to do not know it.
    """
    if length != version.length:
        return False
    match version.kind:
        case ValidatorKind.ETAG:
            found = single(headers, "etag")
        case ValidatorKind.LAST_MODIFIED:
            found = single(headers, "last-modified")
        case ValidatorKind.GENERATION:
            found = _write_id(headers)
        case ValidatorKind.DIGEST:
            found = _digest(headers)
        case ValidatorKind.CONTENT:
            found = _digest(headers) or version.validator
    return found == version.validator


def conditional_headers(version: Version) -> tuple[tuple[str, str], ...]:
    """Return the request fields that make an origin answer 412 instead of sending another version's bytes.

    There are none for generations and digests: HTTP has no condition on them, and a store's own would need a signature.
    """
    match version.kind:
        case ValidatorKind.ETAG:
            return (("If-Match", version.validator),)
        case ValidatorKind.LAST_MODIFIED:
            return (("If-Unmodified-Since", version.validator),)
        case ValidatorKind.GENERATION | ValidatorKind.DIGEST | ValidatorKind.CONTENT:
            return ()


_KEPT_FIELDS = frozenset(
    {
        "cache-control",
        "content-disposition",
        "content-encoding",
        "content-language",
        "content-type",
        "docker-content-digest",
        "etag",
        "last-modified",
    }
)
_KEPT_PREFIXES = ("x-amz-", "x-goog-", "x-ms-", "x-oss-", "x-obs-")


def passthrough_headers(headers: Headers) -> tuple[tuple[str, str], ...]:
    """Return the fields that belong to the object and not to one answer: they are stored with it and sent to everyone.

    What is not known to be harmless stays behind; cookies above all, and S3's checksums, which are the whole object's
    in one answer and a part's in another.
    """
    return tuple(
        (name, value)
        for name, value in pairs(headers)
        if name.lower() in _KEPT_FIELDS
        or (name.lower().startswith(_KEPT_PREFIXES) and not name.lower().startswith("x-amz-checksum-"))
    )


def _forbidding_directive(headers: Headers) -> str | None:
    """Return the `Cache-Control` directive that keeps a shared cache from storing the answer (RFC 9111 §5.2.2).

    Google says `private` of every object that not everybody may read ("Cache-Control", Cloud Storage documentation). As
    the right to read is asked for anew with each caller's own credentials, that is no reason not to keep it.
    """
    forbidding = {"no-store"} if values(headers, "x-goog-generation") else {"no-store", "private"}
    for value in values(headers, "cache-control"):
        for item in value.lower().split(","):
            directive = item.partition("=")[0].strip()
            # `private="field"` restricts one field only; such answers are rare, and not keeping them is always right.
            if directive in forbidding:
                return directive
    return None


def _is_transcoded(headers: Headers) -> bool:
    stored = single(headers, "x-goog-stored-content-encoding")
    return stored == "gzip" and single(headers, "content-encoding") != "gzip"


def _write_id(headers: Headers) -> str | None:
    found = (single(headers, name) for name in _WRITE_IDS)
    return next((value for value in found if value and value != "null"), None)


def _digest(headers: Headers) -> str | None:
    value = single(headers, "docker-content-digest")
    return value if value and _DIGEST.fullmatch(value) else None


def _vary(headers: Headers) -> set[str]:
    return {name.strip().lower() for field in values(headers, "vary") for name in field.split(",")} - {""}


_SECOND_IN = (1, 10**3, 10**6, 10**7, 10**9)
_LONGEST_NUMBER = 19


def _is_made_of_date(etag: str, length: int, last_modified: str | None) -> bool:
    """Tell whether a strong tag is a file's modification time in disguise.

    nginx writes hex(seconds)-hex(size), Apache hex(size)-hex(microseconds), aiohttp hex(nanoseconds)-hex(size), actix
    inode:size:seconds:nanoseconds, Flask seconds-size-checksum in decimals, Caddy nanoseconds and size in base 36 with
    nothing between. So a tag is one of these if a number in it is the very second of `Last-Modified`, in some unit, or
    if one of several numbers is the size. A hash of the time cannot be told from a hash of the content.
    """
    text = etag.strip('"').lower()
    modified = http_date(last_modified or "")
    fields = re.split(r"[-:._]", text)
    numbers = {int(field, 16) for field in fields if re.fullmatch(rf"[0-9a-f]{{1,{_LONGEST_NUMBER}}}", field)}
    numbers |= {int(field) for field in fields if re.fullmatch(rf"[0-9]{{1,{_LONGEST_NUMBER}}}", field)}
    if len(fields) > 1 and length in numbers:
        return True
    if re.fullmatch(r"[0-9a-z]{2,32}", text):
        numbers |= {int(text[:cut], 36) for cut in range(1, len(text)) if int(text[cut:], 36) == length}
    return modified is not None and any(number // unit == modified for number in numbers for unit in _SECOND_IN)
