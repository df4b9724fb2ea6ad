"""Byte ranges and the HTTP fields that speak of them (RFC 9110 §13, §14)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from p2p.errors import RangeNotSatisfiableError
from p2p.fields import Headers, entity_tags, http_date, is_strong_date, is_strong_tag, single, values


@dataclass(frozen=True, slots=True, order=True)
class ByteRange:
    """A half-open run of bytes: `start`, …, `stop - 1`; empty when both are equal."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise ValueError(f"not a range of bytes: {self.start}..{self.stop}")

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class ContentRange:
    """What a `Content-Range` says: which bytes follow, and how many the object has; None where it does not say."""

    range: ByteRange | None
    length: int | None


MAX_RANGES = 16
"""More ranges than this in one request are taken for an attack and ignored (RFC 9110 §17.15)."""

# Longer fields are ignored unread: no sound request has one, and Python refuses to convert numbers of 4300 digits.
_LONGEST_FIELD = 4096
_RANGE = re.compile(r"([0-9]*)-([0-9]*)")
_CONTENT_RANGE = re.compile(r"bytes +(?:([0-9]+)-([0-9]+)|\*)/([0-9]+|\*)", re.IGNORECASE)


def parse_range(header: str, length: int) -> tuple[ByteRange, ...] | None:
    """Return the bytes of an object of `length` bytes that a `Range` field asks for, in its order, all non-empty.

    None means to answer as if the field were not there (RFC 9110 §14.2): an unknown unit, a malformed field, more than
    MAX_RANGES ranges, several that together exceed the object, and a suffix of an empty object, which is
    satisfiable and cannot be written as a `Content-Range`. Ranges past the end are left out, and one that reaches past
    it is cut. Raises RangeNotSatisfiableError when none is left.
    """
    unit, equals, range_set = header[:_LONGEST_FIELD].partition("=")
    if not equals or unit.strip(" \t").lower() != "bytes" or len(header) > _LONGEST_FIELD:
        return None
    items = [item for item in (part.strip(" \t") for part in range_set.split(",")) if item]
    if not 0 < len(items) <= MAX_RANGES:
        return None
    found: list[ByteRange] = []
    for item in items:
        match = _RANGE.fullmatch(item)
        if match is None or item == "-":
            return None
        first, last = match.groups()
        if not first:
            if length == 0 and int(last):
                return None
            selected = ByteRange(max(0, length - int(last)), length)
        elif last and int(last) < int(first):
            return None
        else:
            selected = ByteRange(min(int(first), length), min(int(last) + 1, length) if last else length)
        if selected:
            found.append(selected)
    if not found:
        raise RangeNotSatisfiableError(header, length)
    if len(found) > 1 and sum(map(len, found)) > length:
        return None
    return tuple(found)


def format_range(wanted: ByteRange) -> str:
    """Return the `Range` field that asks for the bytes `wanted`, which must not be empty."""
    return f"bytes={_inclusive(wanted)}"


def format_content_range(sent: ByteRange | None, length: int) -> str:
    """Return the `Content-Range` of the non-empty bytes `sent` of `length`, or that of a 416 when `sent` is None."""
    if sent is None:
        return f"bytes */{length}"
    if sent.stop > length:
        raise ValueError(f"bytes {sent.start}..{sent.stop} of {length}")
    return f"bytes {_inclusive(sent)}/{length}"


def parse_content_range(field: str) -> ContentRange:
    """Return what a `Content-Range` says. A malformed or impossible one says nothing: both fields are None."""
    match = _CONTENT_RANGE.fullmatch(field.strip(" \t")) if len(field) <= _LONGEST_FIELD else None
    nothing = ContentRange(None, None)
    if match is None:
        return nothing
    first, last, whole = match.groups()
    length = None if whole == "*" else int(whole)
    if first is None:
        return ContentRange(None, length)
    start, stop = int(first), int(last) + 1
    if start >= stop or (length is not None and stop > length):
        return nothing
    return ContentRange(ByteRange(start, stop), length)


def if_range_matches(header: str, *, etag: str | None, last_modified: str | None, date: str | None) -> bool:
    """Tell whether `If-Range` names the version at hand, so that `Range` applies (RFC 9110 §13.1.5).

    The other arguments are that version's header fields. Tags are compared strongly; a date must be exactly
    `Last-Modified`, and that must be a strong validator in the light of `Date`.
    """
    condition = header.strip(" \t")
    if is_strong_tag(condition):
        return condition == etag
    wanted = http_date(condition)
    return wanted is not None and wanted == http_date(last_modified or "") and is_strong_date(last_modified, date)


def not_modified(request_headers: Headers, *, etag: str | None, last_modified: str | None) -> bool:
    """Tell whether a GET or HEAD is to be answered 304, given the version's header fields (RFC 9110 §13.2.2).

    `If-None-Match`, compared weakly, overrules `If-Modified-Since`; a malformed condition is not met.
    """
    if conditions := values(request_headers, "if-none-match"):
        if "*" in conditions:
            return True
        current = (etag or "").removeprefix("W/")
        return any(tag.removeprefix("W/") == current for field in conditions for tag in entity_tags(field))
    since = http_date(single(request_headers, "if-modified-since") or "")
    modified = http_date(last_modified or "")
    return since is not None and modified is not None and modified <= since


def _inclusive(run: ByteRange) -> str:
    if not run:
        raise ValueError(f"HTTP cannot name an empty range: {run.start}..{run.stop}")
    return f"{run.start}-{run.stop - 1}"
