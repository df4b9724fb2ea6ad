"""WIRE §3: the header names of both generations, and what the answers say."""

from __future__ import annotations

import pytest

from tests.integration.wire.conftest import CONTENT, SIGNED
from tests.support.clients import Wire, replay, triton_request
from tests.support.daemons import fetch
from tests.support.origins import downloads
from tests.unit.source.raw_origin import RawOrigin, response

P2P = {"X-Dragonfly-Use-P2P": "true"}


def task_of(proxy: str, url: str, **headers: str) -> str:
    """Return the task that a request with `headers` (underscores for hyphens) asks for."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = fetch(url, proxy=proxy, headers={**P2P, **named})
    assert (answer.status, answer.body == CONTENT) == (200, True)
    return answer.headers["x-dragonfly-task-id"]


@pytest.mark.parametrize("name", ["X_Dragonfly_Filter", "X_Dragonfly_Filtered_Query_Params", "x_dragonfly_filter"])
@pytest.mark.parametrize("separator", ["&", ",", ", "])
def test_query_filter(store: RawOrigin, proxy: str, name: str, separator: str) -> None:
    url = f"{store.base}/m?v=1&token=5ec2e7&user=u"
    assert task_of(proxy, url, **{name: separator.join(("token", "user"))}) == task_of(proxy, f"{store.base}/m?v=1")
    assert task_of(proxy, url, **{name: "user"}) != task_of(proxy, f"{store.base}/m?v=1")


def test_query_filter_given_by_both_names_is_their_union(store: RawOrigin, proxy: str) -> None:
    both = {"X_Dragonfly_Filter": "token", "X_Dragonfly_Filtered_Query_Params": "user"}
    assert task_of(proxy, f"{store.base}/m?token=1&user=u", **both) == task_of(proxy, f"{store.base}/m")


def test_tag_and_application(store: RawOrigin, proxy: str) -> None:
    url = f"{store.base}/m"
    plain, tagged = task_of(proxy, url), task_of(proxy, url, X_Dragonfly_Tag="blue")
    application = task_of(proxy, url, X_Dragonfly_Application="blue")
    both = task_of(proxy, url, X_Dragonfly_Tag="blue", X_Dragonfly_Application="blue")
    assert len({plain, tagged, application, both}) == 4
    assert task_of(proxy, url, X_Dragonfly_Tag="blue") == tagged


@pytest.mark.parametrize("priority", ["0", "6", "8", "high"])
def test_priority_is_taken_and_goes_no_further(store: RawOrigin, signed: str, proxy: str, priority: str) -> None:
    answer = fetch(signed, proxy=proxy, headers={"X-Dragonfly-Priority": priority})
    assert (answer.status, answer.body == CONTENT) == (200, True)
    assert all(request.field("X-Dragonfly-Priority") is None for request in store.requests)


@pytest.mark.parametrize(("rule", "value", "cached"), [("direct", "true", True), ("p2p", "false", False)])
def test_force_p2p_outranks_rules(store: RawOrigin, ruled_proxy: str, rule: str, value: str, cached: bool) -> None:
    url = f"{store.base}/{rule}/m"
    by_rule = fetch(url, proxy=ruled_proxy)
    by_header = fetch(url, proxy=ruled_proxy, headers={"X-Dragonfly-Use-P2P": value})
    assert [answer.status for answer in (by_rule, by_header)] == [200, 200]
    assert [answer.body == CONTENT for answer in (by_rule, by_header)] == [True, True]
    assert ["x-dragonfly-task-id" in answer.headers for answer in (by_rule, by_header)] == [not cached, cached]


@pytest.mark.parametrize("value", ["true", "True"])
def test_force_p2p(store: RawOrigin, proxy: str, value: str) -> None:
    answers = [fetch(f"{store.base}/m", proxy=proxy, headers={"X-Dragonfly-Use-P2P": value}) for _ in range(2)]
    assert [answer.headers["x-cache"] for answer in answers] == ["MISS", "HIT-LOCAL"]


def test_force_p2p_false_goes_straight_to_the_origin(store: RawOrigin, signed: str, proxy: str) -> None:
    for _ in range(2):
        answer = fetch(signed, proxy=proxy, headers={"X-Dragonfly-Use-P2P": "false"})
        assert (answer.status, answer.body == CONTENT) == (200, True)
        assert "x-dragonfly-task-id" not in answer.headers
    assert [request.field("Range") for request in store.requests] == [None, None]


def test_force_p2p_with_anything_else_is_a_bad_request(signed: str, store: RawOrigin, proxy: str) -> None:
    assert fetch(signed, proxy=proxy, headers={"X-Dragonfly-Use-P2P": "maybe"}).status == 400
    assert not store.requests


def test_answers_say_where_the_bytes_came_from(store: RawOrigin, signed: str, proxy: str, other_proxy: str) -> None:
    answers = [fetch(signed, proxy=address) for address in (proxy, other_proxy, other_proxy)]
    assert [answer.headers["x-cache"] for answer in answers] == ["MISS", "HIT-REMOTE", "HIT-LOCAL"]
    assert len({answer.headers["x-dragonfly-task-id"] for answer in answers}) == 1
    assert ["age" in answer.headers for answer in answers] == [False, True, True]
    assert all(
        answer.headers["via"] == f"1.1 {peer}"
        for answer, peer in zip(answers, ["peer-1", "peer-2", "peer-2"], strict=True)
    )
    assert len(downloads(store)) == 1
    store.answer = lambda _: response(200, "Cache-Control: no-store", 'ETag: "v2"', body=CONTENT)
    assert fetch(signed, proxy=proxy).headers["x-cache"] == "BYPASS"


def test_answers_say_who_is_to_blame(store: RawOrigin, signed: str, proxy: str) -> None:
    store.answer = lambda _: response(404, body=b"none")
    refused = fetch(signed, proxy=proxy)
    assert (refused.status, refused.headers["x-dragonfly-error-type"]) == (404, "backend")
    with Wire(proxy) as wire:
        misused = wire.ask(b"GET /not-absolute HTTP/1.1\r\nHost: x\r\nUser-Agent: t\r\n\r\n")
    assert (misused.status, misused.headers["x-dragonfly-error-type"]) == (400, "proxy")
    unreachable = fetch(f"http://127.0.0.1:1/m?{SIGNED}", proxy=proxy)
    assert (unreachable.status, unreachable.headers["x-dragonfly-error-type"]) == (502, "backend")


OURS = (
    "X-Dragonfly-Filter: token",
    "X-Dragonfly-Filtered-Query-Params: token",
    "X-Dragonfly-Tag: t",
    "X-Dragonfly-Application: a",
    "X-Dragonfly-Priority: 6",
    "X-Dragonfly-Prefetch: false",
    "X-Dragonfly-Anything: x",
    "Proxy-Authorization: Basic dXNlcjpwYXNz",
    "Connection: keep-alive, X-Hop",
    "X-Hop: 1",
    "Keep-Alive: timeout=5",
    "TE: trailers",
)


@pytest.mark.parametrize("choice", ["true", "false"])
def test_no_header_of_ours_and_no_hop_by_hop_header_reaches_an_origin(
    store: RawOrigin, signed: str, proxy: str, choice: str
) -> None:
    request = triton_request(signed, f"X-Dragonfly-Use-P2P: {choice}", *OURS, "X-Theirs: 1")
    assert replay(proxy, request).body == CONTENT
    assert store.requests
    for received in store.requests:
        names = {name.lower() for name, _ in received.fields}
        assert "x-theirs" in names
        assert not {name for name in names if name.startswith(("x-dragonfly", "proxy-"))}
        assert not names & {"x-hop", "keep-alive", "te"}
