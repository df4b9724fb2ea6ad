"""HTTP header fields: finding them, and the validators and dates in them (RFC 9110 §5, §8.8)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime

Headers = Mapping[str, str] | Sequence[tuple[str, str]]
"""Header fields, as a mapping or as pairs; a multi-dict is a mapping whose `items()` repeat a name."""

STRONG_AFTER_SECONDS = 2
"""How long before `Date` the last modification must lie to have been the last in its second (RFC 9110 §8.8.2.2).

One second more than the RFC asks for: the two may be taken from clocks that are read a moment apart.
"""

_STRONG_TAG = re.compile(r'"[\x21\x23-\x7e\x80-\U0010ffff]*"')
_TAG = re.compile(rf"(?:W/)?{_STRONG_TAG.pattern}")


def pairs(headers: Headers) -> tuple[tuple[str, str], ...]:
    """Return every field as (name, value), in the order given."""
    return tuple(headers.items() if isinstance(headers, Mapping) else headers)


def values(headers: Headers, name: str) -> tuple[str, ...]:
    """Return the values of every field called `name` (in any case), without the white space around them."""
    wanted, length = name.lower(), len(name)
    fields = headers if isinstance(headers, tuple) else pairs(headers)
    # Most names differ in length already; this runs a dozen times a request.
    return tuple([value.strip(" \t") for key, value in fields if len(key) == length and key.lower() == wanted])


def single(headers: Headers, name: str) -> str | None:
    """Return the value of a field that may stand once only; None where it is absent, empty or contradicts itself."""
    found = values(headers, name)
    return found[0] or None if found and found.count(found[0]) == len(found) else None


def is_strong_tag(tag: str) -> bool:
    """Tell whether `tag` is a well-formed entity tag that promises equal bytes (RFC 9110 §8.8.3)."""
    return _STRONG_TAG.fullmatch(tag) is not None


def entity_tags(field: str) -> tuple[str, ...]:
    """Return the well-formed entity tags in a list, as `If-None-Match` holds it; a comma may be part of a tag."""
    return tuple(_TAG.findall(field))


def http_date(text: str) -> int | None:
    """Return the Unix seconds of an HTTP date in any of its three forms (RFC 9110 §5.6.7), or None if it is not one."""
    try:
        moment = parsedate_to_datetime(text)
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def is_strong_date(last_modified: str | None, date: str | None) -> bool:
    """Tell whether `Last-Modified` identifies bytes: `Date` is there and at least STRONG_AFTER_SECONDS later.

    A modification time has a resolution of one second, so that of a file written within the second in which it was
    asked for may yet stand for other bytes.
    """
    modified, answered = http_date(last_modified or ""), http_date(date or "")
    return modified is not None and answered is not None and answered - modified >= STRONG_AFTER_SECONDS
