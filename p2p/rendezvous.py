"""Rendezvous hashing: everybody who knows the same names picks the same one for a key, without talking about it.

Thaler and Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM ToN 6(1), 1998. A name that goes
away moves only the keys that were its own.
"""

from __future__ import annotations

import hashlib


def weight(name: str, key: str) -> bytes:
    """Return how much a name weighs for a key; whoever weighs most has the key, the next is its stand-in."""
    return hashlib.blake2b(f"{name}\0{key}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
