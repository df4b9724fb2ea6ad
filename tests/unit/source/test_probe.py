from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.control import Source
from p2p.errors import BadRequestError, ConfigError, OriginError, OriginStalledError, OriginUnreachableError
from p2p.fields import single
from p2p.hostapi import Keepable, Probe, Refused, Stream
from p2p.versions import ValidatorKind
from peer.source.client import OriginClient, OriginSettings
from peer.source.fields import across_hosts, end_to_end, for_origin, for_pieces
from peer.source.http import Prober
from peer.source.trust import tls_context
from peer.source.urls import exact_url, origin_of, redirect_target
from tests.support.servers import free_port

from .raw_origin import CUT, RawOrigin, RawRequest, raw_origin, response, serving

TASK = "7" * 64


@pytest.fixture
async def client() -> AsyncIterator[OriginClient]:
    async with OriginClient(OriginSettings(stall_seconds=5)) as found:
        yield found


@pytest.fixture
async def origin() -> AsyncIterator[RawOrigin]:
    async with raw_origin(serving(b"hello world")) as found:
        yield found


async def no_pause(_: float) -> None:
    """Ask again at once."""


async def probe(client: OriginClient, url: str, *fields: tuple[str, str]) -> Probe:
    return await Prober(client, sleep=no_pause).probe(Source(url, fields), TASK)


@pytest.mark.parametrize(
    "target",
    [
        "/bucket/model.onnx?X-Amz-Credential=AK%2F2026%2Fs3&X-Amz-Signature=0a1B&X-Amz-Date=1",
        "/a%2fb%2Fc/%7e~/+/%20?x=+&y=%2B&z=%20",
        "//double//slash/../dots/./end/",
        "/p?b=2&a=1&b=1&&=&c",
        "/trailing?",
        "/two??x=?",
        "/semi;colon;p=1?q;r=1",
        "/p?=",
        "/brackets[1]?x[]={}|^`",
        '/quote"<>\\',
        "/größe?naïve=日本",
        "/%zz%",
    ],
)
async def test_the_target_reaches_the_origin_byte_for_byte(
    client: OriginClient, origin: RawOrigin, target: str
) -> None:
    assert isinstance(await probe(client, origin.base + target), Keepable)
    assert origin.requests[0].head.split(b"\r\n")[0] == b"GET " + target.encode() + b" HTTP/1.1"


@pytest.mark.parametrize(("suffix", "target"), [("", "/"), ("?", "/?"), ("?x=1", "/?x=1")])
async def test_a_url_without_a_path_asks_for_the_root(
    client: OriginClient, origin: RawOrigin, suffix: str, target: str
) -> None:
    await probe(client, origin.base + suffix)
    assert origin.requests[0].target == target


async def test_the_request_is_the_callers_without_what_concerns_this_hop(
    client: OriginClient, origin: RawOrigin
) -> None:
    await probe(
        client,
        origin.base + "/x",
        ("Host", "elsewhere"),
        ("Authorization", "Bearer caller"),
        ("x-custom", "a"),
        ("X-Custom", "b"),
        ("Accept-Encoding", "gzip"),
        ("Range", "bytes=5-9"),
        ("If-None-Match", '"v0"'),
        ("If-Range", '"v0"'),
        ("Connection", "X-Private"),
        ("X-Private", "1"),
        ("Proxy-Connection", "Keep-Alive"),
        ("Proxy-Authorization", "Basic eA=="),
        ("X-Dragonfly-Tag", "t"),
    )
    assert origin.requests[0].fields == [
        ("Host", f"127.0.0.1:{origin.port}"),
        ("Authorization", "Bearer caller"),
        ("x-custom", "a"),
        ("x-custom", "b"),
        ("Range", "bytes=0-0"),
        ("Accept-Encoding", "identity"),
    ]


async def test_a_206_with_a_strong_etag_can_be_kept(client: OriginClient, origin: RawOrigin) -> None:
    origin.answer = serving(b"x" * 1000, "Content-Type: model/onnx")
    found = await probe(client, origin.base + "/m", ("Cookie", "c"))
    assert isinstance(found, Keepable)
    assert (found.version.task_id, found.version.length) == (TASK, 1000)
    assert (found.version.kind, found.version.validator) == (ValidatorKind.ETAG, '"v1"')
    assert single(found.headers, "content-type") == "model/onnx"
    assert found.source == Source(origin.base + "/m", (("Cookie", "c"),))


async def test_a_second_probe_uses_the_same_connection(client: OriginClient, origin: RawOrigin) -> None:
    for _ in range(3):
        await probe(client, origin.base + "/m")
    assert origin.connections == 1


