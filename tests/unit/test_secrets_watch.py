"""The search for secrets finds what is planted, wherever daemons could leave it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.secrets import SHAPES, Watch, is_payload

HEX = "0123456789abcdef" * 4
PLANTED = {
    "a query's signature of S3 or GCS": f"http://h/k?X-Amz-Date=1&X-Amz-Signature={HEX}",
    "a session token": "x-amz-security-token=FwoGZXIvYXdzEBYaDNoonetokens",
    "a shared access signature": "https://a.blob.core.windows.net/c/b?sv=1&sig=abcdefgh%2Bijklmnop%3D",
    "a bearer token": "Authorization: Bearer ya29.a0AfH6SMBxyz",
    "basic credentials": "{'Proxy-Authorization': 'Basic dXNlcjpwYXNzd29yZA=='}",
    "a signed Authorization of S3 or GCS": (
        f"AWS4-HMAC-SHA256 Credential=AK/20260102/us-east-1/s3/aws4_request, SignedHeaders=host, Signature={HEX}"
    ),
    "a signed Authorization of Azure": "SharedKey models:abcdefghijklmnopqrstuvwxyz0123456789+/=",
    "a token of the cluster": "authorization=Damselfly eyJhbGciOiJIUzI1NiJ9.e30.abc",
    "a private key": "-----BEGIN RSA PRIVATE KEY-----",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_is_found_and_not_repeated(shape: str) -> None:
    watch = Watch()
    watch.text("log", "peer.log", f'{{"event": "x", "error": "{PLANTED[shape]}"}}'.encode())
    assert [found.what for found in watch.findings] == [shape]
    assert PLANTED[shape] not in watch.report()


def test_what_is_redacted_or_only_spoken_of_is_let_be() -> None:
    watch = Watch()
    for text in (
        "http://h/k?X-Amz-Signature=…&sig=…",
        "http://h/k?…",
        "Authorization: …",
        "the origin wants a Bearer token; give one with --header",
        "the proxy asks for Basic credentials",
        "Damselfly distributes model files",
    ):
        watch.text("log", "peer.log", text.encode())
    assert watch.report() == ""
    assert watch.looked["log"] == 6


def test_a_planted_secret_is_found_in_every_file_but_payload(tmp_path: Path) -> None:
    watch = Watch()
    watch.secret("the key", "not/to+be/seen")
    watch.secret("a word", "test")
    (tmp_path / "data" / "ab").mkdir(parents=True)
    for name in ("index.sqlite", "index.sqlite-wal", "host-id", "data/ab/0123", "data/note", "clean"):
        (tmp_path / name).write_bytes(b"\0 test" if name == "clean" else b"\0before not%2Fto%2Bbe%2Fseen\xff")
    watch.directory(tmp_path)
    found = {Path(finding.where).relative_to(tmp_path).as_posix(): finding.what for finding in watch.findings}
    assert found == dict.fromkeys(("index.sqlite", "index.sqlite-wal", "host-id", "data/note"), "the key")
    assert {"index", "write-ahead log", "note", "name"} == set(watch.looked)


def test_names_of_files_are_looked_at_too(tmp_path: Path) -> None:
    watch = Watch()
    watch.secret("the key", "secret-key-in-a-name")
    (tmp_path / "data" / "ab").mkdir(parents=True)
    (tmp_path / "data" / "ab" / "secret-key-in-a-name").write_bytes(b"")
    watch.directory(tmp_path)
    assert [finding.what for finding in watch.findings] == ["the key"]
    assert is_payload(Path("data/ab/secret-key-in-a-name"))
