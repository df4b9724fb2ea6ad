"""Synthetic objects of any size: random bytes that cost neither memory nor CPU to have at hand.

Every object reads one block of random bytes over and over from a starting point of its own: byte i is
`block[(i + shift) mod len(block)]`. The block's length is odd, so no two pieces of an object start at the same byte of
it and every piece has a digest of its own. Pure: nothing here reads a clock, a file or a socket.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

import xxhash

_MIB = 1024 * 1024
BLOCK_BYTES = 32 * _MIB + 1
SLICE_BYTES = _MIB
"""The longest slice that `SyntheticObject.slices` gives."""


@functools.cache
def _block() -> memoryview:
    """Return the block, followed by its own first SLICE_BYTES so that no slice has to wrap around."""
    data = random.Random("damselfly bench").randbytes(BLOCK_BYTES)  # noqa: S311  # not for secrecy
    return memoryview(data + data[:SLICE_BYTES])


@dataclass(frozen=True, slots=True)
class SyntheticObject:
    """An object of `length` bytes. Equal names, seeds and generations mean equal bytes; others differ everywhere."""

    name: str
    length: int
    seed: int = 0
    generation: int = 0

    def _key(self) -> bytes:
        return hashlib.sha256(f"{self.name}\0{self.seed}\0{self.generation}".encode()).digest()

    @property
    def etag(self) -> str:
        """A strong entity tag, quoted, in the shape S3 gives."""
        return f'"{hashlib.sha256(self._key() + str(self.length).encode()).hexdigest()[:32]}"'

    def slices(self, start: int, stop: int, size: int = SLICE_BYTES) -> Iterator[memoryview]:
        """Yield bytes start, …, stop - 1 as read-only views of at most `size` bytes each, without copying."""
        if not 0 <= start <= stop <= self.length:
            raise ValueError(f"bytes {start}..{stop} of an object of {self.length}")
        if not 0 < size <= SLICE_BYTES:
            raise ValueError(f"slices of {size} bytes; the longest has {SLICE_BYTES}")
        block = _block()
        shift = int.from_bytes(self._key()[:8], "big")
        while start < stop:
            at = (start + shift) % BLOCK_BYTES
            taken = min(size, stop - start)
            yield block[at : at + taken]
            start += taken

    def bytes(self, start: int = 0, stop: int | None = None) -> bytes:
        """Return a range of the content as one copy; for small objects and tests."""
        return b"".join(self.slices(start, self.length if stop is None else stop))

    def xxh3_128(self) -> str:
        """Return the xxh3-128 of the whole content, in hexadecimal."""
        digest = xxhash.xxh3_128()
        for piece in self.slices(0, self.length):
            digest.update(piece)
        return digest.hexdigest()

    def sha256(self) -> str:
        """Return the SHA-256 of the whole content, in hexadecimal; about a second a GiB."""
        digest = hashlib.sha256()
        for piece in self.slices(0, self.length):
            digest.update(piece)
        return digest.hexdigest()
