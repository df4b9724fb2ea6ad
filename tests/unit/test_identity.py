from __future__ import annotations

import hashlib

import pytest

from p2p.errors import BadRequestError
from p2p.identity import Store, identify, origin_key, parse_filters, recognise, redact

V4 = (
    "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAEXAMPLE%2F20240101%2Fus-east-1%2Fs3%2Faws4_request"
    "&X-Amz-Date=20240101T000000Z&X-Amz-Expires=604800&X-Amz-SignedHeaders=host&X-Amz-Signature=c0ffee00c0ffee00"
)
S3_V2 = "AWSAccessKeyId=AKIAEXAMPLE&Signature=c0ffee00%2Bc0%3D&Expires=1700000000"
GCS_V4 = (
    "X-Goog-Algorithm=GOOG4-RSA-SHA256&X-Goog-Credential=sa%40p.iam.gserviceaccount.com%2F20240101%2Fauto%2Fstorage"
    "%2Fgoog4_request&X-Goog-Date=20240101T000000Z&X-Goog-Expires=900&X-Goog-SignedHeaders=host"
    "&X-Goog-Signature=c0ffee00c0ffee00"
)
GCS_V2 = "GoogleAccessId=sa%40p.iam.gserviceaccount.com&Expires=1700000000&Signature=c0ffee00%2Bc0"
SAS = "sv=2024-08-04&st=2024-01-01T00%3A00%3A00Z&se=2024-01-02T00%3A00%3A00Z&sr=b&sp=r&spr=https&sig=c0ffee00%3D"
DELEGATION_SAS = f"{SAS}&skoid=oid&sktid=tid&skt=2024-01-01&ske=2024-01-02&sks=b&skv=2024-08-04"
ACCOUNT_SAS = "sv=2024-08-04&ss=b&srt=co&se=2024-01-02&sp=rl&sig=c0ffee00%3D"
OSS_V1 = "OSSAccessKeyId=LTAIEXAMPLE&Expires=1700000000&Signature=c0ffee00&security-token=c0ffee01"
OSS_V4 = (
    "x-oss-signature-version=OSS4-HMAC-SHA256&x-oss-credential=LTAIEXAMPLE&x-oss-date=20240101T000000Z"
    "&x-oss-expires=900&x-oss-signature=c0ffee00"
)
OBS_V2 = "AccessKeyId=OBSEXAMPLE&Expires=1700000000&Signature=c0ffee00"
OBS_V4 = "X-Obs-Date=20240101T000000Z&X-Obs-Credential=OBSEXAMPLE&X-Obs-Signature=c0ffee00"


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        (f"http://minio:9000/models/a/1/model.onnx?{V4}", "s3+http://minio:9000/models/a/1/model.onnx"),
        (f"http://minio:9000/models/m?{S3_V2}", "s3+http://minio:9000/models/m"),
        (f"https://s3.amazonaws.com/b/k?{V4}", "s3+https://s3.amazonaws.com/b/k"),
        (f"https://b.s3.eu-west-1.amazonaws.com/k?{V4}&x-id=GetObject", "s3+https://s3.amazonaws.com/b/k"),
        (f"https://storage.googleapis.com/b/k/l?{GCS_V4}", "gcs+https://storage.googleapis.com/b/k/l"),
        (f"https://b.storage.googleapis.com/k/l?{GCS_V2}", "gcs+https://storage.googleapis.com/b/k/l"),
        (f"https://storage.googleapis.com/b/k?{V4}", "gcs+https://storage.googleapis.com/b/k"),
        (f"https://cdn.example/k?{GCS_V4}", "gcs+https://cdn.example/k"),
        (f"https://acc.blob.core.windows.net/c/k?{SAS}", "azure+https://acc.blob.core.windows.net/c/k"),
        (f"https://acc.blob.core.windows.net/c/k?{DELEGATION_SAS}", "azure+https://acc.blob.core.windows.net/c/k"),
        (f"https://acc.blob.core.windows.net/c/k?{ACCOUNT_SAS}", "azure+https://acc.blob.core.windows.net/c/k"),
        (f"http://127.0.0.1:10000/acc/c/k?{SAS}", "azure+http://127.0.0.1:10000/acc/c/k"),
        (f"https://b.oss-cn-hangzhou.aliyuncs.com/k?{OSS_V1}", "oss+https://oss-cn-hangzhou.aliyuncs.com/b/k"),
        (f"https://b.oss-cn-hangzhou.aliyuncs.com/k?{OSS_V4}", "oss+https://oss-cn-hangzhou.aliyuncs.com/b/k"),
        (f"https://b.obs.cn-north-4.myhuaweicloud.com/k?{OBS_V2}", "obs+https://obs.cn-north-4.myhuaweicloud.com/b/k"),
        (f"https://b.obs.cn-north-4.myhuaweicloud.com/k?{OBS_V4}", "obs+https://obs.cn-north-4.myhuaweicloud.com/b/k"),
        (f"https://obs.cn-north-4.myhuaweicloud.com/b/k?{V4}", "obs+https://obs.cn-north-4.myhuaweicloud.com/b/k"),
    ],
)
def test_presigned_urls_of_known_stores_lose_their_signature(url: str, canonical: str) -> None:
    task = identify(url)
    assert task.canonical == canonical
    assert task.id == hashlib.sha256(canonical.encode()).hexdigest()
    assert task.store == canonical.partition("+")[0]
    found = recognise(url)
    assert found is not None
    assert found.presigned


