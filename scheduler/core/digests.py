"""Which digest each piece of one version has, and on whose word.

A holder must not vouch for its own bytes. A digest is *known* when the journal has it, when a host reports it with a
piece it has just fetched from the origin, or when two hosts that hold the piece agree on it. Of a seed's claim that
nobody contradicts the seed's word is enough: its word on what it fetches is taken anyway, and where only one seed has
credentials nobody else could confirm it. Until then it is only somebody's claim, and the piece is not traded. When two
fetches from the origin contradict each other the piece is disputed: a further witness must agree with one of them.
"""

from __future__ import annotations

from p2p.digests import piece_digest
from p2p.pieces import Bitmap, Span

_EARLIER = ""
"""The witness of a digest that was known before a dispute; no host has this id."""

_CORRUPT_PARENTS = 2
"""So many parents' bytes must contradict a digest before the digest itself is doubted."""


class Digests:
    """The digests of one version's pieces, by index."""

    __slots__ = ("_claims", "_corrupt", "_disputed", "changes", "claimed", "known", "settled")

    def __init__(self, size: int) -> None:
        self.known: dict[int, bytes] = {}
        self.changes = 0
        """How often a digest became known."""
        self.settled = Bitmap(size)
        """The pieces in `known`."""
        self.claimed = Bitmap(size)
        """The pieces of which there is only somebody's claim."""
        self._claims: dict[int, dict[str, bytes]] = {}
        self._disputed: set[int] = set()
        self._corrupt: dict[int, set[str]] = {}

    def recall(self, index: int, digest: bytes) -> tuple[str, ...] | None:
        """Take the journal's word, unless something fresher is known or the piece is disputed; as `claim` returns."""
        if index in self.known or index in self._disputed:
            return None
        return self._settle(index, digest)

    def claim(self, index: int, digest: bytes, host_id: str, *, seed: bool = False) -> tuple[str, ...] | None:
        """Take a holder's own word for its piece; `seed` tells what kind of host it is.

        Returns None if that made nothing known; otherwise the hosts whose claims now turn out to be wrong.
        """
        if index in self.known:
            return None
        claims = self._claims.setdefault(index, {})
        self.claimed.add_piece(index)
        claims[host_id] = digest
        agreeing = sum(claimed == digest for claimed in claims.values())
        enough = agreeing > 1 or (seed and agreeing == len(claims) and index not in self._disputed)
        return self._settle(index, digest) if enough else None

    def fetched(self, index: int, digest: bytes, host_id: str) -> tuple[str, ...] | None:
        """Take the word of a host that has just fetched the piece from the origin; as `claim` returns."""
        known = self.known.get(index)
        if known == digest:
            return None
        if known is not None:
            del self.known[index]
            self.settled.discard_piece(index)
            self.claimed.add_piece(index)
            self._disputed.add(index)
            self._claims[index] = {_EARLIER: known, host_id: digest}
            return None
        if index in self._disputed:
            return self.claim(index, digest, host_id)
        return self._settle(index, digest)

    def corrupt(self, index: int, parent_id: str) -> None:
        """Note that a parent's bytes contradict the known digest; if another's did, too, the digest is forgotten."""
        parents = self._corrupt.setdefault(index, set())
        parents.add(parent_id)
        if len(parents) >= _CORRUPT_PARENTS:
            del self._corrupt[index]
            self.known.pop(index, None)
            self.settled.discard_piece(index)

    def contradicts(self, index: int, digest: bytes) -> bool:
        """Tell whether another digest of the piece is known."""
        return self.known.get(index, digest) != digest

    def proves(self, span: Span, proof: bytes) -> bool | None:
        """Tell whether `proof` is the xxh3-128 of the digests of a span's pieces; None if not all of them are known."""
        if not self.settled.covers(span):
            return None
        return piece_digest(b"".join([self.known[index] for index in span])) == proof

    def forget(self, index: int, host_id: str) -> None:
        """Forget what a holder claimed of a piece that it no longer holds."""
        claims = self._claims.get(index)
        if claims is not None and claims.pop(host_id, None) is not None and not claims:
            del self._claims[index]
            self.claimed.discard_piece(index)

    def _settle(self, index: int, digest: bytes) -> tuple[str, ...]:
        self.known[index] = digest
        self.changes += 1
        self.settled.add_piece(index)
        self.claimed.discard_piece(index)
        self._disputed.discard(index)
        self._corrupt.pop(index, None)
        claims = self._claims.pop(index, {})
        if not self._claims:
            self._claims.clear()  # it keeps its table else: as much as all that is known
        return tuple(witness for witness, claimed in claims.items() if claimed != digest and witness != _EARLIER)
