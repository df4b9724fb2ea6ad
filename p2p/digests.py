"""Digests: xxh3-128 of pieces, against faults; SHA-2 of whole objects, against forgery too."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Protocol

import xxhash

from p2p.errors import BadRequestError, DigestMismatchError

PIECE_DIGEST_BYTES = 16
"""The length of a piece's digest."""

Buffer = bytes | bytearray | memoryview


class Hasher(Protocol):
    """An incremental hash; large updates release the GIL."""

    def update(self, data: Buffer, /) -> None:
        """Hash `data` after what was hashed before."""

    def digest(self) -> bytes:
        """Return the digest of everything so far."""


def piece_digest(data: Buffer) -> bytes:
    """Return the 16 bytes of a piece's xxh3-128, in the canonical (big-endian) order."""
    return xxhash.xxh3_128_digest(data)


def piece_hasher() -> Hasher:
    """Return a hasher whose digest, when it has been fed a piece, is that piece's `piece_digest`."""
    return xxhash.xxh3_128()


_HEX_DIGITS = {"sha256": 64, "sha512": 128}


@dataclass(frozen=True, slots=True)
class ExpectedDigest:
    """The digest that a user expects of a whole object: `algorithm` ("sha256" or "sha512") and lower-case `hex`."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> ExpectedDigest:
        """Read `sha256:…` or `sha512:…` with hexadecimal digits in either case. Raises BadRequestError.

        MD5 and SHA-1 are refused: collisions are cheap to make, so they would not prove what their user asks for.
        """
        algorithm, colon, digits = text.strip().lower().partition(":")
        if not colon or algorithm not in _HEX_DIGITS:
            raise BadRequestError(f"digest {text!r} is not of a known kind; write sha256:<hex> or sha512:<hex>")
        if re.fullmatch(r"[0-9a-f]*", digits) is None or len(digits) != _HEX_DIGITS[algorithm]:
            raise BadRequestError(
                f"digest {text!r} must have {_HEX_DIGITS[algorithm]} hexadecimal digits after {algorithm + ':'!r}"
            )
        return cls(algorithm, digits)

    def hasher(self) -> Hasher:
        """Return a hasher to feed the whole object to."""
        return hashlib.sha256() if self.algorithm == "sha256" else hashlib.sha512()

    def verify(self, hasher: Hasher) -> bool:
        """Return True; raises DigestMismatchError unless the object fed to `hasher` is the expected one."""
        actual = hasher.digest().hex()
        if actual != self.hex:
            raise DigestMismatchError(f"the object has {self.algorithm}:{actual}, and {self} was expected")
        return True

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"
