from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal

import pytest
import structlog

from p2p.errors import (
    DamselflyError,
    OriginError,
    OriginRefusedError,
    OriginStalledError,
    OriginUnreachableError,
    StoppingError,
    StoreError,
    StoreFullError,
    VersionChangedError,
)
from p2p.identity import identify
from p2p.ranges import ByteRange
from p2p.telemetry import REGISTRY
from peer.proxy.respond import RESTARTS
from peer.source.client import OriginSettings
from tests.support.servers import free_port

from ..source.raw_origin import RawOrigin, RawRequest, response, serving
from .conftest import CONTENT
from .front import HOST_ID, SIGNED, Front


def signed(origin: RawOrigin, path: str = "/models/m.onnx") -> str:
    return f"{origin.base}{path}?{SIGNED}"


@pytest.mark.parametrize(("whence", "cache"), [("local", "HIT-LOCAL"), ("remote", "HIT-REMOTE"), ("origin", "MISS")])
async def test_a_presigned_url_goes_through_p2p(
    front: Front, origin: RawOrigin, whence: Literal["local", "remote", "origin"], cache: str
) -> None:
    front.tasks.whence = whence
    reply = await front.get(signed(origin))
    assert (reply.status, reply.reason, reply.body) == (200, "OK", CONTENT)
    assert reply.field("X-Cache") == cache
    assert reply.field("Age") == (None if cache == "MISS" else "0")
    assert reply.field("X-Dragonfly-Task-ID") == identify(signed(origin)).id
    assert reply.field("Content-Length") == str(len(CONTENT))
    assert reply.field("Content-Type") == "model/onnx"
    assert reply.field("ETag") == '"v1"'
    assert reply.field("Accept-Ranges") == "bytes"
    assert reply.field("Via") == f"1.1 {HOST_ID}"
    assert reply.field("Date") is not None
    assert reply.field("Set-Cookie") is None, "one caller's cookie is nobody else's"
    assert [request.field("Range") for request in origin.requests] == ["bytes=0-0"]
    assert not front.tasks.readers


async def test_the_agent_gets_its_file_with_nothing_configured(front: Front, origin: RawOrigin) -> None:
    reply = await front.get_as_agent(signed(origin))
    assert (reply.status, reply.body) == (200, CONTENT)
    assert origin.requests[0].target == f"/models/m.onnx?{SIGNED}"
    assert [name for name, _ in origin.requests[0].fields] == ["Host", "Accept", "Via", "Range", "Accept-Encoding"]


async def test_the_source_of_a_download_is_the_callers_own_way(front: Front, origin: RawOrigin) -> None:
    await front.get(signed(origin), "Authorization: Bearer mine", "Range: bytes=1-2", "X-Dragonfly-Tag: t")
    source = front.tasks.openings[0].source
    assert source.url == signed(origin)
    assert source.headers == (
        ("User-Agent", "curl/8"),
        ("Authorization", "Bearer mine"),
        ("Via", f"1.1 {HOST_ID}"),
    )


@pytest.mark.parametrize(
    ("lines", "priority"),
    [
        ((), 6),
        (("X-Dragonfly-Priority: 0",), 0),
        (("x-dragonfly-priority: 7",), 7),
        (("X-Dragonfly-Priority: 8",), 6),
        (("X-Dragonfly-Priority: -1",), 6),
        (("X-Dragonfly-Priority: high",), 6),
        (("X-Dragonfly-Priority: \u0663",), 6),
        (("X-Dragonfly-Priority: 1", "X-Dragonfly-Priority: 2"), 6),
    ],
)
async def test_a_request_says_how_urgent_it_is(
    front: Front, origin: RawOrigin, lines: tuple[str, ...], priority: int
) -> None:
    reply = await front.get(signed(origin), *lines)
    assert (reply.status, reply.body) == (200, CONTENT)
    assert [opening.priority for opening in front.tasks.openings] == [priority]


