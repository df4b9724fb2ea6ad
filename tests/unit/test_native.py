from __future__ import annotations

import pytest

from p2p.errors import BadRequestError
from p2p.native import Location, bucket_of, is_native, native_name, object_url, parse_native
from p2p.stores import Store

S3, GCS, AZURE, OSS, OBS = Store.S3, Store.GCS, Store.AZURE, Store.OSS, Store.OBS


@pytest.mark.parametrize(
    ("name", "url", "store"),
    [
        ("s3://b/k", "https://s3.amazonaws.com/b/k", S3),
        ("S3://my.bucket/a/b/", "https://s3.amazonaws.com/my.bucket/a/b/", S3),
        ("s3://b", "https://s3.amazonaws.com/b/", S3),
        ("s3://b/", "https://s3.amazonaws.com/b/", S3),
        ("s3://http://Minio:9000/b/k", "http://minio:9000/b/k", S3),
        ("s3://https://minio:443/b/k", "https://minio/b/k", S3),
        ("s3://minio:9000/b/k", "http://minio:9000/b/k", S3),
        ("s3://http://[::1]:9000/b/k", "http://[::1]:9000/b/k", S3),
        ("s3://https://b.s3.eu-west-1.amazonaws.com/k", "https://b.s3.eu-west-1.amazonaws.com/k", S3),
        ("gs://b/k", "https://storage.googleapis.com/b/k", GCS),
        ("gs://http://127.0.0.1:4443/b/k", "http://127.0.0.1:4443/b/k", GCS),
        ("as://Acc/c/k", "https://acc.blob.core.windows.net/c/k", AZURE),
        ("az://acc/c/k", "https://acc.blob.core.windows.net/c/k", AZURE),
        ("as://acc.blob.core.windows.net/c/k", "https://acc.blob.core.windows.net/c/k", AZURE),
        ("as://http://127.0.0.1:10000/acc/c/k", "http://127.0.0.1:10000/acc/c/k", AZURE),
        ("as://127.0.0.1:10000/acc/c/k", "http://127.0.0.1:10000/acc/c/k", AZURE),
        ("abfss://c@acc.dfs.core.windows.net/p/q", "https://acc.blob.core.windows.net/c/p/q", AZURE),
        ("abfs://c@acc.dfs.core.windows.net/p", "https://acc.blob.core.windows.net/c/p", AZURE),
        ("oss://b.oss-cn-x.aliyuncs.com/k", "https://b.oss-cn-x.aliyuncs.com/k", OSS),
        ("oss://oss-cn-x.aliyuncs.com/b/k", "https://b.oss-cn-x.aliyuncs.com/k", OSS),
        ("oss://https://oss-cn-x.aliyuncs.com/b/k", "https://b.oss-cn-x.aliyuncs.com/k", OSS),
        ("oss://http://h:1/b/k", "http://h:1/b/k", OSS),
        ("obs://https://obs.cn-x.myhuaweicloud.com/b/k", "https://b.obs.cn-x.myhuaweicloud.com/k", OBS),
        ("obs://b.obs.cn-x.myhuaweicloud.com/k", "https://b.obs.cn-x.myhuaweicloud.com/k", OBS),
        ("https://h/k?a=b#c", "https://h/k?a=b#c", Store.HTTP),
    ],
)
def test_names_stand_for_plain_urls(name: str, url: str, store: Store) -> None:
    assert parse_native(name) == Location(url, store)


@pytest.mark.parametrize(
    ("key", "escaped"),
    [
        ("a//b/", "a//b/"),
        ("100%25", "100%2525"),
        ("a+b c", "a%2Bb%20c"),
        ("a?x=1#y", "a%3Fx%3D1%23y"),
        ("ü/模", "%C3%BC/%E6%A8%A1"),
        ("a\udcff", "a%FF"),
        ("http://x/y", "http%3A//x/y"),
        ("../.", "../."),
    ],
)
def test_keys_are_literal(key: str, escaped: str) -> None:
    location = parse_native(f"s3://b/{key}")
    assert location.url == f"https://s3.amazonaws.com/b/{escaped}"
    assert bucket_of(location.url, S3).key == key
    assert native_name(location.url, S3) == f"s3://b/{key}"


