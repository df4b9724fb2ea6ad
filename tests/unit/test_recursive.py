"""`damselfly get --recursive` against a stand-in for the peer's proxy: listing, tree, notes, failures."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from damselfly.get import get, get_tree
from damselfly.recursive import NOTE
from damselfly.transfer import GetSettings, located, spelt_out
from p2p.config import Address
from p2p.errors import OriginError
from p2p.hostapi import Listed, error_to_json, listed_to_json
from p2p.native import is_prefix, parse_native
from p2p.stores import Store

from .source.raw_origin import RawOrigin, RawRequest, raw_origin, response, serving

URL = "s3://http://store:9000/bucket/models"
BASE = "http://store:9000/bucket"


class Fleet:
    """Objects by key, as (ETag, bytes); what is in `broken` is refused."""

    def __init__(self) -> None:
        self.objects = {
            "models/a/config.pbtxt": ('"c1"', b"name: a"),
            "models/a/1/model.onnx": ('"m1"', bytes(range(256)) * 40),
            "models/a/1/empty": ('"e1"', b""),
        }
        self.broken: set[str] = set()
        self.bare_tags = False
        self.more: list[bytes] = []
        self.asked: list[str] = []

    def answer(self, request: RawRequest) -> bytes:
        assert request.field("X-Damselfly-Store") == "s3"
        if request.field("X-Damselfly-List"):
            assert request.target == f"{BASE}/models/"
            strip = '"' if self.bare_tags else ""
            entries = [
                Listed(key, f"{BASE}/{key}", len(data), etag.strip(strip)) for key, (etag, data) in self.objects.items()
            ]
            lines = [json.dumps(listed_to_json(entry)).encode() for entry in entries]
            return response(200, body=b"".join(line + b"\n" for line in lines + self.more))
        key = request.target.removeprefix(f"{BASE}/")
        self.asked.append(key)
        if key in self.broken:
            return response(403, body=b"damselfly: no leave to read it\n")
        etag, data = self.objects[key]
        octets = serving(data, etag=etag)(request)
        assert isinstance(octets, bytes)
        return octets


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
async def proxy(fleet: Fleet) -> AsyncIterator[RawOrigin]:
    async with raw_origin(fleet.answer) as found:
        yield found


async def run(proxy_port: int, output: Path, url: str = URL, jobs: int = 2, **more: Any) -> tuple[int, str]:
    said = io.StringIO()
    settings = GetSettings(url=url, output=output, proxy=Address("127.0.0.1", proxy_port), api=None, **more)
    status = await get_tree(settings, Console(file=said, width=300), jobs=jobs)
    return status, said.getvalue()


def tree(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != NOTE)
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def expected(fleet: Fleet) -> dict[str, bytes]:
    return {key.removeprefix("models/"): data for key, (_, data) in fleet.objects.items()}


@pytest.mark.parametrize("jobs", [1, 8])
async def test_a_tree_is_kept(fleet: Fleet, proxy: RawOrigin, tmp_path: Path, jobs: int) -> None:
    status, said = await run(proxy.port, tmp_path / "out", jobs=jobs)
    assert (status, tree(tmp_path / "out")) == (0, expected(fleet))
    assert said.startswith(f"{tmp_path / 'out'}: 3 of 3 files, 10.2 kB in ")


async def test_what_is_there_already_is_not_fetched_again(fleet: Fleet, proxy: RawOrigin, tmp_path: Path) -> None:
    await run(proxy.port, tmp_path)
    fleet.asked.clear()
    status, said = await run(proxy.port, tmp_path)
    assert (status, fleet.asked) == (0, [])
    assert "3 of 3 files, 3 of them there already, 10.2 kB in" in said

    fleet.objects["models/a/config.pbtxt"] = ('"c2"', b"name: b")
    (tmp_path / "a/1/model.onnx").write_bytes(b"not what was fetched")
    (tmp_path / "a/1/empty").unlink()
    status, said = await run(proxy.port, tmp_path)
    assert (status, tree(tmp_path)) == (0, expected(fleet))
    assert sorted(fleet.asked) == sorted(fleet.objects)


async def test_listings_may_leave_out_the_quotes_of_a_tag(fleet: Fleet, proxy: RawOrigin, tmp_path: Path) -> None:
    await run(proxy.port, tmp_path)
    fleet.bare_tags = True
    fleet.asked.clear()
    assert (await run(proxy.port, tmp_path))[0] == 0
    assert fleet.asked == []


async def test_a_torn_note_costs_a_file_and_no_more(fleet: Fleet, proxy: RawOrigin, tmp_path: Path) -> None:
    await run(proxy.port, tmp_path, jobs=1)
    note = tmp_path / NOTE
    note.write_bytes(note.read_bytes()[:-10])
    fleet.asked.clear()
    assert (await run(proxy.port, tmp_path))[0] == 0
    assert fleet.asked == ["models/a/1/empty"]
    fleet.asked.clear()
    await run(proxy.port, tmp_path)
    assert fleet.asked == []


async def test_what_fails_is_named_and_the_rest_is_kept(fleet: Fleet, proxy: RawOrigin, tmp_path: Path) -> None:
    fleet.broken = {"models/a/1/model.onnx"}
    status, said = await run(proxy.port, tmp_path)
    rest = expected(fleet)
    del rest["a/1/model.onnx"]
    assert (status, tree(tmp_path)) == (1, rest)
    assert f"damselfly get: {tmp_path / 'a/1/model.onnx'} was not written: 403" in said
    assert "no leave to read it" in said
    assert "2 of 3 files" in said
    assert said.endswith("; 1 failed\n")
    fleet.broken.clear()
    fleet.asked.clear()
    assert (await run(proxy.port, tmp_path))[0] == 0
    assert fleet.asked == ["models/a/1/model.onnx"]


@pytest.mark.parametrize("key", ["models/../../escaped", "models//double", f"models/{NOTE}", "elsewhere/x"])
async def test_no_key_leads_out_of_the_directory(fleet: Fleet, proxy: RawOrigin, tmp_path: Path, key: str) -> None:
    fleet.objects = {"models/good": ('"g"', b"good"), key: ('"b"', b"bad")}
    status, said = await run(proxy.port, tmp_path / "out")
    assert (status, tree(tmp_path)) == (1, {"out/good": b"good"})
    assert "was not written" in said
    assert fleet.asked == ["models/good"]


async def test_a_file_in_the_way_of_a_directory_fails_alone(fleet: Fleet, proxy: RawOrigin, tmp_path: Path) -> None:
    fleet.objects["models/b"] = ('"b1"', b"b")
    (tmp_path / "a").write_bytes(b"in the way")
    status, said = await run(proxy.port, tmp_path)
    assert (status, (tmp_path / "b").read_bytes()) == (1, b"b")
    assert "1 of 4 files" in said


async def test_a_listing_that_fails_leaves_nothing(fleet: Fleet, proxy: RawOrigin, tmp_path: Path) -> None:
    fleet.more = [json.dumps(error_to_json(OriginError("AccessDenied on page 2"))).encode()]
    status, said = await run(proxy.port, tmp_path / "out")
    assert (status, "AccessDenied on page 2" in said) == (1, True)
    proxy.answer = lambda _: response(502, body=b"damselfly: 502 while in step 'list': NoSuchBucket\n")
    status, said = await run(proxy.port, tmp_path / "out")
    assert (status, "NoSuchBucket" in said) == (1, True)
    proxy.answer = lambda _: response(200, body=b'{"key": "mod')
    status, said = await run(proxy.port, tmp_path / "out")
    assert (status, "the listing broke off" in said) == (1, True)
    assert not tree(tmp_path)


async def test_a_url_that_cannot_be_listed_says_so(proxy: RawOrigin, tmp_path: Path) -> None:
    status, said = await run(proxy.port, tmp_path / "out", url="https://host/models/")
    assert (status, "only native names can be listed" in said) == (1, True)
    assert proxy.requests == []


async def test_one_object_by_its_native_name(fleet: Fleet, proxy: RawOrigin, tmp_path: Path) -> None:
    url = f"{URL}/a/config.pbtxt"
    settings = GetSettings(url=url, output=tmp_path / "c", proxy=Address("127.0.0.1", proxy.port), api=None)
    assert await get(settings, Console(file=io.StringIO())) == 0
    assert (tmp_path / "c").read_bytes() == b"name: a"
    assert proxy.requests[0].target == f"{BASE}/models/a/config.pbtxt"
    assert proxy.requests[0].field("Host") == "store:9000"


async def test_headers_do_not_go_with_native_names(proxy: RawOrigin, tmp_path: Path) -> None:
    settings = GetSettings(url=URL, output=tmp_path / "c", api=None, headers=(("Authorization", "Bearer 5ec2e7"),))
    said = io.StringIO()
    assert await get(settings, Console(file=said, width=300)) == 1
    assert "-H is for http://" in said.getvalue()


def test_endpoints_come_from_the_environment_where_the_name_has_none() -> None:
    found = located("s3://bucket/key", {"AWS_ENDPOINT_URL": "http://a:1", "AWS_ENDPOINT_URL_S3": "http://b:2"})
    assert found is not None
    assert (found.url, found.store) == ("http://b:2/bucket/key", Store.S3)
    found = located("s3://https://c/bucket/key", {"AWS_ENDPOINT_URL": "http://a:1"})
    assert found is not None
    assert found.url.startswith("https://c")
    assert located("https://host/key", {}) is None


def test_names_for_others_hold_the_endpoint_that_only_this_environment_tells() -> None:
    environment = {"OSS_ENDPOINT": "oss-cn-beijing.aliyuncs.com", "AWS_ENDPOINT_URL": "http://minio:9000"}
    for name in ("oss://bucket/a b%2F?", "s3://bucket/prefix/"):
        spelt = spelt_out(name, environment)
        assert parse_native(spelt) == located(name, environment)
        assert spelt_out(spelt, {}) == spelt
    for other in ("", "https://host/key?X-Amz-Signature=a", "s3+https://minio/bucket/key", "0123456789abcdef"):
        assert spelt_out(other, environment) == other


@pytest.mark.parametrize(
    ("url", "is_one"), [("s3://b/m/", True), ("oss://b/m/", True), ("s3://b/m", False), ("https://h/m/", False)]
)
def test_a_native_name_that_ends_with_a_slash_is_a_tree(url: str, is_one: bool) -> None:
    assert is_prefix(url) is is_one
