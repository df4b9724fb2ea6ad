"""Listings of every dialect against servers that verify what signs them: more than a page, and keys of all kinds."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from p2p.control import Source
from p2p.errors import OriginRefusedError
from p2p.hostapi import Listed
from p2p.native import parse_native
from peer.source.client import OriginClient
from peer.source.credentials import Credentials
from peer.source.listing import list_objects
from tests.support.azurite import ACCOUNT, BlobServer, running_azurite
from tests.support.gcs import GcsServer, running_gcs
from tests.support.servers import S3Server

KEYS = (
    "model/1/model.onnx",
    "model/config.pbtxt",
    "model/a b+c",
    "model/100%",
    "model/%41",
    "model/q?x=1#y&z",
    "model/ü/模型",
    "model/a&b<c>'\"",
)
DATA = b"some bytes"


@dataclass(frozen=True, slots=True)
class Place:
    """An empty bucket of a running server: its native name, how to fill it, and the credentials that open it."""

    name: str
    put: Callable[[str, bytes], Any]
    credentials: dict[str, Any]


@pytest.fixture(scope="module")
def gcs() -> Iterator[GcsServer]:
    with running_gcs() as server:
        yield server


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlobServer]:
    with running_azurite(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture(params=["radosgw", "moto_s3", "obs", "azurite", "gcs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    bucket = f"bucket-{uuid.uuid4()}"
    server = request.getfixturevalue("moto_s3" if request.param == "obs" else request.param)
    if isinstance(server, GcsServer):
        server.put(bucket, "other", b"")
        file = str(server.service_account_file(tmp_path))
        return Place(
            f"gs://{server.url}/{bucket}",
            lambda key, data: server.put(bucket, key, data),
            {"gs": {f"gs://{server.url}": file}},
        )
    if isinstance(server, BlobServer):
        server.client.create_container(bucket)
        return Place(
            f"as://{server.endpoint}/{bucket}",
            lambda key, data: server.client.get_blob_client(bucket, key).upload_blob(data),
            {"as": {f"as://{server.endpoint}": {"account_str": ACCOUNT, "account_key": server.key}}},
        )
    assert isinstance(server, S3Server)
    server.client.create_bucket(Bucket=bucket)
    keys = server.client._request_signer._credentials
    scheme = "obs" if request.param == "obs" else "s3"
    entry = {"key_id": keys.access_key, "secret_key": keys.secret_key, "region": "us-east-1"}
    return Place(
        f"{scheme}://{server.endpoint}/{bucket}",
        lambda key, data: server.client.put_object(Bucket=bucket, Key=key, Body=data),
        {scheme: {"": entry}},
    )


@pytest.fixture
async def client(place: Place, tmp_path: Path) -> AsyncIterator[OriginClient]:
    file = tmp_path / "cloud_credential.json"
    file.write_text(json.dumps(place.credentials))
    async with OriginClient(credentials=Credentials.load(file)) as found:
        yield found


async def listed(client: OriginClient, name: str, *, page_objects: int = 1000) -> list[Listed]:
    location = parse_native(name)
    return [entry async for entry in list_objects(client, location.url, location.store, page_objects=page_objects)]


async def test_every_key_is_listed_once_whatever_the_pages(place: Place, client: OriginClient) -> None:
    for key in KEYS:
        place.put(key, DATA)
    place.put("model/empty", b"")
    place.put("models-of-others/x", DATA)
    store = parse_native(place.name).store
    found = await listed(client, f"{place.name}/model", page_objects=2)
    assert {entry.key: entry.length for entry in found} == {**dict.fromkeys(KEYS, len(DATA)), "model/empty": 0}
    assert len(found) == len(KEYS) + 1
    for entry in found:
        assert entry.url == parse_native(f"{place.name}/{entry.key}").url
        async with (await client.follow("GET", Source(entry.url, (), store)))[0] as answer:
            assert (answer.status, answer.headers["ETag"]) == (200, entry.etag)
            assert len(await answer.read()) == entry.length
    assert await listed(client, f"{place.name}/model/") == found


async def test_a_whole_bucket_is_listed(place: Place, client: OriginClient) -> None:
    place.put("a", DATA)
    place.put("b/c", DATA)
    assert {entry.key for entry in await listed(client, place.name)} >= {"a", "b/c"}


async def test_what_stands_for_a_directory_is_left_out(place: Place, client: OriginClient) -> None:
    place.put("m/", b"")
    place.put("m/1/", b"")
    place.put("m/1/x", DATA)
    assert [entry.key for entry in await listed(client, f"{place.name}/m/", page_objects=1)] == ["m/1/x"]


async def test_a_prefix_without_objects_is_an_error_that_names_it(place: Place, client: OriginClient) -> None:
    place.put("models/x", DATA)
    with pytest.raises(OriginRefusedError, match=r"no object under .*/model/") as caught:
        await listed(client, f"{place.name}/model")
    assert caught.value.status == 404


async def test_a_bucket_that_is_not_there_is_named_with_the_stores_code(place: Place, client: OriginClient) -> None:
    with pytest.raises(OriginRefusedError, match=r"NoSuchBucket|ContainerNotFound") as caught:
        await listed(client, f"{place.name[:-12]}000000000000/model/")
    assert caught.value.status == 404
