"""Requests with the fleet's own credentials: who may make them, what of them leaves, and what stays the caller's."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from p2p.control import Source
from p2p.digests import ExpectedDigest
from p2p.errors import ConfigError, CredentialsError, OriginError
from p2p.hostapi import Keepable, Listed, Probe
from p2p.identity import identify
from p2p.stores import Store
from peer.core.rules import Action, Credentials, Rule, Rules
from peer.proxy.credentials import lent_store, require_guarded, require_lendable, without_signature
from peer.proxy.route import route
from peer.proxy.server import ProxyServer, ProxySettings
from peer.source.client import OriginSettings
from peer.source.http import Prober
from peer.source.remote import Origins

from ..source.raw_origin import RawOrigin, response, serving
from .conftest import CONTENT
from .front import HOST_ID, SIGNED, Front, MemoryTasks

AWS4 = "AWS4-HMAC-SHA256 Credential=AK/20260101/us-east-1/s3/aws4_request, SignedHeaders=host;range, Signature=5ec2e7"
URL = "http://store.internal:9000/bucket/models/m.onnx"
SEED = Rule(re.compile("store"), credentials=Credentials.SEED)


class SigningProber:
    """Stands in for a prober that signs: the origin of these tests takes any request."""

    def __init__(self, prober: Prober) -> None:
        self._prober = prober
        self.asked: list[Source] = []

    async def probe(self, source: Source, task_id: str, content: ExpectedDigest | None = None) -> Probe:
        self.asked.append(source)
        probe = await self._prober.probe(Source(source.url, source.headers), task_id, content)
        return replace(probe, source=source) if isinstance(probe, Keepable) else probe


class CoversAll:
    async def look(self) -> None:
        pass

    def covers(self, store: Store, url: str) -> bool:
        return True


class Listing:
    """Yields entries and then fails, if it is told to."""

    def __init__(self, count: int, failure: OriginError | None = None) -> None:
        self.entries = [Listed(f"m/{n}", f"{URL}/{n}", n, f'"{n}"') for n in range(count)]
        self.failure = failure
        self.asked: list[tuple[str, Store]] = []

    async def __call__(self, url: str, store: Store) -> AsyncGenerator[Listed, None]:
        self.asked.append((url, store))
        for entry in self.entries:
            yield entry
        if self.failure is not None:
            raise self.failure


@asynccontextmanager
async def lending(front: Front, *rules: Rule, listing: Listing | None = None) -> AsyncIterator[SigningProber]:
    """Give a front that has not started credentials for everything."""
    prober = SigningProber(Prober(front._client))
    origins = Origins(prober, listing or Listing(0), None, CoversAll())
    front.server = ProxyServer(front.tasks, front._client, host_id=HOST_ID, rules=Rules(rules), origins=origins)
    await front.start()
    try:
        yield prober
    finally:
        await front.stop()


@pytest.fixture
async def idle() -> Front:
    return Front(MemoryTasks(CONTENT), ProxySettings(), OriginSettings(stall_seconds=5))


async def test_a_named_store_is_asked_with_nothing_of_the_callers(idle: Front, origin: RawOrigin) -> None:
    url = f"{origin.base}/bucket/models/m.onnx"
    async with lending(idle) as prober:
        reply = await idle.get(
            f"{url}?{SIGNED}",
            "X-Damselfly-Store: s3",
            f"Authorization: {AWS4}",
            "X-Amz-Security-Token: 5ec2e7",
            "Cookie: a=5ec2e7",
            "Range: bytes=1-3",
        )
    assert (reply.status, reply.body) == (206, CONTENT[1:4])
    assert prober.asked == [Source(url, (("Via", f"1.1 {HOST_ID}"),), Store.S3)]
    assert "5ec2e7" not in str(origin.requests[0])
    (opening,) = idle.tasks.openings
    assert opening.source == prober.asked[0]
    assert opening.task.id == identify(f"{url}?{SIGNED}").id, "the presigned URL of the same object is the same task"
    assert reply.field("X-Dragonfly-Task-ID") == opening.task.id


async def test_head_is_answered_though_no_signature_would_allow_it(idle: Front, origin: RawOrigin) -> None:
    async with lending(idle, Rule(re.compile(""), credentials=Credentials.SEED, store=Store.S3)):
        reply = await idle.get(f"{origin.base}/bucket/m.onnx", f"Authorization: {AWS4}", method="HEAD")
    assert (reply.status, reply.field("Content-Length"), reply.field("ETag")) == (200, str(len(CONTENT)), '"v1"')
    assert [request.field("Range") for request in origin.requests] == ["bytes=0-0"]


async def test_what_a_rule_does_not_cover_stays_the_callers(idle: Front, origin: RawOrigin) -> None:
    async with lending(idle, Rule(re.compile(""), credentials=Credentials.SEED, store=Store.S3)) as prober:
        url = f"{origin.base}/bucket/m.onnx"
        signed = f"Authorization: {AWS4}"
        await idle.get(url, signed, "Content-Length: 2", method="PUT", body=b"hi")
        await idle.get(f"{url}?acl", signed)
        await idle.get(f"{origin.base}/bucket?list-type=2", signed)
        await idle.get(url, signed, "X-Amz-Server-Side-Encryption-Customer-Key: k")
        await idle.get(url, signed, "X-Dragonfly-Use-P2P: false")
    assert [request.field("Authorization") for request in origin.requests] == [AWS4] * 5
    assert not prober.asked
    assert not idle.tasks.openings


async def test_the_leave_is_the_fleets_whatever_a_caller_signs_with(idle: Front, origin: RawOrigin) -> None:
    rule = Rule(re.compile(""), credentials=Credentials.SEED, store=Store.S3, revalidate=float("inf"))
    async with lending(idle, rule):
        for signature in ("1111", "2222"):
            signed = f"Authorization: {AWS4[:-6]}{signature}"
            assert (await idle.get(f"{origin.base}/bucket/m.onnx", signed)).status == 200
        presigned = f"{origin.base}/bucket/m.onnx?{SIGNED}"
        assert (await idle.get(presigned)).status == 200
        assert (await idle.get(presigned, "X-Dragonfly-Use-P2P: false")).status == 200
    assert [request.field("Range") for request in origin.requests] == ["bytes=0-0", None]


async def test_what_may_not_be_kept_is_passed_through_for_the_fleet(front: Front, origin: RawOrigin) -> None:
    origin.answer = serving(CONTENT, "Cache-Control: no-store")
    url = f"{origin.base}/container/m.onnx"
    fields = ("X-Damselfly-Store: azure", "Authorization: Bearer 5ec2e7", "Range: bytes=1-3")
    reply = await front.get(url, *fields)
    assert (reply.status, reply.body, reply.field("X-Cache")) == (206, CONTENT[1:4], "BYPASS")
    assert [request.field("Range") for request in origin.requests] == ["bytes=0-0", "bytes=1-3"]
    assert not any(b"5ec2e7" in request.head for request in origin.requests)
    assert not any(b"amselfly-" in request.head for request in origin.requests)


async def test_without_credentials_and_seeds_a_refusal_says_what_to_do(front: Front, origin: RawOrigin) -> None:
    origin.answer = lambda _: response(403, body=b"<Error><Code>AccessDenied</Code></Error>")
    reply = await front.get(f"{origin.base}/container/m.onnx", "X-Damselfly-Store: azure")
    assert reply.status == 403
    assert b"without credentials" in reply.body
    assert b"--cloud-credentials, or start a seed" in reply.body


async def test_a_refusal_of_what_may_not_be_kept_says_why_no_seed_brought_it(front: Front, origin: RawOrigin) -> None:
    private = serving(CONTENT, "Cache-Control: no-store")
    refusal = response(403, body=b"<Error><Code>AccessDenied</Code></Error>")
    origin.answer = lambda request: private(request) if request.field("Range") == "bytes=0-0" else refusal
    reply = await front.get(f"{origin.base}/container/m.onnx", "X-Damselfly-Store: azure")
    assert reply.status == 403
    assert b"because the object is not kept" in reply.body
    assert b"no-store" in reply.body


@pytest.mark.parametrize(("tag", "status"), [('"v2"', 200), ('"v1"', 403)])
async def test_who_is_refused_itself_asks_anew_if_the_object_was_overwritten(
    idle: Front, origin: RawOrigin, tag: str, status: int
) -> None:
    tags = iter(['"v1"'])
    origin.answer = lambda request: serving(CONTENT, etag=next(tags, tag))(request)
    idle.tasks.refusals = [CredentialsError("no credentials", 403)]
    async with lending(idle):
        reply = await idle.get(f"{origin.base}/bucket/m.onnx", "X-Damselfly-Store: s3")
    assert reply.status == status
    assert status != 200 or (reply.field("ETag"), reply.body) == (tag, CONTENT)


async def test_what_is_public_needs_neither(front: Front, origin: RawOrigin) -> None:
    reply = await front.get(f"{origin.base}/container/m.onnx", "X-Damselfly-Store: azure")
    assert (reply.status, reply.body) == (200, CONTENT)


async def test_other_methods_and_other_words_are_refused(front: Front, origin: RawOrigin) -> None:
    url = f"{origin.base}/bucket/m.onnx"
    reply = await front.get(url, "X-Damselfly-Store: s3", "Content-Length: 2", method="PUT", body=b"hi")
    assert (reply.status, b"GET and HEAD" in reply.body) == (400, True)
    reply = await front.get(url, "X-Damselfly-Store: s4")
    assert (reply.status, b"s3, gcs, azure" in reply.body) == (400, True)
    for query in ("acl", "policy", "list-type=2&prefix=", "a=b;acl", "%61cl", f"{SIGNED}&uploads"):
        reply = await front.get(f"{url}?{query}", "X-Damselfly-Store: s3")
        assert (reply.status, b"something else" in reply.body) == (400, True)
    reply = await front.get(url, "X-Damselfly-List: 1")
    assert (reply.status, b"needs X-Damselfly-Store" in reply.body) == (400, True)
    assert not origin.requests


async def test_a_listing_is_a_line_an_object(idle: Front) -> None:
    listing = Listing(3)
    async with lending(idle, listing=listing):
        reply = await idle.get(f"{URL}/?{SIGNED}", "X-Damselfly-Store: s3", "X-Damselfly-List: 1")
    assert (reply.status, reply.field("Content-Type")) == (200, "application/x-ndjson")
    assert [json.loads(line)["key"] for line in reply.body.splitlines()] == ["m/0", "m/1", "m/2"]
    assert listing.asked == [(f"{URL}/", Store.S3)]


async def test_a_listing_that_fails_at_once_is_a_status_and_later_a_reset(idle: Front) -> None:
    listing = Listing(0, OriginError("NoSuchBucket"))
    async with lending(idle, listing=listing):
        reply = await idle.get(f"{URL}/", "X-Damselfly-Store: s3", "X-Damselfly-List: 1")
        assert (reply.status, b"NoSuchBucket" in reply.body) == (502, True)
        listing.entries = Listing(2).entries
        with pytest.raises((ConnectionError, EOFError)):
            await idle.get(f"{URL}/", "X-Damselfly-Store: s3", "X-Damselfly-List: 1")


@pytest.mark.parametrize(
    ("url", "fields", "rule", "store"),
    [
        (URL, (), SEED, BaseException),
        (URL, (("Authorization", AWS4),), SEED, Store.S3),
        (f"{URL}?{SIGNED}", (), SEED, Store.S3),
        (URL, (), Rule(credentials=Credentials.SEED, store=Store.GCS), Store.GCS),
        (URL, (("x-damselfly-store", "OSS"),), Rule(), Store.OSS),
        (URL, (), Rule(), None),
        ("https://acct.blob.core.windows.net/c/m?snapshot=1", (), SEED, Store.AZURE),
        ("https://acct.blob.core.windows.net/c?restype=container&comp=list", (), SEED, None),
        ("https://b.s3.amazonaws.com/", (), SEED, None),
        ("https://b.s3.amazonaws.com/m?versionId=1&response-content-type=a%2Fb", (), SEED, Store.S3),
        ("https://b.s3.amazonaws.com/m?partNumber=1", (), SEED, None),
        ("https://b.s3.amazonaws.com/m", (("x-amz-checksum-mode", "ENABLED"),), SEED, Store.S3),
        ("https://b.s3.amazonaws.com/m", (("x-amz-expected-bucket-owner", "1"),), SEED, None),
    ],
)
def test_which_store_is_asked_with_the_fleets_credentials(
    url: str, fields: tuple[tuple[str, str], ...], rule: Rule, store: Store | type[BaseException] | None
) -> None:
    if store is BaseException:
        with pytest.raises(Exception, match='store = "s3"'):
            lent_store(url, fields, rule)
    else:
        assert lent_store(url, fields, rule) is store


def test_a_direct_rule_is_direct() -> None:
    rule = Rule(action=Action.DIRECT, credentials=Credentials.SEED, store=Store.S3)
    assert route("GET", URL, (), has_body=False, rule=rule) is None
    assert route("GET", URL, (("X-Damselfly-Store", "s3"),), has_body=False, rule=rule) is not None


def test_only_the_signature_is_taken_off() -> None:
    assert without_signature(f"{URL}?versionId=a%2Bb&{SIGNED}&x=1#f", Store.S3) == f"{URL}?versionId=a%2Bb&x=1"
    assert without_signature(f"{URL}?{SIGNED}", Store.GCS) == URL, "Google takes AWS' signatures"
    assert without_signature("https://a.blob.core.windows.net/c/m?sv=1&sr=b&sig=x&snapshot=2", Store.AZURE) == (
        "https://a.blob.core.windows.net/c/m?snapshot=2"
    )
    assert without_signature(f"{URL}?expires=1", Store.HTTP) == f"{URL}?expires=1"


@pytest.mark.parametrize(("host", "users", "allowed"), [("127.0.0.1", 0, True), ("0.0.0.0", 0, False), ("", 1, True)])
def test_credentials_are_lent_where_it_is_known_to_whom(host: str, users: int, allowed: bool) -> None:
    if allowed:
        require_lendable(host, users)
        require_guarded(Rules([SEED]), host, users)
        return
    with pytest.raises(OriginError, match="knows no users"):
        require_lendable(host, users)
    with pytest.raises(ConfigError, match="without users"):
        require_guarded(Rules([SEED]), host, users)
    require_guarded(Rules([Rule()]), host, users)