async def test_a_kept_alive_connection_that_is_dead_is_replaced(client: OriginClient, origin: RawOrigin) -> None:
    alive = origin.answer
    await probe(client, origin.base + "/m")
    origin.answer = lambda request: alive(request) if request.connection > 1 else CUT
    assert isinstance(await probe(client, origin.base + "/m"), Keepable)
    assert origin.connections == 2


@pytest.mark.parametrize(
    "to_a_range",
    [
        pytest.param(response(416, body=b"<Error><Code>InvalidRange</Code></Error>"), id="radosgw"),
        pytest.param(response(206, "Content-Range: bytes 0--1/0", 'ETag: "v1"'), id="azurite"),
    ],
)
async def test_an_empty_object_is_known_however_its_store_says_so(
    client: OriginClient, origin: RawOrigin, to_a_range: bytes
) -> None:
    origin.answer = lambda request: to_a_range if request.field("Range") else response(200, 'ETag: "v1"')
    found = await probe(client, origin.base + "/empty")
    assert isinstance(found, Keepable)
    assert (found.version.length, found.version.validator) == (0, '"v1"')


async def test_an_empty_object_is_described_by_its_own_answer(client: OriginClient, origin: RawOrigin) -> None:
    origin.answer = serving(b"", "Content-Type: text/empty")
    found = await probe(client, origin.base + "/empty")
    assert isinstance(found, Keepable)
    assert found.version.length == 0
    assert single(found.headers, "content-type") == "text/empty"
    assert [request.field("Range") for request in origin.requests] == ["bytes=0-0", None]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503])
async def test_a_refusal_is_kept_as_it_is(client: OriginClient, origin: RawOrigin, status: int) -> None:
    origin.answer = lambda _: response(status, "Retry-After: 3", "X-Odd: \xe9", body=b"<Error/>")
    found = await probe(client, origin.base + "/x")
    assert isinstance(found, Refused)
    assert (found.status, found.reason, found.body) == (status, "As Written", b"<Error/>")
    assert ("Retry-After", "3") in found.headers
    assert ("X-Odd", "\xe9") in found.headers


async def test_a_long_refusal_is_cut(client: OriginClient, origin: RawOrigin) -> None:
    origin.answer = lambda _: response(403, body=b"x" * 1_000_000)
    found = await probe(client, origin.base + "/x")
    assert isinstance(found, Refused)
    assert found.body == b"x" * 65536


@pytest.mark.parametrize(
    "answer",
    [
        response(200, 'ETag: "v1"', body=b"ignores Range"),
        response(206, 'ETag: "v1"', "Content-Range: bytes 0-0/*", body=b"x"),
        response(206, 'ETag: "v1"', "Content-Range: bytes 1-1/9", body=b"x"),
        response(206, 'ETag: "v1"', body=b"x"),
        response(206, "Content-Range: bytes 0-0/9", body=b"x"),
        response(206, 'ETag: W/"v1"', "Content-Range: bytes 0-0/9", body=b"x"),
        response(206, 'ETag: "v1"', "Cache-Control: no-store", "Content-Range: bytes 0-0/9", body=b"x"),
        b"HTTP/1.1 204 No Content\r\n\r\n",
        response(300),
        response(301),
    ],
)
async def test_what_cannot_be_kept_is_to_be_passed_through(
    client: OriginClient, origin: RawOrigin, answer: bytes
) -> None:
    origin.answer = lambda _: answer
    assert isinstance(await probe(client, origin.base + "/x"), Stream)


async def test_redirects_are_followed_with_everything_on_one_host(client: OriginClient, origin: RawOrigin) -> None:
    final = serving(b"there")

    def answer(request: RawRequest) -> bytes | Awaitable[bytes]:
        if request.target == "/here":
            return response(302, "Location: /there?a=%2f+&b?")
        return final(request)

    origin.answer = answer
    found = await probe(client, origin.base + "/here", ("Authorization", "Bearer secret"))
    assert isinstance(found, Keepable)
    assert origin.requests[1].target == "/there?a=%2f+&b?"
    assert origin.requests[1].field("Authorization") == "Bearer secret"
    assert found.source.url == origin.base + "/there?a=%2f+&b?"


