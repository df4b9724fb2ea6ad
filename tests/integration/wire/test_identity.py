"""WIRE §5: which requests ask for one object, and what the origin sees of them."""

from __future__ import annotations

import random
import uuid

import pytest

from tests.integration.wire.conftest import CONTENT, SIGNED
from tests.support.clients import replay, triton_request
from tests.support.daemons import Answer, fetch
from tests.support.origins import downloads
from tests.support.servers import S3Server
from tests.unit.source.raw_origin import RawOrigin, serving

P2P = {"X-Dragonfly-Use-P2P": "true"}

TARGETS = [
    "/b/a+b%20c/m%C3%B6del.onnx?x=1+2&%7e=%7E&b=&a&&c=%2f%2F",
    "/b/%7Euser/..%2f/./x//y/?versionId=a%2Bb/c:d@e",
    "/b/m;v=1?Z=1&A=2&Z=0",
    "/b/m?",
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("signature", ["", f"&{SIGNED}&X-Amz-Date=20261121T000000Z&q=%2b"], ids=["plain", "signed"])
@pytest.mark.parametrize("choice", ["true", "false"])
def test_the_url_reaches_the_origin_byte_for_byte(
    store: RawOrigin, proxy: str, target: str, signature: str, choice: str
) -> None:
    lines = (f"X-Dragonfly-Use-P2P: {choice}", "X-Dragonfly-Filter: x&Z&q")
    assert replay(proxy, triton_request(store.base + target + signature, *lines)).body == CONTENT
    assert {request.target for request in store.requests} == {target + signature}


@pytest.mark.parametrize("seconds", [60, 604800])
def test_a_new_signature_is_the_same_object(radosgw: S3Server, proxy: str, seconds: int) -> None:
    bucket, key = f"models-{uuid.uuid4()}", "a+b c/1/m~odel.onnx"
    radosgw.put(bucket, key, CONTENT)
    first = fetch(radosgw.presign(bucket, key), proxy=proxy)
    second = fetch(radosgw.presign(bucket, key, seconds=seconds), proxy=proxy)
    assert first.headers["x-dragonfly-task-id"] == second.headers["x-dragonfly-task-id"]
    assert (second.headers["x-cache"], second.body == CONTENT) == ("HIT-LOCAL", True)


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ("/b/a%7Eb/m", "/b/a~b/m"),
        ("/b/%6Dodel", "/b/model"),
        ("/b/m?versionId=1&x=2", "/b/m?x=2&versionId=1"),
        ("/b/m%2fn", "/b/m%2Fn"),
    ],
)
def test_spellings_of_one_object_of_a_known_store(store: RawOrigin, proxy: str, one: str, same: str) -> None:
    assert _task(proxy, store, one, signed=True) == _task(proxy, store, same, signed=True)
    assert len(downloads(store)) == 1


