from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from p2p.control import Source
from p2p.errors import CredentialsError
from p2p.stores import Store
from peer.source.client import OriginClient
from peer.source.credentials import Credentials
from peer.source.credentials.renewing import GRACE_SECONDS
from tests.unit.source.credentials.conftest import SECRET, Clock
from tests.unit.source.raw_origin import RawRequest, raw_origin, response

Write = Callable[[str, str], Path]

URL = "https://s3.amazonaws.com/bucket/key"
SOURCE = Source(URL, store=Store.S3)


def keys(key_id: str) -> dict[str, str]:
    return {"key_id": key_id, "secret_key": SECRET}


def file(**prefixes: str) -> str:
    return json.dumps({"s3": {"": keys("AKFIRST"), **{prefix: keys(name) for prefix, name in prefixes.items()}}})


async def test_sources_that_are_the_callers_own_and_plain_servers_are_left_alone() -> None:
    credentials = Credentials()
    own = Source(f"{URL}?X-Amz-Signature=1", (("Authorization", "theirs"),))
    assert await credentials.signed(own) is own
    plain = Source("http://files.example/a", (("X-Mine", "1"),), Store.HTTP)
    assert await credentials.signed(plain) == Source(plain.url, plain.headers)
    assert credentials.covers(Store.HTTP, plain.url)
    assert not await credentials.refused(own, 403)
    assert not await credentials.refused(plain, 403)


async def test_a_file_that_changes_is_read_again_and_a_broken_one_is_not(write: Write, clock: Clock) -> None:
    path = write("c.json", file())
    credentials = Credentials.load(path, clock=clock)
    assert "AKFIRST" in (await credentials.signed(SOURCE)).url
    write("c.json", file(**{"s3://bucket": "AKSECOND"}))
    clock.now += 1
    assert "AKSECOND" in (await credentials.signed(SOURCE)).url
    clock.now += 1
    with capture_logs() as logs:
        write("c.json", f'{{"s3": "{SECRET}')
        assert "AKSECOND" in (await credentials.signed(SOURCE)).url
        path.unlink()
        clock.now += 1
        assert "AKSECOND" in (await credentials.signed(SOURCE)).url
    assert [entry["event"] for entry in logs] == ["new credential file not usable; the old one stays"] * 2
    assert SECRET not in str(logs)


async def test_a_refusal_is_explained_by_the_prefix_and_without_the_secret(write: Write) -> None:
    path = write("c.json", file(**{"s3://bucket/k": "AKNAMED"}))
    credentials = Credentials.load(path)
    await credentials.signed(SOURCE)
    body = f"<Error><Code>SignatureDoesNotMatch</Code><StringToSign>{SECRET}</StringToSign></Error>".encode()
    error = credentials.explained(Source(f"{URL}?versionId=1&X-Amz-Signature={SECRET}", store=Store.S3), 403, (), body)
    assert error.status == 403
    assert "403 (SignatureDoesNotMatch)" in str(error)
    assert f"the credentials for the prefix 's3://bucket/k' of {path}" in str(error)
    assert SECRET not in str(error)
    assert SECRET not in repr(credentials)


async def test_the_libraries_do_not_log_what_they_sign(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    credentials = Credentials.load(write("c.json", file()))
    signed = await credentials.signed(SOURCE)
    assert signed.url.rpartition("=")[2] not in caplog.text


@pytest.mark.parametrize(
    ("status", "body", "worth_it"),
    [
        (403, b"", True),
        (401, b"", True),
        (400, b"<Error><Code>ExpiredToken</Code></Error>", True),
        (400, b"", True),
        (400, b"<Error><Code>EntityTooLarge</Code></Error>", False),
        (404, b"", False),
    ],
)
async def test_a_second_try_is_for_what_another_signature_may_mend(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, status: int, body: bytes, worth_it: bool
) -> None:
    use_environment(monkeypatch)
    credentials = Credentials(clock=clock)
    await credentials.signed(SOURCE)
    assert await credentials.refused(SOURCE, status, (), body) is worth_it
    # Nor is an origin that refuses everything asked twice for ever.
    clock.now += GRACE_SECONDS
    assert not await credentials.refused(SOURCE, status, (), body)


async def test_keys_of_the_file_are_tried_again_only_when_the_file_has_others(write: Write, clock: Clock) -> None:
    credentials = Credentials.load(write("c.json", file()), clock=clock)
    await credentials.signed(SOURCE)
    assert not await credentials.refused(SOURCE, 403)
    write("c.json", file(**{"s3://bucket": "AKSECOND"}))
    assert await credentials.refused(SOURCE, 403)
    assert await credentials.refused(SOURCE, 403)  # asked at the same time as the first, with the old keys
    assert "AKSECOND" in (await credentials.signed(SOURCE)).url
    clock.now += GRACE_SECONDS
    assert not await credentials.refused(SOURCE, 403)


def use_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


async def test_the_client_signs_and_tries_again_once(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [
        response(400, body=b"<Error><Code>ExpiredToken</Code></Error>"),
        response(200, 'ETag: "1"', body=b"x"),
    ]

    def respond(request: RawRequest) -> bytes:
        return answers.pop(0)

    async with raw_origin(respond) as origin:
        use_environment(monkeypatch)
        credentials = Credentials()
        source = Source(f"{origin.base}/bucket/a+b%2F//", store=Store.S3)
        async with OriginClient(credentials=credentials) as client:
            found, reached = await client.follow("GET", source, (("Range", "bytes=0-0"),))
            found.release()
        assert found.status == 200
        assert reached is source
        for request in origin.requests:
            assert request.target.startswith("/bucket/a+b%2F//?X-Amz-Algorithm=AWS4-HMAC-SHA256&")
            assert request.field("Range") == "bytes=0-0"


async def test_a_refusal_that_stands_is_an_error(write: Write) -> None:
    refusal = response(403, body=b"<Error><Code>AccessDenied</Code></Error>")
    async with raw_origin(lambda request: refusal) as origin:
        credentials = Credentials.load(write("c.json", file()))
        async with OriginClient(credentials=credentials) as client:
            with pytest.raises(CredentialsError, match=r"403 \(AccessDenied\) .* for the prefix ''") as caught:
                await client.follow("GET", Source(f"{origin.base}/bucket/key", store=Store.S3))
        assert SECRET not in str(caught.value)
        assert len(origin.requests) == 1


async def test_a_token_does_not_follow_to_another_host(write: Write) -> None:
    async with raw_origin(lambda request: response(200)) as other:
        leads = response(302, f"Location: {other.base}/elsewhere?their=signature")
        async with raw_origin(lambda request: leads) as origin:
            entries = {f"as://{origin.base}": {"sas_token": f"sig={SECRET}"}}
            credentials = Credentials.load(write("c.json", json.dumps({"as": entries})))
            source = Source(f"{origin.base}/acc/container/key", (("X-Mine", "1"),), Store.AZURE)
            async with OriginClient(credentials=credentials) as client:
                found, reached = await client.follow("GET", source)
                found.release()
            assert found.status == 200
            # Where it led may be signed with our rights: it stays here.
            assert reached is source
            assert f"sig={SECRET}" in origin.requests[0].target
            assert other.requests[0].target == "/elsewhere?their=signature"
            assert other.requests[0].field("X-Mine") is None
