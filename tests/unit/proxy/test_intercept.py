from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from p2p.errors import ConfigError
from p2p.telemetry import REGISTRY
from p2p.tls import CA_FILE, CertificateAuthority
from peer.core.rules import Rule, Rules
from peer.proxy.server import ProxyServer, ProxySettings
from peer.source.client import OriginClient, OriginSettings
from tests.support.tls import own_authority

from ..source.raw_origin import RawOrigin, raw_origin, response, serving
from .conftest import CONTENT
from .front import HOST_ID, SIGNED, Client, Front, MemoryTasks

INTERCEPT = Rules([Rule(re.compile(r"^https://127\.0\.0\.1"), intercept=True)])
AGENT = ("Proxy-Connection: Keep-Alive",)
DEFAULTS = ProxySettings()
BIG = bytes(range(256)) * 16_000


class Opening(Front):
    """A proxy that opens TLS, and clients that go through it."""

    def __init__(
        self, directory: Path, origin_ca: Path | None, settings: ProxySettings, content: bytes = CONTENT
    ) -> None:
        super().__init__(MemoryTasks(content), settings, OriginSettings(stall_seconds=5, ca_file=origin_ca))
        authority = CertificateAuthority.create(directory, name="test", now=datetime.now(UTC))
        self.server = ProxyServer(
            self.tasks, self._client, host_id=HOST_ID, settings=settings, rules=INTERCEPT, authority=authority
        )
        self.trusting = ssl.create_default_context(cafile=directory / CA_FILE)

    async def through(self, port: int, *fields: str, trust: ssl.SSLContext | None = None) -> Client:
        """CONNECT to a port of 127.0.0.1 and shake hands."""
        client = await self.connect()
        await client.send(f"CONNECT 127.0.0.1:{port} HTTP/1.1", f"Host: 127.0.0.1:{port}", *fields)
        assert (await client.head()).status == 200
        await client.writer.start_tls(trust or self.trusting, server_hostname="127.0.0.1")
        return client


@asynccontextmanager
async def opening(
    directory: Path, content: bytes = CONTENT, *, trust: bool = True, settings: ProxySettings = DEFAULTS
) -> AsyncIterator[tuple[Opening, RawOrigin]]:
    """Run an HTTPS origin and a proxy in front of it, which trusts it or not."""
    ca_file, context = own_authority(directory)
    async with raw_origin(serving(content), tls=context) as origin:
        front = Opening(directory / "ca", ca_file if trust else None, settings, content)
        await front.start()
        try:
            yield front, origin
        finally:
            await front.stop()


async def test_what_is_asked_inside_goes_through_p2p(tmp_path: Path) -> None:
    async with opening(tmp_path) as (front, origin):
        client = await front.through(origin.port, "User-Agent: curl/8")
        for _ in range(2):  # kept alive
            await client.send(f"GET /m.onnx?{SIGNED} HTTP/1.1", f"Host: 127.0.0.1:{origin.port}", "User-Agent: curl/8")
            reply = await client.reply()
            assert (reply.status, reply.field("X-Cache"), reply.body) == (200, "HIT-LOCAL", CONTENT)
        assert [opened.source.url for opened in front.tasks.openings] == [
            f"https://127.0.0.1:{origin.port}/m.onnx?{SIGNED}"
        ] * 2
        assert [request.field("Range") for request in origin.requests] == ["bytes=0-0"] * 2
        secure = client.writer.get_extra_info("ssl_object")
        assert secure.version() == "TLSv1.3"


async def test_a_long_body_goes_through_user_space_whole(tmp_path: Path) -> None:
    before = REGISTRY.get_sample_value("damselfly_send_fallbacks_total", {"reason": "tls"}) or 0
    async with opening(tmp_path, BIG) as (front, origin):
        client = await front.through(origin.port)
        await client.send(f"GET /m.onnx?{SIGNED} HTTP/1.1", f"Host: 127.0.0.1:{origin.port}", "User-Agent: curl/8")
        assert (await client.reply()).body == BIG
    assert REGISTRY.get_sample_value("damselfly_send_fallbacks_total", {"reason": "tls"}) == before + 1


async def test_everything_else_is_forwarded(tmp_path: Path) -> None:
    async with opening(tmp_path) as (front, origin):
        origin.answer = lambda request: response(201, body=request.body[::-1])
        client = await front.through(origin.port)
        await client.send("PUT /x?a=+&b? HTTP/1.1", f"Host: 127.0.0.1:{origin.port}", "Content-Length: 4", body=b"abcd")
        reply = await client.reply()
        assert (reply.status, reply.body, origin.requests[0].target) == (201, b"dcba", "/x?a=+&b?")


async def test_100_continue_survives_inside(tmp_path: Path) -> None:
    async with opening(tmp_path) as (front, origin):
        origin.answer = lambda _: response(200)
        client = await front.through(origin.port)
        fields = (f"Host: 127.0.0.1:{origin.port}", "User-Agent: x", "Content-Length: 4", "Expect: 100-continue")
        await client.send("PUT /x HTTP/1.1", *fields)
        assert (await client.head()).status == 100
        client.writer.write(b"body")
        assert (await client.reply()).status == 200
        assert origin.requests[0].body == b"body"


