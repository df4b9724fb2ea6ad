"""What a store says of a whole object's bytes, beside its validators: CRCs and hashes in the fields of its answers.

Stores with such words: S3 (`x-amz-checksum-*`), GCS (`x-goog-hash`) and Azure (`Content-MD5`, `x-ms-blob-content-md5`).
S3's are composite for most objects that were uploaded in parts: the checksum of the parts' checksums, one after the
other (AWS "Checking object integrity", "Composite and full object checksum types").

They guard against faults, on the way and on disks, not against forgery. An entity tag that looks like an MD5 is none of
them: it is not for objects uploaded in parts or encrypted with a key of the customer's or of KMS.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from p2p.digests import Buffer, Hasher
from p2p.errors import BadRequestError, ChecksumMismatchError
from p2p.fields import Headers, single, values
from p2p.parts import MAX_PARTS, Parts

REFUSED_SECONDS = 60.0
"""For how long nobody fetches a version again whose bytes were wrong MOST_STRIKES times."""

MOST_STRIKES = 2

STRIKE_SECONDS = 600.0
"""Wrong bytes that are longer ago count for nothing any more."""

_REMEMBERED_STRIKES = 1024

MAX_TEXT = 512
"""How many characters a checksum may have that hosts tell each other: enough for dozens of parts of odd lengths."""


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
        """Whether the value of some bytes follows from those of their pieces."""
        return self in _CRCS

    def hasher(self) -> Hasher:
        """Return a hasher for this kind of values."""
        match self:
            case ChecksumKind.SHA256:
                return hashlib.sha256()
            case ChecksumKind.MD5:
                return hashlib.md5(usedforsecurity=False)
            case _:
                return Crc(self)


_SIZES = {
    ChecksumKind.CRC64NVME: 8,
    ChecksumKind.CRC32C: 4,
    ChecksumKind.CRC32: 4,
    ChecksumKind.SHA256: 32,
    ChecksumKind.MD5: 16,
}
_CRCS = (ChecksumKind.CRC64NVME, ChecksumKind.CRC32C, ChecksumKind.CRC32)
_AMAZON = (*_CRCS, ChecksumKind.SHA256)
_TEXT = re.compile(
    r"(?P<kind>[a-z0-9]+)(?P<composite>-composite(?P<assumed>-assumed)?)?:(?P<digits>[0-9a-f]*)(?::(?P<parts>.*))?"
)


@dataclass(frozen=True, slots=True)
class Checksum:
    """A store's word on all bytes of an object; the value of a CRC is big-endian.

    With `parts` it is composite: of the checksums of these parts. `assumed` ones are what most uploaders make, and not
    what the store said: only a match proves anything then.
    """

    kind: ChecksumKind
    value: bytes
    parts: Parts | None = None
    assumed: bool = False

    @classmethod
    def parse(cls, text: str) -> Checksum:
        """Read what `str` gives. Raises BadRequestError.

        That is "crc32c:00c0ffee", of a composite one "crc32c-composite:00c0ffee:8388608x3,17" (or -composite-assumed).
        """
        match = _TEXT.fullmatch(text)
        if match is None or (match["composite"] is None) != (match["parts"] is None):
            raise BadRequestError(
                f"checksum {text[:100]!r} is not of a form like crc32c:00c0ffee, digits in hexadecimal"
            )
        try:
            kind, value = ChecksumKind(match["kind"]), bytes.fromhex(match["digits"])
        except ValueError:
            raise BadRequestError(f"checksum {text[:100]!r} is not of a known kind, or not hexadecimal") from None
        if len(value) != kind.size:
            raise BadRequestError(f"checksum {text[:100]!r} must have {2 * kind.size} hexadecimal digits")
        parts = None if match["parts"] is None else Parts.parse(match["parts"])
        return cls(kind, value, parts, match["assumed"] is not None)

    @property
    def name(self) -> str:
        """The kind, and whether it is composite: "sha256", "crc32c-composite"."""
        return self.kind.value if self.parts is None else f"{self.kind}-composite"

    @property
    def algorithm(self) -> str:
        """What it is computed by; a sha256 is the same whoever gives it, and a composite one depends on the parts."""
        return self.name if self.parts is None else f"{self.name}:{self.parts}"

    @property
    def combinable(self) -> bool:
        """Whether it follows from the CRCs of pieces, so that no pass over all bytes in order is needed."""
        return self.kind.combinable and self.parts is None

    def hasher(self) -> Hasher:
        """Return a hasher to feed the whole object to."""
        return self.kind.hasher() if self.parts is None else Composite(self.kind, self.parts)

    def verify(self, hasher: Hasher) -> bool:
        """Return whether the object fed to `hasher` is the store's, as far as that can be told.

        Raises ChecksumMismatchError where it certainly is not.
        """
        actual = hasher.digest()
        if actual == self.value:
            return True
        if self.assumed:
            return False
        found = f"{self.algorithm.partition(':')[0]}:{actual.hex()}"
        raise ChecksumMismatchError(f"the bytes that came have {found}, and the store says {self} of its object")

    def __str__(self) -> str:
        if self.parts is None:
            return f"{self.kind}:{self.value.hex()}"
        return f"{self.name}{'-assumed' if self.assumed else ''}:{self.value.hex()}:{self.parts}"


class Composite:
    """The checksum of the parts' checksums, as a `Hasher` of all bytes in order."""

    def __init__(self, kind: ChecksumKind, parts: Parts) -> None:
        self._kind = kind
        self._whole = kind.hasher()
        self._lengths = iter(parts)
        self._begin()

    def _begin(self) -> None:
        self._part = self._kind.hasher()
        self._left = next(self._lengths, 0)

    def update(self, data: Buffer, /) -> None:
        """Take `data` after what was taken before; what comes after the last part is no part's, and ignored."""
        view = memoryview(data)
        while view and self._left:
            here = view[: self._left]
            self._part.update(here)
            self._left -= len(here)
            view = view[len(here) :]
            if not self._left:
                self._whole.update(self._part.digest())
                self._begin()

    def digest(self) -> bytes:
        """Return the checksum of the checksums of all parts that are complete."""
        return self._whole.digest()


