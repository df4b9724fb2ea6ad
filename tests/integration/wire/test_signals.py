"""WIRE §3, §4: what the answers' headers say, which headers never reach an origin, and loops."""

from __future__ import annotations

import hashlib

import pytest

from bench.cluster import LocalCluster
from p2p.identity import identify
from tests.integration.wire.conftest import CONTENT, SIGNED
from tests.support.clients import replay
from tests.support.daemons import Answer, fetch, open_url
from tests.support.servers import free_port
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


def test_where_the_bytes_came_from(store: RawOrigin, signed: str, proxy: str, other_proxy: str) -> None:
    answers = [fetch(signed, proxy=peer) for peer in (proxy, other_proxy, other_proxy)]
    assert [answer.headers["x-cache"] for answer in answers] == ["MISS", "HIT-REMOTE", "HIT-LOCAL"]
    assert [answer.headers.get("age") for answer in answers] == [None, "0", "0"]
    assert {answer.headers["x-dragonfly-task-id"] for answer in answers} == {identify(signed).id}
    assert [answer.headers["via"] for answer in answers] == ["1.1 peer-1", "1.1 peer-2", "1.1 peer-2"]


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


def test_who_is_to_blame(store: RawOrigin, signed: str, proxy: str) -> None:
    def blamed(answer: Answer) -> tuple[int, str]:
        return answer.status, answer.headers["x-dragonfly-error-type"]

    assert blamed(fetch(signed, proxy=proxy, headers={"Range": "bytes=9999999-"})) == (416, "proxy")
    assert blamed(fetch(signed, proxy=proxy, headers={"X-Dragonfly-Use-P2P": "perhaps"})) == (400, "proxy")
    assert blamed(fetch(f"http://127.0.0.1:{free_port()}/m?{SIGNED}", proxy=proxy)) == (502, "backend")
    store.answer = lambda _: response(403, body=b"<Error/>")
    assert blamed(fetch(f"{store.base}/refused?{SIGNED}", proxy=proxy)) == (403, "backend")


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


@pytest.mark.parametrize("name", ["X-Dragonfly-Filter", "X-Dragonfly-Filtered-Query-Params"])
@pytest.mark.parametrize("joined", ["token&nonce", "token,nonce", " token , nonce &, &"])
def test_both_generations_of_filters(store: RawOrigin, proxy: str, name: str, joined: str) -> None:
    first, second = (f"{store.base}/m?token={n}&v=1&nonce={n}{n}&{SIGNED}" for n in (1, 2))
    cold = fetch(first, proxy=proxy, headers={name: joined})
    local = fetch(second, proxy=proxy, headers={name: joined})
    assert (cold.headers["x-cache"], local.headers["x-cache"]) == ("MISS", "HIT-LOCAL")
    assert {asked.target for asked in store.requests} == {url.removeprefix(store.base) for url in (first, second)}
    other = fetch(first, proxy=proxy)
    assert other.headers["x-cache"] == "MISS", "without the filter it is another object"


@pytest.mark.parametrize("name", ["X-Dragonfly-Tag", "X-Dragonfly-Application"])
def test_tags_and_applications_keep_copies_apart(store: RawOrigin, signed: str, proxy: str, name: str) -> None:
    caches = [fetch(signed, proxy=proxy, headers={name: value}).headers["x-cache"] for value in ("a", "b", "a")]
    assert caches == ["MISS", "MISS", "HIT-LOCAL"]


@pytest.mark.parametrize("use", ["true", "TRUE"])
def test_p2p_can_be_asked_for_and_declined(store: RawOrigin, proxy: str, use: str) -> None:
    plain = f"{store.base}/plain"
    assert "x-cache" not in fetch(plain, proxy=proxy).headers
    assert fetch(plain, proxy=proxy, headers={"X-Dragonfly-Use-P2P": use}).headers["x-cache"] == "MISS"
    declined = fetch(f"{plain}?{SIGNED}", proxy=proxy, headers={"X-Dragonfly-Use-P2P": "false"})
    assert "x-cache" not in declined.headers


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
