from __future__ import annotations

import pytest

from p2p.versions import (
    Unkeepable,
    ValidatorKind,
    Version,
    conditional_headers,
    matches,
    passthrough_headers,
    read_version,
)

TASK = "ab" * 32
LENGTH = 1000
MODIFIED_SECONDS = 784111777
MODIFIED = "Sun, 06 Nov 1994 08:49:37 GMT"
SAME_SECOND = {"Last-Modified": MODIFIED, "Date": "Sun, 06 Nov 1994 08:49:37 GMT"}
SECOND_AFTER = {"Last-Modified": MODIFIED, "Date": "Sun, 06 Nov 1994 08:49:38 GMT"}
LATER = {"Last-Modified": MODIFIED, "Date": "Sun, 06 Nov 1994 08:49:39 GMT"}


def read(headers: dict[str, str], length: int = LENGTH) -> tuple[ValidatorKind, str] | None:
    version = read_version(TASK, headers, length=length)
    if isinstance(version, Unkeepable):
        assert version.reason
        return None
    assert (version.task_id, version.length) == (TASK, length)
    return version.kind, version.validator


@pytest.mark.parametrize(
    ("headers", "kind", "validator"),
    [
        # A hash of the content: S3's, also of a multipart upload; Azure's counter.
        ({"ETag": '"9b2cf535f27731c974343645a3985328"'}, "etag", '"9b2cf535f27731c974343645a3985328"'),
        (
            {"etag": '"9b2cf535f27731c974343645a3985328-12"', **SAME_SECOND},
            "etag",
            '"9b2cf535f27731c974343645a3985328-12"',
        ),
        ({"ETag": '"0x8DC0123456789AB"', **SAME_SECOND}, "etag", '"0x8DC0123456789AB"'),
        ({"ETag": '""'}, "etag", '""'),
        # The tag is the best of several.
        ({"ETag": '"a"', "x-goog-generation": "7", **LATER}, "etag", '"a"'),
        # Weak, unquoted or contradictory tags count for nothing.
        ({"ETag": 'W/"a"', "x-goog-generation": "7"}, "generation", "7"),
        ({"ETag": "9b2cf535f27731c974343645a3985328", **LATER}, "last-modified", MODIFIED),
        ({"ETag": 'W/"3e8-18c7"', **LATER}, "last-modified", MODIFIED),
        ({"ETag": '"a"', "etag": '"b"', **LATER}, "last-modified", MODIFIED),
        # Ids of writes.
        ({"x-amz-version-id": "null", "x-goog-generation": "", **LATER}, "last-modified", MODIFIED),
        ({"x-amz-version-id": "3HL4kqtJlcpXroDTDmJ"}, "generation", "3HL4kqtJlcpXroDTDmJ"),
        ({"x-ms-version-id": "2024-01-01T00:00:00.0000000Z"}, "generation", "2024-01-01T00:00:00.0000000Z"),
        # Digests.
        ({"Docker-Content-Digest": f"sha256:{'a' * 64}", **LATER}, "digest", f"sha256:{'a' * 64}"),
        ({"Docker-Content-Digest": "sha256:a", **LATER}, "last-modified", MODIFIED),
        # Dates, whatever the coding, the form of the date and the fields that do not choose the bytes.
        ({**LATER, "Content-Encoding": "gzip", "Vary": "Accept-Encoding, Origin"}, "last-modified", MODIFIED),
        ({**LATER, "Last-Modified": "Sun Nov  6 08:49:37 1994"}, "last-modified", "Sun Nov  6 08:49:37 1994"),
        # What servers say of caches that ask every time anyway.
        ({"ETag": '"a"', "Cache-Control": "no-cache, max-age=0, must-revalidate"}, "etag", '"a"'),
        ({"ETag": '"a"', "Vary": "*"}, "etag", '"a"'),
        ({"ETag": '"a"', "x-goog-stored-content-encoding": "identity"}, "etag", '"a"'),
        ({"ETag": '"a"', "x-goog-stored-content-encoding": "gzip", "Content-Encoding": "gzip"}, "etag", '"a"'),
    ],
)
def test_the_best_validator_names_the_version(headers: dict[str, str], kind: str, validator: str) -> None:
    assert read(headers) == (kind, validator)


def test_what_google_calls_private_is_kept_because_everybody_is_asked_for_their_leave() -> None:
    headers = {"ETag": '"a"', "x-goog-generation": "7", "Cache-Control": "private, max-age=0"}
    assert read(headers) == ("etag", '"a"')
    assert read(headers | {"Cache-Control": "private, no-store"}) is None


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"ETag": 'W/"a"'},
        {"ETag": "a"},
        {"ETag": '"a'},
        {"Last-Modified": MODIFIED},
        SAME_SECOND,
        SECOND_AFTER,
        {"Last-Modified": "yesterday", "Date": LATER["Date"]},
        {**LATER, "Vary": "Accept-Encoding, Authorization"},
        {"ETag": '"a"', "Cache-Control": "max-age=60, No-Store"},
        {"ETag": '"a"', "Cache-Control": "private"},
        {"ETag": '"a"', "Cache-Control": 'private="set-cookie"'},
        {"ETag": '"a"', "x-goog-generation": "7", "x-goog-stored-content-encoding": "gzip"},
    ],
)
def test_without_a_sound_validator_nothing_is_kept(headers: dict[str, str]) -> None:
    assert read(headers) is None


