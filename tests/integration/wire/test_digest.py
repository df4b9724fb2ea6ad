"""WIRE §3: `X-Dragonfly-Digest`. The last piece goes out only when the whole object is known to be the expected one."""

from __future__ import annotations

import hashlib
import http.client
from collections.abc import Iterator
from itertools import count

import pytest

from bench.cluster import LocalCluster
from bench.content import SyntheticObject
from bench.origin_client import OriginClient, RemoteObject, running_origin
from tests.integration.wire.conftest import CONTENT
from tests.support.clients import triton_request
from tests.support.daemons import exchange, fetch, open_url
from tests.support.pieces import PIECE
from tests.unit.source.raw_origin import RawOrigin, response

MIB = 1024 * 1024
SIZE = 2 * PIECE + 4321
WRONG = "sha256:" + "0" * 64

_numbers = count()


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OriginClient]:
    with running_origin("unlimited", tmp_path_factory.mktemp("origin")) as client:
        yield client


@pytest.fixture
def thing(counting: OriginClient) -> RemoteObject:
    return counting.create(f"digest-{next(_numbers)}.bin", SIZE, sha256=True)


def right(thing: RemoteObject) -> dict[str, str]:
    return {"X-Dragonfly-Digest": f"sha256:{thing.sha256}"}


def taken_before_reset(response: http.client.HTTPResponse) -> int:
    """Read until the connection breaks, and return how many bytes came; fails if the body comes to its end."""
    length = 0
    try:
        while data := response.read1(MIB):
            length += len(data)
    except (ConnectionResetError, http.client.IncompleteRead):
        return length
    pytest.fail(f"a body of {length} bytes came to its end")


def test_an_object_with_the_expected_digest_is_served(thing: RemoteObject, proxy: str, other_proxy: str) -> None:
    caches = []
    for peer in (proxy, other_proxy, other_proxy):
        answer = fetch(thing.url, proxy=peer, headers=right(thing))
        assert (answer.status, answer.sha256) == (200, thing.sha256)
        caches.append(answer.headers["x-cache"])
    assert caches == ["MISS", "HIT-REMOTE", "HIT-LOCAL"]


@pytest.mark.parametrize("algorithm", ["SHA256", "sha512"])
def test_other_spellings_and_kinds(thing: RemoteObject, proxy: str, algorithm: str) -> None:
    digest = hashlib.new(algorithm, SyntheticObject(thing.name, SIZE).bytes()).hexdigest()
    answer = fetch(thing.url, proxy=proxy, headers={"x-dragonfly-digest": f" {algorithm}:{digest.upper()}"})
    assert (answer.status, answer.sha256) == (200, thing.sha256)


def test_another_digest_resets_before_the_last_byte_and_drops_the_version(
    thing: RemoteObject, fleet: LocalCluster, proxy: str, counting: OriginClient
) -> None:
    with open_url(thing.url, proxy=proxy, headers={"X-Dragonfly-Digest": WRONG}) as refused:
        assert refused.status == 200
        task_id = refused.headers["X-Dragonfly-Task-ID"]
        length = taken_before_reset(refused)
    assert length <= 2 * PIECE, "what precedes the last piece may go out on trust"
    status = fetch(f"http://{fleet['peer-1'].addresses['http']}/v1/tasks/{task_id}")
    assert status.status == 404, "nothing of it is left here"
    metrics = fetch(f"http://{fleet['peer-1'].addresses['http']}/metrics").body
    assert b'damselfly_object_digests_total{verdict="mismatch"}' in metrics
    assert f'"{task_id}"' in next(
        line for line in fleet["peer-1"].log.read_text().splitlines() if "does not have the expected digest" in line
    )
    again = fetch(thing.url, proxy=proxy, headers=right(thing))
    assert (again.status, again.sha256) == (200, thing.sha256)


def test_a_wrong_expectation_does_not_drop_what_others_have_verified(thing: RemoteObject, proxy: str) -> None:
    assert fetch(thing.url, proxy=proxy, headers=right(thing)).sha256 == thing.sha256
    with open_url(thing.url, proxy=proxy, headers={"X-Dragonfly-Digest": WRONG}) as refused:
        assert taken_before_reset(refused) <= 2 * PIECE
    again = fetch(thing.url, proxy=proxy, headers=right(thing))
    assert (again.sha256, again.headers["x-cache"]) == (thing.sha256, "HIT-LOCAL")


