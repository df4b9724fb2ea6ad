"""WIRE §1: Triton's `dragonfly` repository agent, through libcurl (`curl` with its options) and as raw octets."""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
from typer.testing import CliRunner

from damselfly.cli import app
from tests.integration.wire.conftest import CONTENT, SIGNED
from tests.support.clients import (
    CURL_EMPTY_REPLY,
    CURL_PARTIAL,
    CURL_RECEIVE_ERROR,
    Wire,
    replay,
    triton,
    triton_request,
)
from tests.support.daemons import fetch
from tests.support.origins import downloads, running_raw_origin
from tests.support.servers import S3Server
from tests.support.tls import own_authority
from tests.unit.source.raw_origin import CUT, RawOrigin, response, serving

RESET = {CURL_EMPTY_REPLY, CURL_RECEIVE_ERROR}
DOCUMENTED_FILTER = "X-Amz-Algorithm&X-Amz-Credential&X-Amz-Date&X-Amz-Expires&X-Amz-SignedHeaders&X-Amz-Signature"


def test_http_model_store_shape_is_what_libcurl_sends(file: Path) -> None:
    """The raw replays of this suite are the octets of the real library."""
    url = f"http://store.example:9000/models/a/1/model.onnx?{SIGNED}"
    with running_raw_origin(lambda _: response(200, body=CONTENT)) as listener:
        assert triton(url, file, proxy=listener.base).code == 0
        (request,) = listener.requests
    assert request.head + b"\r\n\r\n" == triton_request(url)


def test_https_model_store_shape_is_what_libcurl_sends(file: Path) -> None:
    with running_raw_origin(lambda _: response(403)) as listener:
        assert triton(f"https://store.example/m?{SIGNED}", file, proxy=listener.base).code == CURL_RECEIVE_ERROR
        (request,) = listener.requests
    authority = "store.example:443"
    assert request.head == f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nProxy-Connection: Keep-Alive".encode()


def test_http_model_store_is_p2p_with_nothing_configured(
    radosgw: S3Server, proxy: str, other_proxy: str, file: Path
) -> None:
    bucket, key = f"models-{uuid.uuid4()}", "a/1/model.onnx"
    etag = radosgw.put(bucket, key, CONTENT)
    assert triton(radosgw.presign(bucket, key), file, proxy=proxy).code == 0
    assert hashlib.sha256(file.read_bytes()).digest() == hashlib.sha256(CONTENT).digest()
    remote = replay(other_proxy, triton_request(radosgw.presign(bucket, key, seconds=604800)))
    local = replay(other_proxy, triton_request(radosgw.presign(bucket, key, seconds=600)))
    for answer, cache in ((remote, "HIT-REMOTE"), (local, "HIT-LOCAL")):
        assert (answer.status, answer.body == CONTENT) == (200, True)
        assert (answer.headers["x-cache"], answer.headers["etag"]) == (cache, etag)


def test_http_model_store_password_of_the_proxy_stays_here(
    store: RawOrigin, signed: str, proxy: str, file: Path
) -> None:
    assert triton(signed, file, proxy=f"http://user:pass@{proxy}").code == 0
    assert file.read_bytes() == CONTENT
    names = {name.lower() for request in store.requests for name, _ in request.fields}
    assert not {name for name in names if name.startswith(("proxy-", "x-dragonfly-"))}


def test_header_and_filter_change_nothing_for_a_known_store(
    radosgw: S3Server, proxy: str, file: Path, tmp_path: Path
) -> None:
    """The published agent sends neither; repaired ones do. Both take the same copy."""
    bucket, key = f"models-{uuid.uuid4()}", "a/1/model.onnx"
    radosgw.put(bucket, key, CONTENT)
    assert triton(radosgw.presign(bucket, key), file, proxy=proxy).code == 0
    repaired = ("--header", f"X-Dragonfly-Filter: {DOCUMENTED_FILTER}", "--header", "X-Team: vision")
    heads = tmp_path / "heads"
    url = radosgw.presign(bucket, key, seconds=60)
    assert triton(url, file, *repaired, "--dump-header", str(heads), proxy=proxy).code == 0
    assert file.read_bytes() == CONTENT
    assert "X-Cache: HIT-LOCAL" in heads.read_text()