@pytest.mark.parametrize(
    "etag",
    [
        f'"{MODIFIED_SECONDS:x}-{LENGTH:x}"',  # nginx
        f'"{LENGTH:x}-{MODIFIED_SECONDS * 10**6 + 123456:x}"',  # Apache, microseconds
        f'"1a2b3c-{LENGTH:x}-{MODIFIED_SECONDS * 10**6:x}"',  # Apache with the inode
        f'"{MODIFIED_SECONDS * 10**9 + 5:X}-{LENGTH:X}"',  # aiohttp, nanoseconds
        f'"{MODIFIED_SECONDS}.25-{LENGTH}-2077607535"',  # Flask
        f'"2b:{LENGTH:x}:{MODIFIED_SECONDS:x}:0"',  # actix
        f'"{MODIFIED_SECONDS:x}"',  # the time alone
    ],
)
def test_a_tag_made_of_a_date_counts_once_its_second_is_over(etag: str) -> None:
    assert read({"ETag": etag, **LATER}) == ("etag", etag)
    assert read({"ETag": etag, **SAME_SECOND}) is None
    assert read({"ETag": etag, "Last-Modified": MODIFIED}) is None


def test_caddys_tag_is_made_of_a_date() -> None:
    def base36(number: int) -> str:
        digits = ""
        while number:
            number, digit = divmod(number, 36)
            digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
        return digits

    etag = f'"{base36(MODIFIED_SECONDS * 10**9 + 7)}{base36(LENGTH)}"'
    assert read({"ETag": etag, **LATER}) == ("etag", etag)
    assert read({"ETag": etag, **SAME_SECOND}) is None


def test_a_tag_with_the_size_in_it_is_made_of_a_date_even_where_the_date_is_missing() -> None:
    assert read({"ETag": f'"5f3e1a2b-{LENGTH:x}"'}) is None
    assert read({"ETag": f'"5f3e1a2b-{LENGTH + 1:x}"'}) is not None


def test_a_negative_length_is_a_defect_of_the_caller() -> None:
    with pytest.raises(ValueError, match="-1"):
        read_version(TASK, {}, length=-1)


@pytest.mark.parametrize(
    ("kind", "validator", "headers"),
    [
        (ValidatorKind.ETAG, '"a"', {"ETag": '"a"'}),
        (ValidatorKind.LAST_MODIFIED, MODIFIED, {"Last-Modified": MODIFIED}),
        (ValidatorKind.GENERATION, "7", {"X-Goog-Generation": "7", "ETag": 'W/"x"'}),
        (ValidatorKind.DIGEST, f"sha256:{'a' * 64}", {"Docker-Content-Digest": f"sha256:{'a' * 64}"}),
    ],
)
def test_an_answer_matches_by_validator_and_length(
    kind: ValidatorKind, validator: str, headers: dict[str, str]
) -> None:
    version = Version(TASK, LENGTH, kind, validator)
    assert matches(version, headers, LENGTH)
    assert matches(version, tuple(headers.items()), LENGTH)
    assert not matches(version, headers, LENGTH + 1)
    assert not matches(version, headers, None)
    assert not matches(version, {}, LENGTH)
    assert not matches(version, {name: value + "0" for name, value in headers.items()}, LENGTH)
    assert not matches(version, {name: f"W/{value}" for name, value in headers.items()}, LENGTH)


def test_conditions_are_the_validator_itself() -> None:
    def conditions(kind: ValidatorKind, validator: str) -> tuple[tuple[str, str], ...]:
        return conditional_headers(Version(TASK, 1, kind, validator))

    assert conditions(ValidatorKind.ETAG, '"a"') == (("If-Match", '"a"'),)
    assert conditions(ValidatorKind.LAST_MODIFIED, MODIFIED) == (("If-Unmodified-Since", MODIFIED),)
    assert conditions(ValidatorKind.GENERATION, "7") == ()
    assert conditions(ValidatorKind.DIGEST, "sha256:a") == ()


def test_version_ids_tell_every_field_apart() -> None:
    versions = [
        Version(TASK, 1, ValidatorKind.ETAG, '"a"'),
        Version("cd" * 32, 1, ValidatorKind.ETAG, '"a"'),
        Version(TASK, 2, ValidatorKind.ETAG, '"a"'),
        Version(TASK, 1, ValidatorKind.DIGEST, '"a"'),
        Version(TASK, 1, ValidatorKind.ETAG, '"b"'),
        Version(TASK, 1, ValidatorKind.ETAG, '"\udce4"'),
    ]
    assert len({version.id for version in versions}) == len(versions)
    assert all(len(version.id) == 32 for version in versions)


def test_the_objects_own_fields_pass_and_others_stay_behind() -> None:
    kept = (
        ("ETag", '"a"'),
        ("content-type", "application/octet-stream"),
        ("Content-Disposition", "attachment"),
        ("Content-Encoding", "gzip"),
        ("Content-Language", "de"),
        ("Cache-Control", "max-age=1"),
        ("Last-Modified", MODIFIED),
        ("X-Amz-Meta-Owner", "me"),
        ("x-amz-meta-owner", "you"),
        ("x-goog-hash", "crc32c=AAAAAA=="),
        ("x-ms-blob-type", "BlockBlob"),
    )
    dropped = tuple(
        (name, "x")
        for name in (
            "Set-Cookie",
            "Content-Length",
            "Content-Range",
            "Transfer-Encoding",
            "Connection",
            "Date",
            "WWW-Authenticate",
            "X-Dragonfly-Task-ID",
            "Server",
        )
    )
    assert passthrough_headers(kept + dropped) == kept