@pytest.mark.parametrize("name", ["X-Dragonfly-Filter", "x-dragonfly-filtered-query-params"])
async def test_filter_tag_and_application_make_the_task(front: Front, origin: RawOrigin, name: str) -> None:
    url = f"{origin.base}/m?token=1&v=2&{SIGNED}"
    reply = await front.get(
        url, f"{name}: token&nonce , other", "X-Dragonfly-Tag: blue", "X-Dragonfly-Application: triton"
    )
    expected = identify(url, filters=("token", "nonce", "other"), tag="blue", application="triton")
    assert reply.field("X-Dragonfly-Task-ID") == front.tasks.openings[0].task.id == expected.id
    assert origin.requests[0].target == f"/m?token=1&v=2&{SIGNED}", "the origin gets the URL as it came"


async def test_p2p_can_be_asked_for(front: Front, origin: RawOrigin) -> None:
    reply = await front.get(f"{origin.base}/plain?v=1", "X-Dragonfly-Use-P2P: true")
    assert (reply.field("X-Cache"), reply.body) == ("HIT-LOCAL", CONTENT)


async def test_p2p_can_be_declined(front: Front, origin: RawOrigin) -> None:
    reply = await front.get(signed(origin), "X-Dragonfly-Use-P2P: False")
    assert (reply.field("X-Cache"), reply.body) == (None, CONTENT)
    assert not front.tasks.openings


async def test_neither_true_nor_false_is_a_bad_request(front: Front, origin: RawOrigin) -> None:
    reply = await front.get(signed(origin), "X-Dragonfly-Use-P2P: maybe")
    assert (reply.status, reply.field("X-Dragonfly-Error-Type")) == (400, "proxy")
    assert b"'maybe' is neither true nor false" in reply.body


@pytest.mark.parametrize(
    "field",
    [
        "Authorization: AWS4-HMAC-SHA256 Credential=AK, SignedHeaders=host;range;x-amz-date, Signature=00",
        "Authorization: GOOG4-RSA-SHA256 Credential=x,SignedHeaders=host;Accept-Encoding,Signature=00",
    ],
)
async def test_what_signs_its_range_goes_through_untouched(front: Front, origin: RawOrigin, field: str) -> None:
    reply = await front.get(f"{origin.base}/m", "X-Dragonfly-Use-P2P: true", field, "Range: bytes=0-9")
    assert (reply.status, reply.body) == (206, CONTENT[:10])
    assert not front.tasks.openings


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=5-", (5, 1024)),
        ("bytes=-24", (1000, 1024)),
        ("bytes=1000-9999", (1000, 1024)),
        ("BYTES=3-4", (3, 5)),
    ],
)
async def test_a_range_is_a_206(front: Front, origin: RawOrigin, wanted: str, sent: tuple[int, int]) -> None:
    start, stop = sent
    reply = await front.get(signed(origin), f"Range: {wanted}")
    assert (reply.status, reply.body) == (206, CONTENT[start:stop])
    assert reply.field("Content-Range") == f"bytes {start}-{stop - 1}/1024"
    assert front.tasks.openings[0].wanted == ByteRange(start, stop), "only what covers the range is fetched"


@pytest.mark.parametrize("ignored", ["bytes=0-700,300-1023", "bytes=9-1", "lines=1-2"])
async def test_more_than_there_is_and_nonsense_get_the_whole(front: Front, origin: RawOrigin, ignored: str) -> None:
    reply = await front.get(signed(origin), f"Range: {ignored}")
    assert (reply.status, reply.body, reply.field("Content-Range")) == (200, CONTENT, None)


async def test_a_range_past_the_end_is_a_416(front: Front, origin: RawOrigin) -> None:
    reply = await front.get(signed(origin), "Range: bytes=1024-")
    assert (reply.status, reply.field("Content-Range")) == (416, "bytes */1024")
    assert not front.tasks.openings


@pytest.mark.parametrize(("condition", "status"), [('"v1"', 206), ('"v0"', 200), ('W/"v1"', 200)])
async def test_if_range(front: Front, origin: RawOrigin, condition: str, status: int) -> None:
    reply = await front.get(signed(origin), "Range: bytes=0-9", f"If-Range: {condition}")
    assert reply.status == status
    assert reply.body == (CONTENT[:10] if status == 206 else CONTENT)


