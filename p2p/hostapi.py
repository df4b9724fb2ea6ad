"""What hosts ask each other over HTTP, as JSON: sources, versions, and what an origin answered to a probe.

The requests are on the piece port (`peer.hostapi` serves them; `peer.source.remote` and the scheduler ask), and each
carries a token of the cluster secret with the purpose HOST. Whatever comes from another host is looked at field by
field: what does not fit is a BadRequestError that names the field and never repeats a source.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from p2p import errors
from p2p.checksums import Checksum
from p2p.control import Source
from p2p.errors import BadRequestError, CredentialsError, DamselflyError, OriginError, OriginRefusedError
from p2p.stores import Store
from p2p.versions import ValidatorKind, Version

T = TypeVar("T")
Fields = tuple[tuple[str, str], ...]

HOST_PURPOSE = "host"
"""What the tokens of these requests are for; their subject is the id of the host that asks."""

JSON_BYTES = 1024 * 1024
"""How long one JSON text (a request, an answer, a line of a listing) may be."""

PROBE_SECONDS = 120.0
"""How long a probe on another host's behalf may take: the origin may ask for patience several times."""


@dataclass(frozen=True, slots=True)
class Keepable:
    """The caller may read `version`, which can be kept and taken in pieces from `source`.

    `source` is the caller's own way, or where its redirects led. `headers` are all of the answer's, as they came.
    `checksum` is the store's word on the whole object, if it has given one.
    """

    version: Version
    headers: Fields = field(repr=False)  # may set cookies
    source: Source
    checksum: Checksum | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The origin's refusal (a status from 400 on), as it is to be passed on; its body is cut at 64 KiB."""

    status: int
    reason: str
    headers: Fields = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer that cannot be taken in pieces or may not be kept: the object is to be passed through."""

    reason: str


Probe = Keepable | Refused | Stream
"""What an origin's answer to a request for one byte means."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One object of a listing: its key as it is, its plain URL, its length in bytes and its ETag ("" if not told)."""

    key: str
    url: str = field(repr=False)
    length: int
    etag: str


def source_to_json(source: Source) -> dict[str, object]:
    """Return a source as JSON values."""
    return {
        "url": source.url,
        "headers": [list(pair) for pair in source.headers],
        "store": source.store.value if source.store else None,
    }


def source_from_json(value: object) -> Source:
    """Return the source that JSON values hold. Raises BadRequestError."""
    found = _object(value, "source")
    named = found.get("store")
    return Source(
        _typed(found, "url", str, "source"),
        _fields(found, "headers", "source"),
        None if named is None else store_from_json(named),
    )


def store_from_json(value: object) -> Store:
    """Return the store that a JSON value names. Raises BadRequestError."""
    try:
        return Store(str(value))
    except ValueError:
        raise BadRequestError(f"the store is none of {', '.join(Store)}") from None


def version_to_json(version: Version) -> dict[str, object]:
    """Return a version as JSON values."""
    return {
        "task_id": version.task_id,
        "length": version.length,
        "kind": version.kind.value,
        "validator": version.validator,
    }


def version_from_json(value: object) -> Version:
    """Return the version that JSON values hold. Raises BadRequestError."""
    found = _object(value, "version")
    length = _typed(found, "length", int, "version")
    if length < 0:
        raise BadRequestError(f"version.length is {length}; an object has 0 bytes or more")
    try:
        kind = ValidatorKind(_typed(found, "kind", str, "version"))
    except ValueError:
        raise BadRequestError(f"version.kind is none of {', '.join(ValidatorKind)}") from None
    return Version(_typed(found, "task_id", str, "version"), length, kind, _typed(found, "validator", str, "version"))


def probe_to_json(probe: Probe) -> dict[str, object]:
    """Return what an origin said as JSON values; `outcome` tells which of the three it is."""
    match probe:
        case Keepable(version, headers, source, checksum):
            return {
                "outcome": "keepable",
                "version": version_to_json(version),
                "headers": [list(pair) for pair in headers],
                "source": source_to_json(source),
                "checksum": str(checksum) if checksum else None,
            }
        case Refused(status, reason, headers, body):
            return {
                "outcome": "refused",
                "status": status,
                "reason": reason,
                "headers": [list(pair) for pair in headers],
                "body": base64.b64encode(body).decode(),
            }
        case Stream(reason):
            return {"outcome": "stream", "reason": reason}


