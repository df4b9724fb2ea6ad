"""`X-Dragonfly-Digest`: the digest that a client expects of the whole object (WIRE §3)."""

from __future__ import annotations

from p2p.digests import ExpectedDigest
from p2p.errors import BadRequestError, DigestMismatchError
from p2p.fields import values
from peer.source.fields import Fields

DIGEST = "X-Dragonfly-Digest"


def expected_digest(method: str, fields: Fields, content: ExpectedDigest | None = None) -> ExpectedDigest | None:
    """Return the digest that a request asks to have verified; only a GET's answer has bytes to verify.

    `content` is the one that its URL names, if it does. Raises BadRequestError, whatever the method, for what is not a
    digest, and for digests that contradict each other.
    """
    found = {ExpectedDigest.parse(value) for value in values(fields, DIGEST)}
    if content is not None:
        found.add(content)
    if len(found) > 1:
        raise BadRequestError(f"{' and '.join(sorted(map(str, found)))} cannot both be the object's digest")
    return found.pop() if found and method == "GET" else None


class Trusted:
    """Lets a body through as it comes."""

    def feed(self, chunk: bytes) -> bytes:
        """Take the next chunk and return it."""
        return chunk

    def finish(self) -> bytes:
        """Return nothing more."""
        return b""


class Withheld:
    """Verifies a body that is only passed through: each chunk goes out when the next one is here.

    So a client that counts bytes never has all of them before the digest is known.
    """

    def __init__(self, expected: ExpectedDigest) -> None:
        self._expected = expected
        self._hasher = expected.hasher()
        self._last = b""

    def feed(self, chunk: bytes) -> bytes:
        """Take the next chunk and return the one before it."""
        self._hasher.update(chunk)
        previous, self._last = self._last, chunk
        return previous

    def finish(self) -> bytes:
        """Return the last chunk. Raises DigestMismatchError."""
        self._expected.verify(self._hasher)
        return self._last


def verified(status: int, expected: ExpectedDigest | None, *, length: int | None) -> Trusted | Withheld:
    """Return what an answer that is passed through goes through; only 2xx is the object, or a part of it.

    Raises DigestMismatchError for what can be judged before it begins: a part of the object, and an empty one.
    """
    if expected is None or not 200 <= status < 300:
        return Trusted()
    if status != 200:
        raise DigestMismatchError(
            f"the origin sends a part of the object (status {status}), which cannot be compared with {expected}; "
            "ask without Range"
        )
    body = Withheld(expected)
    if length == 0:
        body.finish()
    return body