def test_endpoints_say_where_names_without_one_lead() -> None:
    endpoints = {S3: "http://minio:9000", OSS: "oss-cn-x.aliyuncs.com", AZURE: "http://127.0.0.1:10000"}
    assert parse_native("s3://b/k", endpoints=endpoints).url == "http://minio:9000/b/k"
    assert parse_native("oss://b/k", endpoints=endpoints).url == "https://b.oss-cn-x.aliyuncs.com/k"
    assert parse_native("as://acc/c/k", endpoints=endpoints).url == "http://127.0.0.1:10000/acc/c/k"
    assert parse_native("s3://https://h/b/k", endpoints=endpoints).url == "https://h/b/k"


@pytest.mark.parametrize(
    ("url", "store", "name"),
    [
        ("https://b.s3.eu-west-1.amazonaws.com/k?versionId=1", S3, "s3://b/k"),
        ("http://s3.amazonaws.com/b/k", S3, "s3://http://s3.amazonaws.com/b/k"),
        ("https://s3.cn-north-1.amazonaws.com.cn/b/k", S3, "s3://https://s3.cn-north-1.amazonaws.com.cn/b/k"),
        ("http://minio:9000/b/k%20l", S3, "s3://http://minio:9000/b/k l"),
        ("https://b.storage.googleapis.com/k", GCS, "gs://b/k"),
        ("https://acc.blob.core.windows.net/c/k", AZURE, "as://acc/c/k"),
        ("https://acc.blob.core.chinacloudapi.cn/c/k", AZURE, "as://https://acc.blob.core.chinacloudapi.cn/c/k"),
        ("http://127.0.0.1:10000/acc/c/k", AZURE, "as://http://127.0.0.1:10000/acc/c/k"),
        ("https://b.oss-cn-x.aliyuncs.com/k", OSS, "oss://https://oss-cn-x.aliyuncs.com/b/k"),
        ("https://h/k?x", Store.HTTP, "https://h/k?x"),
    ],
)
def test_urls_have_one_native_spelling(url: str, store: Store, name: str) -> None:
    assert native_name(url, store) == name
    assert native_name(*_pair(parse_native(name))) == name


def _pair(location: Location) -> tuple[str, Store]:
    return location.url, location.store


@pytest.mark.parametrize(
    ("url", "store", "bucket", "account"),
    [
        ("http://minio:9000/b/a/k", S3, ("http://minio:9000/b", "b", "a/k"), ""),
        ("https://b.s3.amazonaws.com/a/k", S3, ("https://b.s3.amazonaws.com", "b", "a/k"), ""),
        ("http://127.0.0.1:1/acc/c/k", AZURE, ("http://127.0.0.1:1/acc/c", "c", "k"), "acc"),
        ("https://models.example.com/c/k", AZURE, ("https://models.example.com/c", "c", "k"), "models"),
    ],
)
def test_urls_are_taken_apart(url: str, store: Store, bucket: tuple[str, str, str], account: str) -> None:
    found = bucket_of(url, store)
    assert (found.url, found.name, found.key) == bucket
    assert found.account == account
    assert object_url(found, found.key) == url


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("oss://b/k", "oss://https://oss-cn-hangzhou.aliyuncs.com/bucket/key"),
        ("obs://b/k", "obs://https://obs.cn-north-4.myhuaweicloud.com/bucket/key"),
        ("s3:///k", "s3://bucket/key"),
        ("s3://", "s3://bucket/key"),
        ("s3://http://h:9000", "s3://bucket/key"),
        ("s3://http://hunter2@h/b/k", "no user"),
        ("s3://hunter2:hunter2@h:9000/b/k", "s3://bucket/key"),
        ("s3://http://u:hunter2?hunter2@h/b/k", "no user"),
        ("s3://http://h:99999/b/k", "host[:port]"),
        ("s3://http://h:0/b/k", "host[:port]"),
        ("as://acc", "as://account/container/blob"),
        ("as://acc/c/k?sv=1&sr=b&sig=hunter2", "http(s):// URL that was signed"),
        ("s3://b/k?X-Amz-Signature=hunter2", "http(s):// URL that was signed"),
        ("abfss://acc/c/k", "abfss://container@account"),
        ("abfss://c@acc.blob.core.windows.net/k", "abfss://container@account"),
        ("ftp://h/k?hunter2", "use one of s3, gs"),
        ("bucket/key", "use one of s3, gs"),
        ("s3://b/\ud800", "UTF-8"),
    ],
)
def test_errors_say_the_remedy_and_no_secret(name: str, remedy: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        parse_native(name)
    assert remedy in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_native_names_are_known_by_their_scheme() -> None:
    assert is_native("S3://b")
    assert is_native("abfss://c@a.dfs.core.windows.net/k")
    assert not is_native("https://s3/b")
    assert not is_native("s3:b")
