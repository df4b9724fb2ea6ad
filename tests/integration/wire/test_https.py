"""WIRE §1's `https://` model stores with interception configured: what clients of opened tunnels get."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bench.cluster import LocalCluster
from p2p.tls import CA_FILE, CertificateAuthority
from tests.integration.wire.conftest import CONTENT, SIGNED
from tests.support.clients import CURL_EMPTY_REPLY, CURL_RECEIVE_ERROR, Wire, curl, run, triton
from tests.support.commands import peer_arguments
from tests.support.commands import run as damselfly
from tests.support.origins import downloads, running_raw_origin
from tests.support.tls import own_authority
from tests.unit.source.raw_origin import RawOrigin, RawRequest, response, serving

RULES = r"""
[[rules]]
match = '^https://127\.0\.0\.1:{port}/'
intercept = true
ca_file = "{ca_file}"

[[rules]]
match = '^https://127\.0\.0\.1'
intercept = true
"""


@dataclass(frozen=True, slots=True)
class Store:
    """An HTTPS origin with a private authority, and a peer that opens TLS to it with one of its own in `ca_file`."""

    origin: RawOrigin
    proxy: str
    ca_file: Path

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.origin.port}/models/a/1/model.onnx?{SIGNED}"

    def triton(self, url: str, file: Path) -> int:
        """Download as the agent does; curl names itself in a CONNECT unless it is told not to, and libcurl does not."""
        trust = ("--cacert", str(self.ca_file), "--proxy-header", "User-Agent:")
        return triton(url, file, *trust, proxy=self.proxy).code

    def curl(self, *arguments: str) -> tuple[int, str]:
        done = curl("--cacert", str(self.ca_file), *arguments, proxy=self.proxy)
        return done.code, done.said


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    directory = tmp_path_factory.mktemp("opened")
    origin_ca, context = own_authority(directory)
    CertificateAuthority.create(directory / "authority", name="test", now=datetime.now(UTC))
    with running_raw_origin(serving(CONTENT), tls=context) as origin:
        configuration = directory / "peer.toml"
        configuration.write_text(RULES.format(port=origin.port, ca_file=origin_ca))
        arguments = {"peer-1": ("--config", str(configuration), "--ca-dir", str(directory / "authority"))}
        with LocalCluster(peers=1, seeds=0, directory=directory / "peer", arguments=arguments) as cluster:
            proxy = cluster["peer-1"].addresses["proxy"]
            yield Store(origin, proxy, directory / "authority" / CA_FILE)


@pytest.fixture
def store(opened: Store) -> Store:
    """The store as it was at first, but for what the peer has cached."""
    opened.origin.answer = serving(CONTENT)
    opened.origin.requests.clear()
    return opened


def test_the_agents_model_is_cached_with_nothing_but_interception(store: Store, file: Path) -> None:
    """Two files, each with its own CONNECT and handshake: the bytes leave the origin once."""
    for seconds in (60, 600):
        url = store.url + f"&X-Amz-Expires={seconds}"
        assert store.triton(url, file) == 0
        assert hashlib.sha256(file.read_bytes()).digest() == hashlib.sha256(CONTENT).digest()
    assert len(downloads(store.origin)) == 1
    assert {request.target for request in store.origin.requests} == {
        f"/models/a/1/model.onnx?{SIGNED}&X-Amz-Expires={seconds}" for seconds in (60, 600)
    }


def test_a_refusal_resets_the_agent_inside_of_its_tunnel(store: Store, file: Path) -> None:
    store.origin.answer = lambda _: response(403, body=b"<Error/>")
    assert store.triton(store.url, file) in {CURL_EMPTY_REPLY, CURL_RECEIVE_ERROR}
    assert not file.exists()
    code, said = store.curl("--write-out", "%{http_code}", store.url)
    assert (code, said) == (0, "<Error/>403"), "others are told by the status"


def test_the_agents_octets_inside_of_connect(store: Store) -> None:
    authority = f"127.0.0.1:{store.origin.port}"
    with Wire(store.proxy) as wire:
        wire.send(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nProxy-Connection: Keep-Alive\r\n\r\n".encode())
        assert wire.head() == b"HTTP/1.1 200 Connection established\r\n\r\n"
        wire.wrap(store.ca_file, "127.0.0.1")
        request = f"GET /models/a/1/model.onnx?{SIGNED} HTTP/1.1\r\nHost: {authority}\r\nAccept: */*\r\n\r\n"
        for _ in range(2):
            answer = wire.ask(request.encode())
            assert (answer.status, answer.body == CONTENT) == (200, True)
        assert answer.headers["x-cache"] == "HIT-LOCAL"


def test_ranges_conditions_and_signals_hold_inside(store: Store, file: Path) -> None:
    for arguments, status in ((("--range", "1000-1999"), "206"), (("--header", 'If-None-Match: "v1"'), "304")):
        dump = file.with_suffix(".head")
        code, said = store.curl(
            *arguments, "--output", str(file), "--dump-header", str(dump), "--write-out", "%{http_code}", store.url
        )
        assert (code, said) == (0, status)
        assert "x-dragonfly-task-id" in dump.read_text().lower()
        if status == "206":
            assert file.read_bytes() == CONTENT[1000:2000]


def test_uploads_and_expect_100_continue_survive_inside(store: Store, tmp_path: Path) -> None:
    (body := tmp_path / "body").write_bytes(os.urandom(3_000_000))
    store.origin.answer = lambda request: response(201, body=hashlib.sha256(request.body).hexdigest().encode())
    expect = ("--header", "Expect: 100-continue", "--expect100-timeout", "30")
    code, said = store.curl(*expect, "--upload-file", str(body), store.url)
    assert (code, said) == (0, hashlib.sha256(body.read_bytes()).hexdigest())
    assert store.origin.requests[0].field("Expect") == "100-continue"


def test_an_origin_that_cannot_be_verified_is_a_502_that_says_so(store: Store, tmp_path: Path) -> None:
    _, context = own_authority(tmp_path)
    with running_raw_origin(serving(CONTENT), tls=context) as stranger:
        url = f"https://127.0.0.1:{stranger.port}/models/a/1/model.onnx?{SIGNED}"
        code, said = store.curl("--write-out", "%{http_code}", url)
        assert code == 0
        assert said.endswith("502")
        assert "cannot be verified" in said
        assert not stranger.requests


def test_a_client_that_does_not_trust_the_authority_fails_by_itself(store: Store, file: Path) -> None:
    assert curl("--output", str(file), store.url, proxy=store.proxy).code == 60, "CURLE_PEER_FAILED_VERIFICATION"
    assert not store.origin.requests


@pytest.mark.parametrize("port", [22, 80])
def test_connect_asks_for_allowed_ports_only(store: Store, port: int) -> None:
    with Wire(store.proxy) as wire:
        wire.send(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: x\r\n\r\n".encode())
        assert wire.head().startswith(b"HTTP/1.1 403 ")


def test_pip_inside_of_connect(store: Store, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as wheel:
        wheel.writestr("wired-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: wired\nVersion: 1.0\n")
        wheel.writestr("wired-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("wired-1.0.dist-info/RECORD", "")
    page = b'<a href="/files/wired-1.0-py3-none-any.whl">wired-1.0-py3-none-any.whl</a>'

    def index(request: RawRequest) -> bytes:
        if request.target.startswith("/files/"):
            return response(200, "Content-Type: application/zip", body=packed.getvalue())
        return response(200, "Content-Type: text/html", body=page)

    store.origin.answer = index
    base = f"https://127.0.0.1:{store.origin.port}"
    pip = (sys.executable, "-m", "pip", "--isolated", "--no-cache-dir", "--disable-pip-version-check", "download")
    options = ("--no-deps", "--index-url", f"{base}/simple/", "--proxy", f"http://{store.proxy}", "--retries", "0")
    trust = ("--cert", str(store.ca_file), "--dest", str(tmp_path))
    outcome = run([*pip, *options, *trust, "wired"], environment={"PIP_CONFIG_FILE": os.devnull})
    assert outcome.code == 0, outcome.said
    assert (tmp_path / "wired-1.0-py3-none-any.whl").read_bytes() == packed.getvalue()
    assert {request.field("Via") for request in store.origin.requests} == {"1.1 peer-1"}


def test_a_rule_without_an_authority_refuses_to_start(tmp_path: Path) -> None:
    configuration = tmp_path / "peer.toml"
    configuration.write_text("[[rules]]\nmatch = '^https://store/'\nintercept = true\n")
    ended = damselfly(*peer_arguments(tmp_path / "data"), "--config", str(configuration))
    assert ended.returncode == 2
    assert "damselfly ca init --dir DIR" in ended.stderr