@pytest.mark.parametrize(
    ("condition", "status"),
    [
        ('If-None-Match: "v1"', 304),
        ('If-None-Match: "v0", W/"v1"', 304),
        ("If-None-Match: *", 304),
        ('If-None-Match: "v0"', 200),
        ("If-Modified-Since: Sat, 03 Jan 2026 00:00:00 GMT", 304),
        ("If-Modified-Since: Thu, 01 Jan 2026 00:00:00 GMT", 200),
        ('If-Match: "v1"', 200),
        ("If-Match: *", 200),
        ('If-Match: "v0"', 412),
        ('If-Match: W/"v1"', 412),
        ("If-Unmodified-Since: Thu, 01 Jan 2026 00:00:00 GMT", 412),
        ("If-Unmodified-Since: Sat, 03 Jan 2026 00:00:00 GMT", 200),
    ],
)
async def test_conditions_are_answered_from_the_version(
    front: Front, origin: RawOrigin, condition: str, status: int
) -> None:
    origin.answer = serving(CONTENT, "Last-Modified: Fri, 02 Jan 2026 00:00:00 GMT")
    reply = await front.get(signed(origin), condition)
    assert reply.status == status
    assert reply.field("ETag") == '"v1"'
    assert (reply.body == CONTENT) == (status == 200)
    assert origin.requests[0].field(condition.partition(":")[0]) is None
    assert len(front.tasks.openings) == (status == 200)


async def test_head_is_answered_without_a_download_or_a_head(front: Front, origin: RawOrigin) -> None:
    client = await front.connect()
    for _ in range(2):
        await client.send(f"HEAD {signed(origin)} HTTP/1.1", "Host: x", "User-Agent: curl/8")
        reply = await client.reply(to_head=True)
        assert (reply.status, reply.field("Content-Length")) == (200, "1024")
        assert reply.field("Accept-Ranges") == "bytes"
    assert not front.tasks.openings
    assert {request.line.split()[0] for request in origin.requests} == {"GET"}


async def test_an_empty_object_is_a_200_with_no_bytes(front: Front, origin: RawOrigin) -> None:
    origin.answer = serving(b"")
    reply = await front.get(signed(origin))
    assert (reply.status, reply.body, reply.field("Content-Length")) == (200, b"", "0")
    assert not front.tasks.openings


async def test_every_request_asks_the_origin_once(front: Front, origin: RawOrigin) -> None:
    client = await front.connect()
    for number in range(1, 4):
        await client.send(f"GET {signed(origin)} HTTP/1.1", "Host: x", "User-Agent: curl/8")
        assert (await client.reply()).body == CONTENT
        assert len(origin.requests) == number
    assert origin.connections == 1


async def test_old_clients_are_served_too(front: Front, origin: RawOrigin) -> None:
    client = await front.connect()
    await client.send(f"GET {signed(origin)} HTTP/1.0", "User-Agent: Wget/1.0")
    reply = await client.reply()
    assert (reply.status, reply.body) == (200, CONTENT)
    assert await client.reader.read() == b""


async def test_bytes_go_out_as_they_land(front: Front, origin: RawOrigin) -> None:
    front.tasks.landed = 100
    client = await front.connect()
    await client.send(f"GET {signed(origin)} HTTP/1.1", "Host: x", "User-Agent: curl/8")
    assert (await client.head()).status == 200
    assert await client.reader.readexactly(100) == CONTENT[:100]
    front.tasks.downloads[0].land(101)
    assert await client.reader.readexactly(1) == CONTENT[100:101]
    front.tasks.downloads[0].land(1024)
    assert await client.reader.readexactly(923) == CONTENT[101:]


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
async def test_the_origins_refusal_goes_to_the_caller(front: Front, origin: RawOrigin, status: int) -> None:
    origin.answer = lambda _: response(status, "Retry-After: 7", "WWW-Authenticate: Basic", body=b"<Error/>")
    reply = await front.get(signed(origin))
    assert (reply.status, reply.reason, reply.body) == (status, "As Written", b"<Error/>")
    assert (reply.field("Retry-After"), reply.field("WWW-Authenticate")) == ("7", "Basic")
    assert reply.field("X-Dragonfly-Error-Type") == "backend"
    assert not front.tasks.openings, "however much of it is on the disk"


