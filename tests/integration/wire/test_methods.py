"""WIRE §4: what the origin is asked with, what comes back, and all other methods and hosts, untouched."""

from __future__ import annotations

import base64
import gzip
import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.cluster import LocalCluster
from tests.integration.wire.conftest import CONTENT
from tests.support.clients import Wire, curl
from tests.support.daemons import CLIENT_SECONDS, fetch
from tests.support.origins import downloads
from tests.unit.source.raw_origin import RawOrigin, response, serving

MIB = 1024 * 1024
GIB = 1024 * MIB


class Listener:
    """An origin that is the test itself: it accepts, reads and writes when the test says so."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(CLIENT_SECONDS)
        self.authority = f"127.0.0.1:{self._socket.getsockname()[1]}"

    def accept(self) -> socket.socket:
        connection, _ = self._socket.accept()
        connection.settimeout(CLIENT_SECONDS)
        return connection

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    """A listening socket that the test serves by hand."""
    listening = Listener()
    yield listening
    listening.close()


def receive(connection: socket.socket, end: bytes) -> bytes:
    """Read until what has come ends with `end`; fails if the other side ends first."""
    received = bytearray()
    while not received.endswith(end):
        data = connection.recv(65536)
        assert data, f"the connection ended after {bytes(received[-80:])!r}"
        received += data
    return bytes(received)


def test_the_origin_is_asked_with_a_ranged_get_and_never_with_head(store: RawOrigin, signed: str, proxy: str) -> None:
    head = fetch(signed, proxy=proxy, method="HEAD")
    assert (head.status, head.headers["content-length"], head.body) == (200, str(len(CONTENT)), b"")
    assert fetch(signed, proxy=proxy).body == CONTENT
    assert {request.line.split(" ")[0] for request in store.requests} == {"GET"}
    assert all((request.field("Range") or "").startswith("bytes=0-") for request in store.requests)


ORIGINS_OWN = (
    "Last-Modified: Mon, 02 Mar 2026 10:00:00 GMT",
    "Content-Type: application/x-onnx",
    'Content-Disposition: attachment; filename="m.onnx"',
    "Cache-Control: max-age=60",
    "x-amz-meta-team: vision",
    "x-goog-generation: 7",
    "x-ms-blob-type: BlockBlob",
)


@pytest.mark.parametrize("choice", ["true", "false"])
def test_fields_of_the_answer_pass_as_the_origin_gave_them(
    store: RawOrigin, signed: str, proxy: str, choice: str
) -> None:
    store.answer = serving(CONTENT, *ORIGINS_OWN)
    answer = fetch(signed, proxy=proxy, headers={"X-Dragonfly-Use-P2P": choice})
    assert answer.headers["etag"] == '"v1"'
    for line in ORIGINS_OWN:
        name, _, value = line.partition(": ")
        assert answer.headers[name.lower()] == value


def test_a_compressed_object_stays_compressed(store: RawOrigin, signed: str, proxy: str) -> None:
    packed = gzip.compress(CONTENT)
    store.answer = serving(packed, "Content-Encoding: gzip")
    for encoding in ("gzip", "identity"):
        answer = fetch(signed, proxy=proxy, headers={"Accept-Encoding": encoding})
        assert (answer.headers["content-encoding"], answer.body == packed) == ("gzip", True)
    assert {request.field("Accept-Encoding") for request in store.requests} == {"identity"}
    assert len(downloads(store)) == 1


@pytest.mark.parametrize("method", ["GET", "OPTIONS", "DELETE", "PROPFIND", "QUERY"])
def test_other_methods_and_hosts_go_through_untouched(listener: Listener, proxy: str, method: str) -> None:
    """The request, but for the fields of its connection, and the answer, octet for octet."""
    fields = b"X-One: 1\r\nUser-Agent: as written\r\nX-two:  spaced  \r\nX-One: again\r\nContent-Length: 4\r\n"
    with Wire(proxy) as wire:
        head = f"{method} http://{listener.authority}/p%2f?b&a=%7e HTTP/1.1\r\nHost: {listener.authority}\r\n"
        wire.send(head.encode() + fields + b"Proxy-Connection: Keep-Alive\r\n\r\nbody")
        origin = listener.accept()
        received = receive(origin, b"body")
        origin.sendall(
            b"HTTP/1.1 299 As It Is\r\nx-ODD: a\r\nSet-Cookie: a=1\r\nset-cookie: b=2\r\nContent-Length: 5\r\n\r\nreply"
        )
        answered = receive(wire.socket, b"reply")
        origin.close()
    line, *lines = received.decode().split("\r\n")
    assert line == f"{method} /p%2f?b&a=%7e HTTP/1.1"
    assert lines.pop(0) == f"Host: {listener.authority}"
    kept = [entry.replace(":  ", ": ").rstrip() for entry in lines[: lines.index("")]]
    assert [entry for entry in kept if entry.lower().startswith("x-one")] == ["X-One: 1", "X-One: again"]
    assert {"User-Agent: as written", "X-two: spaced", "Content-Length: 4"} <= set(kept)
    assert answered.startswith(b"HTTP/1.1 299 As It Is\r\n")
    assert b"\r\nx-ODD: a\r\n" in answered
    assert b"a=1" in answered
    assert b"b=2" in answered


def test_bodies_stream_both_ways(listener: Listener, proxy: str) -> None:
    """Each part arrives before the next is sent: nothing waits for the whole of a body."""
    with Wire(proxy) as wire:
        wire.send(
            f"POST http://{listener.authority}/stream HTTP/1.1\r\nHost: {listener.authority}\r\nUser-Agent: t\r\n"
            "Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n".encode()
        )
        origin = listener.accept()
        assert b"chunked" in receive(origin, b"first\r\n")
        wire.send(b"6\r\nsecond\r\n")
        receive(origin, b"second\r\n")
        origin.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        receive(wire.socket, b"one\r\n")
        wire.send(b"5\r\nthird\r\n0\r\n\r\n")
        receive(origin, b"third\r\n0\r\n\r\n")
        origin.sendall(b"3\r\ntwo\r\n0\r\n\r\n")
        receive(wire.socket, b"two\r\n0\r\n\r\n")
        origin.close()


def test_expect_100_continue_survives(store: RawOrigin, proxy: str, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(CONTENT)
    store.answer = lambda request: response(201, body=hashlib.sha256(request.body).hexdigest().encode())
    outcome = curl("--header", "Expect: 100-continue", "--upload-file", str(body), f"{store.base}/put", proxy=proxy)
    assert (outcome.code, outcome.said) == (0, hashlib.sha256(CONTENT).hexdigest())
    (request,) = store.requests
    assert request.line == "PUT /put HTTP/1.1"


def test_expect_100_continue_asks_for_no_body_before_the_origin_does(listener: Listener, proxy: str) -> None:
    with Wire(proxy) as wire:
        wire.send(
            f"PUT http://{listener.authority}/put HTTP/1.1\r\nHost: {listener.authority}\r\nUser-Agent: t\r\n"
            "Expect: 100-continue\r\nContent-Length: 4\r\n\r\n".encode()
        )
        origin = listener.accept()
        assert b"100-continue" in receive(origin, b"\r\n\r\n")
        origin.sendall(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n")
        assert wire.head().startswith(b"HTTP/1.1 417 ")
        origin.close()


def test_an_upload_of_a_gibibyte_takes_constant_memory(
    fleet: LocalCluster, listener: Listener, proxy: str, tmp_path: Path
) -> None:
    file = tmp_path / "sparse"
    with file.open("wb") as sparse:
        sparse.truncate(GIB)
    outcomes: list[int] = []
    client = threading.Thread(
        target=lambda: outcomes.append(
            curl("--upload-file", str(file), f"http://{listener.authority}/put", proxy=proxy).code
        )
    )
    client.start()
    origin = listener.accept()
    head = receive_head(origin)
    assert b"Content-Length: %d" % GIB in head
    if b"100-continue" in head:
        origin.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    buffer, received, memory = bytearray(MIB), 0, []
    while received < GIB:
        count = origin.recv_into(buffer)
        assert count
        if received // (64 * MIB) != (received + count) // (64 * MIB):
            memory.append(anonymous_bytes(fleet["peer-1"].pid))
        received += count
    origin.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
    client.join()
    origin.close()
    assert outcomes == [0]
    assert max(memory) - min(memory) < 32 * MIB


def receive_head(connection: socket.socket) -> bytes:
    received = bytearray()
    while not received.endswith(b"\r\n\r\n"):
        received += connection.recv(1)
    return bytes(received)


def anonymous_bytes(pid: int) -> int:
    """Return a process's memory that no file backs."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


