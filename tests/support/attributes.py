"""S3's GetObjectAttributes as AWS documents it, for servers of tests that leave the parts out."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from p2p.checksums import ChecksumKind


def digest(kind: ChecksumKind, data: bytes) -> bytes:
    """Return the checksum of some bytes."""
    hasher = kind.hasher()
    hasher.update(data)
    return hasher.digest()


def composite(kind: ChecksumKind, parts: Sequence[bytes]) -> bytes:
    """Return the checksum of the parts' checksums, one after the other (AWS "Checking object integrity")."""
    return digest(kind, b"".join(digest(kind, part) for part in parts))


def object_attributes(kind: ChecksumKind, parts: Sequence[bytes], *, marker: int = 0, page: int = 1000) -> bytes:
    """Return the body for Checksum and ObjectParts: up to `page` parts after part number `marker` (AWS reference)."""
    name = f"Checksum{kind.upper()}"

    def element(value: bytes) -> str:
        return f"<{name}>{base64.b64encode(value).decode()}</{name}>"

    stop = min(marker + page, len(parts))
    listed = "".join(
        f"<Part>{element(digest(kind, part))}<PartNumber>{number}</PartNumber><Size>{len(part)}</Size></Part>"
        for number, part in enumerate(parts[marker:stop], marker + 1)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<GetObjectAttributesResponse xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Checksum>{element(composite(kind, parts))}<ChecksumType>COMPOSITE</ChecksumType></Checksum>"
        f"<ObjectParts><IsTruncated>{str(stop < len(parts)).lower()}</IsTruncated><MaxParts>{page}</MaxParts>"
        f"<NextPartNumberMarker>{stop}</NextPartNumberMarker><PartNumberMarker>{marker}</PartNumberMarker>{listed}"
        f"<PartsCount>{len(parts)}</PartsCount></ObjectParts></GetObjectAttributesResponse>"
    ).encode()
