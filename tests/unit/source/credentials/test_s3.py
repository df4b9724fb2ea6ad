from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from p2p.control import Source
from p2p.errors import CredentialsError
from p2p.stores import Store
from peer.source.credentials import Credentials
from peer.source.credentials.file import S3Entry
from peer.source.credentials.s3 import REUSE_SECONDS, addressed
from tests.unit.source.credentials.conftest import SECRET, Clock
from tests.unit.source.credentials.services import Answer, Asked, as_json, running_service

Write = Callable[[str, str], Path]

URL = "http://store.example:9000/bucket/models/a%20b"
AWS = "https://s3.amazonaws.com/bucket/models/a%20b"


def query_of(source: Source) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(source.url).query).items()}


async def signed_with(credentials: Credentials, url: str = URL, store: Store = Store.S3) -> tuple[str, str]:
    """Return the key id and the session token that a URL is signed with."""
    signed = await credentials.signed(Source(url, store=store))
    assert signed.store is None
    assert signed.url.startswith(url + "?")
    query = query_of(signed)
    return query["X-Amz-Credential"].partition("/")[0], query.get("X-Amz-Security-Token", "")


def expiring(minutes: float) -> str:
    return (datetime.now(UTC) + timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%SZ")


async def test_keys_of_the_file(write: Write) -> None:
    entry = {"key_id": "AKFILE", "secret_key": SECRET, "session_token": "token", "region": "eu-central-1"}
    path = write("c.json", json.dumps({"s3": {"s3://store.example:9000/bucket": entry}}))
    credentials = Credentials.load(path)
    assert credentials.covers(Store.S3, URL)
    signed = await credentials.signed(Source(URL, (("X-Mine", "1"), ("Authorization", "Basic x")), Store.S3))
    query = query_of(signed)
    assert query["X-Amz-Credential"].split("/")[0::2] == ["AKFILE", "eu-central-1", "aws4_request"]
    assert query["X-Amz-Security-Token"] == "token"
    assert query["X-Amz-SignedHeaders"] == "host"
    assert query["X-Amz-Expires"] == "900"
    assert signed.headers == (("X-Mine", "1"),)
    assert SECRET not in repr(signed) + repr(S3Entry(**entry))


async def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "session")
    credentials = Credentials()
    assert credentials.covers(Store.S3, URL)
    assert await signed_with(credentials) == ("AKENV", "session")


