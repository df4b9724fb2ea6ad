"""When a URL's own leave to read ends, as its query says.

The stores' documents: AWS "Authenticating requests: using query parameters" (the time of signing and a number of
seconds; Google, Alibaba and Huawei speak alike), the older signatures' `Expires` (Unix seconds), Azure "Create a
service SAS" (`se`, and `ske` of a delegation key: ISO 8601 in UTC).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from urllib.parse import unquote

from p2p.fields import http_date
from p2p.stores import signed_for

OVER = float("-inf")
"""The end of a URL that is signed, but whose end cannot be read: it is never counted on."""

_SIGNED_TIMES = ("x-amz", "x-goog", "x-oss", "x-obs")
_STAMP = re.compile(r"[0-9]{8}T[0-9]{6}Z")
_SECONDS = re.compile(r"[0-9]{1,12}")
_ENDS = frozenset({"expires", "se", "ske"})


def expires_at(url: str) -> float | None:
    """Return the Unix seconds from which `url` opens nothing any more; None for a URL that does not say it ends.

    The earliest counts where there are several; OVER stands for an end that is not understood. Never fails.
    """
    query = url.partition("#")[0].partition("?")[2]
    found: dict[str, set[str]] = {}
    for segment in query.split("&"):
        name, _, value = segment.partition("=")
        found.setdefault(unquote(name).lower(), set()).add(unquote(value))
    ends = [_read(name, value) for name, values in found.items() if name in _ENDS for value in values]
    for prefix in _SIGNED_TIMES:
        begins, spans = found.get(f"{prefix}-date", set()), found.get(f"{prefix}-expires", set())
        if spans:
            ends += [_added(begin, span) for begin in begins or {""} for span in spans]
    if ends:
        return min(ends)
    return None if signed_for(frozenset(found)) is None else OVER


def _read(name: str, value: str) -> float:
    if name == "expires":
        if _SECONDS.fullmatch(value):
            return float(value)
        end = http_date(value)
        return OVER if end is None else float(end)
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return OVER
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _added(begin: str, span: str) -> float:
    if not (_STAMP.fullmatch(begin) and _SECONDS.fullmatch(span)):
        return OVER
    try:
        return datetime.strptime(begin, "%Y%m%dT%H%M%S%z").timestamp() + float(span)
    except ValueError:
        return OVER
