"""WIRE §4: origins as they are. Whatever one does, the client gets the right bytes, framed so that a cut one shows."""

from __future__ import annotations

import gzip
import re
import struct
from collections.abc import Callable, Iterator

import pytest

from tests.support.daemons import fetch
from tests.support.origins import downloads, running_raw_origin
from tests.unit.source.raw_origin import RawOrigin, RawRequest, response, serving

from .conftest import CONTENT, SIGNED

GIB = 1024**3
HUGE = 100 * GIB + 12345
SETTLED = ("Last-Modified: Fri, 02 Jan 2026 00:00:00 GMT", "Date: Fri, 02 Jan 2026 01:00:00 GMT")
YOUNG = ("Last-Modified: Fri, 02 Jan 2026 00:00:00 GMT", "Date: Fri, 02 Jan 2026 00:00:00 GMT")


@pytest.fixture
def elsewhere() -> Iterator[RawOrigin]:
    """A second origin: another port is another host to credentials."""
    with running_raw_origin(serving(CONTENT)) as origin:
        yield origin


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed_without_secrets(
    store: RawOrigin, elsewhere: RawOrigin, signed: str, proxy: str, status: int
) -> None:
    store.answer = lambda _: response(status, f"Location: {elsewhere.base}/there?{SIGNED}", "Set-Cookie: s=1")
    secrets = {"Authorization": "Bearer 5ec2e7", "Cookie": "5ec2e7", "X-Api-Key": "5ec2e7"}
    answer = fetch(signed, proxy=proxy, headers=secrets)
    assert (answer.status, answer.body == CONTENT) == (200, True)
    assert "location" not in answer.headers
    assert "set-cookie" not in answer.headers
    for request in store.requests:
        assert request.field("Authorization") == "Bearer 5ec2e7", "the caller's own host gets them"
    assert len(elsewhere.requests) >= 2, "the probe and the bytes"
    for request in elsewhere.requests:
        assert request.target == f"/there?{SIGNED}"
        assert not {name.lower() for name, _ in request.fields} & {"authorization", "cookie", "x-api-key"}


def test_a_redirect_on_the_same_host_keeps_what_the_caller_sent(store: RawOrigin, signed: str, proxy: str) -> None:
    served = serving(CONTENT)
    store.answer = lambda request: served(request) if request.target == "/b?" else response(302, "Location: /b?")
    assert fetch(signed, proxy=proxy, headers={"Authorization": "Bearer 1"}).body == CONTENT
    assert all(request.field("Authorization") == "Bearer 1" for request in store.requests)


@pytest.mark.parametrize("location", ["/again", "ftp://host/x", "http://[bad", "http://user:5ec2e7@host/"])
def test_redirects_that_lead_nowhere_are_a_502(store: RawOrigin, signed: str, proxy: str, location: str) -> None:
    store.answer = lambda _: response(302, f"Location: {location}")
    answer = fetch(signed, proxy=proxy)
    assert (answer.status, answer.headers["x-dragonfly-error-type"]) == (502, "backend")
    assert b"5ec2e7" not in answer.body
    assert len(store.requests) <= 11


WITHOUT_RANGES: dict[str, bytes] = {
    "length": response(200, 'ETag: "v1"', body=CONTENT),
    "chunked": response(
        200, "Transfer-Encoding: chunked", body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(CONTENT), CONTENT), length=False
    ),
    "close": response(200, "Connection: close", body=CONTENT, length=False),
}


@pytest.mark.parametrize("octets", WITHOUT_RANGES.values(), ids=WITHOUT_RANGES.keys())
@pytest.mark.parametrize("wanted", [None, "bytes=5-9"])
def test_an_origin_without_ranges_or_length_is_one_stream(
    store: RawOrigin, signed: str, proxy: str, octets: bytes, wanted: str | None
) -> None:
    store.answer = lambda _: octets
    answer = fetch(signed, proxy=proxy, headers={"Range": wanted} if wanted else None)
    assert (answer.status, answer.body == CONTENT, answer.headers["x-cache"]) == (200, True, "BYPASS")
    assert {"content-length", "transfer-encoding"} & answer.headers.keys(), "an early end can be told from the end"


def test_head_of_what_is_only_a_stream_is_answered_by_a_get(store: RawOrigin, signed: str, proxy: str) -> None:
    served = WITHOUT_RANGES["length"]
    store.answer = lambda request: served if request.line.startswith("GET ") else response(403)
    answer = fetch(signed, proxy=proxy, method="HEAD")
    assert (answer.status, answer.headers["content-length"], answer.body) == (200, str(len(CONTENT)), b"")


def test_a_compressed_object_is_passed_on_as_it_is(store: RawOrigin, signed: str, proxy: str) -> None:
    packed = gzip.compress(CONTENT)
    store.answer = serving(packed, "Content-Encoding: gzip", "Content-Type: text/plain")
    for accepted in ({}, {"Accept-Encoding": "gzip"}, {"Accept-Encoding": "identity"}):
        answer = fetch(signed, proxy=proxy, headers=accepted)
        assert (answer.body == packed, answer.headers["content-encoding"]) == (True, "gzip")
    assert {request.field("Accept-Encoding") for request in store.requests} == {"identity"}
    assert len(downloads(store)) == 1