def test_a_websocket_survives(listener: Listener, proxy: str) -> None:
    key = base64.b64encode(os.urandom(16)).decode()
    with Wire(proxy) as wire:
        wire.send(
            f"GET http://{listener.authority}/chat HTTP/1.1\r\nHost: {listener.authority}\r\nUser-Agent: t\r\n"
            f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {key}\r\nProxy-Authorization: Basic dXNlcg==\r\nX-Dragonfly-Tag: t\r\n\r\n".encode()
        )
        origin = listener.accept()
        request = receive(origin, b"\r\n\r\n")
        assert request.startswith(b"GET /chat HTTP/1.1\r\n")
        assert b"\r\nUpgrade: websocket\r\n" in request
        assert b"\r\nSec-WebSocket-Key: " + key.encode() in request
        assert b"X-Dragonfly" not in request
        assert b"Proxy-" not in request
        origin.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: x\r\n\r\nhello"
        )
        answer = receive(wire.socket, b"hello")
        assert answer.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        assert b"\r\nUpgrade: websocket\r\n" in answer
        wire.send(b"\x81\x05frame")
        receive(origin, b"\x81\x05frame")
        origin.sendall(b"\x88\x00")
        origin.close()
        assert wire.until_end() == b"\x88\x00"


def test_an_upgrade_that_the_origin_declines_is_an_answer(listener: Listener, proxy: str) -> None:
    with Wire(proxy) as wire:
        wire.send(
            f"GET http://{listener.authority}/chat HTTP/1.1\r\nHost: {listener.authority}\r\nUser-Agent: t\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n".encode()
        )
        origin = listener.accept()
        receive(origin, b"\r\n\r\n")
        origin.sendall(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno")
        answer = wire.answer()
        assert (answer.status, answer.body) == (426, b"no")
        origin.close()


def test_connect_octets_pass_both_ways_and_halves_end(listener: Listener, proxy: str) -> None:
    with Wire(proxy) as wire:
        wire.send(f"CONNECT {listener.authority} HTTP/1.1\r\nHost: {listener.authority}\r\n\r\nearly".encode())
        origin = listener.accept()
        assert receive(origin, b"early") == b"early"
        assert wire.head().startswith(b"HTTP/1.1 200 ")
        origin.sendall(b"\x00\xff")
        assert wire.socket.recv(2, socket.MSG_WAITALL) == b"\x00\xff"
        wire.socket.shutdown(socket.SHUT_WR)
        assert origin.recv(1) == b""
        origin.sendall(b"late")
        origin.close()
        assert wire.until_end() == b"late"


def test_a_request_that_signs_its_range_goes_through_untouched(store: RawOrigin, proxy: str) -> None:
    authorization = "AWS4-HMAC-SHA256 Credential=AK/x/s3/aws4_request, SignedHeaders=host;range;x-amz-date, Signature=1"
    headers = {"Authorization": authorization, "Range": "bytes=5-9"}
    answer = fetch(f"{store.base}/b/m", proxy=proxy, headers={**headers, "X-Dragonfly-Use-P2P": "true"})
    assert (answer.status, answer.body) == (206, CONTENT[5:10])
    (request,) = store.requests
    assert (request.field("Range"), request.field("Authorization")) == ("bytes=5-9", authorization)
