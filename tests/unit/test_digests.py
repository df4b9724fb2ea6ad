from __future__ import annotations

import hashlib

import pytest

from p2p.digests import PIECE_DIGEST_BYTES, ExpectedDigest, piece_digest, piece_hasher
from p2p.errors import BadRequestError, DigestMismatchError


def test_a_pieces_digest_is_the_canonical_xxh3_128() -> None:
    # The reference implementation's value for empty input, as `xxhsum -H128` prints it.
    assert piece_digest(b"").hex() == "99aa06d3014798d86001c324468d497f"
    assert len(piece_digest(b"x")) == PIECE_DIGEST_BYTES


def test_hashing_in_parts_gives_the_same_digest() -> None:
    data = bytes(range(256)) * 5000
    hasher = piece_hasher()
    for start in range(0, len(data), 100_003):
        hasher.update(memoryview(data)[start : start + 100_003])
    assert hasher.digest() == piece_digest(data) == piece_digest(bytearray(data))


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_whole_objects_are_checked_against_sha2(algorithm: str) -> None:
    digest = hashlib.new(algorithm, b"model").hexdigest()
    expected = ExpectedDigest.parse(f" {algorithm.upper()}:{digest.upper()} ")
    assert str(expected) == f"{algorithm}:{digest}"
    hasher = expected.hasher()
    hasher.update(b"mod")
    with pytest.raises(DigestMismatchError, match=digest):
        expected.verify(hasher)
    hasher.update(b"el")
    expected.verify(hasher)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256",
        "sha256:",
        "md5:d41d8cd98f00b204e9800998ecf8427e",
        f"sha256:{'g' * 64}",
        f"sha256:{'a' * 63}",
        "a" * 64,
    ],
)
def test_other_digests_are_refused_with_a_remedy(text: str) -> None:
    with pytest.raises(BadRequestError, match="sha256") as caught:
        ExpectedDigest.parse(text)
    assert repr(text) in str(caught.value)
