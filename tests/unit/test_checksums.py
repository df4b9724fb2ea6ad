"""What stores say of whole objects, and CRCs put together from those of pieces."""

from __future__ import annotations

import base64
import hashlib
import itertools
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.checksums import (
    REFUSED_SECONDS,
    STRIKE_SECONDS,
    Checksum,
    ChecksumKind,
    Crc,
    Strikes,
    Unparted,
    read_checksum,
    read_composite,
)
from p2p.errors import BadRequestError, ChecksumMismatchError
from p2p.parts import Parts
from p2p.versions import passthrough_headers
from tests.support.attributes import composite

CHECK = b"123456789"
CRCS = [kind for kind in ChecksumKind if kind.combinable]


def b64(value: bytes | int, size: int = 4) -> str:
    return base64.b64encode(value if isinstance(value, bytes) else value.to_bytes(size, "big")).decode()


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        # The check values of the catalogue of parametrised CRC algorithms.
        ("crc32", "cbf43926"),
        ("crc32c", "e3069283"),
        ("crc64nvme", "ae8b14860a799888"),
        ("md5", hashlib.md5(CHECK).hexdigest()),
        ("sha256", hashlib.sha256(CHECK).hexdigest()),
    ],
)
def test_known_values(kind: str, value: str) -> None:
    checksum = Checksum.parse(f"{kind}:{value}")
    assert str(checksum) == f"{kind}:{value}"
    hasher = checksum.hasher()
    hasher.update(CHECK)
    checksum.verify(hasher)
    hasher.update(b"x")
    with pytest.raises(ChecksumMismatchError, match=f"the store says {kind}:{value}"):
        checksum.verify(hasher)


@given(kind=st.sampled_from(CRCS), parts=st.lists(st.binary(max_size=200), max_size=12))
def test_pieces_combine_to_the_whole(kind: ChecksumKind, parts: list[bytes]) -> None:
    whole, combined = Crc(kind), Crc(kind)
    whole.update(b"".join(parts))
    for part in parts:
        piece = Crc(kind)
        piece.update(part)
        combined.append(piece.value, len(part))
    assert combined.digest() == whole.digest()


def test_amazon() -> None:
    crc = zlib.crc32(CHECK)
    headers = {"x-amz-checksum-crc32": b64(crc), "x-amz-checksum-type": "FULL_OBJECT", "ETag": '"abc"'}
    assert read_checksum(headers, whole=True) == Checksum(ChecksumKind.CRC32, crc.to_bytes(4, "big"))
    assert read_checksum(headers, whole=False) is None  # a part's, where the range is one
    assert read_checksum({**headers, "x-amz-checksum-type": "COMPOSITE"}, whole=True) is None
    assert read_checksum({"x-amz-checksum-crc32": b64(crc) + "-2"}, whole=True) is None
    assert read_checksum({"x-amz-checksum-sha1": b64(hashlib.sha1(CHECK).digest())}, whole=True) is None
    several = {**headers, "x-amz-checksum-crc64nvme": b64(7, 8), "x-amz-checksum-sha256": b64(bytes(32))}
    assert read_checksum(several, whole=True) == Checksum(ChecksumKind.CRC64NVME, (7).to_bytes(8, "big"))


def test_google() -> None:
    md5 = hashlib.md5(CHECK).digest()
    joined = (("X-Goog-Hash", f"md5={b64(md5)}, crc32c={b64(5)}"),)
    apart = (("x-goog-hash", f"crc32c={b64(5)}"), ("x-goog-hash", f"md5={b64(md5)}"))
    for headers in (joined, apart):
        assert read_checksum(headers, whole=False) == Checksum(ChecksumKind.CRC32C, (5).to_bytes(4, "big"))
    assert read_checksum({"x-goog-hash": f"md5={b64(md5)}"}, whole=False) == Checksum(ChecksumKind.MD5, md5)


def test_azure() -> None:
    md5, other = hashlib.md5(CHECK).digest(), bytes(16)
    assert read_checksum({"Content-MD5": b64(md5)}, whole=True) == Checksum(ChecksumKind.MD5, md5)
    assert read_checksum({"Content-MD5": b64(md5)}, whole=False) is None
    ranged = {"Content-MD5": b64(other), "x-ms-blob-content-md5": b64(md5)}
    assert read_checksum(ranged, whole=False) == Checksum(ChecksumKind.MD5, md5)
    assert read_checksum(ranged, whole=True) == Checksum(ChecksumKind.MD5, md5)