def test_a_small_object_is_judged_before_its_head(store: RawOrigin, signed: str, proxy: str) -> None:
    answer = fetch(signed, proxy=proxy, headers={"X-Dragonfly-Digest": WRONG})
    assert answer.status == 502
    assert f"sha256:{hashlib.sha256(CONTENT).hexdigest()}".encode() in answer.body, "it says what the object has"
    with pytest.raises(ConnectionResetError):
        exchange(proxy, triton_request(signed, f"X-Dragonfly-Digest: {WRONG}"))


def test_a_range_is_verified_against_the_whole_object(thing: RemoteObject, proxy: str) -> None:
    content = SyntheticObject(thing.name, SIZE)
    answer = fetch(thing.url, proxy=proxy, headers={"Range": "bytes=10-19", **right(thing)})
    assert (answer.status, answer.body) == (206, content.bytes(10, 20))
    wrong = fetch(thing.url, proxy=proxy, headers={"Range": "bytes=10-19", "X-Dragonfly-Digest": WRONG})
    assert wrong.status == 502


@pytest.mark.parametrize("malformed", ["sha256:12", "md5:d41d8cd98f00b204e9800998ecf8427e", "nonsense", ""])
@pytest.mark.parametrize("p2p", ["true", "false"])
def test_a_malformed_digest_is_a_bad_request(
    store: RawOrigin, signed: str, proxy: str, malformed: str, p2p: str
) -> None:
    headers = {"X-Dragonfly-Digest": malformed, "X-Dragonfly-Use-P2P": p2p}
    answer = fetch(signed, proxy=proxy, headers=headers)
    assert (answer.status, answer.headers["x-dragonfly-error-type"]) == (400, "proxy")
    assert not store.requests


def test_digests_that_contradict_each_other_are_a_bad_request(store: RawOrigin, signed: str, proxy: str) -> None:
    lines = [f"X-Dragonfly-Digest: sha256:{digit * 64}" for digit in "01"]
    answer = exchange(proxy, triton_request(signed, "User-Agent: x", "Connection: close", *lines))
    assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_what_is_passed_through_is_verified_too(store: RawOrigin, signed: str, proxy: str, framing: str) -> None:
    """Without ranges nothing can be kept; yet no client ever has all of a body that is not the expected one."""
    if framing == "length":
        store.answer = lambda _: response(200, body=CONTENT)
    else:
        chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(CONTENT), CONTENT)
        store.answer = lambda _: response(200, "Transfer-Encoding: chunked", body=chunks, length=False)
    digest = hashlib.sha256(CONTENT).hexdigest()
    answer = fetch(signed, proxy=proxy, headers={"X-Dragonfly-Digest": f"sha256:{digest}"})
    assert (answer.headers["x-cache"], answer.body == CONTENT) == ("BYPASS", True)
    with open_url(signed, proxy=proxy, headers={"X-Dragonfly-Digest": WRONG}) as refused:
        assert taken_before_reset(refused) < len(CONTENT)


def test_empty_objects_are_judged_as_well(store: RawOrigin, signed: str, proxy: str) -> None:
    store.answer = lambda _: response(200, 'ETag: "empty"', body=b"")
    empty = hashlib.sha256(b"").hexdigest()
    for p2p in ("true", "false"):
        headers = {"X-Dragonfly-Use-P2P": p2p, "X-Dragonfly-Digest": f"sha256:{empty}"}
        answer = fetch(signed, proxy=proxy, headers=headers)
        assert (answer.status, answer.body) == (200, b"")
        answer = fetch(signed, proxy=proxy, headers={**headers, "X-Dragonfly-Digest": WRONG})
        assert answer.status == 502


def test_a_part_that_is_passed_through_cannot_be_verified(store: RawOrigin, signed: str, proxy: str) -> None:
    headers = {"X-Dragonfly-Use-P2P": "false", "Range": "bytes=0-9", "X-Dragonfly-Digest": WRONG}
    answer = fetch(signed, proxy=proxy, headers=headers)
    assert answer.status == 502
    assert b"ask without Range" in answer.body
