from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.digests import ExpectedDigest
from p2p.errors import BadRequestError, ConfigError
from p2p.registry import Kind, blob_task, is_mirrored, mirrored, parse_upstream
from p2p.versions import Unkeepable, ValidatorKind, Version, conditional_headers, matches, read_version

HEX = hashlib.sha256(b"layer").hexdigest()
DIGEST = ExpectedDigest("sha256", HEX)


@pytest.mark.parametrize("target", ["/v2", "/v2/", "/v2/?ns=ghcr.io", f"/v2/a/b/blobs/sha256:{HEX}", "/v2/_catalog"])
def test_everything_below_v2_is_a_registrys(target: str) -> None:
    assert is_mirrored(target)


@pytest.mark.parametrize("target", ["/", "/v1/", "/v20/x", "*", "http://host/v2/", "//host/v2/", "?/v2/"])
def test_nothing_else_is(target: str) -> None:
    assert not is_mirrored(target)


@pytest.mark.parametrize(
    ("path", "kind", "digest"),
    [
        (f"/v2/library/model/blobs/sha256:{HEX}", Kind.BLOB, DIGEST),
        (f"/v2/model/blobs/sha256:{HEX}", Kind.BLOB, DIGEST),
        (f"/v2/blobs/blobs/sha256:{HEX}", Kind.BLOB, DIGEST),
        (f"/v2/a/manifests/b/blobs/sha256:{HEX}", Kind.BLOB, DIGEST),
        (f"/v2/a-b/c__d/e.f/manifests/sha256:{HEX}", Kind.MANIFEST, DIGEST),
        ("/v2/library/model/manifests/v1.2-rc_3", Kind.MANIFEST, None),
        (f"/v2/model/blobs/sha512:{HEX * 2}", Kind.BLOB, ExpectedDigest("sha512", HEX * 2)),
        # What cannot be verified, or only looks alike, is forwarded.
        (f"/v2/model/blobs/sha512:{HEX}", Kind.OTHER, None),
        ("/v2/model/blobs/blake3:00", Kind.OTHER, None),
        (f"/v2/model/blobs/sha256:{HEX.upper()}", Kind.OTHER, None),
        (f"/v2/model/blobs/uploads/{HEX}", Kind.OTHER, None),
        ("/v2/model/blobs/uploads/", Kind.OTHER, None),
        (f"/v2/Model/blobs/sha256:{HEX}", Kind.OTHER, None),
        (f"/v2/a/../b/blobs/sha256:{HEX}", Kind.OTHER, None),
        (f"/v2//blobs/sha256:{HEX}", Kind.OTHER, None),
        ("/v2/model/tags/list", Kind.OTHER, None),
        ("/v2/", Kind.OTHER, None),
    ],
)
def test_what_a_path_asks_for(path: str, kind: Kind, digest: ExpectedDigest | None) -> None:
    found = mirrored(path, default="https://registry.example")
    assert (found.url, found.kind, found.digest) == (f"https://registry.example{path}", kind, digest)


def test_the_header_names_the_upstream_before_ns_and_ns_before_the_default() -> None:
    target = "/v2/?ns=ghcr.io"
    assert mirrored(target, named="quay.io", default="http://local:5000").url == "https://quay.io/v2/"
    assert mirrored(target, default="http://local:5000").url == "https://ghcr.io/v2/"
    assert mirrored("/v2/", default="http://local:5000").url == "http://local:5000/v2/"


def test_without_a_name_the_error_says_how_to_give_one() -> None:
    with pytest.raises(BadRequestError, match=r"ns=.*X-Dragonfly-Registry.*--registry-upstream"):
        mirrored("/v2/")


@pytest.mark.parametrize(
    ("target", "url"),
    [
        ("/v2/x/tags/list?n=5&ns=ghcr.io&last=a%2Fb+c", "https://ghcr.io/v2/x/tags/list?n=5&last=a%2Fb+c"),
        ("/v2/x/tags/list?ns=127.0.0.1%3A5000", "http://127.0.0.1:5000/v2/x/tags/list"),
        ("/v2/x/tags/list?ns=ghcr.io&ns=ghcr.io", "https://ghcr.io/v2/x/tags/list"),
        ("/v2/x/tags/list?ns=ghcr.io&nsx=1", "https://ghcr.io/v2/x/tags/list?nsx=1"),
    ],
)
def test_ns_does_not_reach_the_upstream_and_the_rest_is_untouched(target: str, url: str) -> None:
    assert mirrored(target).url == url


