from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import BadRequestError, OriginError, OriginRefusedError
from p2p.hostapi import Listed
from p2p.stores import Store
from peer.source.client import OriginClient, OriginSettings
from peer.source.listing import PAGE_BYTES, directory, list_objects, relative_path

from .raw_origin import RawOrigin, RawRequest, raw_origin, response

XML = "Content-Type: application/xml"
HEAD = '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'


@pytest.fixture
async def client() -> AsyncIterator[OriginClient]:
    async with OriginClient(OriginSettings(stall_seconds=5)) as found:
        yield found


async def listed(client: OriginClient, origin: RawOrigin, store: Store = Store.S3) -> list[Listed]:
    async def no_pause(_: float) -> None:
        """Ask again at once."""

    return [each async for each in list_objects(client, f"{origin.base}/bucket/m", store, sleep=no_pause)]


def objects(*keys: str, more: str = "<IsTruncated>false</IsTruncated>") -> bytes:
    contents = (f"<Contents><Key>{key}</Key><Size>1</Size><ETag>e</ETag></Contents>" for key in keys)
    return f"{HEAD}{more}{''.join(contents)}</ListBucketResult>".encode()


async def test_a_store_that_is_busy_is_asked_again(client: OriginClient) -> None:
    answers = iter(
        [response(503, XML, body=b""), response(429, XML, body=b""), response(200, XML, body=objects("m/a"))]
    )
    async with raw_origin(lambda _: next(answers)) as origin:
        assert [entry.key for entry in await listed(client, origin)] == ["m/a"]


async def test_markers_go_on_after_the_last_key_where_a_page_names_none(client: OriginClient) -> None:
    def answer(request: RawRequest) -> bytes:
        if "marker=m%2Fb" in request.target:
            return response(200, XML, body=objects("m/c"))
        return response(200, XML, body=objects("m/a", "m/b", more="<IsTruncated>true</IsTruncated>"))

    async with raw_origin(answer) as origin:
        assert [entry.key for entry in await listed(client, origin, Store.OBS)] == ["m/a", "m/b", "m/c"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"<html></html>",
        b"{}",
        b'<!DOCTYPE x [<!ENTITY a "b">]>' + objects("m/&a;"),
        objects("m/a").replace(b"<Size>1</Size>", b""),
        objects("m/a").replace(b">1<", b">x<"),
        objects("m/a", more="<IsTruncated>true</IsTruncated>"),
        b"<ListBucketResult>" + b" " * PAGE_BYTES + b"</ListBucketResult>",
    ],
)
async def test_what_is_no_listing_is_an_error(client: OriginClient, body: bytes) -> None:
    async with raw_origin(lambda _: response(200, XML, body=body)) as origin:
        with pytest.raises(OriginError, match="listing of s3://"):
            await listed(client, origin)


async def test_a_listing_that_goes_in_circles_ends(client: OriginClient) -> None:
    more = "<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>"
    async with raw_origin(lambda _: response(200, XML, body=objects("m/a", more=more))) as origin:
        with pytest.raises(OriginError, match="same page"):
            await listed(client, origin)


async def test_an_error_has_the_stores_code_and_not_its_sentence(client: OriginClient) -> None:
    body = b"<Error><Code>NoSuchBucket</Code><Message>hunter2</Message></Error>"
    async with raw_origin(lambda _: response(404, XML, body=body)) as origin:
        with pytest.raises(OriginRefusedError, match="404: NoSuchBucket to the listing") as caught:
            await listed(client, origin)
    assert "hunter2" not in str(caught.value)


async def test_servers_that_are_no_store_have_no_listing(client: OriginClient) -> None:
    with pytest.raises(BadRequestError, match="nothing lists it"):
        [each async for each in list_objects(client, "http://h/b/k?secret", Store.HTTP)]


@pytest.mark.parametrize(
    ("prefix", "key", "path"),
    [("", "a/b", "a/b"), ("m", "m/a", "a"), ("m/", "m/a/..b", "a/..b"), ("m/", "m/ü?#", "ü?#")],
)
def test_files_go_below_the_directory(prefix: str, key: str, path: str) -> None:
    assert relative_path(prefix, key) == PurePosixPath(path)


@pytest.mark.parametrize(
    "key",
    ["m/../x", "m/a/../../x", "m//x", "m//etc/passwd", "m/", "m", "mx/a", "/m/a", "m/a\0b", "m/./a", "m/a/", "m/a//b"],
)
def test_no_key_leaves_the_directory_or_is_another_ones_file(key: str) -> None:
    with pytest.raises(BadRequestError):
        relative_path("m", key)


@given(st.text("ab./\0", max_size=6), st.text("ab./\0", max_size=12))
def test_two_keys_are_two_files_inside(prefix: str, rest: str) -> None:
    key = directory(prefix) + rest
    try:
        path = relative_path(prefix, key)
    except BadRequestError:
        return
    assert not path.is_absolute()
    assert ".." not in path.parts
    assert directory(prefix) + str(path) == key
