"""What the tests' Google Cloud Storage does, each held to the page of Google's documentation that says so.

All pages are below https://cloud.google.com/storage/docs/ unless they say otherwise.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree as ET

import google.auth.transport.requests
import pytest
from awscrt import checksums
from google.auth.exceptions import RefreshError
from google.oauth2 import service_account

from tests.support.daemons import Answer, fetch, open_url
from tests.support.gcs import GcsServer, gcs_server, running_gcs

DATA = b"0123456789" * 10
KEY = "models/a+b c/ü.onnx"
SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"
XML = "{http://doc.s3.amazonaws.com/2006-03-01}"


@pytest.fixture
def gcs() -> Iterator[GcsServer]:
    with running_gcs() as server:
        server.put("bucket", KEY, DATA)
        yield server


def get(gcs: GcsServer, path: str, *, method: str = "GET", **fields: str) -> Answer:
    """Ask with a sound token."""
    headers = {"Authorization": f"Bearer {gcs.issue_token()}"}
    headers.update({name.replace("_", "-"): value for name, value in fields.items()})
    return fetch(f"{gcs.url}/{quote(path, safe='/?=&')}", method=method, headers=headers)


def code(answer: Answer) -> str:
    return ET.fromstring(answer.body).findtext("Code", "")


def test_an_object_has_its_version_in_its_headers(gcs: GcsServer) -> None:
    """xml-api/reference-headers: ETag, x-goog-generation, x-goog-hash (crc32c big-endian, md5), stored length."""
    answer = get(gcs, f"bucket/{KEY}")
    assert (answer.status, answer.body) == (200, DATA)
    assert answer.headers["etag"] == f'"{hashlib.md5(DATA).hexdigest()}"'
    assert answer.headers["x-goog-stored-content-length"] == "100"
    assert int(answer.headers["x-goog-generation"]) > 0
    crc = base64.b64encode(checksums.crc32c(DATA).to_bytes(4, "big")).decode()
    with open_url(gcs.signed_url("bucket", KEY)) as response:
        hashes = [value for name, value in response.getheaders() if name == "x-goog-hash"]
    assert hashes == [f"crc32c={crc}", f"md5={base64.b64encode(hashlib.md5(DATA).digest()).decode()}"]


def test_a_composite_object_has_no_md5(gcs: GcsServer) -> None:
    """composite-objects: they have no MD5 hash, only a CRC32C, and the XML interface tells x-goog-component-count."""
    gcs.put("bucket", "composite", DATA, composite=True)
    answer = get(gcs, "bucket/composite")
    assert answer.headers["x-goog-component-count"] == "2"
    assert "md5" not in answer.headers["x-goog-hash"]
    assert answer.headers["etag"] != f'"{hashlib.md5(DATA).hexdigest()}"'


@pytest.mark.parametrize(
    ("asked", "first", "last"), [("0-0", 0, 0), ("5-9", 5, 9), ("90-", 90, 99), ("90-1000", 90, 99), ("-10", 90, 99)]
)
def test_ranges_are_partial_content(gcs: GcsServer, asked: str, first: int, last: int) -> None:
    """xml-api/get-object-download: the Range header; 206 and Content-Range (RFC 9110 §14.4)."""
    answer = get(gcs, f"bucket/{KEY}", Range=f"bytes={asked}")
    assert (answer.status, answer.body) == (206, DATA[first : last + 1])
    assert answer.headers["content-range"] == f"bytes {first}-{last}/100"


def test_a_range_past_the_end_is_416(gcs: GcsServer) -> None:
    """xml-api/reference-status, 416 InvalidRange; RFC 9110 §15.5.17 for the field."""
    answer = get(gcs, f"bucket/{KEY}", Range="bytes=100-")
    assert (answer.status, code(answer)) == (416, "InvalidRange")
    assert answer.headers["content-range"] == "bytes */100"


def test_conditions_choose_the_version(gcs: GcsServer) -> None:
    """request-preconditions: If-Match, If-None-Match and x-goog-if-generation-match; 412 PreconditionFailed, 304."""
    found = get(gcs, f"bucket/{KEY}").headers
    etag, generation = found["etag"], found["x-goog-generation"]
    assert get(gcs, f"bucket/{KEY}", If_Match=etag, Range="bytes=0-0").status == 206
    assert get(gcs, f"bucket/{KEY}", If_None_Match=etag).status == 304
    assert get(gcs, f"bucket/{KEY}", x_goog_if_generation_match=generation).status == 200
    gcs.put("bucket", KEY, DATA[::-1])
    answer = get(gcs, f"bucket/{KEY}", If_Match=etag, Range="bytes=0-0")
    assert (answer.status, code(answer)) == (412, "PreconditionFailed")
    assert get(gcs, f"bucket/{KEY}", x_goog_if_generation_match=generation).status == 412


def test_what_is_not_there_is_404(gcs: GcsServer) -> None:
    """xml-api/reference-status, 404 NoSuchBucket and NoSuchKey."""
    for path, name in (
        ("nowhere/k", "NoSuchBucket"),
        ("bucket/k", "NoSuchKey"),
        ("nowhere?list-type=2", "NoSuchBucket"),
    ):
        answer = get(gcs, path)
        assert (answer.status, code(answer)) == (404, name)


def test_strangers_are_refused(gcs: GcsServer) -> None:
    """xml-api/reference-status: 403 AccessDenied without credentials, 401 with worthless ones."""
    url = f"{gcs.url}/bucket/{quote(KEY)}"
    anonymous = fetch(url)
    assert (anonymous.status, code(anonymous)) == (403, "AccessDenied")
    wrong = fetch(url, headers={"Authorization": "Bearer ya29.wrong"})
    assert (wrong.status, code(wrong)) == (401, "AuthenticationRequired")
    assert wrong.headers["www-authenticate"].startswith("Bearer")
    gcs.make_public("bucket")
    assert fetch(url).status == 200


def test_tokens_end(gcs: GcsServer) -> None:
    """authentication: OAuth 2.0 access tokens have a limited life."""
    url = f"{gcs.url}/bucket/{quote(KEY)}"
    headers = {"Authorization": f"Bearer {gcs.issue_token()}"}
    gcs.expire_tokens(after_answers=1)
    assert [fetch(url, headers=headers).status for _ in range(2)] == [200, 401]
    gcs.token_seconds = 0
    assert get(gcs, f"bucket/{KEY}").status == 401


def test_a_service_account_gets_tokens_for_an_assertion_of_its_key(gcs: GcsServer, tmp_path: Path) -> None:
    """https://developers.google.com/identity/protocols/oauth2/service-account#httprest: the JWT bearer grant, RS256."""
    file = gcs.service_account_file(tmp_path)
    asking = google.auth.transport.requests.Request()
    sound: Any = service_account.Credentials.from_service_account_file(file, scopes=[SCOPE])  # type: ignore[no-untyped-call]
    sound.refresh(asking)
    answer = fetch(f"{gcs.url}/bucket/{quote(KEY)}", headers={"Authorization": f"Bearer {sound.token}"})
    assert answer.status == 200
    stranger = json.loads(file.read_text()) | {"client_email": "stranger@models.iam.gserviceaccount.com"}
    for info, scopes in (
        (stranger, [SCOPE]),
        (json.loads(file.read_text()), ["https://www.googleapis.com/auth/drive"]),
    ):
        refused: Any = service_account.Credentials.from_service_account_info(info, scopes=scopes)  # type: ignore[no-untyped-call]
        with pytest.raises(RefreshError, match="invalid_"):
            refused.refresh(asking)
    asking.session.close()