async def test_the_shared_file_and_its_profiles(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    write(
        "home/.aws/credentials",
        "[default]\naws_access_key_id = AKDEFAULT\naws_secret_access_key = x\n"
        "[other]\naws_access_key_id = AKOTHER\naws_secret_access_key = y\n",
    )
    path = write("c.json", json.dumps({"s3": {"s3://named": {"profile": "other"}}}))
    credentials = Credentials.load(path)
    assert credentials.covers(Store.S3, URL)
    assert (await signed_with(credentials))[0] == "AKDEFAULT"
    named = await credentials.signed(Source("https://s3.amazonaws.com/named/key", store=Store.S3))
    assert "AKOTHER" in named.url
    monkeypatch.setenv("AWS_PROFILE", "other")
    assert (await signed_with(Credentials()))[0] == "AKOTHER"


async def test_a_profile_that_is_not_there_is_an_error_that_names_the_prefix(write: Write) -> None:
    credentials = Credentials.load(write("c.json", json.dumps({"s3": {"s3://named": {"profile": "nobody"}}})))
    with pytest.raises(CredentialsError, match=r"'s3://named' of .*c\.json cannot be had \(ProfileNotFound\)"):
        await credentials.signed(Source("https://s3.amazonaws.com/named/key", store=Store.S3))


async def test_a_process(write: Write) -> None:
    answer = {"Version": 1, "AccessKeyId": "AKPROC", "SecretAccessKey": "x", "Expiration": expiring(60)}
    script = write("give.py", f"print({json.dumps(json.dumps(answer))})")
    command = shlex.join([sys.executable, str(script)])
    write("home/.aws/config", f"[default]\ncredential_process = {command}\n")
    assert (await signed_with(Credentials()))[0] == "AKPROC"


async def test_a_process_that_fails_is_not_quoted(write: Write) -> None:
    script = write("fail.py", f"import sys; sys.exit({SECRET!r})")
    write("home/.aws/config", f"[default]\ncredential_process = {shlex.join([sys.executable, str(script)])}\n")
    with pytest.raises(CredentialsError) as caught:
        await signed_with(Credentials())
    assert SECRET not in str(caught.value)
    assert "credentials of s3" in str(caught.value)


async def test_the_endpoint_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(asked: Asked) -> Answer:
        assert asked.headers["authorization"] == SECRET
        return as_json(
            {"AccessKeyId": "AKTASK", "SecretAccessKey": "x", "Token": "session", "Expiration": expiring(60)}
        )

    with running_service(answer) as service:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{service.base}/task")
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", SECRET)
        assert await signed_with(Credentials()) == ("AKTASK", "session")


async def test_keys_that_are_as_good_as_over_are_replaced_before_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []

    def answer(asked: Asked) -> Answer:
        given.append(f"AKTASK{len(given) + 1}")
        keys = {"AccessKeyId": given[-1], "SecretAccessKey": "x", "Token": "session"}
        return as_json(keys | {"Expiration": expiring(2 if len(given) == 1 else 60)})

    with running_service(answer) as service:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{service.base}/task")
        credentials = Credentials()
        for _ in range(3):
            assert (await signed_with(credentials))[0] == "AKTASK2"
        assert given == ["AKTASK1", "AKTASK2"]


class Instance:
    """IMDSv2; each answer has other keys."""

    def __init__(self) -> None:
        self.given = 0

    def __call__(self, asked: Asked) -> Answer:
        if asked.path == "/latest/api/token":
            assert asked.method == "PUT"
            return 200, {}, "imds-token"
        assert asked.headers["x-aws-ec2-metadata-token"] == "imds-token"
        if asked.path == "/latest/meta-data/iam/security-credentials/":
            return 200, {}, "role"
        assert asked.path == "/latest/meta-data/iam/security-credentials/role"
        self.given += 1
        return as_json(
            {
                "Code": "Success",
                "AccessKeyId": f"AKINST{self.given}",
                "SecretAccessKey": "x",
                "Token": "session",
                "Expiration": expiring(60),
            }
        )


async def test_the_metadata_of_an_instance(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    instance = Instance()
    with running_service(instance) as service:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.base)
        credentials = Credentials(clock=clock)
        assert not credentials.covers(Store.S3, URL)
        assert (await signed_with(credentials))[0] == "AKINST1"
        assert credentials.covers(Store.S3, URL)
        clock.now += REUSE_SECONDS + 1
        assert (await signed_with(credentials))[0] == "AKINST1"
        assert await credentials.refused(Source(URL, store=Store.S3), 403)
        assert (await signed_with(credentials))[0] == "AKINST2"


async def test_web_identity(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    def answer(asked: Asked) -> Answer:
        assert "Action=AssumeRoleWithWebIdentity" in asked.body
        assert "WebIdentityToken=projected" in asked.body
        text = (
            '<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
            "<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>AKWEB</AccessKeyId>"
            f"<SecretAccessKey>x</SecretAccessKey><SessionToken>web</SessionToken><Expiration>{expiring(60)}"
            "</Expiration></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
        )
        return 200, {"Content-Type": "text/xml"}, text

    with running_service(answer) as service:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", service.base)
        monkeypatch.setenv("AWS_REGION", "eu-west-1")
        monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/models")
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(write("token", "projected")))
        credentials = Credentials()
        assert credentials.covers(Store.S3, URL)
        assert await signed_with(credentials) == ("AKWEB", "web")


async def test_nothing_found_is_remembered_and_the_plain_url_asked(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    with running_service(lambda asked: (404, {}, "")) as service:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.base)
        credentials = Credentials(clock=clock)
        source = Source(URL, store=Store.S3)
        assert (await credentials.signed(source)).url == URL
        asked = len(service.asked)
        assert asked > 0
        clock.now += 30
        assert (await credentials.signed(source)).url == URL
        assert len(service.asked) == asked
    assert not credentials.covers(Store.S3, URL)
    said = str(credentials.explained(source, 403))
    assert "without credentials: there is no --cloud-credentials file" in said
    assert "the instance's metadata" in said


@pytest.mark.parametrize(
    ("store", "names", "url"),
    [
        (
            Store.OSS,
            ("OSS_ACCESS_KEY_ID", "OSS_ACCESS_KEY_SECRET"),
            "https://b.oss-cn-beijing-internal.aliyuncs.com/key",
        ),
        (Store.OBS, ("OBS_ACCESS_KEY_ID", "OBS_SECRET_ACCESS_KEY"), "https://b.obs.cn-beijing.myhuaweicloud.com/key"),
    ],
)
async def test_oss_and_obs_are_signed_for_the_region_in_their_hosts_name(
    monkeypatch: pytest.MonkeyPatch, store: Store, names: tuple[str, str], url: str
) -> None:
    assert not Credentials().covers(store, url)
    for name in names:
        monkeypatch.setenv(name, "AKOWN")
    credentials = Credentials()
    assert credentials.covers(store, url)
    signed = await credentials.signed(Source(url, store=store))
    assert "AKOWN/" in query_of(signed)["X-Amz-Credential"]
    assert "/cn-beijing/s3/" in query_of(signed)["X-Amz-Credential"]


async def test_a_url_is_reused_for_a_minute_and_for_its_method_and_headers_alone(write: Write, clock: Clock) -> None:
    path = write("c.json", json.dumps({"s3": {"": {"key_id": "AK", "secret_key": SECRET}}}))
    credentials = Credentials.load(path, clock=clock)
    source = Source(URL, store=Store.S3)
    first = await credentials.signed(source)
    assert await credentials.signed(source) == first
    asked = (("x-amz-checksum-mode", "ENABLED"),)
    head = await credentials.signed(source, method="HEAD", headers=asked)
    assert query_of(head)["X-Amz-SignedHeaders"] == "host;x-amz-checksum-mode"
    assert head.headers == asked
    assert query_of(head)["X-Amz-Signature"] != query_of(first)["X-Amz-Signature"]
    listing = await credentials.signed(source, query=(("list-type", "2"), ("prefix", "a b+c/")))
    assert listing.url.startswith(f"{URL}?list-type=2&prefix=a%20b%2Bc%2F&X-Amz-Algorithm=")


@pytest.mark.parametrize(
    ("url", "region", "expected"),
    [
        (AWS, "eu-west-1", "https://bucket.s3.eu-west-1.amazonaws.com/models/a%20b"),
        (AWS, "cn-north-1", "https://bucket.s3.cn-north-1.amazonaws.com.cn/models/a%20b"),
        ("https://s3.amazonaws.com/my.bucket//k/", "us-east-1", "https://s3.us-east-1.amazonaws.com/my.bucket//k/"),
        ("https://s3.amazonaws.com/bucket//k/?a=b", "us-east-1", "https://bucket.s3.us-east-1.amazonaws.com//k/?a=b"),
        (
            "https://s3.amazonaws.com/bucket?list-type=2",
            "us-east-1",
            "https://bucket.s3.us-east-1.amazonaws.com/?list-type=2",
        ),
        ("https://bucket.s3.eu-west-1.amazonaws.com/k", "us-east-1", "https://bucket.s3.eu-west-1.amazonaws.com/k"),
        (URL, "us-east-1", URL),
    ],
)
def test_aws_is_asked_where_the_bucket_is(url: str, region: str, expected: str) -> None:
    assert addressed(url, region) == expected


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (301, (("x-amz-bucket-region", "ap-south-1"),), b""),
        (400, (), b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>ap-south-1</Region></Error>"),
        (403, (("X-Amz-Bucket-Region", "ap-south-1"),), b""),
    ],
)
async def test_the_region_of_a_bucket_is_learnt(
    write: Write, status: int, headers: tuple[tuple[str, str], ...], body: bytes
) -> None:
    path = write("c.json", json.dumps({"s3": {"": {"key_id": "AK", "secret_key": SECRET, "region": "us-west-2"}}}))
    credentials = Credentials.load(path)
    source = Source(AWS, store=Store.S3)
    before = await credentials.signed(source)
    assert before.url.startswith("https://bucket.s3.us-west-2.amazonaws.com/models/a%20b?")
    assert await credentials.refused(source, status, headers, body)
    after = await credentials.signed(source)
    assert after.url.startswith("https://bucket.s3.ap-south-1.amazonaws.com/models/a%20b?")
    assert "/ap-south-1/s3/" in query_of(after)["X-Amz-Credential"]


async def test_a_region_that_is_none_is_not_put_into_a_host(write: Write) -> None:
    credentials = Credentials()
    source = Source(AWS, store=Store.S3)
    assert not await credentials.refused(source, 301, (("x-amz-bucket-region", "evil.example/"),))
    assert (await credentials.signed(source)).url.startswith("https://bucket.s3.us-east-1.amazonaws.com/")
