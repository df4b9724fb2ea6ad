from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.digests import ExpectedDigest, piece_digest, piece_hasher
from p2p.errors import BadRequestError, DigestMismatchError


@given(st.lists(st.binary(max_size=2000)))
def test_how_a_piece_is_cut_does_not_change_its_digest(parts: list[bytes]) -> None:
    hasher = piece_hasher()
    for part in parts:
        hasher.update(part)
    assert hasher.digest() == piece_digest(b"".join(parts))


@given(st.binary(), st.binary(), st.sampled_from(["sha256", "sha512"]))
def test_only_the_expected_object_is_accepted(content: bytes, other: bytes, algorithm: str) -> None:
    expected = ExpectedDigest.parse(f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}")
    assert ExpectedDigest.parse(str(expected)) == expected
    hasher = expected.hasher()
    hasher.update(other)
    if content == other:
        expected.verify(hasher)
    else:
        with pytest.raises(DigestMismatchError):
            expected.verify(hasher)


@given(st.one_of(st.text(), st.text("0123456789abcdefg").map("sha256:".__add__)))
def test_no_text_breaks_the_parser(text: str) -> None:
    try:
        expected = ExpectedDigest.parse(text)
    except BadRequestError:
        return
    assert len(bytes.fromhex(expected.hex)) in {32, 64}
