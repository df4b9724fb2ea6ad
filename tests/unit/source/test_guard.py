from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.control import Source
from p2p.errors import ConfigError, DeniedError, OriginUnreachableError
from peer.source.client import OriginClient
from peer.source.guard import SENSITIVE, AddressInfo, Guard, IPAddress, Resolver, literal, meanings
from peer.source.http import Prober

from .raw_origin import raw_origin, serving

METADATA = "169.254.169.254"
TASK_ID = "0" * 64

v4 = st.builds(ipaddress.IPv4Address, st.integers(0, 2**32 - 1))
v6 = st.builds(ipaddress.IPv6Address, st.integers(0, 2**128 - 1))
sensitive_v4 = st.sampled_from([net for net in SENSITIVE if isinstance(net, ipaddress.IPv4Network)]).flatmap(
    lambda net: st.integers(0, net.num_addresses - 1).map(lambda offset: net[offset])
)


def disguises(address: ipaddress.IPv4Address) -> list[ipaddress.IPv6Address]:
    number = int(address)
    high, low = divmod(number, 1 << 16)

    def at(prefix: str, value: int) -> ipaddress.IPv6Address:
        return ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) | value)

    return [
        at("::ffff:0:0", number),
        at("::", number),
        at("::ffff:0:0:0", number),
        at("64:ff9b::", number),
        at("64:ff9b:1::", number),
        at("64:ff9b:1::", high << 64 | low << 40),
        at("2002::1", number << 80),
        at("2001::", number << 64),
        at("2001::", ~number & 0xFFFFFFFF),
        at("2a00:1450::5efe:0:0", number),
    ]


def spellings(address: ipaddress.IPv4Address) -> list[str]:
    a, b, c, d = address.packed
    number = int(address)
    return [
        str(address),
        f"{address}.",
        str(number),
        hex(number),
        f"0{number:o}",
        f"{a:#x}.{b:#x}.{c:#x}.{d:#x}",
        f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
        f"{a}.{number & 0xFFFFFF}",
        f"{a}.{b}.{number & 0xFFFF}",
    ]


@given(sensitive_v4)
def test_metadata_is_denied_in_every_spelling_and_disguise(address: ipaddress.IPv4Address) -> None:
    guard = Guard()
    for host in spellings(address):
        assert literal(host) == address
        with pytest.raises(DeniedError, match="metadata"):
            guard.require(host)
    for disguised in disguises(address):
        with pytest.raises(DeniedError, match="metadata"):
            guard.require(f"[{disguised}]")


@given(v4)
def test_spellings_of_any_ipv4_address_are_understood(address: ipaddress.IPv4Address) -> None:
    assert {literal(text) for text in spellings(address)} == {address}
    assert all(address in meanings(disguised) for disguised in disguises(address))


@given(v4 | v6, st.lists(st.sampled_from(["*", "0.0.0.0/0", "::/0", "*.example", "10.0.0.0/8"])))
def test_no_wide_allow_entry_lifts_what_is_sensitive(address: IPAddress, allow: list[str]) -> None:
    if any(meaning in net for meaning in meanings(address) for net in SENSITIVE):
        assert Guard(allow=allow).refusal("store.example", address) is not None


@given(v4 | v6)
def test_a_denied_network_is_denied_whatever_is_allowed(address: IPAddress) -> None:
    assert Guard(allow=[str(address), "*"], deny=[str(address)]).refusal("store.example", address) is not None


@given(st.text(max_size=40))
def test_any_text_is_judged(host: str) -> None:
    guard = Guard(deny=["*.example"])
    assert guard.refusal(host) is None or "proxy.deny" in str(guard.refusal(host))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "10.1.2.3", "8.8.8.8", "2a00:1450::1", "store.example"])
def test_ordinary_origins_are_allowed_by_default(host: str) -> None:
    Guard().require(host)


@pytest.mark.parametrize("host", ["fe80::1", "fe80::1%eth0", "fd00:ec2::254", "fd20:ce::254", "[::ffff:a9fe:a9fe]"])
def test_link_local_and_metadata_ipv6_is_denied(host: str) -> None:
    with pytest.raises(DeniedError, match=r"metadata address .*proxy\.allow"):
        Guard().require(host)


