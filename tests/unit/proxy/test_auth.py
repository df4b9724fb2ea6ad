from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.core.rules import Errors, Rule, Rules
from peer.proxy.access import ProxyAuthenticationError, Users
from peer.proxy.server import ProxyServer, ProxySettings
from peer.source.client import OriginClient, OriginSettings

from ..source.raw_origin import RawOrigin
from .conftest import CONTENT
from .front import HOST_ID, SIGNED, Front, MemoryTasks

names = st.text(st.characters(exclude_characters=":", exclude_categories=["Cs"]), min_size=1, max_size=12)
passwords = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def admits(users: Users, *values: str) -> bool:
    try:
        users.require(tuple(("Proxy-Authorization", value) for value in values))
    except ProxyAuthenticationError:
        return False
    return True


@given(st.dictionaries(names, passwords, min_size=1, max_size=4), names, passwords)
def test_exactly_the_named_pairs_are_admitted(known: dict[str, str], name: str, password: str) -> None:
    users = Users(known)
    assert all(admits(users, basic(*pair)) for pair in known.items())
    assert admits(users, basic(name, password)) == ((name, password) in known.items())


@given(st.text(max_size=40))
def test_no_other_text_is_admitted_or_breaks(text: str) -> None:
    assert not admits(Users({"a": "hush"}), text)
    assert not admits(Users({"a": "hush"}), f"Basic {text}") or text.strip(" ") == basic("a", "hush")[6:]


@pytest.mark.parametrize(
    "values",
    [
        (),
        ("Bearer aHVzaA==",),
        ("Basic",),
        ("Basic " + base64.b64encode(b"ahush").decode(),),
        (basic("a", "hush"), basic("a", "hush")),
        (basic("a", "hush") + "!",),
        ("Basic " + basic("a", "hush"),),
    ],
)
def test_what_is_no_single_basic_credential_is_refused(values: tuple[str, ...]) -> None:
    assert not admits(Users({"a": "hush"}), *values)


def test_the_scheme_has_no_case_and_a_password_may_hold_colons() -> None:
    users = Users({"a": "b:c"})
    assert admits(users, basic("a", "b:c").replace("Basic", "bASIC"))
    assert not admits(users, basic("a:b", "d"))


def test_no_users_leave_the_proxy_open() -> None:
    assert admits(Users())


class GuardedFront(Front):
    def __init__(self, rules: Rules) -> None:
        super().__init__(MemoryTasks(CONTENT), ProxySettings(), OriginSettings(stall_seconds=5))
        self.server = ProxyServer(
            self.tasks, self._client, host_id=HOST_ID, rules=rules, users=Users({"triton": "hush", "ci": "quiet"})
        )


@pytest.fixture
async def guarded() -> AsyncIterator[Front]:
    front = GuardedFront(Rules())
    await front.start()
    yield front
    await front.stop()


@pytest.mark.parametrize("path", [f"/model?{SIGNED}", "/plain"])
async def test_absolute_form(guarded: Front, origin: RawOrigin, path: str) -> None:
    url = origin.base + path
    for credentials in ((), (f"Proxy-Authorization: {basic('triton', 'quiet')}",)):
        reply = await guarded.get(url, *credentials)
        assert (reply.status, reply.field("X-Dragonfly-Error-Type")) == (407, "proxy")
        assert reply.field("Proxy-Authenticate") == 'Basic realm="damselfly", charset="UTF-8"'
    assert origin.requests == []
    reply = await guarded.get(url, f"Proxy-Authorization: {basic('triton', 'hush')}", "Authorization: Bearer own")
    assert (reply.status, reply.body) == (200, CONTENT)
    for request in origin.requests:
        assert request.field("Proxy-Authorization") is None
        assert request.field("Authorization") == "Bearer own"


