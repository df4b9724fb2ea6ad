"""The bench origin's check of signatures, against the library that S3's own client signs with."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import pytest
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from multidict import CIMultiDict

from bench.sigv4 import ACCESS_KEY, REGION, SECRET_KEY, allows, presigned

HOST = "127.0.0.1:9000"
PATH = "/bench/models/a%20b/%C3%A4%2B/1/model.bin"
SECONDS = 3600


def credentials(secret: str = SECRET_KEY) -> Credentials:
    return Credentials(ACCESS_KEY, secret)


def in_query(method: str, path: str, secret: str = SECRET_KEY) -> str:
    """Return the target that botocore presigns."""
    request = AWSRequest(method, f"http://{HOST}{path}")
    S3SigV4QueryAuth(credentials(secret), "s3", REGION, expires=SECONDS).add_auth(request)
    return str(request.url).removeprefix(f"http://{HOST}")


def in_header(method: str, target: str, headers: Mapping[str, str], secret: str = SECRET_KEY) -> CIMultiDict[str]:
    """Return the fields that botocore signs."""
    request = AWSRequest(method, f"http://{HOST}{target}", headers={"Host": HOST, **headers})
    S3SigV4Auth(credentials(secret), "s3", REGION).add_auth(request)
    return CIMultiDict(request.headers.items())


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_the_library_signs_is_allowed(method: str) -> None:
    assert allows(method, in_query(method, PATH), CIMultiDict(Host=HOST))
    for target in (PATH, f"{PATH}?versionId=3", f"{PATH}?uploads", f"{PATH}?b=2&a=1%2F"):
        assert allows(method, target, in_header(method, target, {"Range": "bytes=0-9"})), target


def test_a_change_of_anything_signed_is_refused() -> None:
    target = in_query("GET", PATH)
    host = CIMultiDict(Host=HOST)
    assert not allows("HEAD", target, host)
    assert not allows("GET", target.replace("3600", "3601"), host)
    assert not allows("GET", target, CIMultiDict(Host="127.0.0.1:9001"))
    assert not allows("GET", in_query("GET", PATH, "another secret"), host)
    assert not allows("GET", PATH, host)
    fields = in_header("GET", PATH, {"Range": "bytes=0-9"})
    assert not allows("GET", f"{PATH}x", fields)
    fields["Range"] = "bytes=0-10"
    assert not allows("GET", PATH, fields)
    assert not allows("GET", PATH, in_header("GET", PATH, {}, "another secret"))


def test_it_presigns_what_it_allows() -> None:
    target = presigned(PATH, HOST, at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), seconds=SECONDS)
    assert allows("GET", target, CIMultiDict(Host=HOST))
    assert target.startswith(f"{PATH}?X-Amz-Algorithm=AWS4-HMAC-SHA256&")
