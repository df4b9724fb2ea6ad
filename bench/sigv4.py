"""AWS Signature Version 4 as a store checks it: presigned URLs and Authorization fields, of one known key.

Sources: "Signature Calculations for the Authorization Header: Transferring Payload in a Single Chunk" and
"Authenticating Requests: Using Query Parameters" in Amazon's S3 API reference. Pure, and written apart from the
libraries with which clients sign, which it judges. What came over the wire is taken as it is: a store that normalised
it first would accept URLs that others refuse.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import lru_cache

ACCESS_KEY = "BENCHORIGINACCESSKEY"
SECRET_KEY = "bench/origin/secret/key/that/everybody/knows"  # noqa: S105  # of a store that holds nothing
REGION = "us-east-1"
_ALGORITHM = "AWS4-HMAC-SHA256"
_SIGNATURE = "&X-Amz-Signature="
_AUTHORIZATION = re.compile(
    rf"{_ALGORITHM} Credential={ACCESS_KEY}/(\d{{8}}/[a-z0-9-]+/s3/aws4_request), ?"
    r"SignedHeaders=([a-z0-9;-]+), ?Signature=([0-9a-f]{64})"
)


def presigned(target: str, host: str, *, at: datetime, seconds: int) -> str:
    """Return the path `target`, which must be escaped already, with a query that may GET it for so many seconds."""
    scope = f"{at:%Y%m%d}/{REGION}/s3/aws4_request"
    query = (
        f"X-Amz-Algorithm={_ALGORITHM}&X-Amz-Credential={f'{ACCESS_KEY}/{scope}'.replace('/', '%2F')}"
        f"&X-Amz-Date={at:%Y%m%dT%H%M%SZ}&X-Amz-Expires={seconds}&X-Amz-SignedHeaders=host"
    )
    signature = _sign("GET", target, query, [("host", host)], "UNSIGNED-PAYLOAD", f"{at:%Y%m%dT%H%M%SZ}", scope)
    return f"{target}?{query}{_SIGNATURE}{signature}"


def allows(method: str, target: str, headers: Mapping[str, str]) -> bool:
    """Tell whether a request (its target as sent, its case-insensitive header fields) carries a sound signature."""
    path, _, query = target.partition("?")
    field = _AUTHORIZATION.fullmatch(headers.get("Authorization", ""))
    if field is not None:
        scope, names, given = field.groups()
        signed = [(name, headers.get(name, "")) for name in names.split(";")]
        payload, date = headers.get("x-amz-content-sha256", ""), headers.get("x-amz-date", "")
    else:
        query, _, given = query.rpartition(_SIGNATURE)
        values = dict(pair.partition("=")[::2] for pair in query.split("&"))
        key, _, scope = values.get("X-Amz-Credential", "").replace("%2F", "/").partition("/")
        if key != ACCESS_KEY or values.get("X-Amz-SignedHeaders") != "host":
            return False
        signed, payload, date = [("host", headers.get("Host", ""))], "UNSIGNED-PAYLOAD", values.get("X-Amz-Date", "")
    expected = _sign(method, path, query, signed, payload, date, scope)
    return hmac.compare_digest(given.encode(), expected.encode())


def _sign(
    method: str, path: str, query: str, signed: Iterable[tuple[str, str]], payload: str, date: str, scope: str
) -> str:
    ordered = "&".join(sorted(pair if "=" in pair else f"{pair}=" for pair in query.split("&") if pair))
    signed = list(signed)
    fields = "".join(f"{name}:{' '.join(value.split())}\n" for name, value in signed)
    names = ";".join(name for name, _ in signed)
    request = f"{method}\n{path}\n{ordered}\n{fields}\n{names}\n{payload}"
    text = f"{_ALGORITHM}\n{date}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    return hmac.new(_key(scope), text.encode(), hashlib.sha256).hexdigest()


@lru_cache(maxsize=16)
def _key(scope: str) -> bytes:
    key = f"AWS4{SECRET_KEY}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