class Crc:
    """A CRC as a `Hasher`, which can also take the CRC of what comes next without its bytes."""

    def __init__(self, kind: ChecksumKind) -> None:
        self._update, self._combine = _functions(kind)
        self._size = kind.size
        self._crc = 0

    @staticmethod
    def function(kind: ChecksumKind) -> Callable[[Buffer, int], int]:
        """Return what computes a CRC of some bytes, given that of those before them (0 at first).

        Its first call imports the library, which takes long: it is for threads.
        """
        return partial(_updated, kind)

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


@dataclass(frozen=True, slots=True)
class Unparted:
    """A checksum that is composite, or is likely to be; of its parts only their number is known."""

    kind: ChecksumKind
    value: bytes
    count: int

    def of(self, parts: Sequence[tuple[int, str]]) -> Checksum | None:
        """Return the checksum with these parts (length, its checksum in base64) if it is theirs, and can travel."""
        values = [value for _, text in parts for value in _decoded([(self.kind, text)]).values()]
        whole = self.kind.hasher()
        whole.update(b"".join(values))
        if len(values) != len(parts) or len(values) != self.count or whole.digest() != self.value:
            return None
        return _portable(Checksum(self.kind, self.value, Parts.of(length for length, _ in parts)))

    def assuming(self, length: int, whole: int) -> Checksum | None:
        """Return the checksum of an object of `whole` bytes whose parts have `length` bytes each, but for the last."""
        parts = Parts.equal(length, self.count, whole)
        return None if parts is None else _portable(Checksum(self.kind, self.value, parts, assumed=True))


def read_checksum(headers: Headers, *, whole: bool) -> Checksum | None:
    """Return the cheapest sound word that an answer has on the whole object, or None.

    `whole` tells whether the answer is about the whole object (200, or a HEAD's) and not about a range of it: there
    `x-amz-checksum-*` and `Content-MD5` speak of the range or of a part. Composite ones of S3 are `read_composite`'s.
    The answer must hold the object as it is stored, as `p2p.versions.read_version` demands. What is malformed is
    ignored.
    """
    found = {**_google(headers), **_azure(headers, whole=whole)}
    if whole:
        found |= _decoded((kind, text) for kind, text, count in _amazon(headers) if count is None)
    return next((Checksum(kind, found[kind]) for kind in ChecksumKind if kind in found), None)


def read_composite(headers: Headers) -> Unparted | None:
    """Return the cheapest composite checksum of S3 in an answer about the whole object, or None."""
    for kind, text, count in _amazon(headers):
        if count is not None and 1 <= count <= MAX_PARTS:
            for value in _decoded([(kind, text)]).values():
                return Unparted(kind, value, count)
    return None


def _portable(checksum: Checksum) -> Checksum | None:
    return checksum if len(str(checksum)) <= MAX_TEXT else None


def _amazon(headers: Headers) -> Iterator[tuple[ChecksumKind, str, int | None]]:
    """Yield kind, base64 text, and of one that is composite, or likely to be, how many parts it has.

    Composite values end in "-" and the number of parts. The type is said since FULL_OBJECT exists; before that the
    checksums of objects in parts were composite. Some servers say neither: then an ETag like "…-3" tells the number.
    """
    said = (single(headers, "x-amz-checksum-type") or "").upper()
    if said not in ("", "COMPOSITE", "FULL_OBJECT"):
        return
    tag = re.fullmatch(r'"[0-9a-f]{32}-([0-9]{1,5})"', single(headers, "etag") or "")
    for kind in _AMAZON:
        text = single(headers, f"x-amz-checksum-{kind}") or ""
        value, dash, suffix = text.partition("-")
        # A CRC-64/NVME is of the whole object unless something says otherwise: it never was anything else.
        plain = not said and not dash and (tag is None or kind is ChecksumKind.CRC64NVME)
        if said == "FULL_OBJECT" or plain:
            yield kind, text, None
        elif count := suffix if dash else tag[1] if tag else "":
            yield kind, value, int(count) if re.fullmatch("[0-9]{1,5}", count) else 0


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


def _updated(kind: ChecksumKind, data: Buffer, crc: int) -> int:
    return _functions(kind)[0](data, crc)


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