def test_config_file_is_what_the_agent_reads(store: RawOrigin, proxy: str, file: Path, tmp_path: Path) -> None:
    """`proxy` is a text for libcurl, `header` a map of texts, `filter` a list of texts that it joins with `&`."""
    arguments = ["--proxy", f"http://{proxy}", "--filter", "token&expires", "--filter", "sig", "-H", "X-Team: vision"]
    printed = CliRunner().invoke(app, ["config", "triton", *arguments])
    config = json.loads(printed.stdout)
    assert config == {
        "proxy": f"http://{proxy}",
        "header": {"X-Team": "vision"},
        "filter": ["token", "expires", "sig"],
    }
    heads = tmp_path / "heads"
    fields = {**config["header"], "X-Dragonfly-Filter": "&".join(config["filter"]), "X-Dragonfly-Use-P2P": "true"}
    options = [option for name, value in fields.items() for option in ("--header", f"{name}: {value}")]
    for token in ("a", "b"):
        url = f"{store.base}/config?token={token}&expires={token}"
        address = config["proxy"].removeprefix("http://")
        assert triton(url, file, *options, "--dump-header", str(heads), proxy=address).code == 0
    assert "X-Cache: HIT-LOCAL" in heads.read_text()
    assert ("X-Team", "vision") in store.requests[-1].fields


def test_config_file_without_options_is_for_the_local_peer() -> None:
    printed = CliRunner().invoke(app, ["config", "triton"])
    assert json.loads(printed.stdout) == {"proxy": "http://127.0.0.1:65001", "header": {}, "filter": []}


@pytest.mark.parametrize(
    "arguments", [["--proxy", "127.0.0.1:65001"], ["--proxy", "http://u:secret@:0"], ["-H", "secret"]]
)
def test_config_file_that_the_agent_could_not_use_is_refused(arguments: list[str]) -> None:
    refused = CliRunner().invoke(app, ["config", "triton", *arguments])
    assert (refused.exit_code, refused.stdout) == (2, "")


@pytest.mark.parametrize(
    "filters",
    [
        "X-Amz-Credential&X-Amz-Date&token",
        "X-Amz-Credential,X-Amz-Date,token",
        " X-Amz-Credential & , X-Amz-Date ,, token&",
    ],
)
def test_filter_list(store: RawOrigin, proxy: str, filters: str) -> None:
    def ask(query: str, *lines: str) -> str:
        request = triton_request(f"{store.base}/m?{query}", "X-Dragonfly-Use-P2P: true", *lines)
        return replay(proxy, request).headers["x-dragonfly-task-id"]

    filtered = ask("X-Amz-Credential=AK&v=1&X-Amz-Date=1&token=t", f"X-Dragonfly-Filter: {filters}")
    assert filtered == ask("v=1")
    assert filtered != ask("v=2&token=u", f"X-Dragonfly-Filter: {filters}")


@pytest.mark.parametrize("status", [401, 403, 404, 410, 500])
def test_status_of_an_error_is_a_reset(signed: str, store: RawOrigin, proxy: str, file: Path, status: int) -> None:
    store.answer = lambda _: response(status, body=b"<Error/>")
    assert triton(signed, file, proxy=proxy).code in RESET
    assert not file.exists()
    with Wire(proxy) as wire, pytest.raises(ConnectionResetError):
        wire.ask(triton_request(signed))


def test_status_of_an_error_is_a_reset_though_every_byte_is_here(radosgw: S3Server, proxy: str, file: Path) -> None:
    bucket, key = f"models-{uuid.uuid4()}", "a/1/model.onnx"
    radosgw.put(bucket, key, CONTENT)
    url = radosgw.presign(bucket, key)
    assert triton(url, file, proxy=proxy).code == 0
    file.unlink()
    tampered = url[:-1] + ("0" if url[-1] != "0" else "1")
    assert triton(tampered, file, proxy=proxy).code in RESET
    assert not file.exists()
    again = replay(proxy, triton_request(url))
    assert (again.headers["x-cache"], again.body == CONTENT) == ("HIT-LOCAL", True)


