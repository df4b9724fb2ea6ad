from __future__ import annotations

from urllib.parse import quote

from hypothesis import assume, given
from hypothesis import strategies as st

from p2p.errors import BadRequestError
from p2p.identity import identify, recognise
from p2p.native import bucket_of, native_name, object_url, parse_native
from p2p.stores import Store

KEYS = st.one_of(st.text(st.characters(codec="utf-8"), min_size=1), st.text("ab/%+?#& =.~", min_size=1))
ROOTS = st.sampled_from(
    [
        "s3://bucket",
        "s3://http://minio:9000/bucket",
        "s3://minio:9000/bucket",
        "gs://bucket",
        "gs://https://gcs.example/bucket",
        "as://account/container",
        "as://http://127.0.0.1:10000/account/container",
        "oss://https://oss-cn-hangzhou.aliyuncs.com/bucket",
        "obs://https://obs.cn-north-4.myhuaweicloud.com/bucket",
        "obs://http://obs.example:8080/bucket",
    ]
)
SIGNATURES = {
    Store.S3: "X-Amz-Credential=a&X-Amz-Signature=b&X-Amz-Date=c",
    Store.GCS: "X-Goog-Credential=a&X-Goog-Signature=b",
    Store.AZURE: "sv=1&sr=b&sig=c",
    Store.OSS: "OSSAccessKeyId=a&Expires=1&Signature=c",
    Store.OBS: "AccessKeyId=a&Expires=1&Signature=c",
}


@given(root=ROOTS, key=KEYS)
def test_a_name_its_url_and_its_presigned_url_are_one_task(root: str, key: str) -> None:
    name = f"{root}/{key}"
    location = parse_native(name)
    task = identify(name)
    assert identify(location.url, store=location.store) == task
    assert identify(f"{location.url}?{SIGNATURES[location.store]}") == task
    # As other clients escape: whatever they can.
    everything = object_url(bucket_of(location.url, location.store), "") + quote(key, safe="").replace("%2F", "/")
    assert identify(everything, store=location.store) == task
    assert task.canonical.isascii()
    found = recognise(location.url, store=location.store)
    assert found is not None
    assert found.key.endswith(key)


@given(root=ROOTS, key=KEYS)
def test_a_spelling_leads_back_to_the_same_object(root: str, key: str) -> None:
    location = parse_native(f"{root}/{key}")
    name = native_name(location.url, location.store)
    assert parse_native(name) == location
    bucket = bucket_of(location.url, location.store)
    assert bucket.key == key
    assert object_url(bucket, key) == location.url


@given(root=ROOTS, one=KEYS, other=KEYS)
def test_two_keys_are_never_one_task(root: str, one: str, other: str) -> None:
    assume(one != other)
    assert identify(f"{root}/{one}") != identify(f"{root}/{other}")


@given(
    st.one_of(st.text(), st.text("s3gao:/?#@[]\\&%.:0k ").map("s3://".__add__), st.text().map("oss://http://".__add__))
)
def test_no_text_breaks_the_parser(text: str) -> None:
    try:
        location = parse_native(text)
        native_name(location.url, location.store)
    except BadRequestError:
        pass
