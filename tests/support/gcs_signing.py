"""V4 signatures of Google Cloud Storage in URLs, made and verified as Google's documents say.

The pages are "Signatures" and "Canonical requests" of the Cloud Storage documentation: GOOG4-RSA-SHA256 for service
accounts, GOOG4-HMAC-SHA256 for HMAC keys.
"""

from __future__ import annotations

import calendar
import hashlib
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from urllib.parse import quote, unquote, urlsplit

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

_LONGEST_SECONDS = 604800


class RefusalError(Exception):
    """An answer that is an error: its status, the error's name, and fields that go with it."""

    def __init__(self, status: int, code: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(f"{status} {code}")
        self.status = status
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """Return the error as the XML interface tells it."""
        error = f"<Error><Code>{self.code}</Code><Message>{self.code}</Message></Error>"
        return f"<?xml version='1.0' encoding='UTF-8'?>{error}".encode()


@dataclass(frozen=True, slots=True)
class HmacKey:
    """An HMAC key of a service account."""

    access_id: str
    secret: str = field(repr=False)


@cache
def rsa_key() -> rsa.RSAPrivateKey:
    """Return the key of the tests' service account; making one takes a while."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def sign_url(
    url: str, signer: rsa.RSAPrivateKey | HmacKey, account: str, *, method: str, now: float, seconds: int
) -> str:
    """Return `url`, which has no query, with a signature over its method, path and host."""
    split = urlsplit(url)
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    algorithm = "GOOG4-HMAC-SHA256" if isinstance(signer, HmacKey) else "GOOG4-RSA-SHA256"
    who = signer.access_id if isinstance(signer, HmacKey) else account
    scope = f"{moment[:8]}/auto/storage/goog4_request"
    parameters = {
        "X-Goog-Algorithm": algorithm,
        "X-Goog-Credential": f"{who}/{scope}",
        "X-Goog-Date": moment,
        "X-Goog-Expires": str(seconds),
        "X-Goog-SignedHeaders": "host",
    }
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in parameters.items())
    to_sign = _to_sign(method, split.path, query, {"host": split.netloc}, algorithm, moment, scope)
    if isinstance(signer, HmacKey):
        signature = _hmac(signer, scope, to_sign).hex()
    else:
        signature = signer.sign(to_sign, padding.PKCS1v15(), hashes.SHA256()).hex()
    return f"{url}?{query}&X-Goog-Signature={signature}"


def verify_url(
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    public_key: rsa.RSAPublicKey,
    hmac_key: HmacKey,
    account: str,
    now: float,
) -> None:
    """Raise RefusalError unless a request's query, as it came, is signed and good `now` (Unix seconds)."""
    segments = [segment for segment in query.split("&") if segment]
    found = {unquote(name): unquote(value) for name, _, value in (segment.partition("=") for segment in segments)}
    try:
        algorithm, moment = found["X-Goog-Algorithm"], found["X-Goog-Date"]
        who, _, scope = found["X-Goog-Credential"].partition("/")
        seconds, signature = int(found["X-Goog-Expires"]), bytes.fromhex(found["X-Goog-Signature"])
        signed = {name: headers[name].strip() for name in found["X-Goog-SignedHeaders"].split(";")}
        begin = calendar.timegm(time.strptime(moment, "%Y%m%dT%H%M%SZ"))
    except (KeyError, ValueError):
        raise RefusalError(400, "InvalidArgument") from None
    if not 0 < seconds <= _LONGEST_SECONDS:
        raise RefusalError(400, "InvalidArgument")
    unsigned = "&".join(segment for segment in segments if not segment.startswith("X-Goog-Signature="))
    to_sign = _to_sign(method, path, unsigned, signed, algorithm, moment, scope)
    if algorithm == "GOOG4-HMAC-SHA256":
        sound = who == hmac_key.access_id and hmac.compare_digest(_hmac(hmac_key, scope, to_sign), signature)
    else:
        sound = who == account and _is_signed(public_key, signature, to_sign)
    if not sound or "host" not in signed or scope.partition("/")[0] != moment[:8]:
        raise RefusalError(403, "SignatureDoesNotMatch")
    if not begin <= now + 900 or now > begin + seconds:
        raise RefusalError(400, "ExpiredToken")


def _to_sign(
    method: str, path: str, query: str, headers: Mapping[str, str], algorithm: str, moment: str, scope: str
) -> bytes:
    fields = {name.lower(): " ".join(value.split()) for name, value in headers.items()}
    canonical = "\n".join(
        (
            method,
            quote(unquote(path, errors="surrogateescape"), safe="/~", errors="surrogateescape"),
            "&".join(sorted(query.split("&"))),
            "".join(f"{name}:{fields[name]}\n" for name in sorted(fields)),
            ";".join(sorted(fields)),
            fields.get("x-goog-content-sha256", "UNSIGNED-PAYLOAD"),
        )
    )
    return "\n".join((algorithm, moment, scope, hashlib.sha256(canonical.encode()).hexdigest())).encode()


def _hmac(key: HmacKey, scope: str, to_sign: bytes) -> bytes:
    derived = f"GOOG4{key.secret}".encode()
    for part in scope.split("/"):
        derived = hmac.digest(derived, part.encode(), "sha256")
    return hmac.digest(derived, to_sign, "sha256")


def _is_signed(key: rsa.RSAPublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature:
        return False
    return True
