"""What a store says of a whole object's bytes, beside its validators: CRCs and hashes in the fields of its answers.

Stores with such words: S3 (`x-amz-checksum-*`), GCS (`x-goog-hash`) and Azure (`Content-MD5`, `x-ms-blob-content-md5`).
They guard against faults, on the way and on disks, not against forgery. An entity tag that looks like an MD5 is none of
them: it is not for objects uploaded in parts or encrypted with a key of the customer's or of KMS.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from p2p.digests import Buffer, Hasher
from p2p.errors import BadRequestError, ChecksumMismatchError
from p2p.fields import Headers, single, values

REFUSED_SECONDS = 60.0
"""For how long nobody fetches a version again whose bytes were wrong MOST_STRIKES times."""

MOST_STRIKES = 2

STRIKE_SECONDS = 600.0
"""Wrong bytes that are longer ago count for nothing any more."""

_REMEMBERED_STRIKES = 1024


class ChecksumKind(StrEnum):
    """How a checksum is computed; the cheapest comes first, and is taken where a store gives several."""

    CRC64NVME = "crc64nvme"
    CRC32C = "crc32c"
    CRC32 = "crc32"
    SHA256 = "sha256"
    MD5 = "md5"

    @property
    def size(self) -> int:
        """How many bytes a value has."""
        return _SIZES[self]

    @property
    def combinable(self) -> bool:
        """Whether the object's value follows from its pieces', so that no pass over all bytes in order is needed."""
        return self in _CRCS


_SIZES = {
    ChecksumKind.CRC64NVME: 8,
    ChecksumKind.CRC32C: 4,
    ChecksumKind.CRC32: 4,
    ChecksumKind.SHA256: 32,
    ChecksumKind.MD5: 16,
}
_CRCS = (ChecksumKind.CRC64NVME, ChecksumKind.CRC32C, ChecksumKind.CRC32)


@dataclass(frozen=True, slots=True)
class Checksum:
    """A store's word on all bytes of an object; the value of a CRC is big-endian."""

    kind: ChecksumKind
    value: bytes

    @classmethod
    def parse(cls, text: str) -> Checksum:
        """Read what `str` gives: "crc32c:" and hexadecimal digits. Raises BadRequestError."""
        name, _, digits = text.partition(":")
        try:
            kind, value = ChecksumKind(name), bytes.fromhex(digits)
        except ValueError:
            raise BadRequestError(f"checksum {text!r} is not of a known kind, or not hexadecimal") from None
        if len(value) != kind.size:
            raise BadRequestError(f"checksum {text!r} must have {2 * kind.size} hexadecimal digits")
        return cls(kind, value)

    @property
    def algorithm(self) -> str:
        """The kind's name; a sha256 is the same whoever gives it."""
        return self.kind.value

    def hasher(self) -> Hasher:
        """Return a hasher to feed the whole object to."""
        match self.kind:
            case ChecksumKind.SHA256:
                return hashlib.sha256()
            case ChecksumKind.MD5:
                return hashlib.md5(usedforsecurity=False)
            case _:
                return Crc(self.kind)

    def verify(self, hasher: Hasher) -> None:
        """Raise ChecksumMismatchError unless the object fed to `hasher` is the store's."""
        actual = hasher.digest()
        if actual != self.value:
            raise ChecksumMismatchError(
                f"the bytes that came have {self.kind}:{actual.hex()}, and the store says {self} of its object"
            )

    def __str__(self) -> str:
        return f"{self.kind}:{self.value.hex()}"


class Crc:
    """A CRC as a `Hasher`, which can also take the CRC of what comes next without its bytes."""

    def __init__(self, kind: ChecksumKind) -> None:
        self._update, self._combine = _functions(kind)
        self._size = kind.size
        self._crc = 0

    @staticmethod
    def function(kind: ChecksumKind) -> Callable[[Buffer, int], int]:
        """Return what computes a CRC of some bytes, given that of those before them (0 at first)."""
        return _functions(kind)[0]

    def update(self, data: Buffer, /) -> None:
        """Take `data` after what was taken before."""
        self._crc = self._update(data, self._crc)

    def append(self, crc: int, length: int) -> None:
        """Take `length` bytes whose CRC is `crc`; costs microseconds, however many they are."""
        self._crc = self._combine(self._crc, crc, length)

    @property
    def value(self) -> int:
        """The CRC of everything so far."""
        return self._crc

    def digest(self) -> bytes:
        """Return the CRC of everything so far, big-endian."""
        return self._crc.to_bytes(self._size, "big")