@pytest.mark.parametrize(
    "url",
    [
        "https://s3.amazonaws.com/my.bucket/a/b",
        "https://S3.AmazonAWS.com:443/my.bucket/a/b",
        "https://s3.us-west-2.amazonaws.com/my.bucket/a/b",
        "https://s3-us-west-2.amazonaws.com/my.bucket/a/b",
        "https://s3.dualstack.us-west-2.amazonaws.com/my.bucket/a/b",
        "https://s3-fips.dualstack.us-west-2.amazonaws.com/my.bucket/a/b",
        "https://my.bucket.s3.amazonaws.com/a/b",
        "https://my.bucket.s3.us-west-2.amazonaws.com/a/b",
        "https://my.bucket.s3-accelerate.amazonaws.com/a/b",
        f"https://my.bucket.s3.us-west-2.amazonaws.com/a/b?{V4}#fragment",
        "https://my.bucket.s3.us-west-2.amazonaws.com/a%2Fb",
        "https://my.bucket.s3.us-west-2.amazonaws.com/%61/b",
        "s3://my.bucket/a/b",
    ],
)
def test_every_form_of_one_aws_object_is_one_task(url: str) -> None:
    assert identify(url).canonical == "s3+https://s3.amazonaws.com/my.bucket/a/b"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # Other partitions have their own buckets.
        ("https://s3.amazonaws.com/b/k", "https://s3.us-gov-west-1.amazonaws.com/b/k"),
        ("https://s3.amazonaws.com/b/k", "https://s3.cn-north-1.amazonaws.com.cn/b/k"),
        # Hosts that only look like the REST interface's.
        ("https://b.s3.us-east-1.amazonaws.com/k", "https://b.s3-website-us-east-1.amazonaws.com/k"),
        ("https://b.s3.us-east-1.amazonaws.com/k", "https://b.s3-object-lambda.us-east-1.amazonaws.com/k"),
        ("https://b.s3.amazonaws.com/k", "https://b.s3.amazonaws.com.evil.example/k"),
        ("https://b.s3.amazonaws.com/k", "https://b.s3.amazonaws.com:8443/k"),
        # TLS and clear text, ports, hosts.
        (f"http://minio:9000/b/k?{V4}", f"https://minio:9000/b/k?{V4}"),
        (f"http://minio:9000/b/k?{V4}", f"http://minio:9001/b/k?{V4}"),
        (f"http://minio:9000/b/k?{V4}", f"http://b.minio:9000/k?{V4}"),
        # Versions, parts, and what else chooses or changes the bytes.
        (f"http://minio/b/k?{V4}", f"http://minio/b/k?versionId=1&{V4}"),
        (f"http://minio/b/k?versionId=1&{V4}", f"http://minio/b/k?versionId=2&{V4}"),
        (f"http://minio/b/k?versionId=1&{V4}", f"http://minio/b/k?versionid=1&{V4}"),
        ("https://storage.googleapis.com/b/k?generation=1", "https://storage.googleapis.com/b/k?generation=2"),
        ("https://a.blob.core.windows.net/c/k", "https://a.blob.core.windows.net/c/k?snapshot=2024-01-01"),
        (f"https://b.oss-cn-x.aliyuncs.com/k?{OSS_V1}", f"https://b.oss-cn-x.aliyuncs.com/k?x-oss-process=a&{OSS_V1}"),
        (f"http://minio/b/k?{V4}", f"http://minio/b/k?acl&{V4}"),
        # A plus is a plus here and a space there.
        (f"http://minio/b/a+b?{V4}", f"http://minio/b/a%2Bb?{V4}"),
        (f"http://minio/b/a+b?{V4}", f"http://minio/b/a%20b?{V4}"),
        # Keys are not paths.
        ("https://s3.amazonaws.com/b/k", "https://s3.amazonaws.com/b//k"),
        ("https://s3.amazonaws.com/b/k", "https://s3.amazonaws.com//b/k"),
        ("https://s3.amazonaws.com/b/k", "https://s3.amazonaws.com/b/k/"),
        ("https://s3.amazonaws.com/b/a/../k", "https://s3.amazonaws.com/b/k"),
        ("https://s3.amazonaws.com/b%2Fa/k", "https://s3.amazonaws.com/b/a/k"),
        # Google's JSON interface: an object called "a/acl", and the access list of "a".
        (
            "https://storage.googleapis.com/storage/v1/b/B/o/a%2Facl",
            "https://storage.googleapis.com/storage/v1/b/B/o/a/acl",
        ),
        # Any other server.
        ("http://h/a", "http://h/A"),
        ("http://h/a", "http://h/a?x"),
        ("http://h/a?x=1&y=2", "http://h/a?y=2&x=1"),
        ("http://h/a%2Fb", "http://h/a/b"),
        ("http://h/a?token=1", "http://h/a?token=2"),
        ("http://h/a?sv=1", "http://h/a?sv=2"),
        ("http://h/a?Expires=1", "http://h/a?Expires=2"),
        # A known store is never an unknown server.
        ("s3://b/k", "http://s3+https/b/k"),
    ],
)
def test_what_may_differ_is_kept_apart(one: str, other: str) -> None:
    assert identify(one).id != identify(other).id


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("HTTP://User:Pass@Host.Example:80/a/B?x=1#top", "http://host.example/a/B?x=~"),
        ("https://h:443", "https://h/"),
        ("https://h:8443/a?", "https://h:8443/a"),
        ("http://[::1]:8080/a", "http://[::1]:8080/a"),
        ("http://h/ü?v=ü", "http://h/%C3%BC?v=%C3%BC"),
        ("http://h/a?revision=main&version=2", "http://h/a?revision=main&version=2"),
    ],
)
def test_any_other_url_stands_for_itself(url: str, canonical: str) -> None:
    task = identify(url)
    assert task.canonical.startswith(canonical)
    assert task.store is Store.HTTP
    assert recognise(url) is None