def test_two_registries_in_one_request_are_refused() -> None:
    with pytest.raises(BadRequestError, match="several ns="):
        mirrored("/v2/?ns=a.example&ns=b.example")


@pytest.mark.parametrize(
    ("text", "upstream"),
    [
        ("docker.io", "https://registry-1.docker.io"),
        ("https://index.docker.io", "https://index.docker.io"),
        ("GHCR.io/", "https://ghcr.io"),
        ("registry.example:5000", "https://registry.example:5000"),
        ("localhost:5000", "http://localhost:5000"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("127.8.8.8", "http://127.8.8.8"),
        ("[::1]:5000", "http://[::1]:5000"),
        ("https://localhost:5000", "https://localhost:5000"),
        ("http://registry.example", "http://registry.example"),
    ],
)
def test_how_an_upstream_is_asked(text: str, upstream: str) -> None:
    assert parse_upstream(text) == upstream


@pytest.mark.parametrize(
    "text", ["", "/", "https://", "https://host/path", "user@host", "host:port", "ftp://host", "a b", "host?x", "-host"]
)
def test_what_names_no_upstream_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a host"):
        parse_upstream(text)
    if text:
        with pytest.raises(BadRequestError):
            mirrored("/v2/", named=text)


def test_an_upstream_that_is_refused_gives_no_password_away() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_upstream("https://user:hunter2@host")
    assert "hunter2" not in str(caught.value)


def test_repositories_of_a_registry_share_a_blob_and_registries_do_not() -> None:
    def task_id(url: str) -> str:
        return blob_task(url, DIGEST).id

    blob = f"blobs/{DIGEST}"
    assert task_id(f"https://ghcr.io/v2/a/{blob}") == task_id(f"https://ghcr.io/v2/b/c/{blob}?x=1")
    assert task_id(f"https://ghcr.io/v2/a/{blob}") != task_id(f"https://evil.example/v2/a/{blob}")
    assert task_id(f"https://ghcr.io/v2/a/{blob}") != task_id(f"http://ghcr.io/v2/a/{blob}")
    assert blob_task("https://ghcr.io/v2/a", DIGEST).canonical == f"registry+https://ghcr.io/{DIGEST}"


def test_a_blobs_version_is_its_digest_whatever_the_storage_says() -> None:
    storage = {"ETag": '"upload-1"', "Last-Modified": "Sat, 21 Nov 2026 00:00:00 GMT"}
    version = read_version("t" * 64, storage, length=5, content=DIGEST)
    assert version == Version("t" * 64, 5, ValidatorKind.CONTENT, str(DIGEST))
    assert read_version("t" * 64, {}, length=5, content=DIGEST) == version
    assert conditional_headers(version) == ()
    for answer in ({}, {"ETag": '"upload-2"'}, {"Docker-Content-Digest": str(DIGEST)}):
        assert matches(version, answer, 5)
        assert not matches(version, answer, 6)
        assert not matches(version, answer, None)
    assert not matches(version, {"Docker-Content-Digest": f"sha256:{'0' * 64}"}, 5)


@pytest.mark.parametrize(
    "answer",
    [{"Cache-Control": "no-store"}, {"Docker-Content-Digest": f"sha256:{'0' * 64}"}],
    ids=["no-store", "other"],
)
def test_a_blob_that_may_not_be_kept_or_is_another_is_not(answer: dict[str, str]) -> None:
    assert isinstance(read_version("t" * 64, answer, length=5, content=DIGEST), Unkeepable)


SEGMENTS = st.text("abcns=%2F+", min_size=1, max_size=8).filter(lambda text: not text.startswith("ns="))


@given(path=st.text("abz0/:._-%", max_size=40), query=st.lists(SEGMENTS, max_size=4), place=st.integers(0, 4))
def test_the_target_reaches_the_upstream_byte_for_byte(path: str, query: list[str], place: int) -> None:
    with_ns = [*query[:place], "ns=host.example", *query[place:]]
    url = mirrored(f"/v2/{path}?{'&'.join(with_ns)}").url
    assert url == f"https://host.example/v2/{path}" + (f"?{'&'.join(query)}" if query else "")