async def test_secrets_do_not_follow_a_redirect_to_another_host(client: OriginClient, origin: RawOrigin) -> None:
    async with raw_origin(serving(b"elsewhere")) as other:
        origin.answer = lambda _: response(307, f"Location: {other.base}/x")
        found = await probe(
            client,
            origin.base + "/here",
            ("Authorization", "Bearer secret"),
            ("Cookie", "c=1"),
            ("X-Api-Key", "k"),
            ("User-Agent", "test"),
        )
    assert isinstance(found, Keepable)
    assert found.source == Source(other.base + "/x", (("User-Agent", "test"),))
    names = [name for name, _ in other.requests[0].fields]
    assert names == ["Host", "User-Agent", "Range", "Accept-Encoding"]


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/x", "http://", "http://u:p@127.0.0.1/", "http://h:x/"])
async def test_a_redirect_that_leads_nowhere_is_the_origins_fault(
    client: OriginClient, origin: RawOrigin, location: str
) -> None:
    origin.answer = lambda _: response(302, f"Location: {location}")
    with pytest.raises(OriginError, match="redirects to"):
        await probe(client, origin.base + "/x")


async def test_a_circle_of_redirects_ends(client: OriginClient, origin: RawOrigin) -> None:
    origin.answer = lambda _: response(302, "Location: /x")
    with pytest.raises(OriginError, match="more than 10 times"):
        await probe(client, origin.base + "/x")
    assert len(origin.requests) == 11


async def test_nobody_listening_is_unreachable(client: OriginClient) -> None:
    port = free_port()
    with pytest.raises(OriginUnreachableError, match=f"cannot connect to http://127.0.0.1:{port}"):
        await probe(client, f"http://127.0.0.1:{port}/x?X-Amz-Signature=secret")


async def test_an_origin_that_only_hangs_up_is_unreachable(client: OriginClient, origin: RawOrigin) -> None:
    origin.answer = lambda _: CUT
    with pytest.raises(OriginUnreachableError, match="broke") as caught:
        await probe(client, origin.base + "/x?X-Amz-Signature=secret")
    assert "secret" not in repr(caught.value)
    assert caught.value.__cause__ is None


async def test_an_origin_that_is_silent_has_stalled(origin: RawOrigin) -> None:
    never: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    origin.answer = lambda _: never
    async with OriginClient(OriginSettings(stall_seconds=0.01)) as impatient:
        with pytest.raises(OriginStalledError):
            await probe(impatient, origin.base + "/x")


@pytest.mark.parametrize(
    "url", ["/x", "ftp://h/x", "http:///x", "http://u:p@h/", "http://h:99999/", "http://h:x/", "http://h/a b", "x"]
)
async def test_a_url_that_cannot_be_sent_is_the_callers_fault(client: OriginClient, url: str) -> None:
    with pytest.raises(BadRequestError):
        await probe(client, url)


def test_certificates_and_names_are_verified() -> None:
    context = tls_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


def test_an_unreadable_ca_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.pem"):
        tls_context(tmp_path / "missing.pem")


HOSTS = st.from_regex(r"[a-z]{1,5}(:[1-9][0-9]{0,3})?", fullmatch=True)
TARGETS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#"), max_size=40)


@given(st.sampled_from(["http", "https", "HTTP"]), HOSTS, TARGETS)
def test_any_printable_target_survives(scheme: str, host: str, rest: str) -> None:
    url = exact_url(f"{scheme}://{host}/{rest}#fragment")
    assert url.raw_path_qs == f"/{rest}"
    assert url.raw_host == host.partition(":")[0]


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/a?b?", "http://h:1/a?b?"),
        ("//o/a", "http://o/a"),
        ("https://o/a?", "https://o/a?"),
        ("c?d", "http://h:1/x/c?d"),
        ("?d", "http://h:1/x/y?d"),
        ("/a b#frag", "http://h:1/a%20b"),
    ],
)
def test_redirect_targets(location: str, expected: str) -> None:
    assert redirect_target("http://h:1/x/y?z", location) == expected


def test_origins_are_compared_without_the_default_port() -> None:
    assert origin_of("HTTP://H:80/x?secret") == "http://h"
    assert origin_of("https://h:80") == "https://h:80"


def test_fields_of_one_hop_stop_here() -> None:
    fields = (("TE", "trailers"), ("Connection", "close, X-A"), ("x-a", "1"), ("Proxy-Foo", "1"), ("X-B", "2"))
    assert end_to_end(fields) == (("X-B", "2"),)
    assert for_origin((*fields, ("host", "h"), ("x-dragonfly-tag", "t"))) == (("X-B", "2"),)
    assert for_pieces((*fields, ("Range", "r"), ("if-match", "m"))) == (("X-B", "2"),)
    assert across_hosts((*fields, ("Range", "r"), ("Accept", "*/*"))) == (("Range", "r"), ("Accept", "*/*"))