def probe_from_json(value: object) -> Probe:
    """Return what an origin said, as another host tells it. Raises BadRequestError."""
    found = _object(value, "probe")
    match found.get("outcome"):
        case "keepable":
            version, source = version_from_json(found.get("version")), source_from_json(found.get("source"))
            word = found.get("checksum")
            checksum = None if word is None else Checksum.parse(str(word))
            return Keepable(version, _fields(found, "headers", "probe"), source, checksum)
        case "refused":
            status = _typed(found, "status", int, "probe")
            if not 400 <= status <= 599:
                raise BadRequestError(f"probe.status is {status}; a refusal has 400 … 599")
            try:
                body = base64.b64decode(_typed(found, "body", str, "probe"), validate=True)
            except (binascii.Error, ValueError):
                raise BadRequestError("probe.body is not base64") from None
            return Refused(status, _typed(found, "reason", str, "probe"), _fields(found, "headers", "probe"), body)
        case "stream":
            return Stream(_typed(found, "reason", str, "probe"))
        case _:
            raise BadRequestError("probe.outcome is none of keepable, refused, stream")


def listed_to_json(listed: Listed) -> dict[str, object]:
    """Return an entry of a listing as JSON values."""
    return {"key": listed.key, "url": listed.url, "length": listed.length, "etag": listed.etag}


def listed_from_json(value: object) -> Listed:
    """Return the entry of a listing that JSON values hold. Raises BadRequestError."""
    found = _object(value, "entry")
    length = _typed(found, "length", int, "entry")
    if length < 0:
        raise BadRequestError(f"entry.length is {length}; an object has 0 bytes or more")
    key, url, etag = (_typed(found, name, str, "entry") for name in ("key", "url", "etag"))
    return Listed(key, url, length, etag)


def entry_from_json(value: object) -> Listed | DamselflyError:
    """Return what a line of a listing holds: an entry, or the error that ends it. Raises BadRequestError."""
    return error_from_json(value) if isinstance(value, dict) and "error" in value else listed_from_json(value)


def error_to_json(error: DamselflyError) -> dict[str, object]:
    """Return an error as JSON values: its text, which holds no secret, and its class; the body of what is not 2xx."""
    status = {"status": error.status} if isinstance(error, OriginRefusedError | CredentialsError) else {}
    return {"error": str(error), "kind": type(error).__name__, **status}


def error_from_json(value: object) -> DamselflyError:
    """Return the error that another host tells of; one of a kind that is not known is an OriginError."""
    found = value if isinstance(value, dict) else {}
    text = str(found.get("error") or "the host gave no reason")
    kind, status = found.get("kind"), found.get("status")
    if kind == OriginRefusedError.__name__ and isinstance(status, int):
        refused = OriginRefusedError(status, "")
        refused.args = (text,)
        return refused
    if kind == CredentialsError.__name__ and isinstance(status, int):
        return CredentialsError(text, status)
    for known in _SAID.values():
        if kind == known.__name__:
            return known(text)
    return OriginError(text)


# The errors whose only argument is their text.
_SAID = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, DamselflyError) and "__init__" not in vars(kind)
}


def _object(value: object, place: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise BadRequestError(f"{place} is not a JSON object")
    return value


def _typed(found: Mapping[str, object], name: str, kind: type[T], place: str) -> T:
    value = found.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BadRequestError(f"{place}.{name} is missing, or not of the type {kind.__name__}")
    return value


def _fields(found: Mapping[str, object], name: str, place: str) -> Fields:
    fields = []
    for pair in _typed(found, name, list, place):
        match pair:
            case [str(key), str(value)]:
                fields.append((key, value))
            case _:
                raise BadRequestError(f"{place}.{name} holds something else than pairs of strings")
    return tuple(fields)
