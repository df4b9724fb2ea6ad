"""Asking origins by way of seeds: which one is asked, who follows it, and what becomes of its answer."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import pytest

from p2p.auth import ClusterSecret, bearer_token
from p2p.control import SeedHost, Seeds, Source
from p2p.digests import ExpectedDigest
from p2p.errors import BadRequestError, DamselflyError, OriginError, OriginRefusedError, StoppingError
from p2p.hostapi import (
    HOST_PURPOSE,
    Keepable,
    Listed,
    Probe,
    Refused,
    Stream,
    error_to_json,
    listed_to_json,
    probe_to_json,
    source_from_json,
)
from p2p.stores import Store
from p2p.versions import ValidatorKind, Version
from peer.source.remote import Origins, SeedClient
from tests.support.servers import free_port

from .raw_origin import CUT, RawOrigin, RawRequest, raw_origin, response

SECRET = ClusterSecret(b"of the cluster's own")
SOURCE = Source("http://store:9000/bucket/m?versionId=1", (("Via", "1.1 peer-1"),), Store.S3)
TASK = "5" * 64
KEEPABLE = Keepable(Version(TASK, 7, ValidatorKind.ETAG, '"v"'), (("ETag", '"v"'),), SOURCE)
ENTRIES = [Listed(f"m/{n}", f"http://store:9000/bucket/m/{n}", n, "") for n in range(3)]


def told(value: object, status: int = 200) -> bytes:
    return response(status, body=json.dumps(value).encode())


def failed(error: DamselflyError, status: int = 502) -> bytes:
    return told(error_to_json(error), status)


@pytest.fixture
async def seeds() -> AsyncIterator[list[RawOrigin]]:
    async with raw_origin(lambda _: told(probe_to_json(KEEPABLE))) as first, raw_origin(lambda _: CUT) as second:
        yield [first, second]


@pytest.fixture
async def client(seeds: list[RawOrigin]) -> AsyncIterator[SeedClient]:
    found = SeedClient("peer-1", SECRET, clock=lambda: 1000.0)
    found.told(Seeds(tuple(SeedHost(f"seed-{n}", f"127.0.0.1:{seed.port}") for n, seed in enumerate(seeds))))
    yield found
    await found.close()


def asked(seeds: list[RawOrigin]) -> list[RawRequest]:
    return [request for seed in seeds for request in seed.requests]


@pytest.mark.parametrize("probe", [KEEPABLE, Refused(404, "Not Found", (("a", "b"),), b"\0no"), Stream("no length")])
async def test_a_seed_says_what_the_origin_said(seeds: list[RawOrigin], client: SeedClient, probe: Probe) -> None:
    seeds[0].answer = seeds[1].answer = lambda _: told(probe_to_json(probe))
    assert await client.probe(SOURCE, TASK) == probe
    (request,) = asked(seeds)
    assert request.line == "POST /v1/probe HTTP/1.1"
    body = json.loads(request.body)
    assert (source_from_json(body["source"]), body["task_id"]) == (SOURCE, TASK)
    token = bearer_token(request.field("Authorization") or "")
    assert SECRET.verify(token, HOST_PURPOSE, now=1000.0) == "peer-1"


async def test_questions_about_one_object_meet_at_one_seed(seeds: list[RawOrigin], client: SeedClient) -> None:
    seeds[0].answer = seeds[1].answer = lambda _: told(probe_to_json(KEEPABLE))
    for _ in range(4):
        await client.probe(SOURCE, TASK)
    assert sorted(len(seed.requests) for seed in seeds) == [0, 4]
    for n in range(16):
        await client.probe(SOURCE, f"{n:064}")
    assert all(seed.requests for seed in seeds)


@pytest.mark.parametrize(
    "silence",
    [
        CUT,
        response(500, body=b"<html>"),
        response(200, body=b"[1,"),
        told({"outcome": "maybe"}),
        failed(StoppingError("shutting down"), 503),
    ],
)
async def test_the_next_seed_is_asked_where_one_does_not_answer(
    seeds: list[RawOrigin], client: SeedClient, silence: bytes
) -> None:
    seeds[1].answer = lambda _: silence
    for n in range(8):
        assert await client.probe(SOURCE, f"{n:064}") == KEEPABLE
    assert len(seeds[0].requests) == 8
    assert seeds[1].requests


async def test_a_seed_that_is_gone_is_passed_over(seeds: list[RawOrigin], client: SeedClient) -> None:
    gone = SeedHost("seed-9", f"127.0.0.1:{free_port()}")
    client.told(Seeds((SeedHost("seed-0", f"127.0.0.1:{seeds[0].port}"), gone)))
    for n in range(8):
        assert await client.probe(SOURCE, f"{n:064}") == KEEPABLE
    client.told(Seeds((gone,)))
    with pytest.raises(OriginError, match=r"seed seed-9 at 127\.0\.0\.1:[0-9]+ did not answer"):
        await client.probe(SOURCE, TASK)


async def test_what_a_seed_says_is_wrong_is_said_on(seeds: list[RawOrigin], client: SeedClient) -> None:
    seeds[0].answer = seeds[1].answer = lambda _: failed(OriginRefusedError(403, "the credentials of s3://bucket"))
    with pytest.raises(OriginRefusedError, match="the credentials of s3://bucket") as raised:
        await client.probe(SOURCE, TASK)
    assert raised.value.status == 403
    assert len(asked(seeds)) == 1


async def test_without_a_seed_the_error_says_what_to_do(client: SeedClient) -> None:
    client.told(Seeds((SeedHost("peer-1", "127.0.0.1:1"),)))  # this host itself
    with pytest.raises(OriginError, match="--cloud-credentials, or start a seed") as raised:
        await client.probe(Source("http://store/m?sig=5ec2e7", (), Store.S3), TASK)
    assert "5ec2e7" not in str(raised.value)


async def collected(listing: AsyncGenerator[Listed, None]) -> list[Listed]:
    async with aclosing(listing):
        return [entry async for entry in listing]


def listing(*, last: object = None, cut: bool = False) -> bytes:
    lines = [json.dumps(listed_to_json(entry)) for entry in ENTRIES] + ([json.dumps(last)] if last else [])
    octets = response(200, body="".join(f"{line}\n" for line in lines).encode())
    return octets[:-5] if cut else octets


async def test_a_listing_comes_from_a_seed(seeds: list[RawOrigin], client: SeedClient) -> None:
    seeds[0].answer = lambda _: listing()
    for n in range(8):
        assert await collected(client.listing(f"http://store/{n}/", Store.GCS)) == ENTRIES
    assert json.loads(seeds[0].requests[0].body)["store"] == "gcs"
    assert seeds[1].requests, "which cut the connection, and was passed over"


async def test_a_listing_that_breaks_off_is_an_error_and_not_begun_anew(
    seeds: list[RawOrigin], client: SeedClient
) -> None:
    for seed in seeds:
        seed.answer = lambda _: listing(cut=True)
        seed.hang_up = True
    with pytest.raises(OriginError, match="did not answer"):
        await collected(client.listing("http://store/m/", Store.S3))
    assert len(asked(seeds)) == 1


async def test_a_listing_ends_with_what_went_wrong(seeds: list[RawOrigin], client: SeedClient) -> None:
    last = error_to_json(BadRequestError("no such bucket"))
    seeds[0].answer = seeds[1].answer = lambda _: listing(last=last)
    with pytest.raises(BadRequestError, match="no such bucket"):
        await collected(client.listing("http://store/m/", Store.S3))


class Here:
    """A host that can sign for S3 alone."""

    async def look(self) -> None:
        pass

    def covers(self, store: Store, url: str) -> bool:
        return store is Store.S3

    async def probe(self, source: Source, task_id: str, content: ExpectedDigest | None = None) -> Probe:
        return Stream("asked here")

    async def list(self, url: str, store: Store) -> AsyncGenerator[Listed, None]:
        yield Listed("here", url, 0, "")


@pytest.mark.parametrize(("store", "here"), [(None, True), (Store.HTTP, True), (Store.S3, True), (Store.GCS, False)])
async def test_a_host_asks_by_itself_where_it_can(
    seeds: list[RawOrigin], client: SeedClient, store: Store | None, here: bool
) -> None:
    seeds[0].answer = seeds[1].answer = lambda request: (
        listing() if "list" in request.target else told(probe_to_json(KEEPABLE))
    )
    own = Here()
    origins = Origins(own, own.list, client, own)
    answer = await origins.probe(Source("http://store/m", (), store), TASK)
    assert (answer == Stream("asked here")) is here
    if store is not None:
        entries = await collected(origins.listing("http://store/m/", store))
        assert (entries[0].key == "here") is here
