"""WIRE §5: every request asks the origin, unless a rule says otherwise; and nobody has what the origin refuses."""

from __future__ import annotations

import asyncio
import concurrent.futures
import http.client
import threading
from collections.abc import Awaitable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bench.cluster import LocalCluster
from tests.support.daemons import Answer, fetch, open_url
from tests.support.origins import downloads, running_raw_origin
from tests.support.pieces import PIECE
from tests.unit.source.raw_origin import RawOrigin, RawRequest, response, serving

from .conftest import CONTENT, SIGNED

RULES = """
[[rules]]
match = '/lasting/'
authorize_ttl = '1h'

[[rules]]
match = '/never/'
revalidate = 'never'

[[rules]]
match = '/cover-same/'
stale_if_error = 'same_credential'

[[rules]]
match = '/cover-any/'
stale_if_error = 'any'
"""
OLD, NEW = CONTENT, CONTENT[::-1]


@pytest.fixture(scope="module")
def ruled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The proxy of a peer with RULES."""
    directory = tmp_path_factory.mktemp("ruled")
    rules = directory / "rules.toml"
    rules.write_text(RULES)
    arguments = {"peer-1": ("--config", str(rules))}
    with LocalCluster(peers=1, seeds=0, directory=directory, arguments=arguments) as cluster:
        yield cluster["peer-1"].addresses["proxy"]


def url_of(origin: RawOrigin, path: str, signature: str = "good", *, age: timedelta = timedelta()) -> str:
    """Return a URL that was signed so long ago, to last an hour."""
    when = f"{datetime.now(UTC) - age:%Y%m%dT%H%M%SZ}"
    return f"{origin.base}{path}?X-Amz-Date={when}&X-Amz-Expires=3600&X-Amz-Signature={signature}"


def questions(origin: RawOrigin) -> int:
    return len(origin.requests) - len(downloads(origin))


def guarded(content: bytes, etag: str = '"v1"') -> Iterator[RawOrigin]:
    served = serving(content, etag=etag)

    def answer(request: RawRequest) -> bytes:
        if "Signature=bad" in request.target:
            return response(403, "Content-Type: application/xml", body=b"<Error>SignatureDoesNotMatch</Error>")
        whole = served(request)
        assert isinstance(whole, bytes)
        return whole

    with running_raw_origin(answer) as origin:
        yield origin


@pytest.fixture
def guard() -> Iterator[RawOrigin]:
    """An origin that refuses `X-Amz-Signature=bad`."""
    yield from guarded(OLD)


def test_every_request_asks_once_for_one_byte(store: RawOrigin, signed: str, proxy: str) -> None:
    assert fetch(signed, proxy=proxy).body == CONTENT
    before = len(store.requests)
    for number in (1, 2, 3):
        answer = fetch(signed, proxy=proxy)
        assert (answer.body == CONTENT, answer.headers["x-cache"], answer.headers["age"]) == (True, "HIT-LOCAL", "0")
        assert len(store.requests) == before + number
        assert store.requests[-1].field("Range") == "bytes=0-0"


def test_an_overwritten_object_is_new_at_once(store: RawOrigin, signed: str, proxy: str, other_proxy: str) -> None:
    for address in (proxy, other_proxy):
        assert fetch(signed, proxy=address).body == OLD
    store.answer = serving(NEW, etag='"v2"')
    for address in (proxy, other_proxy):
        answer = fetch(signed, proxy=address)
        assert (answer.status, answer.body == NEW, answer.headers["etag"]) == (200, True, '"v2"')


def test_overwritten_in_mid_download(store: RawOrigin, signed: str, proxy: str) -> None:
    old, new = serving(OLD * 60, etag='"v1"'), serving(NEW * 60, etag='"v2"')
    asked, overwritten = threading.Semaphore(0), threading.Event()

    async def once_overwritten(request: RawRequest) -> bytes:
        await asyncio.to_thread(overwritten.wait)
        answer = new(request)
        return answer if isinstance(answer, bytes) else await answer

    def answer(request: RawRequest) -> bytes | Awaitable[bytes]:
        wanted = request.field("Range") or ""
        if wanted == "bytes=0-0":
            asked.release()
        elif int(wanted.removeprefix("bytes=").partition("-")[0]) >= PIECE:
            return once_overwritten(request)
        return new(request) if overwritten.is_set() else old(request)

    store.answer = answer
    tail = {"Range": "bytes=17000000-17000009"}
    with concurrent.futures.ThreadPoolExecutor(1) as other, open_url(signed, proxy=proxy) as begun:
        assert (begun.status, begun.headers["ETag"], begun.read(1)) == (200, '"v1"', OLD[:1])
        waiting = other.submit(fetch, signed, proxy=proxy, headers=tail)
        for _ in range(2):
            assert asked.acquire(timeout=30)
        overwritten.set()
        with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
            begun.read()
        restarted = waiting.result(30)
    assert (restarted.status, restarted.headers["etag"]) == (206, '"v2"')
    assert restarted.body == (NEW * 60)[17_000_000:17_000_010]


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "cached"])
def test_twenty_clients_two_credentials(guard: RawOrigin, proxy: str, other_proxy: str, warm: bool) -> None:
    urls = {name: url_of(guard, "/twenty", name) for name in ("good", "bad")}
    if warm:
        for address in (proxy, other_proxy):
            assert fetch(urls["good"], proxy=address).status == 200

    def read(number: int) -> tuple[str, Answer]:
        name = ("good", "bad")[number % 2]
        return name, fetch(urls[name], proxy=(proxy, other_proxy)[number // 2 % 2])

    with concurrent.futures.ThreadPoolExecutor(20) as clients:
        answers = list(clients.map(read, range(20)))
    for name, answer in answers:
        if name == "good":
            assert (answer.status, answer.body == OLD) == (200, True)
        else:
            assert (answer.status, answer.body) == (403, b"<Error>SignatureDoesNotMatch</Error>")
            assert answer.headers["content-type"] == "application/xml"
            assert "etag" not in answer.headers
    assert all("Signature=good" in request.target for request in downloads(guard))
    assert sum(len(OLD) for _ in downloads(guard)) == len(OLD), "one copy for all who may have it"


def test_a_header_is_a_credential_too(store: RawOrigin, signed: str, proxy: str) -> None:
    served = serving(OLD)
    store.answer = lambda request: served(request) if request.field("Authorization") == "Bearer a" else response(401)
    assert fetch(signed, proxy=proxy, headers={"Authorization": "Bearer a"}).status == 200
    assert fetch(signed, proxy=proxy, headers={"Authorization": "Bearer b"}).status == 401
    assert fetch(signed, proxy=proxy).status == 401


@pytest.mark.parametrize("path", ["/lasting/m", "/never/m"])
def test_a_rule_lets_the_answer_be_remembered_for_its_credential(guard: RawOrigin, ruled: str, path: str) -> None:
    url = url_of(guard, path)
    assert fetch(url, proxy=ruled).body == OLD
    asked = len(guard.requests)
    for _ in range(3):
        answer = fetch(url, proxy=ruled)
        assert (answer.body == OLD, answer.headers["x-cache"]) == (True, "HIT-LOCAL")
        assert int(answer.headers["age"]) >= 0
    assert len(guard.requests) == asked
    assert fetch(url_of(guard, path, "bad"), proxy=ruled).status == 403
    assert fetch(url, proxy=ruled, headers={"Cookie": "c"}).status == 200
    assert len(guard.requests) == asked + 2


def test_what_is_remembered_never_outlives_the_url(guard: RawOrigin, ruled: str) -> None:
    url = url_of(guard, "/lasting/expired", age=timedelta(hours=2))
    for number in (1, 2):
        assert fetch(url, proxy=ruled).body == OLD
        assert questions(guard) == number, "whatever the origin's clock says"


@pytest.mark.parametrize(
    ("path", "statuses"),
    [("/off/m", (503, 503)), ("/cover-same/m", (200, 503)), ("/cover-any/m", (200, 200))],
)
def test_stale_if_error(guard: RawOrigin, ruled: str, path: str, statuses: tuple[int, int]) -> None:
    known, stranger = url_of(guard, path), url_of(guard, path, "other")
    assert fetch(known, proxy=ruled).body == OLD
    guard.answer = lambda _: response(503, "Retry-After: 60", body=b"busy")
    for url, status in zip((known, stranger), statuses, strict=True):
        answer = fetch(url, proxy=ruled)
        assert answer.status == status
        if status == 200:
            assert answer.body == OLD
            assert answer.headers["warning"].startswith('110 peer-1 "Response is Stale"')
            assert '111 peer-1 "Revalidation Failed"' in answer.headers["warning"]
        else:
            assert (answer.body, answer.headers["retry-after"]) == (b"busy", "60")
            assert "warning" not in answer.headers
    guard.answer = serving(NEW, etag='"v2"')
    assert fetch(known, proxy=ruled).body == NEW


def test_an_origin_that_is_gone_is_covered_too(ruled: str) -> None:
    with running_raw_origin(serving(OLD)) as origin:
        url = f"{origin.base}/cover-any/gone?{SIGNED}"
        other = f"{origin.base}/off/gone?{SIGNED}"
        for one in (url, other):
            assert fetch(one, proxy=ruled).body == OLD
    covered, refused = fetch(url, proxy=ruled), fetch(other, proxy=ruled)
    assert (covered.status, covered.body == OLD) == (200, True)
    assert (refused.status, refused.headers["x-dragonfly-error-type"]) == (502, "backend")


def test_what_covers_is_counted(guard: RawOrigin, tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(RULES)
    arguments = {"peer-1": ("--config", str(rules))}
    with LocalCluster(peers=1, seeds=0, directory=tmp_path, arguments=arguments) as cluster:
        addresses = cluster["peer-1"].addresses
        url = url_of(guard, "/cover-any/counted")
        fetch(url, proxy=addresses["proxy"])
        guard.answer = lambda _: response(503, "Retry-After: 60")
        fetch(url, proxy=addresses["proxy"])
        metrics = fetch(f"http://{addresses['http']}/metrics").body.decode()
    assert 'damselfly_proxy_freshness_total{standing="asked"} 1.0' in metrics
    assert 'damselfly_proxy_freshness_total{standing="stale"} 1.0' in metrics
