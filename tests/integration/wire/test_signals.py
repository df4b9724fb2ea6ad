"""WIRE §3, §4: age, what of a request never reaches an origin by any way, and loops."""

from __future__ import annotations

import hashlib

import pytest

from bench.cluster import LocalCluster
from p2p.identity import identify
from tests.integration.wire.conftest import CONTENT
from tests.support.clients import replay
from tests.support.daemons import fetch, open_url
from tests.unit.source.raw_origin import RawOrigin, response

CONTROL = (
    "X-Dragonfly-Filter: X-Amz-Signature&a",
    "X-Dragonfly-Filtered-Query-Params: b,c",
    "X-Dragonfly-Tag: blue",
    "X-Dragonfly-Application: triton",
    "X-Dragonfly-Priority: 3",
    "x-dragonfly-prefetch: true",
    "X-Dragonfly-Registry: https://registry.example",
    f"X-Dragonfly-Digest: sha256:{hashlib.sha256(CONTENT).hexdigest()}",
    "X-Dragonfly-Of-Tomorrow: unheard of",
)
HOP_BY_HOP = (
    "Proxy-Connection: keep-alive",
    "Proxy-Authorization: Basic dXNlcjpwYXNz",
    "Proxy-Of-Tomorrow: unheard of",
    "Connection: keep-alive, X-Mine",
    "X-Mine: only for this hop",
    "Keep-Alive: timeout=5",
    "TE: trailers",
    "Upgrade-Insecure-Requests: 1",
)


def request(method: str, url: str, *lines: str) -> bytes:
    netloc = url.split("/")[2]
    return "\r\n".join((f"{method} {url} HTTP/1.1", f"Host: {netloc}", "User-Agent: x", *lines, "", "")).encode()


def test_age_counts_from_the_origins_own_cache(store: RawOrigin, signed: str, proxy: str) -> None:
    plain = store.answer

    def aged(asked: object) -> bytes:
        octets = plain(asked)  # type: ignore[arg-type]
        assert isinstance(octets, bytes)
        return octets.replace(b"\r\n", b"\r\nAge: 86400\r\n", 1)

    store.answer = aged
    assert [fetch(signed, proxy=proxy).headers.get("age") for _ in range(2)] == [None, "86400"]


def test_what_is_passed_through_says_so(store: RawOrigin, signed: str, proxy: str) -> None:
    store.answer = lambda _: response(200, "Cache-Control: no-store", "X-Cache: theirs", "Via: 1.1 cdn", body=CONTENT)
    with open_url(signed, proxy=proxy) as answer:
        assert answer.headers.get_all("X-Cache") == ["BYPASS"]
        assert answer.headers.get_all("Via") == ["1.1 cdn", "1.1 peer-1"]
        assert answer.headers["X-Dragonfly-Task-ID"] == identify(signed).id


@pytest.mark.parametrize("p2p", ["true", "false"])
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_no_control_or_hop_by_hop_header_reaches_an_origin(
    store: RawOrigin, signed: str, proxy: str, p2p: str, method: str
) -> None:
    sent = (*CONTROL, *HOP_BY_HOP, f"X-Dragonfly-Use-P2P: {p2p}", "X-Ours: end to end", "Content-Length: 0")
    assert replay(proxy, request(method, signed, *sent)).status == 200
    assert store.requests
    for asked in store.requests:
        names = {name.lower() for name, _ in asked.fields}
        assert not any(name.startswith(("x-dragonfly-", "proxy-")) for name in names)
        assert names.isdisjoint({"keep-alive", "te", "upgrade", "x-mine", "trailer"})
        assert {"x-ours", "upgrade-insecure-requests"} <= names


@pytest.mark.parametrize("via", ["1.1 peer-1", "1.0 cdn, 1.1 PEER-1 (squid)", "HTTP/1.1 peer-1"])
def test_a_request_that_was_here_before_is_a_loop(store: RawOrigin, signed: str, proxy: str, via: str) -> None:
    answer = fetch(signed, proxy=proxy, headers={"Via": via})
    assert (answer.status, answer.headers["x-dragonfly-error-type"]) == (508, "proxy")
    assert not store.requests
    assert fetch(signed, proxy=proxy, headers={"Via": "1.1 peer-10, 1.1 cdn"}).status == 200


@pytest.mark.parametrize("p2p", ["true", "false"])
def test_origins_are_told_the_way_so_that_a_loop_ends(store: RawOrigin, fleet: LocalCluster, p2p: str) -> None:
    proxy = fleet["peer-2"].addresses["proxy"]
    fetch(f"{store.base}/m", proxy=proxy, headers={"X-Dragonfly-Use-P2P": p2p, "Via": "1.1 cdn"})
    said = [value for name, value in store.requests[0].fields if name.lower() == "via"]
    assert ", ".join(said) == "1.1 cdn, 1.1 peer-2"
