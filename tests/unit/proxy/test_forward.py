from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from peer.proxy.server import ProxySettings
from peer.source.client import OriginSettings
from tests.support.servers import free_port
from tests.support.tls import own_authority

from ..source.raw_origin import CUT, RawOrigin, RawRequest, raw_origin, response
from .front import HOST_ID, Front

ECHO = response(200, "Content-Type: text/plain", body=b"as it is")


@pytest.fixture(autouse=True)
def plain(origin: RawOrigin) -> None:
    origin.answer = lambda _: ECHO


async def test_a_request_goes_on_as_it_came(front: Front, origin: RawOrigin) -> None:
    fields = (
        "Authorization: Bearer mine",
        "Accept-Encoding: gzip",
        "Range: bytes=0-4",
        "If-None-Match: x",
        "X-Amz-Meta-Name: größe",
        "Via: 1.1 other",
        "X-Dragonfly-Tag: t",
        "Proxy-Authorization: Basic eA==",
        "Connection: keep-alive, X-Hop",
        "X-Hop: 1",
    )
    reply = await front.get(f"{origin.base}/a//b%2F?x=+&y?", *fields)
    assert (reply.status, reply.reason, reply.body) == (200, "As Written", b"as it is")
    assert origin.requests[0].target == "/a//b%2F?x=+&y?"
    assert origin.requests[0].fields == [
        ("Host", f"127.0.0.1:{origin.port}"),
        ("User-Agent", "curl/8"),
        ("Authorization", "Bearer mine"),
        ("Accept-Encoding", "gzip"),
        ("Range", "bytes=0-4"),
        ("If-None-Match", "x"),
        ("X-Amz-Meta-Name", "größe".encode().decode("latin-1")),
        ("Via", "1.1 other"),
        ("Via", f"1.1 {HOST_ID}"),
    ]


async def test_an_answer_comes_back_as_it_is(front: Front, origin: RawOrigin) -> None:
    origin.answer = lambda _: response(
        404,
        "Server: theirs",
        "set-cookie: a=1",
        "Set-Cookie: b=2",
        "X-Latin: caf\xe9",
        "Content-Encoding: gzip",
        "Keep-Alive: timeout=5",
        "X-Cache: Hit from theirs",
        body=b"\x1f\x8bnot really",
    )
    reply = await front.get(f"{origin.base}/x")
    assert (reply.status, reply.body) == (404, b"\x1f\x8bnot really")
    assert reply.fields == [
        ("Server", "theirs"),
        ("set-cookie", "a=1"),
        ("Set-Cookie", "b=2"),
        ("X-Latin", "caf\xe9"),
        ("Content-Encoding", "gzip"),
        ("X-Cache", "Hit from theirs"),
        ("Via", f"1.1 {HOST_ID}"),
        ("Content-Length", "12"),
    ]


@pytest.mark.parametrize("method", ["DELETE", "OPTIONS", "POST", "PROPFIND"])
async def test_methods_without_a_body(front: Front, origin: RawOrigin, method: str) -> None:
    length = ("Content-Length: 0",) if method == "POST" else ()
    assert (await front.get(f"{origin.base}/x", *length, method=method)).body == b"as it is"
    assert origin.requests[0].line == f"{method} /x HTTP/1.1"
    assert origin.requests[0].body == b""


async def test_head_keeps_the_length_and_the_connection(front: Front, origin: RawOrigin) -> None:
    origin.answer = lambda _: response(200, "Content-Length: 5000", length=False)
    client = await front.connect()
    for _ in range(2):
        await client.send(f"HEAD {origin.base}/x HTTP/1.1", "Host: x", "User-Agent: c")
        reply = await client.reply(to_head=True)
        assert (reply.status, reply.field("Content-Length")) == (200, "5000")


@pytest.mark.parametrize("status", [204, 304])
async def test_answers_without_a_body(front: Front, origin: RawOrigin, status: int) -> None:
    origin.answer = lambda _: response(status, 'ETag: "x"', length=False)
    client = await front.connect()
    for _ in range(2):
        await client.send(f"GET {origin.base}/x HTTP/1.1", "Host: x", "User-Agent: c")
        assert (await client.reply()).status == status


async def test_redirects_are_the_clients_business(front: Front, origin: RawOrigin) -> None:
    origin.answer = lambda _: response(302, "Location: /there")
    assert (await front.get(f"{origin.base}/x")).status == 302
    assert len(origin.requests) == 1


async def test_redirects_are_followed_for_a_client_that_would_write_them_to_disk(
    front: Front, origin: RawOrigin
) -> None:
    origin.answer = lambda request: ECHO if request.target == "/there" else response(302, "Location: /there")
    assert (await front.get_as_agent(f"{origin.base}/x")).body == b"as it is"


