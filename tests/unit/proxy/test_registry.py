"""Manifests through the mirror: what is kept of them, and what is asked."""

from __future__ import annotations

import hashlib

import pytest

import peer.proxy.registry as mirror

from ..source.raw_origin import Answer, RawOrigin, RawRequest, response
from .front import Front, Reply

BODY = b'{"schemaVersion":2}'
DIGEST = f"sha256:{hashlib.sha256(BODY).hexdigest()}"
ETAG = f'"{DIGEST}"'
DATE = "Sat, 21 Nov 2026 00:00:00 GMT"


def registry(*fields: str, has: str = ETAG, body: bytes = BODY) -> Answer:
    """Answer as a registry does that has a manifest by the name `has`, whether or not it says so in its answers."""

    def answer(request: RawRequest) -> bytes:
        if request.field("If-None-Match") == has:
            return response(304, f"Date: {DATE}", length=False)
        if request.line.startswith("HEAD"):
            return response(200, f"Content-Length: {len(body)}", length=False)
        return response(200, *fields, body=body)

    return answer


async def ask(front: Front, origin: RawOrigin, reference: str, *fields: str, method: str = "GET") -> Reply:
    client = await front.connect()
    named = ("Host: mirror", "User-Agent: test", f"X-Dragonfly-Registry: {origin.base}")
    await client.send(f"{method} /v2/models/x/manifests/{reference} HTTP/1.1", *named, *fields)
    return await client.reply(to_head=method == "HEAD")


def conditions(origin: RawOrigin) -> list[str | None]:
    return [request.field("If-None-Match") for request in origin.requests]


@pytest.mark.parametrize("reference", ["v1", DIGEST])
async def test_a_304_sends_what_is_kept_to_whoever_the_registry_gave_it(
    front: Front, origin: RawOrigin, reference: str
) -> None:
    origin.answer = registry(f"ETag: {ETAG}", "Content-Type: application/x")
    first = await ask(front, origin, reference, "Authorization: Bearer a", "Accept-Encoding: gzip")
    second = await ask(front, origin, reference, "Authorization: Bearer b")
    assert (first.body, first.field("X-Cache")) == (BODY, "MISS")
    assert (second.status, second.body, second.field("X-Cache"), second.field("Age")) == (200, BODY, "HIT-LOCAL", "0")
    assert (second.field("Content-Type"), second.field("Date")) == ("application/x", DATE)
    assert conditions(origin) == [None, ETAG]
    assert [request.field("Authorization") for request in origin.requests] == ["Bearer a", "Bearer b"]
    for request in origin.requests:
        assert request.field("X-Dragonfly-Registry") is None
        assert [value for name, value in request.fields if name == "Accept-Encoding"] == ["identity"]


async def test_a_digest_is_asked_for_by_its_own_name_where_the_registry_gives_no_etag(
    front: Front, origin: RawOrigin
) -> None:
    origin.answer = registry()
    replies = [await ask(front, origin, DIGEST) for _ in range(2)]
    assert [reply.field("X-Cache") for reply in replies] == ["MISS", "HIT-LOCAL"]
    assert conditions(origin) == [None, ETAG]


@pytest.mark.parametrize(
    ("reference", "fields"),
    [
        ("v1", ()),
        ("v1", (f"ETag: W/{ETAG}",)),
        ("v1", (f"ETag: {ETAG}", "Cache-Control: no-store")),
        (DIGEST, (f"ETag: {ETAG}", "Cache-Control: private")),
        # The bytes do not have the digest that names them, by the design of such manifests.
        (f"sha256:{'0' * 64}", (f"ETag: {ETAG}", f"Content-Type: {mirror.SIGNED_MANIFEST}")),
    ],
    ids=["no validator", "weak", "no-store", "private", "signed"],
)
async def test_what_cannot_be_asked_about_or_may_not_be_kept_is_fetched_anew(
    front: Front, origin: RawOrigin, reference: str, fields: tuple[str, ...]
) -> None:
    origin.answer = registry(*fields)
    replies = [await ask(front, origin, reference) for _ in range(2)]
    assert [(reply.status, reply.body) for reply in replies] == [(200, BODY)] * 2
    assert conditions(origin) == [None, None]


async def test_what_is_too_long_for_a_manifest_is_passed_through(
    front: Front, origin: RawOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "MANIFEST_BYTES", len(BODY) - 1)
    origin.answer = registry(f"ETag: {ETAG}")
    assert (await ask(front, origin, "v1")).body == BODY
    assert (await ask(front, origin, "v1")).body == BODY
    assert set(conditions(origin)) == {None}


async def test_the_least_recently_used_is_forgotten(
    front: Front, origin: RawOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "KEPT_BYTES", 2 * len(BODY))
    origin.answer = registry(f"ETag: {ETAG}")
    for tag in ("a", "b", "a", "c", "a", "b"):
        assert (await ask(front, origin, tag)).body == BODY
    assert conditions(origin) == [None, None, ETAG, None, ETAG, None]


async def test_a_clients_own_condition_is_the_registrys_to_answer(front: Front, origin: RawOrigin) -> None:
    origin.answer = registry(f"ETag: {ETAG}")
    assert (await ask(front, origin, "v1")).status == 200
    assert (await ask(front, origin, "v1", f"If-None-Match: {ETAG}")).status == 304
    assert (await ask(front, origin, "v1", "Range: bytes=0-3")).status == 200
    assert (await ask(front, origin, "v1", method="HEAD")).status == 200
    assert [request.line.split()[0] for request in origin.requests] == ["GET", "GET", "GET", "HEAD"]
    assert conditions(origin) == [None, ETAG, None, None]


async def test_digest_of_wrong_bytes_is_502_and_the_right_ones_follow(front: Front, origin: RawOrigin) -> None:
    origin.answer = registry(f"ETag: {ETAG}", body=BODY[:-1] + b" ")
    reply = await ask(front, origin, DIGEST)
    assert (reply.status, b"was expected" in reply.body) == (502, True)
    origin.answer = registry(f"ETag: {ETAG}")
    assert (await ask(front, origin, DIGEST)).body == BODY
    assert conditions(origin) == [None, None]
