"""The values inside of the messages, to protobuf and back: versions, sources, spans, digests, and bounded texts.

What comes from another process is checked as `p2p.rpc.convert` says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

from p2p.control import ORIGIN, Source
from p2p.digests import PIECE_DIGEST_BYTES
from p2p.errors import BadRequestError
from p2p.pieces import PieceLayout, Span
from p2p.stores import Store
from p2p.v1 import scheduler_pb2 as pb
from p2p.versions import ValidatorKind, Version

T = TypeVar("T")

MAX_OBJECT_BYTES = 1 << 44
"""Longest object that is dealt with (16 TiB); bounds what one message can make a scheduler allocate."""

MAX_PIECES = PieceLayout.of(MAX_OBJECT_BYTES).count

MAX_TEXT = 1024
"""Characters of a short text, such as a label or a failure's detail."""

MAX_HEADERS = 256
_MAX_ENTRIES = 65_536
_MAX_URL = 65_536

HOST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_TASK_ID = re.compile(r"[0-9a-f]{64}")


def version_to_proto(version: Version) -> pb.Version:
    """Return the protobuf of a version."""
    return pb.Version(
        task_id=version.task_id,
        version_id=version.id,
        length=version.length,
        validator_kind=version.kind,
        validator=version.validator,
    )


def version_from_proto(version: pb.Version) -> Version:
    """Return a version whose fields give the id that it came with. Raises BadRequestError."""
    if version.length > MAX_OBJECT_BYTES:
        raise BadRequestError(f"version.length is {version.length} bytes, more than {MAX_OBJECT_BYTES}")
    try:
        kind = ValidatorKind(version.validator_kind)
    except ValueError as error:
        raise BadRequestError(f"version.validator_kind {version.validator_kind[:MAX_TEXT]!r} is not known") from error
    result = Version(
        matching(_TASK_ID, version.task_id, "version.task_id"),
        version.length,
        kind,
        short(version.validator, "version.validator", MAX_TEXT),
    )
    if result.id != version.version_id:
        raise BadRequestError(f"version.version_id is not that of its fields, {result.id}")
    return result


def source_to_proto(source: Source) -> pb.Source:
    """Return the protobuf of a source."""
    headers = [pb.Header(name=name, value=value) for name, value in source.headers]
    return pb.Source(url=source.url, headers=headers, store=source.store or "")


def source_from_proto(source: pb.Source) -> Source:
    """Return a source. Raises BadRequestError, which never quotes the URL or a header."""
    if len(source.headers) > MAX_HEADERS:
        raise BadRequestError(f"source.headers has {len(source.headers)} entries, more than {MAX_HEADERS}")
    if not source.url:
        raise BadRequestError("source.url is empty")
    headers = tuple(
        (short(header.name, "a header's name", _MAX_URL), short(header.value, "a header's value", _MAX_URL))
        for header in source.headers
    )
    try:
        store = Store(source.store) if source.store else None
    except ValueError as error:
        raise BadRequestError(f"source.store {source.store[:MAX_TEXT]!r} is not a known store") from error
    return Source(short(source.url, "source.url", _MAX_URL), headers, store)


def span_to_proto(span: Span) -> pb.Span:
    """Return the protobuf of a span."""
    return pb.Span(start=span.start, stop=span.stop)


def span_from_proto(span: pb.Span, pieces: int, field: str) -> Span:
    """Return a span of a version of `pieces` pieces. Raises BadRequestError."""
    if not span.start < span.stop <= pieces:
        raise BadRequestError(f"{field} {span.start}..{span.stop} is not a span of {pieces} pieces")
    return Span(span.start, span.stop)


def spans_from_proto(spans: Sequence[pb.Span], pieces: int, field: str) -> tuple[Span, ...]:
    """Return spans of a version of `pieces` pieces. Raises BadRequestError."""
    return tuple(span_from_proto(span, pieces, field) for span in bounded(spans, field))


def digests_from_proto(digests: bytes, count: int, field: str) -> tuple[bytes, ...]:
    """Return the digests of `count` pieces, which stand one behind the other. Raises BadRequestError."""
    if len(digests) != count * PIECE_DIGEST_BYTES:
        raise BadRequestError(f"{field} has {len(digests)} bytes for {count} pieces of {PIECE_DIGEST_BYTES} each")
    return tuple(digests[start : start + PIECE_DIGEST_BYTES] for start in range(0, len(digests), PIECE_DIGEST_BYTES))


def parent_id(text: str, field: str) -> str:
    """Return the id of a host, or ORIGIN. Raises BadRequestError."""
    return ORIGIN if text == ORIGIN else matching(HOST_ID, text, field)


def matching(pattern: re.Pattern[str], text: str, field: str) -> str:
    """Return a text that all of `pattern` fits. Raises BadRequestError."""
    if not pattern.fullmatch(text):
        raise BadRequestError(f"{field} {text[:80]!r} is malformed; expected {pattern.pattern}")
    return text


def short(text: str, field: str, longest: int) -> str:
    """Return a text of no more than `longest` characters. Raises BadRequestError."""
    if len(text) > longest:
        raise BadRequestError(f"{field} has {len(text)} characters, more than {longest}")
    return text


def bounded(entries: Sequence[T], field: str) -> Sequence[T]:
    """Return entries that are no more than a message may hold. Raises BadRequestError."""
    if len(entries) > _MAX_ENTRIES:
        raise BadRequestError(f"{field} has {len(entries)} entries, more than {_MAX_ENTRIES}")
    return entries
