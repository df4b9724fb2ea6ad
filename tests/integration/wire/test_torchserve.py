"""WIRE §2: TorchServe's `dragonfly-endpoint` plugin, in the octets of Apache HttpClient 4."""

from __future__ import annotations

import gzip
import uuid

import pytest

from tests.integration.wire.conftest import CONTENT, SIGNED
from tests.support.clients import curl, replay, torchserve_request
from tests.support.origins import running_raw_origin
from tests.support.servers import S3Server
from tests.support.tls import own_authority
from tests.unit.source.raw_origin import RawOrigin, RawRequest, response

EMPTY_FILTER = "X-Dragonfly-Filter: "


@pytest.mark.parametrize("lines", [(), (EMPTY_FILTER,), ("X-Dragonfly-Filter:",)])
def test_shape_and_an_empty_filter(radosgw: S3Server, proxy: str, other_proxy: str, lines: tuple[str, ...]) -> None:
    """Only 200 counts for it; an empty filter is no filter, and the built-in one holds."""
    bucket, key = f"models-{uuid.uuid4()}", "densenet161.mar"
    radosgw.put(bucket, key, CONTENT)
    cold = replay(proxy, torchserve_request(radosgw.presign(bucket, key), *lines))
    remote = replay(other_proxy, torchserve_request(radosgw.presign(bucket, key, seconds=60), *lines))
    for answer in (cold, remote):
        assert (answer.status, answer.body == CONTENT) == (200, True)
        assert "content-range" not in answer.headers
    assert remote.headers["x-cache"] == "HIT-REMOTE"


def test_accept_encoding_gets_the_bytes_as_they_are_stored(store: RawOrigin, signed: str, proxy: str) -> None:
    """An origin that would compress for this client is asked for the plain bytes, which all clients share."""
    plain = store.answer

    def compressing(request: RawRequest) -> bytes:
        if "gzip" in (request.field("Accept-Encoding") or ""):
            return response(200, 'ETag: "v1"', "Content-Encoding: gzip", body=gzip.compress(CONTENT))
        answer = plain(request)
        assert isinstance(answer, bytes)
        return answer

    store.answer = compressing
    for _ in range(2):
        answer = replay(proxy, torchserve_request(signed))
        assert (answer.status, answer.body == CONTENT) == (200, True)
        assert "content-encoding" not in answer.headers
    assert {request.field("Accept-Encoding") for request in store.requests} == {"identity"}


def test_redirects_are_followed_for_it(store: RawOrigin, proxy: str) -> None:
    whole, moved = store.answer, response(302, f"Location: {store.base}/new?{SIGNED}", body=b"moved")
    store.answer = lambda request: moved if request.target.startswith("/old") else whole(request)
    answer = replay(proxy, torchserve_request(f"{store.base}/old?{SIGNED}", EMPTY_FILTER))
    assert (answer.status, answer.body == CONTENT) == (200, True)


def test_statuses_are_told_to_it(store: RawOrigin, signed: str, proxy: str) -> None:
    store.answer = lambda _: response(403, "Content-Type: application/xml", body=b"<Error/>")
    answer = replay(proxy, torchserve_request(signed, EMPTY_FILTER))
    assert (answer.status, answer.body) == (403, b"<Error/>")


def test_headers_of_its_config_reach_the_origin(store: RawOrigin, signed: str, proxy: str) -> None:
    lines = ("X-Team: vision", "Authorization: Bearer abc", "X-Dragonfly-Filter: X-Extra")
    assert replay(proxy, torchserve_request(signed, *lines)).body == CONTENT
    for request in store.requests:
        assert (request.field("X-Team"), request.field("Authorization")) == ("vision", "Bearer abc")
        assert request.field("X-Dragonfly-Filter") is None


@pytest.mark.parametrize(
    "query",
    [
        SIGNED,
        "GoogleAccessId=AK&Expires=1&Signature=c2ln",
        "Expires=1&OSSAccessKeyId=AK&Signature=c2ln",
        "sv=2022-11-02&sr=c&sp=rl&se=2&sig=c2ln",
    ],
    ids=["s3", "gcs-v2", "oss", "azure-container-sas"],
)
def test_its_stores_are_p2p(store: RawOrigin, proxy: str, query: str) -> None:
    url = f"{store.base}/densenet161.mar?{query}"
    first, second = (replay(proxy, torchserve_request(url, EMPTY_FILTER)) for _ in range(2))
    assert (first.status, first.headers["x-cache"], first.body == CONTENT) == (200, "MISS", True)
    assert (second.status, second.headers["x-cache"], second.body == CONTENT) == (200, "HIT-LOCAL", True)


def test_connect_is_a_blind_tunnel(proxy: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    ca_file, context = own_authority(tmp_path_factory.mktemp("tls"))
    with running_raw_origin(lambda _: response(200, body=b"through TLS"), tls=context) as secure:
        url = f"https://127.0.0.1:{secure.port}/m.mar?{SIGNED}"
        outcome = curl("--cacert", str(ca_file), "--user-agent", "Apache-HttpClient/4.5.14 (Java/17)", url, proxy=proxy)
        assert (outcome.code, outcome.said) == (0, "through TLS")
        (request,) = secure.requests
    assert request.target == f"/m.mar?{SIGNED}"
    assert request.field("Via") is None
