"""What the dialects of the stores have in common: a request to sign, and who signs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from p2p.control import Source
from p2p.stores import Store
from peer.source.fields import Fields

NOTHING_SECONDS = 300.0
"""How long it is remembered that a default chain found nothing: looking may cost seconds where nobody answers."""


@dataclass(frozen=True, slots=True)
class Unsigned:
    """A request before it is signed. `signed_fields` are to be covered by a signature, where there is one."""

    store: Store
    url: str
    method: str = "GET"
    signed_fields: Fields = ()
    fields: Fields = field(default=(), repr=False)


class Signer(Protocol):
    """Credentials of one entry of the file, or of one default chain."""

    @property
    def described(self) -> str:
        """Where the credentials come from, for a person; no secret."""

    @property
    def found(self) -> bool:
        """Whether credentials are known to be there, as far as can be told without asking anybody."""

    async def sign(self, request: Unsigned) -> Source | None:
        """Return what to send, good for at least a minute; None without credentials. Raises CredentialsError."""

    def forget(self) -> bool:
        """Drop what was fetched, since it was refused; return whether one more try is worth it."""


def with_query(url: str, query: str) -> str:
    """Return a URL with more parameters, escaped already, at the end of its query."""
    return f"{url}{'&' if '?' in url else '?'}{query}" if query else url