@pytest.mark.parametrize(
    "urls",
    [
        (
            f"http://s3.amazonaws.com/models/a/m%7E.onnx?{SIGNED}",
            f"http://models.s3.amazonaws.com/a/m~.onnx?{SIGNED}9",
            "http://models.s3.eu-west-1.amazonaws.com/a/m~.onnx?AWSAccessKeyId=AK&Expires=1&Signature=c2ln",
            f"http://models.s3.dualstack.eu-west-1.amazonaws.com:80/a/m~.onnx?x-id=GetObject&{SIGNED}",
            "http://models.s3.amazonaws.com/a/m~.onnx",
        ),
        (
            "http://storage.googleapis.com/models/a/m?X-Goog-Signature=1&X-Goog-Date=1",
            "http://models.storage.googleapis.com/a/m?GoogleAccessId=AK&Expires=1&Signature=c2ln",
            f"http://storage.googleapis.com/models/a/m?{SIGNED}",
        ),
        (
            "http://acme.blob.core.windows.net/models/a/m?sv=1&sr=b&se=2&sig=1",
            "http://acme.blob.core.windows.net/models/a/m?sv=2&sr=c&sp=rl&spr=https&sig=2&skoid=1",
            "http://acme.blob.core.windows.net/models/a/m",
        ),
        (
            "http://models.oss-eu-central-1.aliyuncs.com/a/m?OSSAccessKeyId=AK&Expires=1&Signature=c2ln",
            "http://models.oss-eu-central-1.aliyuncs.com/a/m?x-oss-signature=1&x-oss-date=1",
        ),
        (
            "http://models.obs.eu-west-101.myhuaweicloud.com/a/m?AccessKeyId=AK&Expires=1&Signature=c2ln",
            "http://obs.eu-west-101.myhuaweicloud.com/models/a/m?X-Obs-Signature=1&X-Obs-Date=1",
        ),
    ],
    ids=["s3", "gcs", "azure", "oss", "obs"],
)
def test_forms_of_one_object_of_a_known_store(ruled_proxy: str, urls: tuple[str, ...]) -> None:
    """Path style, virtual-host style and every signature. This peer denies these hosts, so that nobody asks them."""
    answers = [fetch(url, proxy=ruled_proxy, headers=P2P) for url in urls]
    assert {answer.status for answer in answers} == {403}
    assert len({answer.headers["x-dragonfly-task-id"] for answer in answers}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("/b/m", "/b/M"),
        ("/b/a+b", "/b/a%2Bb"),
        ("/b/m", "/b/m/"),
        ("/b/m?versionId=1", "/b/m?versionId=2"),
        ("/b/m?partNumber=1", "/b/m"),
    ],
)
def test_objects_that_only_look_alike(store: RawOrigin, proxy: str, one: str, other: str) -> None:
    assert _task(proxy, store, one, signed=True) != _task(proxy, store, other, signed=True)


def test_urls_of_other_servers_are_taken_as_they_are(store: RawOrigin, proxy: str) -> None:
    tasks = {_task(proxy, store, target) for target in ("/m?a=1&b=2", "/m?b=2&a=1", "/%6D?a=1&b=2", "/m?a=1")}
    assert len(tasks) == 4


def test_range_and_request_headers_are_no_part_of_it(store: RawOrigin, signed: str, proxy: str) -> None:
    whole = fetch(signed, proxy=proxy)
    for headers in ({"Range": "bytes=5-9"}, {"Authorization": "Bearer abc"}, {"Accept": "x/y"}, {"Cookie": "a=1"}):
        answer = fetch(signed, proxy=proxy, headers=headers)
        assert answer.headers["x-dragonfly-task-id"] == whole.headers["x-dragonfly-task-id"]
        assert answer.headers["x-cache"] == "HIT-LOCAL"
    assert len(downloads(store)) == 1


def test_an_overwritten_object_is_another_version_of_the_same_task(
    store: RawOrigin, signed: str, proxy: str, other_proxy: str
) -> None:
    before = [fetch(signed, proxy=address) for address in (proxy, other_proxy)]
    renewed = random.Random(4).randbytes(len(CONTENT) + 1)
    store.answer = serving(renewed, etag='"v2"')
    after = [fetch(signed, proxy=address) for address in (proxy, other_proxy)]
    assert [answer.body == CONTENT for answer in before] == [True, True]
    assert [answer.body == renewed for answer in after] == [True, True]
    assert [answer.headers["etag"] for answer in after] == ['"v2"', '"v2"']
    assert len({answer.headers["x-dragonfly-task-id"] for answer in before + after}) == 1


def test_the_same_bytes_for_two_callers_are_asked_about_twice(store: RawOrigin, signed: str, proxy: str) -> None:
    """Every caller's own URL goes to the origin, though the second finds every byte here."""
    for signature in ("5ec2e7", "c0ffee"):
        assert fetch(signed.replace("5ec2e7", signature), proxy=proxy).body == CONTENT
    asked = [request.target.rpartition("=")[2] for request in store.requests if request not in downloads(store)]
    assert asked == ["5ec2e7", "c0ffee"]


def _task(proxy: str, store: RawOrigin, target: str, *, signed: bool = False) -> str:
    url = store.base + target
    if signed:
        url += ("&" if "?" in target else "?") + SIGNED
    answer: Answer = fetch(url, proxy=proxy, headers=P2P)
    assert (answer.status, answer.body == CONTENT) == (200, True)
    return answer.headers["x-dragonfly-task-id"]
