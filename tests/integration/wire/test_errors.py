"""WIRE §1 and §4: how failures are told. A status and a short body that says what failed, at which step; or a reset."""

from __future__ import annotations

import asyncio
import http.client
import threading
from collections.abc import Awaitable

import pytest

from tests.support.clients import triton_request
from tests.support.daemons import Answer, exchange, fetch, open_url
from tests.support.origins import downloads
from tests.support.pieces import PIECE
from tests.support.servers import free_port
from tests.unit.source.raw_origin import CUT, RawOrigin, RawRequest, response, serving

from .conftest import CONTENT, SIGNED

LARGE = CONTENT * 60  # several transfers of 16 MiB


def assert_told(answer: Answer, status: int, kind: str, step: str) -> None:
    text = answer.body.decode()
    assert (answer.status, answer.headers["x-dragonfly-error-type"]) == (status, kind)
    assert answer.headers["content-type"].startswith("text/plain")
    assert f"step {step!r}" in text
    assert len(text) < 1000
    assert "5ec2e7" not in text, "a signature is nobody's business"
    if task := answer.headers.get("x-dragonfly-task-id"):
        assert f"task: {task}" in text


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 410, 451, 501])
@pytest.mark.parametrize("cached", [False, True])
def test_the_origins_refusal_is_the_clients(
    store: RawOrigin, signed: str, proxy: str, status: int, cached: bool
) -> None:
    if cached:
        assert fetch(signed, proxy=proxy).body == CONTENT
    fields = ("Content-Type: application/xml", "WWW-Authenticate: Bearer", "x-amz-request-id: 7")
    store.answer = lambda _: response(status, *fields, body=b"<Error/>")
    answer = fetch(signed, proxy=proxy)
    assert (answer.status, answer.body) == (status, b"<Error/>")
    assert answer.headers["x-dragonfly-error-type"] == "backend"
    assert [answer.headers[name] for name in ("content-type", "www-authenticate", "x-amz-request-id")] == [
        "application/xml",
        "Bearer",
        "7",
    ]
    store.answer = serving(CONTENT)
    assert fetch(signed, proxy=proxy).body == CONTENT, "a refusal is not kept"


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_does_not_pass_is_the_origins_own_answer(store: RawOrigin, signed: str, proxy: str, status: int) -> None:
    store.answer = lambda _: response(status, "Retry-After: 3600", body=b"<SlowDown/>")
    answer = fetch(signed, proxy=proxy)
    assert (answer.status, answer.body, answer.headers["retry-after"]) == (status, b"<SlowDown/>", "3600")
    assert len(store.requests) == 1, "it said when to come back"


def test_an_unreachable_origin_is_a_502(proxy: str) -> None:
    answer = fetch(f"http://127.0.0.1:{free_port()}/m?{SIGNED}", proxy=proxy)
    assert_told(answer, 502, "backend", "probe")
    assert b"cannot connect" in answer.body


def test_an_origin_that_hangs_up_is_a_502(store: RawOrigin, signed: str, proxy: str) -> None:
    store.answer = lambda _: CUT
    assert_told(fetch(signed, proxy=proxy), 502, "backend", "probe")


def test_a_range_past_the_end_is_a_416_that_tells_the_length(store: RawOrigin, signed: str, proxy: str) -> None:
    answer = fetch(signed, proxy=proxy, headers={"Range": f"bytes={len(CONTENT)}-"})
    assert_told(answer, 416, "proxy", "select")
    assert answer.headers["content-range"] == f"bytes */{len(CONTENT)}"
    assert not downloads(store)


def test_a_request_without_an_origin_is_a_400(proxy: str) -> None:
    received = exchange(proxy, b"GET /m HTTP/1.1\r\nHost: x\r\nUser-Agent: t\r\nConnection: close\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b"names no origin" in received


def test_a_loop_is_a_508(store: RawOrigin, signed: str, proxy: str) -> None:
    answer = fetch(signed, proxy=proxy, headers={"Via": "1.1 elsewhere, 1.1 peer-1"})
    assert_told(answer, 508, "proxy", "request")
    assert not store.requests


def only_the_first_byte(request: RawRequest) -> bytes:
    """Answer questions after the version, and refuse the bytes."""
    if request.field("Range") == "bytes=0-0":
        return response(206, 'ETag: "v1"', f"Content-Range: bytes 0-0/{len(LARGE)}", body=LARGE[:1])
    return response(403, body=b"<Error>5ec2e7</Error>")


def test_bytes_that_are_refused_are_a_status_while_nothing_is_sent(store: RawOrigin, signed: str, proxy: str) -> None:
    store.answer = only_the_first_byte
    assert_told(fetch(signed, proxy=proxy), 403, "backend", "download")


def test_a_failure_after_the_first_byte_is_a_reset(store: RawOrigin, signed: str, proxy: str) -> None:
    served, begun = serving(LARGE), threading.Event()

    async def refused() -> bytes:
        await asyncio.to_thread(begun.wait)
        return response(403)

    def answer(request: RawRequest) -> bytes | Awaitable[bytes]:
        start = int((request.field("Range") or "").removeprefix("bytes=").partition("-")[0])
        return refused() if start >= PIECE else served(request)

    store.answer = answer
    with open_url(signed, proxy=proxy) as received:
        assert (received.status, received.headers["Content-Length"]) == (200, str(len(LARGE)))
        assert received.read(1) == LARGE[:1]
        begun.set()
        with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
            received.read()


@pytest.mark.parametrize("answer", [response(403, body=b"<Error/>"), response(404), CUT])
def test_a_client_that_ignores_statuses_is_reset_before_any_byte(
    store: RawOrigin, signed: str, proxy: str, answer: bytes
) -> None:
    store.answer = lambda _: answer
    with pytest.raises(ConnectionResetError):
        exchange(proxy, triton_request(signed))


def test_a_stream_that_ends_early_is_a_reset(store: RawOrigin, signed: str, proxy: str) -> None:
    store.answer = lambda _: response(200, "Connection: close", "Content-Length: 1000000", body=CONTENT, length=False)
    with pytest.raises(ConnectionResetError):
        exchange(proxy, triton_request(signed))
    with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
        fetch(signed, proxy=proxy)