def test_status_is_told_to_a_client_that_reads_it(store: RawOrigin, signed: str, proxy: str) -> None:
    store.answer = lambda _: response(403, "Content-Type: application/xml", body=b"<Error>no</Error>")
    answer = fetch(signed, proxy=proxy)
    assert (answer.status, answer.body) == (403, b"<Error>no</Error>")
    assert answer.headers["x-dragonfly-error-type"] == "backend"


def test_status_is_told_to_the_agent_where_a_rule_asks_for_it(store: RawOrigin, ruled_proxy: str, file: Path) -> None:
    store.answer = lambda _: response(404, body=b"<Error/>")
    url = f"{store.base}/status/m?{SIGNED}"
    assert triton(url, file, "--write-out", "%{http_code}", proxy=ruled_proxy).said == "404"
    assert file.read_bytes() == b"<Error/>"


def test_redirects_are_followed_for_the_agent(store: RawOrigin, proxy: str, file: Path) -> None:
    whole, moved = store.answer, response(307, f"Location: {store.base}/new?{SIGNED}", body=b"moved")
    store.answer = lambda request: moved if request.target.startswith("/old") else whole(request)
    for url in (f"{store.base}/old?{SIGNED}", f"{store.base}/old/plain"):
        assert triton(url, file, proxy=proxy).code == 0
        assert file.read_bytes() == CONTENT


def test_redirects_that_lead_nowhere_are_a_reset(store: RawOrigin, signed: str, proxy: str, file: Path) -> None:
    store.answer = lambda request: response(302, f"Location: {request.target}", body=b"again")
    assert triton(signed, file, proxy=proxy).code in RESET
    assert not file.exists()


BREAKS = {
    "a body shorter than its length": b"HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nContent-Length: 100\r\n\r\nhalf",
    "chunks without an end": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    "half a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nhalf",
}


@pytest.mark.parametrize("broken", BREAKS.values(), ids=BREAKS.keys())
def test_truncation_of_what_is_passed_through_is_an_error(
    store: RawOrigin, signed: str, proxy: str, file: Path, broken: bytes
) -> None:
    store.answer = lambda _: broken
    store.hang_up = True
    outcome = triton(signed, file, proxy=proxy)
    assert outcome.code in {CURL_PARTIAL, CURL_RECEIVE_ERROR}


def test_truncation_of_a_download_is_an_error(store: RawOrigin, signed: str, proxy: str, file: Path) -> None:
    whole = serving(CONTENT)
    store.answer = lambda request: whole(request) if request.field("Range") == "bytes=0-0" else CUT
    assert triton(signed, file, proxy=proxy).code in RESET
    assert not file.exists() or file.read_bytes() == b""


def test_truncation_no_answer_ends_with_the_connection(store: RawOrigin, signed: str, proxy: str) -> None:
    """An origin that marks the end of its body by closing is passed on in chunks."""
    store.answer = lambda _: b"HTTP/1.1 200 OK\r\n\r\n" + CONTENT
    store.hang_up = True
    answer = replay(proxy, triton_request(signed))
    assert (answer.status, answer.headers["transfer-encoding"]) == (200, "chunked")
    assert answer.body == CONTENT


