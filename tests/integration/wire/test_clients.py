"""Real clients behind the proxy, unmodified: what they save is what the origin holds."""

from __future__ import annotations

import hashlib
import io
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from tests.integration.wire.conftest import CONTENT
from tests.support.azurite import BlobServer
from tests.support.clients import aria2, curl, pip_download, replay, s5cmd, torchserve_request, triton, wget
from tests.support.daemons import fetch
from tests.support.origins import running_raw_origin
from tests.support.servers import S3Server
from tests.unit.source.raw_origin import RawOrigin, RawRequest, response

KEY = "models/a+b c/1/model.onnx"


@pytest.fixture
def bucket(radosgw: S3Server) -> str:
    """A new bucket at radosgw with CONTENT at KEY."""
    name = f"models-{uuid.uuid4()}"
    radosgw.put(name, KEY, CONTENT)
    return name


@pytest.fixture
def url(radosgw: S3Server, bucket: str) -> str:
    """A presigned URL of KEY in `bucket`."""
    return radosgw.presign(bucket, KEY)


def test_curl(url: str, proxy: str, file: Path) -> None:
    for _ in range(2):
        assert curl("--fail", "--output", str(file), url, proxy=proxy).code == 0
        assert file.read_bytes() == CONTENT


def test_curl_resumes(url: str, proxy: str, file: Path) -> None:
    file.write_bytes(CONTENT[:1000])
    assert curl("--fail", "--continue-at", "-", "--output", str(file), url, proxy=proxy).code == 0
    assert file.read_bytes() == CONTENT


def test_curl_asks_only_what_is_new(url: str, proxy: str, file: Path, tmp_path: Path) -> None:
    etags = tmp_path / "etag"
    saved, compared = ("--etag-save", str(etags)), ("--etag-compare", str(etags))
    assert curl("--fail", *saved, "--output", str(file), url, proxy=proxy).code == 0
    code = ("--write-out", "%{http_code}", "--output", str(tmp_path / "again"))
    assert curl(*compared, *code, url, proxy=proxy).said == "304"


def test_wget(url: str, proxy: str, file: Path) -> None:
    for _ in range(2):
        outcome = wget("--output-document", str(file), url, proxy=proxy)
        assert (outcome.code, file.read_bytes() == CONTENT) == (0, True), outcome.said


def test_wget_continues(url: str, proxy: str, file: Path) -> None:
    file.write_bytes(CONTENT[:1000])
    outcome = wget("--continue", "--output-document", str(file), url, proxy=proxy)
    assert (outcome.code, file.read_bytes() == CONTENT) == (0, True), outcome.said
    # Nothing is left to fetch: 416, which wget takes for success.
    assert wget("--continue", "--output-document", str(file), url, proxy=proxy).code == 0
    assert file.read_bytes() == CONTENT


@pytest.mark.parametrize("options", [(), ("--max-connection-per-server=4", "--split=4", "--min-split-size=1M")])
def test_aria2(url: str, proxy: str, file: Path, options: tuple[str, ...]) -> None:
    outcome = aria2(url, file, *options, proxy=proxy)
    assert (outcome.code, file.read_bytes() == CONTENT) == (0, True), outcome.said


def credentials(server: S3Server) -> tuple[str, str]:
    """Return the access key and the secret key of a server's client."""
    found = server.client._request_signer._credentials
    return found.access_key, found.secret_key


def boto3_behind(proxy: str, server: S3Server) -> Any:
    """Return a boto3 client of a server behind the proxy: it signs every header it sends, `Range` included."""
    access_key, secret_key = credentials(server)
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        region_name="us-east-1",
        config=Config(
            proxies={"http": f"http://{proxy}"}, s3={"addressing_style": "path"}, retries={"max_attempts": 0}
        ),
    )


def test_boto3_signed_ranges_go_through_untouched(radosgw: S3Server, bucket: str, proxy: str) -> None:
    client = boto3_behind(proxy, radosgw)
    answer = client.get_object(Bucket=bucket, Key=KEY, Range="bytes=1000-1999")
    metadata = answer["ResponseMetadata"]
    assert (metadata["HTTPStatusCode"], answer["Body"].read()) == (206, CONTENT[1000:2000])
    assert metadata["HTTPHeaders"]["via"] == "1.1 peer-1", "it really went through"