def test_request_filters_add_to_the_built_in_ones() -> None:
    plain = identify("http://h/a?keep=1")
    assert identify("http://h/a?token=2&keep=1&to%6Ben=3", filters=["token"]) == plain
    assert identify("http://h/a?Token=2&keep=1", filters=["token"]) != plain, "their case counts"
    signed = f"http://minio/b/k?{V4}"
    assert identify(f"{signed}&session=5", filters=["session"]) == identify(signed)
    assert identify(f"http://h/a?{V4}", filters=["X-Amz-Signature"]) == identify(f"http://h/a?{V4}")


def test_tag_and_application_are_part_of_the_identity() -> None:
    tasks = [
        identify("http://h/a"),
        identify("http://h/a", tag="x"),
        identify("http://h/a", application="x"),
        identify("http://h/a", tag="x", application="x"),
        identify("http://h/a", tag="x&application=x"),
    ]
    assert len({task.id for task in tasks}) == len(tasks)
    assert tasks[3].canonical == "http://h/a#tag=x&application=x"


def test_the_canonical_form_hides_every_value_that_might_be_a_secret() -> None:
    canonical = identify("https://user:hunter2@h/a?token=hunter3&hunter4&aHVudGVy==&v=2").canonical
    assert "hunter" not in canonical
    assert "user" not in canonical
    assert "aHVudGVy" not in canonical
    assert canonical.startswith("https://h/a?token=~")
    assert canonical.endswith("&v=2")


