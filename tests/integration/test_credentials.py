"""Our own signatures before servers that verify them."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import pytest

from p2p.control import Source
from p2p.errors import CredentialsError
from p2p.native import parse_native
from p2p.stores import Store
from peer.source.client import OriginClient, read_at_most
from peer.source.credentials import Credentials
from tests.support.azurite import ACCOUNT, BlobServer, running_azurite
from tests.support.servers import S3Server

DATA = b"the bytes of a model"
KEYS = (
    "models/1/model.onnx",
    "a+b c/100%/d%2Fe",
    "//double//slashes/",
    "trailing/",
    "ünï/コ-ド/😀",
    "quotes'\"(1)!*&=?#;,:@$~",
    "dots/../not/./normalised",
)


@pytest.fixture(params=["radosgw", "moto_s3"])
def server(request: pytest.FixtureRequest) -> S3Server:
    chosen = request.getfixturevalue(request.param)
    assert isinstance(chosen, S3Server)
    return chosen


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlobServer]:
    with running_azurite(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture
def write(tmp_path: Path) -> Callable[[object], Credentials]:
    def written(value: object) -> Credentials:
        path = tmp_path / "cloud_credential.json"
        path.write_text(json.dumps(value))
        return Credentials.load(path)

    return written


def s3_keys(server: S3Server) -> dict[str, str]:
    found = server.client._request_signer._credentials
    return {"key_id": found.access_key, "secret_key": found.secret_key}


async def ask(credentials: Credentials, source: Source, method: str = "GET") -> tuple[aiohttp.ClientResponse, bytes]:
    async with OriginClient(credentials=credentials) as client:
        response, _ = await client.follow(method, source)
        return response, await read_at_most(response, 1 << 20)


async def test_s3_takes_the_signature_of_every_key(server: S3Server, write: Callable[[object], Credentials]) -> None:
    bucket = f"bucket-{uuid.uuid4()}"
    credentials = write({"s3": {f"s3://{server.endpoint}/{bucket}": s3_keys(server)}})
    for key in KEYS:
        # moto's own routes take dots and slashes away before it looks a key up.
        if server.checks_signatures or not ("//" in key or ".." in key):
            await asyncio.to_thread(server.put, bucket, key, DATA)
            location = parse_native(f"s3://{server.endpoint}/{bucket}/{key}")
            response, body = await ask(credentials, Source(location.url, store=location.store))
            assert (response.status, body) == (200, DATA), key


async def test_a_listing_and_a_head_with_signed_headers(
    server: S3Server, write: Callable[[object], Credentials]
) -> None:
    bucket = f"bucket-{uuid.uuid4()}"
    await asyncio.to_thread(server.put, bucket, "a b/c+d", DATA)
    credentials = write({"s3": {"": s3_keys(server)}})
    listing = await credentials.signed(
        Source(f"{server.endpoint}/{bucket}", store=Store.S3), query=(("list-type", "2"), ("prefix", "a b/c+"))
    )
    source = Source(f"{server.endpoint}/{bucket}/a%20b/c%2Bd", store=Store.S3)
    head = await credentials.signed(source, method="HEAD", headers=(("x-amz-checksum-mode", "ENABLED"),))
    async with OriginClient() as client:
        response = await client.request("GET", listing.url, listing.headers)
        assert (response.status, b"<Key>a b/c+d</Key>" in await response.read()) == (200, True)
        response.release()
        response = await client.request("HEAD", head.url, head.headers)
        response.release()
        assert (response.status, response.headers["Content-Length"]) == (200, str(len(DATA)))
        if server.checks_signatures:
            # What is signed must be sent, and only for its method.
            for method, headers in (("HEAD", ()), ("GET", head.headers)):
                response = await client.request(method, head.url, headers)
                response.release()
                assert response.status == 403


async def test_a_wrong_secret_is_an_error_that_names_the_prefix(
    radosgw: S3Server, write: Callable[[object], Credentials]
) -> None:
    bucket = f"bucket-{uuid.uuid4()}"
    await asyncio.to_thread(radosgw.put, bucket, "key", DATA)
    wrong = s3_keys(radosgw) | {"secret_key": "not/the+secret"}
    credentials = write({"s3": {"": wrong, f"s3://{radosgw.endpoint}/{bucket}": wrong}})
    with pytest.raises(CredentialsError, match=rf"403 \(SignatureDoesNotMatch\) .*{bucket}' of") as caught:
        await ask(credentials, Source(f"{radosgw.endpoint}/{bucket}/key", store=Store.S3))
    assert "not/the+secret" not in str(caught.value)


async def test_azure_takes_the_sas_made_of_a_key_and_the_one_as_given(
    azurite: BlobServer, write: Callable[[object], Credentials], monkeypatch: pytest.MonkeyPatch
) -> None:
    container = f"container-{uuid.uuid4()}"
    await asyncio.to_thread(azurite.put, container, "models/a+b c%/ü", DATA)
    given = (await asyncio.to_thread(azurite.container_url, container, "any")).partition("?")[2]
    location = parse_native(f"as://{azurite.endpoint}/{container}/models/a+b c%/ü")
    source = Source(location.url, store=location.store)
    endpoint = f"as://{azurite.endpoint}"
    for entry in ({"account_str": ACCOUNT, "account_key": azurite.key}, {"account_str": ACCOUNT, "sas_token": given}):
        response, body = await ask(write({"as": {endpoint: entry}}), source)
        assert (response.status, body) == (200, DATA)
    monkeypatch.setenv(
        "AZURE_STORAGE_CONNECTION_STRING",
        f"AccountName={ACCOUNT};AccountKey={azurite.key};BlobEndpoint={azurite.endpoint};",
    )
    response, body = await ask(Credentials(), source)
    assert (response.status, body) == (200, DATA)


async def test_azure_refuses_another_key_and_lists_with_the_right_one(
    azurite: BlobServer, write: Callable[[object], Credentials]
) -> None:
    container = f"container-{uuid.uuid4()}"
    await asyncio.to_thread(azurite.put, container, "key", DATA)
    endpoint = f"as://{azurite.endpoint}/{container}"
    source = Source(f"{azurite.endpoint}/{container}/key", store=Store.AZURE)
    with pytest.raises(CredentialsError, match=rf"403 \(Auth[A-Za-z]+\) .*'{endpoint}'"):
        await ask(write({"as": {endpoint: {"account_str": ACCOUNT, "account_key": "d3Jvbmc="}}}), source)
    credentials = write({"as": {endpoint: {"account_str": ACCOUNT, "account_key": azurite.key}}})
    listed = Source(f"{azurite.endpoint}/{container}?restype=container&comp=list", store=Store.AZURE)
    response, body = await ask(credentials, listed)
    assert (response.status, b"<Name>key</Name>" in body) == (200, True)