def test_boto3_reads_and_writes(radosgw: S3Server, bucket: str, proxy: str, file: Path) -> None:
    client = boto3_behind(proxy, radosgw)
    parts = TransferConfig(multipart_threshold=100_000, multipart_chunksize=100_000, max_concurrency=4)
    client.download_file(bucket, KEY, str(file), Config=parts)
    assert file.read_bytes() == CONTENT
    client.upload_file(str(file), bucket, "uploaded")
    assert client.head_object(Bucket=bucket, Key="uploaded")["ContentLength"] == len(CONTENT)
    assert {entry["Key"] for entry in client.list_objects_v2(Bucket=bucket)["Contents"]} == {KEY, "uploaded"}
    client.delete_object(Bucket=bucket, Key="uploaded")
    assert radosgw.client.list_objects_v2(Bucket=bucket)["KeyCount"] == 1


def test_s5cmd(radosgw: S3Server, bucket: str, proxy: str, file: Path) -> None:
    """Go never sends 127.0.0.1 to a proxy, so the endpoint is spelt in a way that it does not know for loopback."""
    endpoint = radosgw.endpoint.replace("127.0.0.1", "0x7f.1")
    copy = ("--log", "trace", "cp", f"s3://{bucket}/{KEY}", str(file))
    outcome = s5cmd(*copy, endpoint=endpoint, credentials=credentials(radosgw), proxy=proxy)
    assert outcome.code == 0, outcome.said
    assert file.read_bytes() == CONTENT
    assert "Via: 1.1 peer-1" in outcome.said, "it really went through"


def wheel() -> bytes:
    """Return a wheel with one module."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("wired.py", "WIRED = True\n")
        metadata = "wired-1.0.dist-info"
        archive.writestr(f"{metadata}/METADATA", "Metadata-Version: 2.1\nName: wired\nVersion: 1.0\n")
        archive.writestr(f"{metadata}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{metadata}/RECORD", "")
    return packed.getvalue()


@pytest.fixture
def index() -> Iterator[tuple[RawOrigin, bytes]]:
    """A simple index over http with one wheel, and that wheel."""
    packed, name = wheel(), "wired-1.0-py3-none-any.whl"
    page = f'<a href="/files/{name}#sha256={hashlib.sha256(packed).hexdigest()}">{name}</a>'.encode()

    def answer(request: RawRequest) -> bytes:
        if request.target == "/simple/wired/":
            return response(200, "Content-Type: text/html", body=page)
        if request.target == f"/files/{name}":
            return response(200, "Content-Type: application/octet-stream", body=packed)
        return response(404)

    with running_raw_origin(answer) as origin:
        yield origin, packed


def test_pip(index: tuple[RawOrigin, bytes], proxy: str, tmp_path: Path) -> None:
    origin, packed = index
    outcome = pip_download(f"{origin.base}/simple/", "wired", tmp_path / "wheels", proxy=proxy)
    assert outcome.code == 0, outcome.said
    (found,) = (tmp_path / "wheels").iterdir()
    assert found.read_bytes() == packed
    assert {request.field("Via") for request in origin.requests} == {"1.1 peer-1"}


def test_azure_sas(azurite: BlobServer, proxy: str, other_proxy: str, file: Path) -> None:
    """A private blob, with signatures that Azure's own library made and its emulator verifies."""
    container, name = f"models-{uuid.uuid4()}", "a/1/model.onnx"
    etag = azurite.put(container, name, CONTENT)
    assert triton(azurite.blob_url(container, name), file, proxy=proxy).code == 0
    assert file.read_bytes() == CONTENT
    remote = replay(other_proxy, torchserve_request(azurite.container_url(container, name, minutes=5)))
    assert (remote.status, remote.headers["etag"], remote.body == CONTENT) == (200, etag, True)
    assert remote.headers["x-cache"] == "HIT-REMOTE"
    head, _, _ = azurite.blob_url(container, name, minutes=5).rpartition("sig=")
    refused = fetch(f"{head}sig=AAAA", proxy=other_proxy)
    assert (refused.status, "x-ms-error-code" in refused.headers) == (403, True)
