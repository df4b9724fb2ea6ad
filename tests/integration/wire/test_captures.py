"""WIRE §6: the captures, replayed with the real curl and as its very octets, against a real Ceph object gateway.

Between the peer and the gateway is a relay that keeps the octets of every request the peer makes. URLs are signed for
the relay's address, and the gateway verifies them.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import random
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from tests.support.clients import CURL_EMPTY_REPLY, CURL_RECEIVE_ERROR, Outcome, curl, replay
from tests.support.daemons import fetch
from tests.support.origins import running_raw_origin
from tests.support.pieces import PIECE
from tests.support.servers import S3Server
from tests.unit.source.raw_origin import RawOrigin, RawRequest, response

DATA = random.Random(6).randbytes(5 * 1024 * 1024 + 4321)
KEY = "models/a+b c/1/model.onnx"
HTTPCLIENT = "Apache-HttpClient/4.5.14 (Java/17)"
FILTER = "X-Amz-Algorithm&X-Amz-Credential&X-Amz-Date&X-Amz-Expires&X-Amz-SignedHeaders&X-Amz-Signature"


@dataclass(frozen=True)
class Capture:
    """A command line of WIRE §6 without proxy, URL and file, and the octets that curl makes of it."""

    name: str
    arguments: tuple[str, ...]
    lines: tuple[str, ...]
    user: str = ""
    part: tuple[int, int] | None = None

    @property
    def body(self) -> bytes:
        return DATA if self.part is None else DATA[slice(*self.part)]

    def octets(self, url: str) -> bytes:
        head = (f"GET {url} HTTP/1.1", f"Host: {urlsplit(url).netloc}")
        return "\r\n".join((*head, *self.lines, "", "")).encode()

    def run(self, url: str, file: Path, *, proxy: str) -> Outcome:
        return curl(*self.arguments, url, "-o", str(file), proxy=f"http://{self.user}{proxy}")


TRITON = Capture("triton", ("-H", "User-Agent:"), ("Accept: */*", "Proxy-Connection: Keep-Alive"))
CAPTURES = (
    TRITON,
    Capture(
        "triton-with-filter",
        ("-H", "User-Agent:", "-H", f"X-Dragonfly-Filter: {FILTER}"),
        ("Accept: */*", "Proxy-Connection: Keep-Alive", f"X-Dragonfly-Filter: {FILTER}"),
    ),
    Capture(
        "torchserve",
        (
            "-A",
            "Apache-HttpClient/4.5.14 (Java/17)",
            "-H",
            "Accept-Encoding: gzip,deflate",
            "-H",
            "X-Dragonfly-Filter;",
        ),
        (
            f"User-Agent: {HTTPCLIENT}",
            "Accept: */*",
            "Proxy-Connection: Keep-Alive",
            "Accept-Encoding: gzip,deflate",
            "X-Dragonfly-Filter:",
        ),
    ),
    Capture(
        "range-with-password",
        ("-A", "curl", "-r", "1000-1999"),
        (
            "Proxy-Authorization: Basic dXNlcjpwYXNz",
            "Range: bytes=1000-1999",
            "User-Agent: curl",
            "Accept: */*",
            "Proxy-Connection: Keep-Alive",
        ),
        user="user:pass@",
        part=(1000, 2000),
    ),
)


@dataclass(frozen=True)
class Signed:
    """An object at the gateway behind the relay, and who may sign for it."""

    relay: RawOrigin
    path: str
    access_key: str
    secret_key: str

    def url(self, *, ago: timedelta = timedelta(), seconds: int = 604800) -> str:
        """Sign for GET as an S3 SDK does (SigV4, in the query, only the host), `ago` before now."""
        moment = datetime.now(UTC) - ago
        scope = f"{moment:%Y%m%d}/us-east-1/s3/aws4_request"
        stamp = f"{moment:%Y%m%dT%H%M%SZ}"
        query = (
            f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={quote(f'{self.access_key}/{scope}', safe='')}"
            f"&X-Amz-Date={stamp}&X-Amz-Expires={seconds}&X-Amz-SignedHeaders=host"
        )
        host = f"127.0.0.1:{self.relay.port}"
        canonical = f"GET\n{self.path}\n{query}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD"
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        key = f"AWS4{self.secret_key}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}"
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        return f"http://{host}{self.path}?{query}&X-Amz-Signature={signature}"

    def tampered(self) -> str:
        url = self.url()
        return url[:-1] + ("0" if url[-1] != "0" else "1")

    def expired(self) -> str:
        return self.url(ago=timedelta(hours=1), seconds=60)


@pytest.fixture
def signed(radosgw: S3Server) -> Iterator[Signed]:
    """A fresh object of the gateway's, seen through the relay."""
    bucket = f"models-{uuid.uuid4()}"
    radosgw.put(bucket, KEY, DATA)
    gateway = urlsplit(radosgw.endpoint)

    async def relay(request: RawRequest) -> bytes:
        reader, writer = await asyncio.open_connection(gateway.hostname, gateway.port)
        try:
            writer.write(request.head + b"\r\n\r\n" + request.body)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: *([0-9]+)", head)
            return head + await reader.readexactly(int(length[1]) if length else 0)
        finally:
            writer.close()

    credentials = radosgw.client._request_signer._credentials
    with running_raw_origin(relay) as origin:
        yield Signed(origin, f"/{bucket}/{quote(KEY)}", credentials.access_key, credentials.secret_key)


