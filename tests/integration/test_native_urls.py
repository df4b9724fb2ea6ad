"""Native names end to end: only the seed has credentials, the command asks a peer, the stores are real ones."""

from __future__ import annotations

import io
import json
import random
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from bench.cluster import LocalCluster
from tests.support.azurite import ACCOUNT, BlobServer
from tests.support.commands import run
from tests.support.daemons import fetch
from tests.support.secrets import secret
from tests.support.servers import S3Server

MODEL = {
    "config.pbtxt": b'name: "resnet"\nplatform: "onnxruntime_onnx"\n',
    "1/model.onnx": random.Random(5).randbytes(9 * 1024 * 1024 + 17),
    "1/weights/a+b c%.bin": random.Random(6).randbytes(5 * 1024 * 1024),
    "2/model.onnx": b"",
    "labels.txt": b"cat\ndog\n",
}
WRONG = "the wrong one of nobody"


def native(server: S3Server, bucket: str, key: str) -> str:
    return f"s3://{server.endpoint}/{bucket}/{key}"


def keys_of(server: S3Server) -> dict[str, str]:
    found = server.client._request_signer._credentials.get_frozen_credentials()
    return {"key_id": found.access_key, "secret_key": found.secret_key, "region": "us-east-1"}


@contextmanager
def lending(directory: Path, credentials: dict[str, Any], lent: str, store: str) -> Iterator[LocalCluster]:
    """Run a seed with credentials, and two peers that have none; a rule lends them for what begins with `lent`."""
    file, rules = directory / "cloud_credential.json", directory / "peer.toml"
    file.write_text(json.dumps(credentials))
    rules.write_text(f"[[rules]]\nmatch = '^{lent}'\ncredentials = 'seed'\nstore = '{store}'\n")
    arguments = {"seed": ("--cloud-credentials", str(file)), "peer": ("--config", str(rules))}
    with LocalCluster(peers=2, seeds=1, directory=directory / "cluster", arguments=arguments) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def fleet(radosgw: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A fleet that may read all of radosgw but for one bucket, for which it has wrong keys."""
    wrong = {"key_id": "AKNOBODY", "secret_key": secret("a wrong key", WRONG), "region": "us-east-1"}
    entries = {f"s3://{radosgw.endpoint}": keys_of(radosgw), f"s3://{radosgw.endpoint}/forbidden": wrong}
    with lending(tmp_path_factory.mktemp("s3"), {"s3": entries}, f"{radosgw.endpoint}/lent-", "s3") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def azure_fleet(azurite: BlobServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A fleet that has the key of Azurite's account."""
    entries = {f"as://{azurite.endpoint}": {"account_str": ACCOUNT, "account_key": azurite.key}}
    with lending(tmp_path_factory.mktemp("azure"), {"as": entries}, f"{azurite.endpoint}/", "azure") as cluster:
        yield cluster


def proxy(cluster: LocalCluster, peer: str = "peer-1") -> str:
    return cluster[peer].addresses["proxy"]


def get(cluster: LocalCluster, url: str, output: Path, *more: str) -> tuple[int, str]:
    addresses = cluster["peer-1"].addresses
    through = ["--proxy", addresses["proxy"], "--peer-http", addresses["http"]]
    done = run("get", url, "-o", str(output), *through, *more)
    assert done.stdout == ""
    return done.returncode, done.stderr


def tree(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


@pytest.fixture
def bucket() -> str:
    return f"bucket-{uuid.uuid4()}"


def test_one_object_is_fetched_by_the_seed_and_then_serves_its_presigned_url(
    radosgw: S3Server, fleet: LocalCluster, bucket: str, tmp_path: Path
) -> None:
    key, data = "models/a+b c/1/model.onnx", MODEL["1/model.onnx"]
    radosgw.put(bucket, key, data)
    status, said = get(fleet, native(radosgw, bucket, key), tmp_path / "m")
    assert (status, (tmp_path / "m").read_bytes() == data) == (0, True), said
    assert "(origin 0 bytes, peers 9.4 MB, local 0 bytes)" in said
    presigned = fetch(radosgw.presign(bucket, key), proxy=proxy(fleet))
    assert (presigned.status, presigned.headers["x-cache"], presigned.body == data) == (200, "HIT-LOCAL", True)
    other = fetch(radosgw.presign(bucket, key), proxy=proxy(fleet, "peer-2"))
    assert (other.headers["x-cache"], other.body == data) == ("HIT-REMOTE", True)


def test_a_model_repository_is_fetched_as_it_is_and_only_once(
    radosgw: S3Server, fleet: LocalCluster, bucket: str, tmp_path: Path
) -> None:
    for name, data in MODEL.items():
        radosgw.put(bucket, f"repository/resnet/{name}", data)
    radosgw.put(bucket, "repository/resnet2/config.pbtxt", b"another model")
    url = native(radosgw, bucket, "repository/resnet")
    status, said = get(fleet, url, tmp_path / "resnet", "--recursive")
    assert (status, tree(tmp_path / "resnet") == MODEL) == (0, True), said
    assert "5 of 5 files, 14.7 MB in" in said
    radosgw.put(bucket, "repository/resnet/labels.txt", b"cat\ndog\nfly\n")
    status, said = get(fleet, f"{url}/", tmp_path / "resnet")
    assert (status, (tmp_path / "resnet/labels.txt").read_bytes()) == (0, b"cat\ndog\nfly\n")
    assert "5 of 5 files, 4 of them there already" in said


def test_a_listing_has_more_than_one_page(radosgw: S3Server, fleet: LocalCluster, bucket: str, tmp_path: Path) -> None:
    radosgw.client.create_bucket(Bucket=bucket)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: radosgw.client.put_object(Bucket=bucket, Key=f"many/{n:04}", Body=b""), range(1003)))
    answer = fetch(
        f"{radosgw.endpoint}/{bucket}/many/",
        proxy=proxy(fleet),
        headers={"X-Damselfly-Store": "s3", "X-Damselfly-List": "1"},
    )
    assert answer.status == 200
    keys = [json.loads(line)["key"] for line in io.BytesIO(answer.body)]
    assert keys == [f"many/{n:04}" for n in range(1003)]