@pytest.mark.parametrize("begun", [False, True], ids=["before the head", "within the body"])
def test_stalls_are_an_error(store: RawOrigin, ruled_proxy: str, file: Path, begun: bool) -> None:
    """What makes no progress within a limit (half a second at this peer) fails; the agent would wait for ever."""
    store.answer = lambda _: response(200, body=CONTENT)[: -len(CONTENT) // 2] if begun else stalled()

    async def stalled() -> bytes:
        await asyncio.Event().wait()
        return CUT

    url = f"{store.base}/direct/m?{SIGNED}"
    assert triton(url, file, proxy=ruled_proxy).code in {CURL_PARTIAL, *RESET}
    if not begun:
        assert fetch(url, proxy=ruled_proxy).status == 504


STORES = {
    "s3-v4": f"{SIGNED}&X-Amz-Date=1&X-Amz-Expires=1&X-Amz-Security-Token=1&x-id=GetObject&X-Amz-Checksum-Mode=ENABLED"
    "&X-Amz-Content-Sha256=UNSIGNED-PAYLOAD",
    "s3-v2": "AWSAccessKeyId=AK&Expires=1&Signature=c2ln",
    "oss": "Expires=1&Signature=c2ln&OSSAccessKeyId=AK&security-token=t",
    "obs": "X-Obs-Algorithm=a&X-Obs-Credential=AK&X-Obs-Date=1&X-Obs-Expires=1&X-Obs-SignedHeaders=host"
    "&X-Obs-Signature=1",
    "gcs-v4": "X-Goog-Algorithm=a&X-Goog-Credential=AK&X-Goog-Date=1&X-Goog-Expires=1&X-Goog-SignedHeaders=host"
    "&X-Goog-Signature=1",
    "gcs-v2": "GoogleAccessId=AK&Expires=1&Signature=c2ln",
    "azure-sas": "sv=2022-11-02&st=1&se=2&sr=c&sp=r&sip=1&spr=https&sig=c2ln&skoid=1&sktid=1&skt=1&ske=1&sks=b&skv=1",
}


@pytest.mark.parametrize("query", STORES.values(), ids=STORES.keys())
def test_built_in_filter_by_store(store: RawOrigin, proxy: str, file: Path, query: str) -> None:
    """However it is signed, P2P takes it unasked, and a signature made anew finds the same bytes."""
    url = f"{store.base}/models/a/1/model.onnx?{query}"
    assert triton(url, file, proxy=proxy).code == 0
    assert file.read_bytes() == CONTENT
    # Everything of the signature changes but what tells that it is one.
    renewed = "&".join(f"{name}={value}9" for name, value in parse_qsl(query))
    again = replay(proxy, triton_request(urlsplit(url)._replace(query=renewed).geturl()))
    assert (again.headers["x-cache"], again.body == CONTENT) == ("HIT-LOCAL", True)
    assert len(downloads(store)) == 1
    # What is not the signature's still tells objects apart.
    other = replay(proxy, triton_request(f"{url}&versionId=2"))
    assert other.headers["x-cache"] == "MISS"


def test_built_in_filter_leaves_other_urls_alone(store: RawOrigin, proxy: str) -> None:
    def task(query: str) -> str:
        request = triton_request(f"{store.base}/plain?{query}", "X-Dragonfly-Use-P2P: true")
        return replay(proxy, request).headers["x-dragonfly-task-id"]

    assert task("sv=1") != task("sv=2")
    assert task("Expires=1") != task("Expires=2")
    assert "x-dragonfly-task-id" not in replay(proxy, triton_request(f"{store.base}/plain?sv=2")).headers


def test_https_model_store_is_tunnelled_blindly(proxy: str, file: Path, tmp_path: Path) -> None:
    """One CONNECT and one handshake a file; the origin's own certificate is what the client verifies."""
    ca_file, context = own_authority(tmp_path)
    with running_raw_origin(serving(CONTENT), tls=context) as secure:
        url = f"https://127.0.0.1:{secure.port}/models/a/1/model.onnx?{SIGNED}"
        assert triton(url, file, "--cacert", str(ca_file), proxy=proxy).code == 0
        assert file.read_bytes() == CONTENT
        (request,) = secure.requests
    assert request.head == f"GET {request.target} HTTP/1.1\r\nHost: 127.0.0.1:{secure.port}\r\nAccept: */*".encode()


def test_https_model_store_connect_octets(proxy: str, tmp_path: Path) -> None:
    ca_file, context = own_authority(tmp_path)
    with running_raw_origin(serving(CONTENT), tls=context) as secure, Wire(proxy) as wire:
        authority = f"127.0.0.1:{secure.port}"
        wire.send(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nProxy-Connection: Keep-Alive\r\n\r\n".encode())
        assert wire.head().startswith(b"HTTP/1.1 200 ")
        wire.wrap(ca_file, "127.0.0.1")
        answer = wire.ask(f"GET /m?{SIGNED} HTTP/1.1\r\nHost: {authority}\r\nAccept: */*\r\n\r\n".encode())
    assert (answer.status, answer.body == CONTENT) == (200, True)