@pytest.mark.parametrize("host", ["::g", "1.2.3.4.5", "fe80::1%eth0%"])
def test_what_only_looks_like_an_address_is_denied(host: str) -> None:
    with pytest.raises(DeniedError):
        Guard().require(host)


def test_a_network_that_is_named_lifts_its_part_of_what_is_sensitive() -> None:
    guard = Guard(allow=["169.254.42.0/24", "*"])
    assert guard.refusal("a.example", ipaddress.ip_address("169.254.42.1")) is None
    assert guard.refusal("a.example", ipaddress.ip_address("10.0.0.1")) is None
    assert guard.refusal("a.example", ipaddress.ip_address(METADATA)) is not None


def test_allow_names_all_there_is() -> None:
    guard = Guard(allow=["*.example", "10.0.0.0/8"])
    public, private = ipaddress.ip_address("8.8.8.8"), ipaddress.ip_address("10.9.9.9")
    assert guard.refusal("a.EXAMPLE.", public) is None
    assert guard.refusal("example", public) == "as it fits no entry of proxy.allow"
    assert guard.refusal("elsewhere.test", private) is None
    assert guard.refusal("elsewhere.test", ipaddress.ip_address("::ffff:10.0.0.1")) is None
    assert guard.refusal("elsewhere.test", ipaddress.ip_address("2002:0a00:1::1")) is not None


def test_deny_holds_for_names_before_they_are_looked_up() -> None:
    guard = Guard(allow=["*"], deny=["*.internal"])
    with pytest.raises(DeniedError, match=r"db\.internal is denied by the entry '\*\.internal' of proxy\.deny"):
        guard.require("db.internal")


@pytest.mark.parametrize("text", ["", "http://a", "a/b", "10.0.0.1/8", "300.1.1.1", "a b", "a..*."])
def test_what_is_no_entry_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="neither a host name nor a network"):
        Guard(allow=[text])


def names(**addresses: list[str]) -> Resolver:
    """A DNS of two names' making."""

    async def lookup(host: str, port: int) -> Sequence[AddressInfo]:
        found = addresses.get(host.partition(".")[0], [host])
        return [info for address in found for info in socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)]

    return Resolver(lookup=lookup)


async def test_a_name_that_leads_to_metadata_is_denied_after_resolution() -> None:
    async with OriginClient(resolver=names(rebound=[METADATA])) as client:
        with pytest.raises(DeniedError, match=r"rebound\.example at 169\.254\.169\.254 is denied"):
            await Prober(client).probe(Source("http://rebound.example/latest/meta-data/"), TASK_ID)
        with pytest.raises(DeniedError, match="rebound"):
            await client.request("PUT", "http://rebound.example/latest/api/token", ())


@pytest.mark.parametrize("host", [METADATA, "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "[::ffff:a9fe:a9fe]"])
async def test_an_address_in_the_url_is_denied_though_nothing_is_looked_up(host: str) -> None:
    async with OriginClient() as client:
        with pytest.raises(DeniedError, match="169"):
            await client.request("GET", f"http://{host}/", ())


async def test_the_connection_goes_to_the_address_that_was_judged() -> None:
    async with (
        raw_origin(serving(b"model")) as origin,
        OriginClient(resolver=names(mixed=[METADATA, "127.0.0.1"])) as client,
    ):
        response = await client.request("GET", f"http://mixed.example:{origin.port}/x", ())
        assert await response.read() == b"model"


async def test_every_redirect_is_judged() -> None:
    reply = b"HTTP/1.1 302 Found\r\nLocation: http://rebound.example/secret\r\nContent-Length: 0\r\n\r\n"
    async with raw_origin(lambda _: reply) as origin, OriginClient(resolver=names(rebound=[METADATA])) as client:
        with pytest.raises(DeniedError, match="rebound"):
            await client.follow("GET", Source(f"{origin.base}/model"))


async def test_a_name_without_an_address_is_an_unreachable_origin() -> None:
    async with OriginClient(resolver=names(nowhere=[])) as client:
        with pytest.raises(OriginUnreachableError, match="no address"):
            await client.request("GET", "http://nowhere.example/", ())