def test_store_objects_are_taken_apart() -> None:
    found = recognise(f"https://my-bucket.s3.eu-west-1.amazonaws.com/a%20b/%C3%BC+c?versionId=v1&{V4}")
    assert found is not None
    assert (found.store, found.endpoint, found.bucket) == (Store.S3, "https://s3.amazonaws.com", "my-bucket")
    assert found.key == "a b/ü+c"
    assert found.query == ("versionId=v1",)
    assert "v1" not in repr(found)
    unknown = recognise(f"http://minio:9000/b/k?{V4}")
    assert unknown is not None
    assert (unknown.endpoint, unknown.bucket, unknown.key) == ("http://minio:9000", "", "b/k")


def test_native_urls_have_literal_keys() -> None:
    assert identify("s3://b/a b+c%20?d") == identify("https://b.s3.amazonaws.com/a%20b%2Bc%2520%3Fd")
    assert identify("gs://b/k") == identify("https://storage.googleapis.com/b/k")
    assert identify("as://Acc/c/k") == identify("https://acc.blob.core.windows.net/c/k")
    found = recognise("s3://b/k")
    assert found is not None
    assert not found.presigned


@pytest.mark.parametrize(
    ("name", "plain", "store", "presigned"),
    [
        ("s3://http://minio:9000/b/a b", "http://minio:9000/b/a%20b", Store.S3, f"http://minio:9000/b/a%20b?{V4}"),
        ("s3://minio:9000/b/k", "http://minio:9000/b/k", Store.S3, f"http://MINIO:9000/b/k?{S3_V2}"),
        ("gs://https://g:4443/b/k", "https://g:4443/b/k", Store.GCS, f"https://g:4443/b/k?{GCS_V4}"),
        ("as://http://127.0.0.1:1/a/c/k", "http://127.0.0.1:1/a/c/k", Store.AZURE, f"http://127.0.0.1:1/a/c/k?{SAS}"),
        ("oss://http://o:1/b/k", "http://o:1/b/k", Store.OSS, f"http://o:1/b/k?{OSS_V4}"),
        ("obs://http://o:1/b/k", "http://o:1/b/k", Store.OBS, f"http://o:1/b/k?{OBS_V2}"),
        ("oss://https://oss-cn-x.aliyuncs.com/b/k", "https://b.oss-cn-x.aliyuncs.com/k", Store.OSS, None),
        ("abfss://c@a.dfs.core.windows.net/k", "https://a.blob.core.windows.net/c/k", Store.AZURE, None),
        ("s3://b/k", "https://b.s3.eu-west-1.amazonaws.com/k", Store.S3, f"https://s3.amazonaws.com/b/k?{V4}"),
    ],
)
def test_native_plain_and_presigned_forms_are_one_task(
    name: str, plain: str, store: Store, presigned: str | None
) -> None:
    task = identify(name)
    assert task.store is store
    assert identify(plain, store=store) == task
    assert identify(presigned or plain, store=store) == identify(presigned or plain) == task