async def test_a_client_that_ignores_statuses_is_reset(front: Front, origin: RawOrigin) -> None:
    origin.answer = lambda _: response(403, body=b"<Error/>")
    with pytest.raises(ConnectionResetError):
        await front.get_as_agent(signed(origin))


async def test_a_client_that_ignores_statuses_is_reset_for_our_own_errors_too(front: Front) -> None:
    with pytest.raises(ConnectionResetError):
        await front.get_as_agent(f"http://127.0.0.1:{free_port()}/m?{SIGNED}")


async def test_an_unreachable_origin_is_a_502(front: Front) -> None:
    url = f"http://127.0.0.1:{free_port()}/m?{SIGNED}"
    reply = await front.get(url)
    assert (reply.status, reply.field("X-Dragonfly-Error-Type")) == (502, "backend")
    assert reply.field("X-Dragonfly-Task-ID") == identify(url).id
    assert b"in step 'probe'" in reply.body
    assert identify(url).id.encode() in reply.body
    assert b"5ec2e7" not in reply.body


async def test_a_silent_origin_is_a_504(fronts: Callable[..., Awaitable[Front]], origin: RawOrigin) -> None:
    never: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    origin.answer = lambda _: never
    front = await fronts(origin=OriginSettings(stall_seconds=0.01))
    assert (await front.get(signed(origin))).status == 504


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (OriginRefusedError(403, "AccessDenied"), 403, "backend"),
        (OriginUnreachableError("gone"), 502, "backend"),
        (OriginStalledError("silent"), 504, "backend"),
        (OriginError("odd"), 502, "backend"),
        (StoppingError("bye"), 503, "daemon"),
        (DamselflyError("broken"), 500, "daemon"),
    ],
)
async def test_a_download_that_fails_before_the_first_byte_is_a_clean_status(
    front: Front, origin: RawOrigin, error: DamselflyError, status: int, kind: str
) -> None:
    front.tasks.landed = 0
    waiting = asyncio.ensure_future(front.get(signed(origin)))
    await front.tasks.opened.wait()
    front.tasks.downloads[0].fail(error)
    reply = await waiting
    assert (reply.status, reply.field("X-Dragonfly-Error-Type")) == (status, kind)
    assert b"in step 'download'" in reply.body


@pytest.mark.parametrize("error", [OriginUnreachableError("gone"), StoreError("disk"), VersionChangedError("new")])
async def test_a_download_that_fails_after_the_first_byte_is_a_reset(
    front: Front, origin: RawOrigin, error: DamselflyError
) -> None:
    front.tasks.landed = 100
    client = await front.connect()
    await client.send(f"GET {signed(origin)} HTTP/1.1", "Host: x", "User-Agent: curl/8")
    await client.head()
    await client.reader.readexactly(100)
    front.tasks.downloads[0].fail(error)
    with pytest.raises(ConnectionResetError):
        await client.reader.read()


async def test_an_object_overwritten_before_the_first_byte_is_asked_for_again(front: Front, origin: RawOrigin) -> None:
    front.tasks.refusals = [VersionChangedError("overwritten")]
    reply = await front.get(signed(origin))
    assert (reply.status, reply.body) == (200, CONTENT)
    assert len(origin.requests) == 2


async def test_an_object_overwritten_again_and_again_is_a_502(front: Front, origin: RawOrigin) -> None:
    front.tasks.refusals = [VersionChangedError("overwritten") for _ in range(RESTARTS + 1)]
    assert (await front.get(signed(origin))).status == 502
    assert len(origin.requests) == RESTARTS + 1