@pytest.mark.parametrize(
    "value", ["", "=", "crc32c=", "crc32c=????", "crc32c=AAAA", "md5=AAAAAA==", "sha9=AAAAAA==", "a,b"]
)
def test_nonsense_is_no_checksum(value: str) -> None:
    fields = {"x-goog-hash": value, "content-md5": value, "x-amz-checksum-crc32": value}
    assert read_checksum(fields, whole=True) is None


NO_COMPOSITES = [
    "crc32:00000000:5",
    "crc32-composite:00000000",
    "crc32-assumed:00000000:5",
    "crc32-composite:00000000:x",
]


@pytest.mark.parametrize("text", ["", "crc32c", "crc32c:zz", "crc32c:00", "sha1:" + "0" * 40, *NO_COMPOSITES])
def test_checksums_that_cannot_be_read(text: str) -> None:
    with pytest.raises(BadRequestError, match=r"checksum|parts"):
        Checksum.parse(text)


def test_checksums_of_one_answer_are_not_told_to_everyone() -> None:
    """A client that compares them would take a range's for the whole's, or the other way round."""
    fields = (("x-amz-checksum-crc32", "AAAAAA=="), ("x-amz-checksum-type", "FULL_OBJECT"), ("x-amz-meta-a", "b"))
    assert passthrough_headers(fields) == (("x-amz-meta-a", "b"),)


def test_a_version_is_refused_after_two_strikes_and_then_has_a_new_chance() -> None:
    strikes = Strikes()
    strikes.add("v", "bad crc32c", now=0)
    assert strikes.suspects("v", now=1)
    assert strikes.refusal("v", now=1) is None
    strikes.add("v", "bad crc32c", now=2)
    assert "bad crc32c" in (strikes.refusal("v", now=3) or "")
    assert strikes.refusal("v", now=2 + REFUSED_SECONDS) is None
    assert not strikes.suspects("v", now=2 + REFUSED_SECONDS)
    strikes.add("w", "bad md5", now=0)
    strikes.add("w", "bad md5", now=STRIKE_SECONDS)
    assert strikes.refusal("w", now=STRIKE_SECONDS) is None
    strikes.clear("w")
    assert not strikes.suspects("w", now=STRIKE_SECONDS)


@given(
    kind=st.sampled_from([*CRCS, ChecksumKind.SHA256]),
    parts=st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=12),
    cuts=st.lists(st.integers(1, 30), min_size=1),
)
def test_a_composite_checksum_is_that_of_the_parts_checksums(
    kind: ChecksumKind, parts: list[bytes], cuts: list[int]
) -> None:
    checksum = Checksum(kind, composite(kind, parts), Parts.of(map(len, parts)))
    hasher, whole = checksum.hasher(), memoryview(b"".join(parts))
    for cut in itertools.cycle(cuts):
        hasher.update(whole[:cut])
        if not (whole := whole[cut:]):
            break
    assert checksum.verify(hasher)
    assert not checksum.combinable
    assert Checksum.parse(str(checksum)) == checksum


def test_sha256_in_parts_by_hand() -> None:
    digests = hashlib.sha256(CHECK[:4]).digest() + hashlib.sha256(CHECK[4:8]).digest() + hashlib.sha256(b"9").digest()
    checksum = Checksum(ChecksumKind.SHA256, hashlib.sha256(digests).digest(), Parts.of([4, 4, 1]))
    assert str(checksum) == f"sha256-composite:{hashlib.sha256(digests).hexdigest()}:4x2,1"
    hasher = checksum.hasher()
    hasher.update(CHECK)
    assert checksum.verify(hasher)
    wrong = checksum.hasher()
    wrong.update(b"1234X6789")
    with pytest.raises(ChecksumMismatchError, match=r"have sha256-composite:.* says sha256-composite:.*:4x2,1"):
        checksum.verify(wrong)


def test_parts_that_were_assumed_condemn_nothing() -> None:
    checksum = Checksum(ChecksumKind.CRC32C, bytes(4), Parts.of([5, 4]), assumed=True)
    hasher = checksum.hasher()
    hasher.update(CHECK)
    assert not checksum.verify(hasher)
    assert Checksum.parse(str(checksum)) == checksum
    assert str(checksum) == "crc32c-composite-assumed:00000000:5,4"