async def test_refusals_reset_a_client_that_would_write_them_to_disk(front: Front, origin: RawOrigin) -> None:
    origin.answer = lambda _: response(404, body=b"no such key")
    with pytest.raises(ConnectionResetError):
        await front.get_as_agent(f"{origin.base}/x")


async def test_uploads_are_streamed_with_their_length(front: Front, origin: RawOrigin) -> None:
    client = await front.connect()
    body = b"0123456789" * 100_000
    await client.send(f"PUT {origin.base}/x HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", "Content-Type: a/b")
    client.writer.write(body)
    assert (await client.reply()).status == 200
    request = origin.requests[0]
    assert (request.body, request.field("Content-Length")) == (body, str(len(body)))
    assert (request.field("Content-Type"), request.field("Transfer-Encoding")) == ("a/b", None)


async def test_uploads_without_a_length_stay_chunked(front: Front, origin: RawOrigin) -> None:
    client = await front.connect()
    await client.send(f"POST {origin.base}/x HTTP/1.1", "Host: x", "Transfer-Encoding: chunked")
    client.writer.write(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    assert (await client.reply()).status == 200
    assert origin.requests[0].body == b"abcde"
    assert origin.requests[0].field("Content-Type") is None
    await client.send(f"GET {origin.base}/next HTTP/1.1", "Host: x")
    assert (await client.reply()).status == 200


class HalfTaken:
    """An origin that takes the first chunk of an upload, says `early`, and waits for the end."""

    def __init__(self, early: bytes = b"") -> None:
        self.taken = asyncio.Event()
        self.rest: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._early = early

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n3\r\nabc\r\n")
        writer.write(self._early)
        self.taken.set()
        self.rest.set_result(await reader.read())
        writer.close()


@pytest.mark.parametrize("bad", [b"zz\r\n", b"3\r\nabcd\r\n", b"-1\r\n"])
async def test_chunks_that_turn_bad_are_a_400_and_cut_off_at_the_origin(front: Front, bad: bytes) -> None:
    half = HalfTaken()
    async with await asyncio.start_server(half.serve, "127.0.0.1", 0) as server:
        client = await front.connect()
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"
        chunked = ("Host: x", "User-Agent: c", "Transfer-Encoding: chunked")
        await client.send(f"PUT {url} HTTP/1.1", *chunked, body=b"3\r\nabc\r\n")
        await half.taken.wait()
        client.writer.write(bad)
        reply = await client.reply()
        assert (reply.status, reply.field("Connection")) == (400, "close")
        assert await client.reader.read() == b"", "one answer to one request"
        assert b"0\r\n\r\n" not in await half.rest


async def test_chunks_that_turn_bad_within_the_answer_are_a_reset(front: Front) -> None:
    half = HalfTaken(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort")
    async with await asyncio.start_server(half.serve, "127.0.0.1", 0) as server:
        client = await front.connect()
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"
        await client.send(f"PUT {url} HTTP/1.1", "Host: x", "Transfer-Encoding: chunked", body=b"3\r\nabc\r\n")
        assert (await client.head()).status == 200
        client.writer.write(b"zz\r\n")
        with pytest.raises(ConnectionResetError):
            await client.reader.read()
        assert b"0\r\n\r\n" not in await half.rest


async def test_chunks_that_turn_bad_in_a_queued_request_are_its_own_fault(front: Front, origin: RawOrigin) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_: RawRequest) -> bytes:
        asked.set()
        await go_on.wait()
        return ECHO

    origin.answer = slow
    client = await front.connect()
    await client.send(f"GET {origin.base}/first HTTP/1.1", "Host: x", "User-Agent: c")
    await asked.wait()
    await client.send(f"PUT {origin.base}/x HTTP/1.1", "Host: x", "Transfer-Encoding: chunked", body=b"3\r\nabc\r\n")
    client.writer.write(b"zz\r\n")
    go_on.set()
    assert (await client.reply()).body == b"as it is"
    assert (await client.reply()).status == 400
    assert await client.reader.read() == b""
    assert [request.target for request in origin.requests] == ["/first"]


async def test_gzipped_uploads_stay_gzipped(front: Front, origin: RawOrigin) -> None:
    body = b"\x1f\x8b\x08\x00 not really gzip"
    fields = ("Content-Encoding: gzip", f"Content-Length: {len(body)}")
    await front.get(f"{origin.base}/x", *fields, method="PUT", body=body)
    assert (origin.requests[0].body, origin.requests[0].field("Content-Encoding")) == (body, "gzip")


async def test_the_origins_100_continue_reaches_the_client(front: Front, origin: RawOrigin) -> None:
    client = await front.connect()
    await client.send(f"PUT {origin.base}/x HTTP/1.1", "Host: x", "Content-Length: 4", "Expect: 100-continue")
    assert (await client.head()).status == 100
    client.writer.write(b"body")
    assert (await client.reply()).status == 200
    assert (origin.requests[0].body, origin.requests[0].field("Expect")) == (b"body", "100-continue")


async def test_a_refusal_instead_of_100_continue_reaches_the_client(front: Front) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response(417, body=b"no"))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        client = await front.connect()
        fields = ("Host: x", "Content-Length: 4", "Expect: 100-continue")
        await client.send(f"PUT http://127.0.0.1:{port}/x HTTP/1.1", *fields)
        reply = await client.reply()
        assert (reply.status, reply.field("Connection")) == (417, "close")


