from __future__ import annotations

import pytest

from p2p.stores import Store
from peer.source.credentials.names import SECTIONS, Prefix, is_own_host, spellings

S3_HOME, GCS_HOME = "https://s3.amazonaws.com", "https://storage.googleapis.com"
AZURE = "https://acc.blob.core.windows.net"


def fits(prefix: str, section: str, url: str) -> bool:
    return Prefix.parse(prefix, section).fits(spellings(SECTIONS[section], url))


@pytest.mark.parametrize(
    ("prefix", "section", "url"),
    [
        ("", "s3", f"{S3_HOME}/bucket/key"),
        ("s3://", "s3", f"{S3_HOME}/bucket/key"),
        ("s3://bucket", "s3", f"{S3_HOME}/bucket/key"),
        ("s3://bucket", "s3", "https://bucket.s3.eu-west-1.amazonaws.com/key"),
        ("s3://bucket/mod", "s3", f"{S3_HOME}/bucket/models/a%20b"),
        ("s3://bucket/a b", "s3", f"{S3_HOME}/bucket/a%20b"),
        # Triton compares text: a prefix may end anywhere in a bucket's name.
        ("s3://team-", "s3", f"{S3_HOME}/team-a/key"),
        ("s3://https://minio:443/bucket", "s3", "https://minio/bucket/key"),
        ("s3://https://Minio/bucket", "s3", "https://minio/bucket/key"),
        ("s3://minio:9000/bucket", "s3", "http://minio:9000/bucket/key"),
        ("s3://minio:9000", "s3", "http://minio:9000/bucket/key"),
        ("s3://http://minio:9000/", "s3", "http://minio:9000/bucket/key"),
        ("gs://bucket", "gs", f"{GCS_HOME}/bucket/key"),
        ("gs://http://127.0.0.1:4443", "gs", "http://127.0.0.1:4443/bucket/key"),
        ("as://Acc/container", "as", f"{AZURE}/container/blob"),
        ("as://ACC", "as", f"{AZURE}/container/blob"),
        ("az://acc", "as", f"{AZURE}/container/blob"),
        ("as://http://127.0.0.1:10000/acc", "as", "http://127.0.0.1:10000/acc/container/blob"),
        ("oss://bucket", "oss", "https://bucket.oss-cn-hangzhou.aliyuncs.com/key"),
        ("oss://https://oss-cn-hangzhou.aliyuncs.com/bucket", "oss", "https://bucket.oss-cn-hangzhou.aliyuncs.com/key"),
        ("obs://bucket/key", "obs", "https://bucket.obs.cn-north-4.myhuaweicloud.com/key"),
    ],
)
def test_a_prefix_fits_every_url_of_the_same_name(prefix: str, section: str, url: str) -> None:
    assert fits(prefix, section, url)


@pytest.mark.parametrize(
    ("prefix", "section", "url"),
    [
        ("s3://other", "s3", f"{S3_HOME}/bucket/key"),
        ("s3://bucket", "s3", "http://minio:9000/bucket/key"),
        ("s3://bucket/", "s3", f"{S3_HOME}/bucket2/key"),
        ("s3://minio:9000/bucket", "s3", "https://minio:9000/bucket/key"),
        # A secret is never sent to a host or an account whose name only begins like the one it is for.
        ("s3://http://minio", "s3", "http://minio.evil.example/bucket/key"),
        ("s3://minio:90", "s3", "http://minio:9000/bucket/key"),
        ("as://acc", "as", "https://accomplice.blob.core.windows.net/container/blob"),
        ("as://acc/container", "as", "http://127.0.0.1:10000/acc/container/blob"),
    ],
)
def test_and_no_other(prefix: str, section: str, url: str) -> None:
    assert not fits(prefix, section, url)


def test_only_the_stores_own_hosts_by_tls_are_theirs() -> None:
    assert is_own_host(Store.GCS, f"{GCS_HOME}/bucket/key")
    assert is_own_host(Store.AZURE, f"{AZURE}/container/blob")
    for url in (GCS_HOME.replace("https", "http"), f"{GCS_HOME}:8443", "https://evil.example", AZURE):
        assert not is_own_host(Store.GCS, f"{url}/bucket/key")


def test_a_prefix_of_another_section_is_refused() -> None:
    with pytest.raises(ValueError):
        Prefix.parse("gs://bucket", "s3")