TAG = {"ETag": '"0123456789abcdef0123456789abcdef-3"'}


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"x-amz-checksum-crc32": b64(5) + "-2", "x-amz-checksum-type": "COMPOSITE"}, 2),
        ({"x-amz-checksum-crc32": b64(5) + "-2"}, 2),
        ({"x-amz-checksum-crc32": b64(5), "x-amz-checksum-type": "COMPOSITE", **TAG}, 3),
        ({"x-amz-checksum-crc32": b64(5), **TAG}, 3),
    ],
)
def test_composite_values_of_amazon(fields: dict[str, str], count: int) -> None:
    assert read_checksum(fields, whole=True) is None
    assert read_composite(fields) == Unparted(ChecksumKind.CRC32, (5).to_bytes(4, "big"), count)


def test_parts_are_believed_where_their_checksums_make_up_the_objects() -> None:
    parts = [b"12345", b"6789"]
    found = Unparted(ChecksumKind.CRC32, composite(ChecksumKind.CRC32, parts), 2)
    told = [(len(part), b64(zlib.crc32(part))) for part in parts]
    assert found.of(told) == Checksum(found.kind, found.value, Parts.of([5, 4]))
    for lie in (told[:1], told[::-1], [(5, ""), told[1]], [*told, (1, "?")], []):
        assert found.of(lie) is None


def test_equal_parts_are_assumed_where_they_fit() -> None:
    found = Unparted(ChecksumKind.CRC32, bytes(4), 3)
    assert str(found.assuming(8, 17)) == "crc32-composite-assumed:00000000:8x2,1"
    assert found.assuming(8, 25) is None


def test_more_parts_of_odd_lengths_than_can_travel_are_unknown() -> None:
    parts = [(1_000_000 + index, b64(index)) for index in range(100)]
    value = zlib.crc32(b"".join(index.to_bytes(4, "big") for index in range(100))).to_bytes(4, "big")
    assert Unparted(ChecksumKind.CRC32, value, 100).of(parts) is None


def test_full_values_of_objects_in_parts() -> None:
    full = {"x-amz-checksum-crc32": b64(5), "x-amz-checksum-type": "FULL_OBJECT", **TAG}
    nvme = {"x-amz-checksum-crc64nvme": b64(5, 8), **TAG}
    for fields in (full, nvme):
        assert read_checksum(fields, whole=True) is not None
        assert read_composite(fields) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"x-amz-checksum-crc32": b64(5) + "-2", "x-amz-checksum-type": "FULL_OBJECT"},
        {"x-amz-checksum-crc32": b64(5), "x-amz-checksum-type": "COMPOSITE"},
        {"x-amz-checksum-crc32": b64(5), "x-amz-checksum-type": "ANOTHER"},
        {"x-amz-checksum-crc32": b64(5) + "-"},
        {"x-amz-checksum-crc32": b64(5) + "-0"},
        {"x-amz-checksum-crc32": b64(5) + "-10001"},
        {"x-amz-checksum-crc32": b64(5) + "-" + "9" * 5000},
        {"x-amz-checksum-crc32": "????-2"},
    ],
)
def test_what_is_neither_whole_nor_composite_is_none(fields: dict[str, str]) -> None:
    assert read_checksum(fields, whole=True) is None
    assert read_composite(fields) is None


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=30))
def test_parts_are_their_lengths(lengths: list[int]) -> None:
    parts = Parts.of(lengths)
    assert list(parts) == lengths
    assert (parts.count, parts.total) == (len(lengths), sum(lengths))
    assert Parts.parse(str(parts)) == parts


@pytest.mark.parametrize(
    ("length", "count", "whole", "text"),
    [
        (8, 3, 17, "8x2,1"),
        (8, 2, 16, "8x2"),
        (8, 1, 8, "8"),
        (8, 1, 3, "3"),
        (8, 3, 16, ""),
        (8, 2, 17, ""),
        (8, 0, 0, ""),
    ],
)
def test_equal_parts(length: int, count: int, whole: int, text: str) -> None:
    assert str(Parts.equal(length, count, whole) or "") == text


@pytest.mark.parametrize("text", ["", "0", "8,", "8x0", "-8", "8x3x2", "1x10001", "1x5000,2x5001", "8" * 16, "²"])
def test_parts_that_cannot_be_read(text: str) -> None:
    with pytest.raises(BadRequestError, match="part"):
        Parts.parse(text)