async def test_chunks_come_back_as_chunks(front: Front, origin: RawOrigin) -> None:
    chunked = response(200, "Transfer-Encoding: chunked", body=b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", length=False)
    origin.answer = lambda _: chunked
    reply = await front.get(f"{origin.base}/x")
    assert (reply.field("Transfer-Encoding"), reply.body) == ("chunked", b"abcde")


async def test_an_old_client_gets_an_answer_of_unknown_length_until_the_end(front: Front, origin: RawOrigin) -> None:
    chunked = response(200, "Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n", length=False)
    origin.answer = lambda _: chunked
    client = await front.connect()
    await client.send(f"GET {origin.base}/x HTTP/1.0", "Connection: keep-alive")
    reply = await client.reply()
    assert (reply.field("Transfer-Encoding"), reply.body) == (None, b"abc")


@pytest.mark.parametrize(
    "cut_off",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n",
    ],
)
async def test_an_answer_that_breaks_off_is_a_reset(front: Front, cut_off: bytes) -> None:
    go_on = asyncio.Event()

    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(cut_off)
        await go_on.wait()
        writer.close()

    server = await asyncio.start_server(break_off, "127.0.0.1", 0)
    async with server:
        client = await front.connect()
        await client.send(f"GET http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x HTTP/1.1", "Host: x")
        assert (await client.head()).status == 200
        go_on.set()
        with pytest.raises(ConnectionResetError):
            await client.reader.read()


async def test_an_origin_that_hangs_up_is_a_502(front: Front, origin: RawOrigin) -> None:
    origin.answer = lambda _: CUT
    reply = await front.get(f"{origin.base}/x", method="POST")
    assert (reply.status, reply.field("X-Dragonfly-Error-Type")) == (502, "backend")
    assert b"in step 'forward'" in reply.body


async def test_an_origin_that_takes_no_body_is_a_504(fronts: Callable[..., Awaitable[Front]]) -> None:
    async def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(ignore, "127.0.0.1", 0)
    async with server:
        front = await fronts(ProxySettings(forward_stall_seconds=0.01))
        client = await front.connect()
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"
        await client.send(f"PUT {url} HTTP/1.1", "Host: x", "Content-Length: 4", "Expect: 100-continue")
        assert (await client.reply()).status == 504


async def test_loops_are_cut(front: Front, origin: RawOrigin) -> None:
    reply = await front.get(f"{origin.base}/x", f"Via: 1.0 a, 1.1 {HOST_ID.upper()} (comment)")
    assert (reply.status, reply.field("X-Dragonfly-Error-Type")) == (508, "proxy")
    assert not origin.requests


@pytest.mark.parametrize("target", ["/", "/models/m.onnx", "*"])
async def test_a_request_to_the_proxy_itself_is_told_what_to_do(front: Front, target: str) -> None:
    reply = await front.get(target, method="OPTIONS" if target == "*" else "GET")
    assert reply.status == 400
    assert b"curl -x" in reply.body


@pytest.mark.parametrize("target", ["http://user:pass@127.0.0.1/x", "http://127.0.0.1:99999/x"])
async def test_a_target_that_cannot_be_asked_is_a_bad_request(front: Front, target: str) -> None:
    reply = await front.get(target)
    assert reply.status == 400
    assert b"pass@" not in reply.body


async def test_an_https_target_is_asked_over_verified_tls(
    fronts: Callable[..., Awaitable[Front]], tmp_path: Path
) -> None:
    ca_file, context = own_authority(tmp_path)
    async with raw_origin(lambda _: ECHO, tls=context) as secure:
        url = f"https://127.0.0.1:{secure.port}/x?X-Token=5ec2e7"
        trusting = await fronts(origin=OriginSettings(ca_file=ca_file))
        assert (await trusting.get(url)).body == b"as it is"
        reply = await (await fronts()).get(url)
    assert reply.status == 502
    assert b"cannot be verified" in reply.body
    assert b"5ec2e7" not in reply.body


async def test_a_target_in_raw_utf8_is_refused_and_not_requoted(front: Front, origin: RawOrigin) -> None:
    assert (await front.get(f"{origin.base}/größe")).status == 400
    assert not origin.requests