async def test_a_full_disk_costs_the_cache_and_not_the_client(front: Front, origin: RawOrigin) -> None:
    front.tasks.refusals = [StoreFullError("no room")]
    reply = await front.get(signed(origin), "Range: bytes=10-19")
    assert (reply.status, reply.body, reply.field("X-Cache")) == (206, CONTENT[10:20], "BYPASS")


@pytest.mark.parametrize(
    "answer",
    [
        response(200, body=CONTENT),
        response(200, "Transfer-Encoding: chunked", body=b"400\r\n" + CONTENT + b"\r\n0\r\n\r\n", length=False),
        response(200, "Connection: close", body=CONTENT, length=False),
    ],
)
async def test_an_origin_without_ranges_is_passed_through(front: Front, origin: RawOrigin, answer: bytes) -> None:
    def respond(request: RawRequest) -> bytes:
        return answer if request.field("Range") else response(200, "X-Cache: theirs", body=CONTENT)

    origin.answer = respond
    reply = await front.get(signed(origin))
    assert (reply.status, reply.body, reply.field("X-Cache")) == (200, CONTENT, "BYPASS")
    assert reply.field("X-Dragonfly-Task-ID") == identify(signed(origin)).id
    assert not front.tasks.openings


async def test_what_may_not_be_stored_is_passed_through(front: Front, origin: RawOrigin) -> None:
    origin.answer = serving(CONTENT, "Cache-Control: no-store")
    reply = await front.get(signed(origin))
    assert (reply.body, reply.field("X-Cache"), reply.field("Cache-Control")) == (CONTENT, "BYPASS", "no-store")


async def test_redirects_are_followed_on_the_clients_behalf(front: Front, origin: RawOrigin) -> None:
    there = serving(CONTENT)

    def respond(request: RawRequest) -> bytes | Awaitable[bytes]:
        return there(request) if request.target == "/there?" else response(302, "Location: /there?")

    origin.answer = respond
    reply = await front.get_as_agent(signed(origin))
    assert (reply.status, reply.body) == (200, CONTENT)
    assert front.tasks.openings[0].source.url == f"{origin.base}/there?"


async def test_a_client_that_leaves_lets_go_of_its_reader(front: Front, origin: RawOrigin) -> None:
    front.tasks.landed = 100
    client = await front.connect()
    await client.send(f"GET {signed(origin)} HTTP/1.1", "Host: x", "User-Agent: curl/8")
    await client.head()
    assert len(front.tasks.readers) == 1
    await client.close()
    await front.tasks.released.wait()
    assert not front.tasks.readers


async def test_ends_are_counted_and_logged_without_secrets(front: Front, origin: RawOrigin) -> None:
    def count(outcome: str) -> float:
        labels = {"route": "p2p", "outcome": outcome}
        return REGISTRY.get_sample_value("damselfly_proxy_requests_total", labels) or 0.0

    before = count("ok"), count("refused")
    sent = REGISTRY.get_sample_value("damselfly_proxy_response_body_bytes_total", {"cache": "HIT-LOCAL"}) or 0.0
    with structlog.testing.capture_logs() as lines:
        await front.get(signed(origin), "Authorization: Bearer hush")
        origin.answer = lambda _: response(403)
        await front.get(signed(origin))
        await front.server.shutdown(5.0)
    assert (count("ok"), count("refused")) == (before[0] + 1, before[1] + 1)
    total = REGISTRY.get_sample_value("damselfly_proxy_response_body_bytes_total", {"cache": "HIT-LOCAL"})
    assert total == sent + len(CONTENT)
    assert REGISTRY.get_sample_value("damselfly_proxy_active_requests") == 0.0
    first, second = [line for line in lines if line["event"] == "request finished"]
    assert (first["task"], first["bytes"], first["cache"]) == (identify(signed(origin)).id, 1024, "HIT-LOCAL")
    assert (second["status"], second["outcome"], second["origin"]) == (403, "refused", origin.base)
    assert "5ec2e7" not in repr(lines)
    assert "hush" not in repr(lines)