def test_the_readers_word_gives_no_server_a_dialect_it_is_known_not_to_have() -> None:
    assert identify("http://h/a%2Fb", store=Store.HTTP) == identify("http://h/a%2Fb")
    assert identify("https://storage.googleapis.com/b/k", store=Store.S3) == identify("gs://b/k")
    assert identify("http://h/b/k", store=Store.S3) != identify("http://h/b/k")


@pytest.mark.parametrize(
    "query",
    ["sv=2", "sig=1&x=2", "Expires=1&Signature=2", "Expires=1&Signature=2&Key-Pair-Id=3", "AccessKeyId=1&Signature=2"],
)
def test_half_a_signature_is_none(query: str) -> None:
    assert recognise(f"http://h/a?{query}") is None


def test_parameter_names_of_signatures_count_in_any_case() -> None:
    assert identify(f"http://h/b/k?{V4.lower()}") == identify(f"http://h/b/k?{V4}")
    assert identify(f"http://h/b/k?{V4.replace('X-Amz-Sig', 'X%2DAmz-Sig')}") == identify(f"http://h/b/k?{V4}")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/origin-form?X-Amz-Signature=hunter2",
        "h:443",
        "ftp://h/a?token=hunter2",
        "http://",
        "http:///a",
        "http://h:0/",
        "http://h:65536/",
        "http://h:x/",
        "http://hunter2@b@c/",
        "http://good\\@evil/",
        "http://[::1/",
        "http://h/a b",
        "http://h/a\r\nX: y",
        "http://h/\udb40",
        "s3:///k",
        "s3://https://hunter2@h:9000/b/k",
        "s3://hunter2@h:9000/b",
    ],
)
def test_what_cannot_be_fetched_is_refused_without_telling_secrets(url: str) -> None:
    for function in (identify, recognise, origin_key):
        with pytest.raises(BadRequestError) as caught:
            function(url)
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([], ()),
        ([""], ()),
        (["X-Amz-Algorithm&X-Amz-Credential"], ("X-Amz-Algorithm", "X-Amz-Credential")),
        (["a, b ,,c&& d"], ("a", "b", "c", "d")),
        (["a", "b&a"], ("a", "b")),
    ],
)
def test_filters_are_split_on_both_separators(values: list[str], names: tuple[str, ...]) -> None:
    assert parse_filters(values) == names


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (
            "https://u:p@h:8443/a/b?X-Amz-Signature=s&X-Amz-Date=d#f",
            "https://h:8443/a/b?X-Amz-Signature=***&X-Amz-Date=d",
        ),
        ("http://h/a?secret", "http://h/a?***"),
        ("http://h/a?c2VjcmV0==", "http://h/a?***"),
        ("http://h/a?c2VjcmV0=%3D", "http://h/a?***"),
        ("http://h/a?versionId=7&sig=s", "http://h/a?versionId=7&sig=***"),
        ("http://u:pass", "http://***"),
        ("http://u:p?ss@h/", "http://***?***"),
        ("u:p@h:443", "h:443"),
        ("/a?b=c", "/a?b=***"),
        ("http://[::1]:80/", "http://[::1]:80/"),
        ("", ""),
    ],
)
def test_redaction_hides_by_default(url: str, shown: str) -> None:
    assert redact(url) == shown


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("http://H/a?b=c", "http://h:80"),
        ("https://u:p@h/", "https://h:443"),
        ("http://[::1]:8080/", "http://[::1]:8080"),
        ("s3://b/k", "https://s3.amazonaws.com:443"),
    ],
)
def test_origins_are_named_with_their_port(url: str, key: str) -> None:
    assert origin_key(url) == key