async def test_what_cannot_be_parsed_does_not_get_into_the_log(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    client = await front.connect()
    await client.send("GET http://h/x?X-Amz-Signature=5ec2e7 HTTP/9.9 X", "Host: h")
    assert (await client.reply()).status == 400
    assert "not understood" in caplog.text
    assert "5ec2e7" not in caplog.text


async def test_long_lines_of_long_tokens_are_taken(front: Front, origin: RawOrigin) -> None:
    token = "t" * 30_000
    reply = await front.get(f"{origin.base}/x?{token}", f"X-Amz-Security-Token: {token}")
    assert reply.status == 200
    assert origin.requests[0].field("X-Amz-Security-Token") == token


async def test_shutdown_lets_a_running_response_finish(front: Front, origin: RawOrigin) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_: RawRequest) -> bytes:
        asked.set()
        await go_on.wait()
        return ECHO

    origin.answer = slow
    idle = await front.connect()
    await idle.send(f"GET {origin.base}/x HTTP/1.1", "Host: x")
    running = await front.connect()
    await asked.wait()
    asked.clear()
    await running.send(f"GET {origin.base}/x HTTP/1.1", "Host: x")
    await asked.wait()
    stopping = asyncio.ensure_future(front.server.shutdown(30.0))
    go_on.set()
    for client in (idle, running):
        reply = await client.reply()
        assert (reply.body, reply.field("Connection")) == (b"as it is", "close")
    await stopping
    with pytest.raises(ConnectionRefusedError):
        await front.connect()


async def test_shutdown_resets_what_does_not_finish(front: Front, origin: RawOrigin) -> None:
    asked = asyncio.Event()
    never: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def silent(_: RawRequest) -> Awaitable[bytes]:
        asked.set()
        return never

    origin.answer = silent
    client = await front.connect()
    await client.send(f"GET {origin.base}/x HTTP/1.1", "Host: x")
    await asked.wait()
    await front.server.shutdown(0.0)
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await client.reply()


async def echo_upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Speak first, answer in capitals, and say goodbye after the client's end."""
    writer.write(b"hello ")
    while data := await reader.read(1000):
        writer.write(data.upper())
    writer.write(b" bye")
    await writer.drain()
    writer.close()


async def test_connect_tunnels_blindly_and_ends_halves(front: Front) -> None:
    server = await asyncio.start_server(echo_upper, "127.0.0.1", 0)
    async with server:
        client = await front.connect()
        target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await client.send(f"CONNECT {target} HTTP/1.1", f"Host: {target}", body=b"early ")
        assert (await client.head()).status == 200
        client.writer.write(b"late")
        client.writer.write_eof()
        answer = await client.reader.read()
    assert sorted(answer.split()) == [b"EARLY", b"LATE", b"bye", b"hello"]
    assert (answer.startswith(b"hello"), answer.endswith(b"bye")) == (True, True)


async def test_connect_carries_much_both_ways(front: Front) -> None:
    async def mirror(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(mirror, "127.0.0.1", 0)
    body = bytes(range(256)) * 40_000
    async with server:
        client = await front.connect()
        await client.send(f"CONNECT 127.0.0.1:{server.sockets[0].getsockname()[1]} HTTP/1.1", "Host: x")
        assert (await client.head()).status == 200
        client.writer.write(body)
        client.writer.write_eof()
        assert await client.reader.read() == body


async def test_the_end_of_the_host_is_the_end_of_the_tunnel(front: Front) -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        client = await front.connect()
        await client.send(f"CONNECT 127.0.0.1:{server.sockets[0].getsockname()[1]} HTTP/1.1", "Host: x")
        assert (await client.head()).status == 200
        assert await client.reader.read() == b""
        await client.close()
    await front.server.shutdown(5.0)
    assert not front.server._http.connections, "aiohttp has been told of the end"


async def test_connect_to_nobody_is_a_502(front: Front) -> None:
    reply = await front.get(f"127.0.0.1:{free_port()}", method="CONNECT")
    assert (reply.status, reply.field("X-Dragonfly-Error-Type")) == (502, "backend")


@pytest.mark.parametrize("target", ["127.0.0.1", "127.0.0.1:0", ":443"])
async def test_connect_needs_host_and_port(front: Front, target: str) -> None:
    assert (await front.get(target, method="CONNECT")).status == 400


async def test_a_silent_tunnel_is_cut(fronts: Callable[..., Awaitable[Front]]) -> None:
    async with raw_origin(lambda _: ECHO) as silent:
        front = await fronts(ProxySettings(tunnel_idle_seconds=0.01))
        client = await front.connect()
        await client.send(f"CONNECT 127.0.0.1:{silent.port} HTTP/1.1", "Host: x")
        with pytest.raises(ConnectionResetError):  # noqa: PT012  # it may come before the head is read
            await client.head()
            await client.reader.read()
