"""What Damselfly relies on in an S3 server, held by each that tests take for the real thing; then the whole path."""

from __future__ import annotations

import hashlib
import random
import uuid
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from bench.cluster import LocalCluster
from tests.support.daemons import curl, exchange, fetch
from tests.support.servers import S3Server

DATA = random.Random(1).randbytes(9 * 1024 * 1024 + 4321)
KEY = "models/a+b c/1/model.onnx"


@pytest.fixture(params=["radosgw", "moto_s3"])
def server(request: pytest.FixtureRequest) -> S3Server:
    chosen = request.getfixturevalue(request.param)
    assert isinstance(chosen, S3Server)
    return chosen


@pytest.fixture
def bucket() -> str:
    return f"bucket-{uuid.uuid4()}"


@pytest.fixture
def etag(server: S3Server, bucket: str) -> str:
    return server.put(bucket, KEY, DATA)


@pytest.fixture
def url(server: S3Server, bucket: str, etag: str) -> str:
    return server.presign(bucket, KEY)


def test_a_presigned_get_gives_the_whole_object(url: str, etag: str) -> None:
    answer = fetch(url)
    assert (answer.status, answer.headers["content-length"]) == (200, str(len(DATA)))
    assert answer.headers["etag"] == etag
    assert answer.sha256 == hashlib.sha256(DATA).hexdigest()


@pytest.mark.parametrize(("first", "last"), [(0, 0), (5, 9), (4 * 1024 * 1024, 8 * 1024 * 1024 - 1)])
def test_a_range_is_partial_and_names_version_and_length(url: str, etag: str, first: int, last: int) -> None:
    answer = fetch(url, headers={"Range": f"bytes={first}-{last}", "If-Match": etag})
    assert (answer.status, answer.body) == (206, DATA[first : last + 1])
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(DATA)}"
    assert answer.headers["etag"] == etag


def test_a_range_past_the_end_is_416(url: str) -> None:
    assert fetch(url, headers={"Range": f"bytes={len(DATA)}-"}).status == 416


def test_another_version_is_412(url: str) -> None:
    answer = fetch(url, headers={"Range": "bytes=0-0", "If-Match": '"00000000000000000000000000000000"'})
    assert answer.status == 412


def test_an_overwritten_object_has_another_etag_and_the_old_one_is_412(
    server: S3Server, bucket: str, url: str, etag: str
) -> None:
    renewed = server.put(bucket, KEY, DATA[::-1])
    assert renewed != etag
    assert fetch(url, headers={"Range": "bytes=0-0", "If-Match": etag}).status == 412
    assert fetch(url, headers={"Range": "bytes=0-0", "If-Match": renewed}).status == 206


def test_a_missing_object_is_404(server: S3Server, bucket: str, etag: str) -> None:
    assert fetch(server.presign(bucket, "no/such/key")).status == 404


def test_a_tampered_signature_is_refused_by_servers_that_look_at_it(server: S3Server, url: str) -> None:
    digit = "0" if url[-1] != "0" else "1"
    assert fetch(url[:-1] + digit).status == (403 if server.checks_signatures else 200)


def test_a_signature_binds_the_method(server: S3Server, url: str) -> None:
    assert fetch(url, method="HEAD").status == (403 if server.checks_signatures else 200)


def test_a_presigned_object_takes_the_whole_path(
    server: S3Server, bucket: str, url: str, etag: str, cluster: LocalCluster, tmp_path: Path
) -> None:
    first, second = (cluster[name].addresses["proxy"] for name in ("peer-1", "peer-2"))
    cold, remote = fetch(url, proxy=first), fetch(url, proxy=second)
    # Signed anew: another URL, the same object.
    local = fetch(server.presign(bucket, KEY, seconds=600), proxy=second)
    for answer in (cold, remote, local):
        assert (answer.status, answer.headers["etag"]) == (200, etag)
        assert answer.sha256 == hashlib.sha256(DATA).hexdigest()
    assert [answer.headers["x-cache"] for answer in (remote, local)] == ["HIT-REMOTE", "HIT-LOCAL"]
    part = fetch(url, proxy=first, headers={"Range": "bytes=5000000-5000009"})
    assert (part.status, part.body) == (206, DATA[5000000:5000010])
    file = tmp_path / "model.onnx"
    assert curl(url, file, proxy=first) == 0
    assert file.read_bytes() == DATA


def test_an_overwritten_object_is_new_through_the_proxy(
    server: S3Server, bucket: str, url: str, cluster: LocalCluster
) -> None:
    proxy = cluster["peer-1"].addresses["proxy"]
    assert fetch(url, proxy=proxy).body == DATA
    renewed = server.put(bucket, KEY, DATA[::-1])
    answer = fetch(url, proxy=proxy)
    assert (answer.headers["etag"], answer.body) == (renewed, DATA[::-1])


def test_a_tampered_signature_opens_nothing_though_every_byte_is_here(
    radosgw: S3Server, cluster: LocalCluster, tmp_path: Path
) -> None:
    bucket = f"bucket-{uuid.uuid4()}"
    radosgw.put(bucket, KEY, DATA)
    url = radosgw.presign(bucket, KEY)
    proxy = cluster["peer-1"].addresses["proxy"]
    assert fetch(url, proxy=proxy).body == DATA
    tampered = url[:-1] + ("0" if url[-1] != "0" else "1")
    refused = fetch(tampered, proxy=proxy)
    assert (refused.status, b"SignatureDoesNotMatch" in refused.body) == (403, True)
    assert curl(tampered, tmp_path / "refused", proxy=proxy) == 22
    # Triton takes any answer for the model, so it gets none.
    head = f"GET {tampered} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nAccept: */*\r\nProxy-Connection: Keep-Alive"
    with pytest.raises(ConnectionResetError):
        exchange(proxy, f"{head}\r\n\r\n".encode())