async def test_connect(guarded: Front, origin: RawOrigin) -> None:
    target = origin.base.removeprefix("http://")
    refused = await guarded.get(target, method="CONNECT")
    assert refused.status == 407
    assert refused.field("Proxy-Authenticate") is not None
    client = await guarded.connect()
    await client.send(f"CONNECT {target} HTTP/1.1", f"Host: {target}", f"Proxy-Authorization: {basic('ci', 'quiet')}")
    assert (await client.head()).status == 200


async def test_origin_form_is_asked_for_credentials_before_anything_else(guarded: Front) -> None:
    client = await guarded.connect()
    await client.send("GET /v2/library/alpine/manifests/latest?ns=registry.example HTTP/1.1", "Host: x")
    assert (await client.reply()).status == 407


async def test_a_refused_body_is_not_read_as_a_request(guarded: Front, origin: RawOrigin) -> None:
    client = await guarded.connect()
    smuggled = f"GET {origin.base}/x HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    await client.send(f"PUT {origin.base}/up HTTP/1.1", "Host: x", "Content-Length: 100000", body=smuggled)
    reply = await client.reply()
    assert (reply.status, reply.field("Connection")) == (407, "close")
    assert origin.requests == []


async def test_a_client_that_ignores_statuses_is_reset(guarded: Front, origin: RawOrigin) -> None:
    with pytest.raises(ConnectionResetError):
        await guarded.get_as_agent(f"{origin.base}/model?{SIGNED}")
    reply = await guarded.get_as_agent(
        f"{origin.base}/model?{SIGNED}", f"Proxy-Authorization: {basic('triton', 'hush')}"
    )
    assert reply.body == CONTENT


async def test_a_client_of_that_shape_still_learns_why_its_tunnel_is_refused(guarded: Front) -> None:
    client = await guarded.connect()
    await client.send("CONNECT a.example:443 HTTP/1.1", "Host: a.example:443", "Proxy-Connection: Keep-Alive")
    assert (await client.reply()).status == 407


async def test_credentials_reach_no_log(guarded: Front, origin: RawOrigin, caplog: pytest.LogCaptureFixture) -> None:
    token = basic("triton", "hush")
    await guarded.get(f"{origin.base}/plain", f"Proxy-Authorization: {token}")
    await guarded.get(f"{origin.base}/plain", f"Proxy-Authorization: {token}=")
    shown = json.dumps([str(record.msg) for record in caplog.records])
    assert token.removeprefix("Basic ") not in shown
    assert "hush" not in shown


async def test_a_rule_says_how_the_agents_shape_is_told(origin: RawOrigin) -> None:
    front = GuardedFront(Rules([Rule(errors=Errors.STATUS)]))
    origin.answer = lambda _: b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone"
    await front.start()
    try:
        credentials = f"Proxy-Authorization: {basic('ci', 'quiet')}"
        reply = await front.get_as_agent(f"{origin.base}/model?{SIGNED}", credentials)
        assert (reply.status, reply.body) == (404, b"gone")
    finally:
        await front.stop()


async def test_metadata_is_denied_through_the_proxy_in_every_form(front: Front, origin: RawOrigin) -> None:
    for url in ("http://169.254.169.254/latest/", f"http://2852039166/x?{SIGNED}", "http://[::ffff:a9fe:a9fe]/"):
        reply = await front.get(url)
        assert (reply.status, reply.field("X-Dragonfly-Error-Type")) == (403, "proxy")
        assert b"metadata address" in reply.body
    reply = await front.get("169.254.169.254:443", method="CONNECT")
    assert (reply.status, reply.field("X-Dragonfly-Error-Type")) == (403, "proxy")
    origin.answer = lambda _: (
        b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/latest/\r\nContent-Length: 0\r\n\r\n"
    )
    reply = await front.get(f"{origin.base}/model?{SIGNED}")
    assert (reply.status, reply.field("X-Dragonfly-Error-Type")) == (403, "proxy")


async def test_the_default_client_may_ask_loopback() -> None:
    async with OriginClient() as client:
        client.resolver.guard.require("127.0.0.1")