def test_a_private_container_of_azure_opens_for_plain_urls(
    azurite: BlobServer, azure_fleet: LocalCluster, tmp_path: Path
) -> None:
    container, data = f"c-{uuid.uuid4()}", MODEL["1/model.onnx"]
    azurite.client.create_container(container)
    azurite.client.get_blob_client(container, "m/1/model.onnx").upload_blob(data)
    status, said = get(azure_fleet, f"as://{azurite.endpoint}/{container}/m/", tmp_path / "m")
    assert (status, tree(tmp_path / "m") == {"1/model.onnx": data}) == (0, True), said
    # Triton's own URL, without a SAS: a rule lends it the seed's.
    plain = f"{azurite.endpoint}/{container}/m/1/model.onnx"
    assert fetch(plain).status in (403, 404)
    answer = fetch(plain, proxy=proxy(azure_fleet))
    assert (answer.status, answer.headers["x-cache"], answer.body == data) == (200, "HIT-LOCAL", True)


def test_clients_that_sign_their_ranges_are_answered_from_the_version(
    radosgw: S3Server, fleet: LocalCluster, tmp_path: Path
) -> None:
    bucket = f"lent-{uuid.uuid4()}"
    data = MODEL["1/model.onnx"]
    radosgw.put(bucket, "m.onnx", data)
    keys = keys_of(radosgw)
    client = boto3.client(
        "s3",
        endpoint_url=radosgw.endpoint,
        aws_access_key_id=keys["key_id"],
        aws_secret_access_key=keys["secret_key"],
        region_name="us-east-1",
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            proxies={"http": f"http://{proxy(fleet)}"},
            retries={"max_attempts": 0},
        ),
    )
    client.download_file(bucket, "m.onnx", str(tmp_path / "m"))
    assert (tmp_path / "m").read_bytes() == data
    answer = client.get_object(Bucket=bucket, Key="m.onnx", Range="bytes=5-9")
    assert (answer["Body"].read(), answer["ResponseMetadata"]["HTTPHeaders"]["x-cache"]) == (data[5:10], "HIT-LOCAL")
    # What is no object goes on with the client's own signature.
    client.put_object(Bucket=bucket, Key="new", Body=b"new")
    assert [each["Key"] for each in client.list_objects_v2(Bucket=bucket)["Contents"]] == ["m.onnx", "new"]
    assert client.get_object(Bucket=bucket, Key="new")["Body"].read() == b"new"


def test_a_directory_that_the_seed_may_not_list_is_called_by_its_prefix(
    radosgw: S3Server, fleet: LocalCluster, tmp_path: Path
) -> None:
    status, said = get(fleet, native(radosgw, "forbidden", "m/"), tmp_path / "tree")
    assert (status, f"the prefix 's3://{radosgw.endpoint}/forbidden'" in said) == (1, True), said
    assert WRONG not in said
    assert list(tmp_path.iterdir()) == []


def test_a_lone_peer_reads_what_is_its_own(moto_s3: S3Server, tmp_path: Path) -> None:
    bucket = f"bucket-{uuid.uuid4()}"
    moto_s3.put(bucket, "m/a", b"a")
    file = tmp_path / "cloud_credential.json"
    file.write_text(json.dumps({"s3": {"": keys_of(moto_s3)}}))
    arguments = {"peer": ("--cloud-credentials", str(file))}
    with LocalCluster(peers=1, seeds=0, directory=tmp_path / "cluster", arguments=arguments) as cluster:
        status, said = get(cluster, native(moto_s3, bucket, "m/"), tmp_path / "out")
        assert (status, tree(tmp_path / "out")) == (0, {"a": b"a"}), said
