"""What stores say of whole objects, and CRCs put together from those of pieces."""

from __future__ import annotations

import base64
import hashlib
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.checksums import REFUSED_SECONDS, STRIKE_SECONDS, Checksum, ChecksumKind, Crc, Strikes, read_checksum
from p2p.errors import BadRequestError, ChecksumMismatchError
from p2p.versions import passthrough_headers

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


@pytest.mark.parametrize("text", ["", "crc32c", "crc32c:zz", "crc32c:00", "sha1:" + "0" * 40])
def test_checksums_that_cannot_be_read(text: str) -> None:
    with pytest.raises(BadRequestError, match="checksum"):
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