@pytest.fixture(params=CAPTURES, ids=lambda capture: capture.name)
def capture(request: pytest.FixtureRequest) -> Capture:
    found = request.param
    assert isinstance(found, Capture)
    return found


def test_the_octets_are_those_of_the_real_curl(capture: Capture, signed: Signed, file: Path) -> None:
    url = signed.url()
    with running_raw_origin(lambda _: response(200, body=b"ok")) as listener:
        assert capture.run(url, file, proxy=f"127.0.0.1:{listener.port}").code == 0
        (request,) = listener.requests
    assert request.head + b"\r\n\r\n" == capture.octets(url)


def test_a_capture_gets_200_and_the_right_bytes(capture: Capture, signed: Signed, proxy: str, file: Path) -> None:
    cold = replay(proxy, capture.octets(signed.url()))
    assert (cold.status, cold.body == capture.body) == (206 if capture.part else 200, True)
    outcome = capture.run(signed.url(seconds=600), file, proxy=proxy)
    assert (outcome.code, file.read_bytes() == capture.body) == (0, True), outcome.said
    for request in signed.relay.requests:
        assert request.line.startswith(f"GET {signed.path}?X-Amz-Algorithm="), "the URL as it was signed"
        assert not any(name.lower().startswith(("proxy-", "x-dragonfly-")) for name, _ in request.fields)
    asked = [request.field("Range") or "" for request in signed.relay.requests]
    assert asked.count("bytes=0-0") == 2, "one question for each request"
    runs = sorted(tuple(map(int, one[6:].split("-"))) for one in asked if one != "bytes=0-0")
    sent = [offset for first, last in runs for offset in (first, last + 1)]
    assert sent[1:-1:2] == sent[2:-1:2], "no byte twice, and no gap"
    assert (sent[0], sent[-1]) == (0, PIECE if capture.part else len(DATA)), "the pieces that are needed"


@pytest.mark.parametrize("refused", ["expired", "tampered"])
def test_a_refused_signature_opens_nothing_though_every_byte_is_here(
    signed: Signed, proxy: str, file: Path, refused: str
) -> None:
    assert replay(proxy, TRITON.octets(signed.url())).body == DATA
    url = signed.expired() if refused == "expired" else signed.tampered()
    own = fetch(url)
    assert own.status == 403, "what the gateway itself says"
    told = fetch(url, proxy=proxy)
    assert (told.status, told.headers["x-dragonfly-error-type"]) == (403, "backend")
    assert code_of(told.body) == code_of(own.body)
    with pytest.raises(ConnectionResetError):
        replay(proxy, TRITON.octets(url))
    outcome = TRITON.run(url, file, proxy=proxy)
    assert outcome.code in {CURL_RECEIVE_ERROR, CURL_EMPTY_REPLY}, outcome.said
    assert not file.exists()

    valid, before = signed.url(seconds=300), len(signed.relay.requests)
    again = replay(proxy, TRITON.octets(valid))
    assert (again.status, again.body == DATA, again.headers["x-cache"]) == (200, True, "HIT-LOCAL")
    (question,) = signed.relay.requests[before:]
    assert (question.field("Range"), question.target) == ("bytes=0-0", valid[valid.index("/", 7) :])


def code_of(body: bytes) -> bytes:
    """Return the code in an S3 error's body."""
    found = re.search(rb"<Code>([^<]+)</Code>", body)
    assert found is not None
    return found[1]
