import hashlib

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from bench.content import BLOCK_BYTES, SLICE_BYTES, SyntheticObject

MIB = 1024 * 1024
LARGE = SyntheticObject("large", 100 * 1024 * MIB)


@given(start=st.integers(0, LARGE.length - 1), length=st.integers(0, 3 * MIB), size=st.integers(1, SLICE_BYTES))
def test_slices_make_up_the_range_whatever_their_size(start: int, length: int, size: int) -> None:
    stop = min(LARGE.length, start + length)
    size = max(size, length // 64)
    assert b"".join(LARGE.slices(start, stop, min(size, SLICE_BYTES))) == LARGE.bytes(start, stop)
    assert len(LARGE.bytes(start, stop)) == stop - start


def test_content_repeats_with_the_block_and_not_before() -> None:
    assert LARGE.bytes(5, 5 + MIB) == LARGE.bytes(5 + BLOCK_BYTES, 5 + BLOCK_BYTES + MIB)


def test_every_piece_has_its_own_digest() -> None:
    content = SyntheticObject("pieces", 2048 * 4 * MIB)
    # The head of a piece tells where in the block it starts, and so does every byte after it.
    heads = {content.bytes(index * 4 * MIB, index * 4 * MIB + 64) for index in range(2048)}
    assert len(heads) == 2048


def test_other_names_seeds_and_generations_are_other_bytes_and_etags() -> None:
    objects = [
        SyntheticObject("a", MIB),
        SyntheticObject("b", MIB),
        SyntheticObject("a", MIB, seed=1),
        SyntheticObject("a", MIB, generation=1),
    ]
    assert len({content.bytes() for content in objects}) == 4
    assert len({content.etag for content in objects}) == 4
    assert SyntheticObject("a", MIB).bytes() == objects[0].bytes()
    assert objects[0].etag.startswith('"')


def test_digests_are_those_of_the_content() -> None:
    content = SyntheticObject("digests", 3 * MIB + 17)
    assert content.xxh3_128() == xxhash.xxh3_128_hexdigest(content.bytes())
    assert content.sha256() == hashlib.sha256(content.bytes()).hexdigest()
    assert SyntheticObject("empty", 0).bytes() == b""


def test_ranges_outside_are_refused() -> None:
    content = SyntheticObject("small", 10)
    with pytest.raises(ValueError, match="object of 10"):
        list(content.slices(0, 11))
    with pytest.raises(ValueError, match="slices of"):
        list(content.slices(0, 10, SLICE_BYTES + 1))