def read_checksum(headers: Headers, *, whole: bool) -> Checksum | None:
    """Return the cheapest sound word that an answer has on the whole object, or None.

    `whole` tells whether the answer is about the whole object (200, or a HEAD's) and not about a range of it: there
    `x-amz-checksum-*` and `Content-MD5` speak of the range or of a part. S3's are COMPOSITE where they are made of the
    parts' checksums (a value that ends in "-3"); without the parts' lengths those cannot be verified, and count as
    none. The answer must hold the object as it is stored, as `p2p.versions.read_version` demands. What is malformed is
    ignored.
    """
    found = {**_google(headers), **_azure(headers, whole=whole)}
    if whole:
        found |= _amazon(headers)
    return next((Checksum(kind, found[kind]) for kind in ChecksumKind if kind in found), None)


def _amazon(headers: Headers) -> dict[ChecksumKind, bytes]:
    if (single(headers, "x-amz-checksum-type") or "FULL_OBJECT").upper() != "FULL_OBJECT":
        return {}
    kinds = (ChecksumKind.CRC64NVME, ChecksumKind.CRC32C, ChecksumKind.CRC32, ChecksumKind.SHA256)
    return _decoded((kind, single(headers, f"x-amz-checksum-{kind}")) for kind in kinds)


def _google(headers: Headers) -> dict[ChecksumKind, bytes]:
    # https://cloud.google.com/storage/docs/xml-api/reference-headers#xgooghash
    found = []
    for item in ",".join(values(headers, "x-goog-hash")).split(","):
        name, _, value = item.strip().partition("=")
        if name in ("crc32c", "md5"):
            found.append((ChecksumKind(name), value))
    return _decoded(found)


def _azure(headers: Headers, *, whole: bool) -> dict[ChecksumKind, bytes]:
    names = ("x-ms-blob-content-md5", "content-md5") if whole else ("x-ms-blob-content-md5",)
    return _decoded((ChecksumKind.MD5, single(headers, name)) for name in reversed(names))


def _decoded(found: Iterable[tuple[ChecksumKind, str | None]]) -> dict[ChecksumKind, bytes]:
    decoded = {}
    for kind, text in found:
        if text and re.fullmatch(r"[A-Za-z0-9+/]+={0,2}", text):
            try:
                value = base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError):
                continue
            if len(value) == kind.size:
                decoded[kind] = value
    return decoded


def _functions(kind: ChecksumKind) -> tuple[Callable[[Buffer, int], int], Callable[[int, int, int], int]]:
    # A host whose stores give no checksums does not pay for the library.
    from awscrt import checksums

    match kind:
        case ChecksumKind.CRC64NVME:
            return checksums.crc64nvme, checksums.combine_crc64nvme
        case ChecksumKind.CRC32C:
            return checksums.crc32c, checksums.combine_crc32c
        case ChecksumKind.CRC32:
            # zlib is twice as fast here, but cannot combine.
            return zlib.crc32, checksums.combine_crc32
        case _:
            raise ValueError(f"{kind} is no CRC")


@dataclass(slots=True)
class _Strike:
    count: int
    at: float
    reason: str


class Strikes:
    """Which versions' bytes turned out wrong, how often, and which are refused for it. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._strikes: dict[str, _Strike] = {}

    def add(self, version_id: str, reason: str, *, now: float) -> None:
        """Count wrong bytes; `reason` is for people."""
        earlier = self._strikes.pop(version_id, None)
        count = earlier.count if earlier is not None and now - earlier.at < STRIKE_SECONDS else 0
        self._strikes[version_id] = _Strike(count + 1, now, reason)
        if len(self._strikes) > _REMEMBERED_STRIKES:
            del self._strikes[next(iter(self._strikes))]

    def suspects(self, version_id: str, *, now: float) -> bool:
        """Tell whether bytes of the version that somebody holds from before may be the wrong ones."""
        strike = self._strikes.get(version_id)
        return strike is not None and now - strike.at < STRIKE_SECONDS

    def refusal(self, version_id: str, *, now: float) -> str | None:
        """Return why the version must not be fetched at present, or None; after that time it has a new chance."""
        strike = self._strikes.get(version_id)
        if strike is None or strike.count < MOST_STRIKES:
            return None
        if now - strike.at >= REFUSED_SECONDS:
            del self._strikes[version_id]
            return None
        return (
            f"{strike.reason}; that was so {strike.count} times, and it is refused for {REFUSED_SECONDS:g} s: "
            "is the object damaged in the store, or something on the way to it?"
        )

    def clear(self, version_id: str) -> None:
        """Forget a version's strikes: its bytes are the right ones."""
        self._strikes.pop(version_id, None)
