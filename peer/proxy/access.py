"""Who may use the proxy: Basic credentials in `Proxy-Authorization` (RFC 9110 §11.7, RFC 7617).

`Authorization` is another matter: it belongs to the origin, and passes through.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
from collections.abc import Mapping

from p2p.errors import DamselflyError, ErrorType
from p2p.fields import values
from peer.source.fields import Fields

CHALLENGE: Fields = (("Proxy-Authenticate", 'Basic realm="damselfly", charset="UTF-8"'),)


class ProxyAuthenticationError(DamselflyError):
    """The client did not say who it is, or not truly (HTTP 407)."""

    error_type = ErrorType.PROXY


class Users:
    """The names and passwords that open the proxy; none at all leave it open. Neither is in the repr."""

    def __init__(self, passwords: Mapping[str, str] | None = None) -> None:
        # Digests under a key of this process' own are of one length, so comparing them tells nothing of the lengths.
        self._key = secrets.token_bytes(32)
        self._digests = tuple(self._digest(f"{name}:{word}".encode()) for name, word in (passwords or {}).items())

    def __len__(self) -> int:
        return len(self._digests)

    def require(self, fields: Fields) -> None:
        """Raise ProxyAuthenticationError unless request fields hold a known name with its password.

        Name and password are compared as one, with every user's, in a time that tells nothing about either.
        """
        if not self._digests:
            return
        given = _credentials(fields)
        digest = self._digest(given or b"")
        known = [hmac.compare_digest(digest, own) for own in self._digests]
        if given is None or not any(known):
            raise ProxyAuthenticationError(
                "this proxy asks for a name and a password, and the request has none that it knows; "
                "write them into the proxy's URL: http://name:password@host:port"
            )

    def _digest(self, credentials: bytes) -> bytes:
        return hmac.digest(self._key, credentials, "sha256")


def _credentials(fields: Fields) -> bytes | None:
    """Return the octets `name:password` of the one Basic credential in request fields, or None."""
    given = values(fields, "Proxy-Authorization")
    scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(token.strip(" "), validate=True)
    except (binascii.Error, ValueError):
        return None
