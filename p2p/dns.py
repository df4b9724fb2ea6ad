"""Names in the DNS that stand for several daemons: "dns+name:port"."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

from p2p.config import Address, parse_address
from p2p.errors import ConfigError

PREFIX = "dns+"

RESOLVE_SECONDS = 10.0
"""How often such a name is looked up."""

_ANSWER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class DnsName(Address):
    """Every address that a name has now, at one port; in Kubernetes that of a headless service."""

    def __str__(self) -> str:
        return f"{PREFIX}{Address(self.host, self.port)}"

    async def resolve(self) -> tuple[str, ...] | None:
        """Return the addresses there are ("host:port", in order), or None if no answer is to be had now."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                found = await asyncio.get_running_loop().getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError):
            return None
        return tuple(sorted({str(Address(str(where[0]), self.port)) for *_, where in found}))


def parse_place(text: str) -> Address:
    """Read "host:port", one daemon, or "dns+name:port", all that the name stands for. Raises ConfigError."""
    address = parse_address(text.removeprefix(PREFIX))
    if not text.startswith(PREFIX):
        return address
    if not address.host or not address.port:
        raise ConfigError(f"{text!r} names nothing to look up; write for example dns+schedulers.example:8002")
    return DnsName(address.host, address.port)