async def test_the_shape_of_the_agent_is_inherited_from_its_connect(tmp_path: Path) -> None:
    async with opening(tmp_path) as (front, origin):
        origin.answer = lambda _: response(403, body=b"<Error/>")
        for shape, refused in ((("User-Agent: curl/8", *AGENT), 403), ((), 403), (AGENT, None)):
            client = await front.through(origin.port, *shape)
            await client.send(f"GET /m?{SIGNED} HTTP/1.1", f"Host: 127.0.0.1:{origin.port}", "Accept: */*")
            if refused is None:
                with pytest.raises(ConnectionResetError):
                    await client.reply()
            else:
                assert (await client.reply()).status == refused


async def test_an_origin_that_cannot_be_verified_is_a_502_that_says_so(tmp_path: Path) -> None:
    async with opening(tmp_path, trust=False) as (front, origin):
        client = await front.through(origin.port)
        await client.send(f"GET /m?{SIGNED} HTTP/1.1", f"Host: 127.0.0.1:{origin.port}", "User-Agent: x")
        reply = await client.reply()
        assert (reply.status, reply.field("X-Dragonfly-Error-Type")) == (502, "backend")
        assert b"cannot be verified" in reply.body
        assert not origin.requests


@pytest.mark.parametrize(
    "request_lines",
    [
        ("GET https://other/ HTTP/1.1", "Host: other"),
        ("GET /x HTTP/1.1", "Host: other"),
        ("CONNECT 127.0.0.1:443 HTTP/1.1", "Host: 127.0.0.1"),
    ],
)
async def test_a_tunnel_is_for_its_own_host(tmp_path: Path, request_lines: tuple[str, ...]) -> None:
    async with opening(tmp_path) as (front, origin):
        client = await front.through(origin.port)
        await client.send(*request_lines, "User-Agent: x")
        assert (await client.reply()).status == 400
        assert not origin.requests


async def test_a_client_that_does_not_trust_the_authority_costs_nothing(tmp_path: Path) -> None:
    async with opening(tmp_path) as (front, origin):
        with pytest.raises(ssl.SSLCertVerificationError):
            await front.through(origin.port, trust=ssl.create_default_context())
        await front.server.shutdown(5.0)
        assert not front.server._http.connections
        assert not origin.requests


async def test_bytes_before_the_answer_to_connect_are_refused(tmp_path: Path) -> None:
    async with opening(tmp_path) as (front, origin):
        client = await front.connect()
        await client.send(f"CONNECT 127.0.0.1:{origin.port} HTTP/1.1", "Host: x", "User-Agent: x", body=b"\x16\x03\x01")
        assert (await client.reply()).status == 400


async def test_shutdown_closes_an_idle_tunnel(tmp_path: Path) -> None:
    async with opening(tmp_path) as (front, origin):
        client = await front.through(origin.port)
        await client.send(f"GET /m?{SIGNED} HTTP/1.1", f"Host: 127.0.0.1:{origin.port}", "User-Agent: x")
        assert (await client.reply()).status == 200
        await front.server.shutdown(5.0)
        assert await client.reader.read() == b""
        assert not front.server._http.connections


async def test_a_client_that_never_shakes_hands_is_let_go(tmp_path: Path) -> None:
    async with opening(tmp_path) as (front, origin):
        silent = await front.connect()
        await silent.send(f"CONNECT 127.0.0.1:{origin.port} HTTP/1.1", "Host: x")
        assert (await silent.head()).status == 200
        await front.server.shutdown(0.0)
        assert await silent.reader.read() == b""
        assert not front.server._http.connections


async def test_a_handshake_has_a_deadline(tmp_path: Path) -> None:
    async with opening(tmp_path, settings=ProxySettings(handshake_seconds=0.01)) as (front, origin):
        silent = await front.connect()
        await silent.send(f"CONNECT 127.0.0.1:{origin.port} HTTP/1.1", "Host: x")
        assert (await silent.head()).status == 200
        assert await silent.reader.read() == b""


async def test_a_host_that_no_rule_names_stays_blind(tmp_path: Path) -> None:
    ca_file, context = own_authority(tmp_path)
    front = Opening(tmp_path / "ca", None, DEFAULTS)
    await front.start()
    try:
        async with raw_origin(serving(CONTENT), tls=context) as origin:
            client = await front.connect()
            await client.send(f"CONNECT localhost:{origin.port} HTTP/1.1", "Host: x")
            assert (await client.head()).status == 200
            await client.writer.start_tls(ssl.create_default_context(cafile=ca_file), server_hostname="127.0.0.1")
            await client.send("GET /x HTTP/1.1", "Host: x")
            reply = await client.reply()
            assert (reply.body, reply.field("Via")) == (CONTENT, None)
    finally:
        await front.stop()


async def test_a_rule_without_an_authority_refuses_to_start() -> None:
    async with OriginClient() as client:
        with pytest.raises(ConfigError, match="damselfly ca init"):
            ProxyServer(MemoryTasks(), client, host_id=HOST_ID, rules=INTERCEPT)


@pytest.mark.parametrize("port", [22, 25, 80])
async def test_connect_goes_to_allowed_ports_only(front: Front, port: int) -> None:
    reply = await front.get(f"127.0.0.1:{port}", method="CONNECT")
    assert (reply.status, reply.field("X-Dragonfly-Error-Type")) == (403, "proxy")
    assert b"connect_ports" in reply.body
