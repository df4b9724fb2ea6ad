"""Which origins may be asked at all: decided by name, and again by every address that the name turns out to have.

A peer asks whatever a client names, and follows wherever that redirects to. Without a guard it would read a cloud's
metadata, and with it the node's credentials, to anybody who can reach the proxy. Therefore what is connected to is the
very address that was judged: names are looked up here and nowhere else.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from p2p.errors import ConfigError, DeniedError

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
AddressInfo = tuple[int, int, int, str, Any]
"""One answer of getaddrinfo: family, type, protocol, canonical name, address."""
Lookup = Callable[[str, int], Awaitable[Sequence[AddressInfo]]]

LOOKUP_SECONDS = 10.0

SENSITIVE: tuple[IPNetwork, ...] = tuple(
    map(
        ipaddress.ip_network,
        (
            "169.254.0.0/16",  # link-local (RFC 3927); the metadata address of nearly every cloud
            "fe80::/10",  # link-local (RFC 4291)
            "fd00:ec2::/32",  # AWS: metadata and container credentials
            "fd20:ce::254/128",  # Google Cloud: metadata
            "100.100.100.200/32",  # Alibaba Cloud: metadata
            "168.63.129.16/32",  # Azure: the host's own services
            "192.0.0.192/32",  # Oracle Cloud: metadata, the old address
        ),
    )
)
"""What no origin is ever at, unless the operator says so."""

# Prefixes under which an IPv6 address carries an IPv4 one, and how far right of its end that one lies (bits).
_EMBEDDINGS: tuple[tuple[ipaddress.IPv6Network, int], ...] = tuple(
    (ipaddress.IPv6Network(prefix), shift)
    for prefix, shift in (
        ("::ffff:0:0/96", 0),  # IPv4-mapped (RFC 4291)
        ("::/96", 0),  # IPv4-compatible (RFC 4291)
        ("::ffff:0:0:0/96", 0),  # IPv4-translated (RFC 2765)
        ("64:ff9b::/96", 0),  # NAT64 (RFC 6052)
        ("64:ff9b:1::/48", 0),  # NAT64 of a network's own (RFC 8215), with the address at the end
        ("2002::/16", 80),  # 6to4 (RFC 3056)
        ("2001::/32", 64),  # Teredo's server (RFC 4380)
    )
)
_TEREDO = ipaddress.IPv6Network("2001::/32")
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")
_ISATAP = frozenset({0x00005EFE, 0x02005EFE})
_HOST_PATTERN = re.compile(r"[A-Za-z0-9*](?:[A-Za-z0-9*._-]*[A-Za-z0-9*])?")


def literal(host: str) -> IPAddress | None:
    """Return the address that a URL's host spells, in any form `inet_aton` takes (0251.0376.1, 0xa9fea9fe); else None.

    An IPv6 zone does not count.
    """
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host.rstrip(".")))
    except (OSError, UnicodeError):
        return None


def meanings(address: IPAddress) -> tuple[IPAddress, ...]:
    """Return an address and every IPv4 address that it may be translated to on its way."""
    if isinstance(address, ipaddress.IPv4Address):
        return (address,)
    number = int(address)
    found = [number >> shift for prefix, shift in _EMBEDDINGS if address in prefix]
    if address in _TEREDO:
        found.append(~number)  # the client's, obscured by inversion
    if address in _LOCAL_NAT64:
        # RFC 6052 §2.2 for a prefix of 48 bits: two octets on either side of bits 64 to 71.
        found.append((number >> 48 & 0xFFFF0000) | (number >> 40 & 0xFFFF))
    if number >> 32 & 0xFFFFFFFF in _ISATAP:
        found.append(number)  # RFC 5214
    return (address, *(ipaddress.IPv4Address(value & 0xFFFFFFFF) for value in found))


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of an allow or deny list: a network, or a host name in which `*` stands for anything."""

    text: str
    network: IPNetwork | None
    name: re.Pattern[str] | None

    @classmethod
    def parse(cls, text: str) -> Entry:
        """Read "10.0.0.0/8", "fd00::1", "store.example" or "*.example". Raises ConfigError."""
        try:
            network = ipaddress.ip_network(text)
        except ValueError:
            if _HOST_PATTERN.fullmatch(text) is None or re.fullmatch(r"[0-9./]+", text):
                raise ConfigError(
                    f"{text!r} is neither a host name nor a network; write for example *.example.com or 10.0.0.0/8"
                ) from None
            name = re.compile(re.escape(text).replace(r"\*", ".*"), re.IGNORECASE)
            return cls(text, None, name)
        return cls(text, network, None)

    def names(self, host: str) -> bool:
        """Tell whether this is a name pattern that the host fits."""
        return self.name is not None and self.name.fullmatch(host) is not None

    def holds(self, address: IPAddress) -> bool:
        """Tell whether this is a network that the address lies in."""
        return self.network is not None and address in self.network

    def lifts(self, sensitive: IPNetwork) -> bool:
        """Tell whether this entry speaks of a sensitive network, or a part of it, and of nothing else."""
        own = self.network
        if isinstance(own, ipaddress.IPv4Network) and isinstance(sensitive, ipaddress.IPv4Network):
            return own.subnet_of(sensitive)
        if isinstance(own, ipaddress.IPv6Network) and isinstance(sensitive, ipaddress.IPv6Network):
            return own.subnet_of(sensitive)
        return False