def test_the_metadata_server_gives_tokens_to_who_asks_rightly(gcs: GcsServer) -> None:
    """https://cloud.google.com/compute/docs/metadata/querying-metadata: the Metadata-Flavor header both ways."""
    url = f"{gcs.url}/computeMetadata/v1/instance/service-accounts/default/token"
    assert fetch(url).status == 403
    answer = fetch(url, headers={"Metadata-Flavor": "Google"})
    assert (answer.status, answer.headers["metadata-flavor"]) == (200, "Google")
    told = json.loads(answer.body)
    assert (told["token_type"], told["expires_in"]) == ("Bearer", 3600)
    headers = {"Authorization": f"Bearer {told['access_token']}"}
    assert fetch(f"{gcs.url}/bucket/{quote(KEY)}", headers=headers).status == 200


@pytest.mark.parametrize("hmac", [False, True])
def test_signed_urls_are_verified(gcs: GcsServer, hmac: bool) -> None:
    """authentication/signatures and authentication/canonical-requests: GOOG4-RSA-SHA256 and GOOG4-HMAC-SHA256."""
    url = gcs.signed_url("bucket", KEY, hmac=hmac)
    assert fetch(url).body == DATA
    assert fetch(url, headers={"Range": "bytes=0-4", "If-Match": "*"}).body == DATA[:5], (
        "what is not signed may be added"
    )
    for tampered in (
        url[:-1] + ("0" if url[-1] != "0" else "1"),
        url.replace("X-Goog-Expires=3600", "X-Goog-Expires=3601"),
        url.replace("/models/", "/other/"),
        url + "&generation=1",
    ):
        answer = fetch(tampered)
        assert (answer.status, code(answer)) == (403, "SignatureDoesNotMatch")
    assert fetch(url, method="HEAD").status == 403