@pytest.mark.parametrize(
    ("validators", "kept"),
    [
        (SETTLED, True),
        (('ETag: W/"weak"', *SETTLED), True),
        (("x-goog-generation: 7",), True),
        (('ETag: "5"', *YOUNG), True),
        (YOUNG, False),
        (('ETag: W/"weak"', *YOUNG), False),
        (('ETag: W/"weak"',), False),
        (("ETag: unquoted",), False),
        ((), False),
        (('ETag: "v1"', "Cache-Control: no-store"), False),
        (('ETag: "v1"', "Cache-Control: max-age=60, private"), False),
        (('ETag: "v1"', "Cache-Control: max-age=0, must-revalidate"), True),
    ],
)
def test_only_what_the_origin_can_tell_apart_is_kept(
    store: RawOrigin, signed: str, proxy: str, validators: tuple[str, ...], kept: bool
) -> None:
    def answer(request: RawRequest) -> bytes:
        wanted = re.fullmatch(r"bytes=([0-9]+)-([0-9]+)", request.field("Range") or "")
        if wanted is None:
            return response(200, *validators, body=CONTENT)
        part = CONTENT[int(wanted[1]) : int(wanted[2]) + 1]
        sent = f"Content-Range: bytes {wanted[1]}-{wanted[2]}/{len(CONTENT)}"
        return response(206, *validators, sent, body=part)

    store.answer = answer
    answers = [fetch(signed, proxy=proxy) for _ in range(2)]
    assert [one.body == CONTENT for one in answers] == [True, True]
    assert [one.headers["x-cache"] for one in answers] == (["MISS", "HIT-LOCAL"] if kept else ["BYPASS", "BYPASS"])
    assert len(downloads(store)) == (1 if kept else 2)
    for line in validators:
        name, _, value = line.partition(": ")
        assert answers[1].headers[name.lower()] == value


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("content_range", ["Content-Range: bytes */0", None])
def test_an_empty_object_is_a_200_with_no_bytes(
    store: RawOrigin, signed: str, proxy: str, method: str, content_range: str | None
) -> None:
    def answer(request: RawRequest) -> bytes:
        if request.field("Range") is None or content_range is None:
            return response(200, 'ETag: "empty"')
        return response(416, content_range, body=b"<Error/>")

    store.answer = answer
    found = fetch(signed, proxy=proxy, method=method)
    assert (found.status, found.body, found.headers["content-length"]) == (200, b"", "0")
    assert found.headers["etag"] == '"empty"'


def test_the_tail_of_an_object_of_a_hundred_gibibytes(store: RawOrigin, signed: str, proxy: str) -> None:
    def numbers(start: int, stop: int) -> bytes:
        """The object holds the number of every eight bytes in these eight bytes."""
        first, last = start // 8, -(-stop // 8)
        return struct.pack(f">{last - first}Q", *range(first, last))[start - 8 * first : stop - 8 * first]

    def answer(request: RawRequest) -> bytes:
        wanted = re.fullmatch(r"bytes=([0-9]+)-([0-9]+)", request.field("Range") or "")
        assert wanted is not None, "nobody asks for the whole of it"
        start, stop = int(wanted[1]), int(wanted[2]) + 1
        return response(
            206, 'ETag: "huge"', f"Content-Range: bytes {start}-{stop - 1}/{HUGE}", body=numbers(start, stop)
        )

    store.answer = answer
    head = fetch(signed, proxy=proxy, method="HEAD")
    assert (head.status, head.headers["content-length"]) == (200, str(HUGE))
    tail = fetch(signed, proxy=proxy, headers={"Range": "bytes=-1000"})
    assert (tail.status, tail.headers["content-range"]) == (206, f"bytes {HUGE - 1000}-{HUGE - 1}/{HUGE}")
    assert tail.body == numbers(HUGE - 1000, HUGE)
    assert [request.field("Range") for request in downloads(store)] == [f"bytes={100 * GIB}-{HUGE - 1}"]
    again = fetch(signed, proxy=proxy, headers={"Range": f"bytes={100 * GIB + 1}-{100 * GIB + 9}"})
    assert (again.status, again.body, again.headers["x-cache"]) == (
        206,
        numbers(100 * GIB + 1, 100 * GIB + 10),
        "HIT-LOCAL",
    )


def after_failures(times: int, octets: bytes, *, of: Callable[[RawRequest], bool]) -> Callable[[RawRequest], bytes]:
    """Answer so many of the requests that `of` picks with `octets`, and the others with CONTENT."""
    served, left = serving(CONTENT), [octets] * times

    def answer(request: RawRequest) -> bytes:
        if left and of(request):
            return left.pop()
        whole = served(request)
        assert isinstance(whole, bytes)
        return whole

    return answer


@pytest.mark.parametrize("octets", [response(503), response(429, "Retry-After: 0"), response(500)])
@pytest.mark.parametrize("whom", ["probe", "bulk"])
def test_an_origin_that_is_busy_for_a_moment_costs_nobody_a_thing(
    store: RawOrigin, signed: str, proxy: str, octets: bytes, whom: str
) -> None:
    store.answer = after_failures(
        2, octets, of=lambda request: (request.field("Range") == "bytes=0-0") == (whom == "probe")
    )
    answer = fetch(signed, proxy=proxy)
    assert (answer.status, answer.body == CONTENT) == (200, True)