class Guard:
    """The decision. Pure.

    `deny` comes first; then SENSITIVE, which only an `allow` entry for a network within it lifts; then `allow`, which
    if it is not empty names all there is.
    """

    def __init__(self, *, allow: Iterable[str] = (), deny: Iterable[str] = ()) -> None:
        self._allow = tuple(map(Entry.parse, allow))
        self._deny = tuple(map(Entry.parse, deny))

    def refusal(self, host: str, address: IPAddress | None = None) -> str | None:
        """Return why `host` may not be asked at `address`, or None if it may.

        Without an address only the name is judged: None then means that its addresses are still to be.
        """
        host = host.strip("[]").rstrip(".")
        reached = () if address is None else meanings(address)
        for entry in self._deny:
            if entry.names(host) or any(entry.holds(meaning) for meaning in reached):
                return f"by the entry {entry.text!r} of proxy.deny"
        if address is None:
            return None
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        itself = mapped or address
        for sensitive in SENSITIVE:
            for meaning in reached:
                lifted = any(entry.lifts(sensitive) and entry.holds(meaning) for entry in self._allow)
                if meaning in sensitive and not lifted:
                    return f"as a link-local or metadata address ({sensitive}); proxy.allow can name it as a network"
        if self._allow and not any(entry.names(host) or entry.holds(itself) for entry in self._allow):
            return "as it fits no entry of proxy.allow"
        return None

    def require(self, host: str, address: IPAddress | None = None) -> None:
        """Raise DeniedError, which names the host and what denies it, unless `host` may be asked (at `address`).

        A host that is written as an address is judged by that.
        """
        address = address or literal(host)
        if (why := self.refusal(host, address)) is not None:
            at = f" at {address}" if address is not None and str(address) != host else ""
            raise DeniedError(f"the origin {host}{at} is denied {why}")
        if address is None and (":" in host or host.replace(".", "").isdigit()):
            # HTTP clients take such a host for an address and do not look it up: nothing would judge it again.
            raise DeniedError(f"the origin {host!r} is denied: it looks like an address, and is none")


async def _getaddrinfo(host: str, port: int) -> Sequence[AddressInfo]:
    return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)


class Resolver(AbstractResolver):
    """Looks origins up, and returns only addresses that the guard lets through; `lookup` is getaddrinfo."""

    def __init__(self, guard: Guard | None = None, *, lookup: Lookup = _getaddrinfo) -> None:
        self.guard = guard or Guard()
        self._lookup = lookup

    async def addresses(self, host: str, port: int) -> Sequence[AddressInfo]:
        """Return where `host` may be connected to, at least one. Raises DeniedError, and OSError for a failed look-up.

        Addresses that are denied are left out as long as there are others.
        """
        self.guard.require(host)
        try:
            async with asyncio.timeout(LOOKUP_SECONDS):
                found = await self._lookup(host, port)
        except TimeoutError:
            raise socket.gaierror(socket.EAI_AGAIN, "its name could not be looked up within the deadline") from None
        except UnicodeError:
            raise socket.gaierror(socket.EAI_NONAME, "its name is not one that can be looked up") from None
        allowed, denial = [], None
        for info in found:
            try:
                self.guard.require(host, literal(info[4][0]))
            except DeniedError as error:
                denial = error
            else:
                allowed.append(info)
        if allowed:
            return allowed
        raise denial or socket.gaierror(socket.EAI_NONAME, "its name has no address")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Do the same for aiohttp's client."""
        return [
            ResolveResult(
                hostname=host,
                host=socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0],
                port=port,
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, protocol, _, address in await self.addresses(host, port)
            if family in (socket.AF_UNSPEC, kind)
        ]

    async def close(self) -> None:
        """Hold nothing that would have to be let go of."""