def test_signed_urls_end(gcs: GcsServer) -> None:
    """authentication/signatures: X-Goog-Expires; xml-api/reference-status, 400 ExpiredToken; at most seven days."""
    url = gcs.signed_url("bucket", KEY, seconds=60)
    gcs.clock = lambda: time.time() + 61
    answer = fetch(url)
    assert (answer.status, code(answer)) == (400, "ExpiredToken")
    assert fetch(gcs.signed_url("bucket", KEY, seconds=604801)).status == 400


@pytest.mark.parametrize(("status", "name"), [(429, "TooManyRequests"), (503, "ServiceUnavailable")])
def test_a_busy_server_asks_for_patience(gcs: GcsServer, status: int, name: str) -> None:
    """xml-api/reference-status, 429 and 503; retry-strategy: both may be tried again."""
    gcs.refuse(1, status=status, retry_after=1)
    answer = get(gcs, f"bucket/{KEY}")
    assert (answer.status, code(answer), answer.headers["retry-after"]) == (status, name, "1")
    assert get(gcs, f"bucket/{KEY}").status == 200


def test_listings_have_pages(gcs: GcsServer) -> None:
    """xml-api/get-bucket-list: list-type=2, max-keys, continuation-token, prefix, delimiter and encoding-type."""
    for name in ("m/1", "m/2", "m/d/3", "m/d/4", "n"):
        gcs.put("list", name, DATA)
    first = ET.fromstring(get(gcs, "list?list-type=2&prefix=m/&max-keys=3&encoding-type=url").body)
    assert [each.text for each in first.iter(f"{XML}Key")] == ["m%2F1", "m%2F2", "m%2Fd%2F3"]
    assert first.findtext(f"{XML}IsTruncated") == "true"
    token = first.findtext(f"{XML}NextContinuationToken")
    second = ET.fromstring(get(gcs, f"list?list-type=2&prefix=m/&max-keys=3&continuation-token={token}").body)
    assert [each.text for each in second.iter(f"{XML}Key")] == ["m/d/4"]
    assert second.findtext(f"{XML}IsTruncated") == "false"
    entry = second.find(f"{XML}Contents")
    assert entry is not None
    assert (entry.findtext(f"{XML}Size"), entry.findtext(f"{XML}ETag")) == ("100", f'"{hashlib.md5(DATA).hexdigest()}"')
    folded = ET.fromstring(get(gcs, "list?list-type=2&prefix=m/&delimiter=/").body)
    assert [each.findtext(f"{XML}Prefix") for each in folded.iter(f"{XML}CommonPrefixes")] == ["m/d/"]


def test_older_listings_go_by_markers(gcs: GcsServer) -> None:
    """xml-api/get-bucket-list: without list-type=2, marker and NextMarker."""
    for name in ("a", "b"):
        gcs.put("list", name, DATA)
    first = ET.fromstring(get(gcs, "list?max-keys=1").body)
    assert first.findtext(f"{XML}NextMarker") == "a"
    second = ET.fromstring(get(gcs, "list?max-keys=1&marker=a").body)
    assert [each.text for each in second.iter(f"{XML}Key")] == ["b"]


@pytest.fixture
async def running() -> AsyncIterator[GcsServer]:
    async with gcs_server() as server:
        yield server


async def test_it_counts_what_it_answered(running: GcsServer) -> None:
    """No page of Google's: tests judge by it how often and how much the store was asked."""
    running.put("bucket", "k", DATA)
    assert get(running, "bucket/k", Range="bytes=0-9").status == 206
    assert [(each.method, each.path, each.status, each.size) for each in running.answered] == [
        ("GET", "/bucket/k", 206, 10)
    ]
