"""What one host announces to another that follows it: the address, and the frames of the stream.

`GET /v1/announcements/{version_id}?stripes=0,2&of=4` is answered by a stream of frames of 20 bytes: a piece's index, a
big-endian u32, and its xxh3-128. Piece i is of stripe i modulo `of`. What is held comes first, ascending, then each
piece as it lands; HEARTBEAT, which names no piece, comes once in HEARTBEAT_SECONDS.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from p2p.digests import PIECE_DIGEST_BYTES

FRAME_BYTES = 4 + PIECE_DIGEST_BYTES
"""An index and a digest."""

NO_PIECE = 0xFFFFFFFF
"""The index of a heartbeat."""

HEARTBEAT = NO_PIECE.to_bytes(4, "big") + bytes(PIECE_DIGEST_BYTES)

HEARTBEAT_SECONDS = 1.0
"""How often a follower hears that its parent is alive."""

ARRIVAL_SECONDS = 10.0
"""How long a parent waits for a version that it has not begun with before it says that it does not know it."""

MOST_STRIPES = 256


def target(version_id: str, stripes: Iterable[int], of: int) -> str:
    """Return the path and the query of a request."""
    return f"/v1/announcements/{version_id}?stripes={','.join(map(str, stripes))}&of={of}"


def parse_stripes(stripes: str, of: str) -> tuple[frozenset[int], int] | None:
    """Read the two parameters of a request; None if they are not numbers of stripes below their number."""
    try:
        count, chosen = int(of), frozenset(int(stripe) for stripe in stripes.split(","))
    except ValueError:
        return None
    return (chosen, count) if 0 < count <= MOST_STRIPES and all(0 <= one < count for one in chosen) else None


def frame(index: int, digest: bytes) -> bytes:
    """Return the frame that announces a piece."""
    return index.to_bytes(4, "big") + digest


def frames(data: bytes | bytearray) -> Iterator[tuple[int, bytes]]:
    """Yield (index, digest) of each whole frame in `data`; heartbeats have the index NO_PIECE."""
    for start in range(0, len(data) - FRAME_BYTES + 1, FRAME_BYTES):
        yield int.from_bytes(data[start : start + 4], "big"), bytes(data[start + 4 : start + FRAME_BYTES])
