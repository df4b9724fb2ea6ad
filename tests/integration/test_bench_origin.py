"""The bench's origin as the product meets it: a process, real sockets, presigned URLs."""

import hashlib
import http.client
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import xxhash

from bench.origin import Fault, Origin, profile_named, serve
from bench.origin_client import OriginClient, OriginControlError, RemoteObject, running_origin
from bench.reader import Reader, ReadError
from bench.shaping import PROFILES
from p2p.errors import ConfigError

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OriginClient]:
    with running_origin("unlimited", tmp_path_factory.mktemp("origin")) as client:
        yield client


@pytest.fixture
def origin(process: OriginClient) -> OriginClient:
    process.reset()
    return process


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()


def ask(url: str, headers: Mapping[str, str] | None = None, *, method: str = "GET") -> Answer:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    try:
        connection.request(method, url[len(f"http://{parts.netloc}") :], headers=dict(headers or {}))
        return Answer(connection.getresponse())
    finally:
        connection.close()


def part(start: int, stop: int) -> dict[str, str]:
    return {"Range": f"bytes={start}-{stop - 1}"}


def test_an_object_is_what_its_digests_say(origin: OriginClient) -> None:
    made = origin.create("models/äö x/1/model.bin", 5 * MIB + 3, sha256=True)
    answer = ask(made.url)
    assert answer.status == 200
    assert len(answer.body) == made.length == 5 * MIB + 3
    assert xxhash.xxh3_128_hexdigest(answer.body) == made.xxh3_128
    assert hashlib.sha256(answer.body).hexdigest() == made.sha256
    assert answer.headers["ETag"] == made.etag
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert "Last-Modified" in answer.headers
    assert "Date" in answer.headers
    assert "X-Amz-Signature" not in repr(made)


def test_ranges_are_parts_of_the_object(origin: OriginClient) -> None:
    made = origin.create("ranges", 3 * MIB)
    whole = ask(made.url).body
    for start, stop in ((0, 1), (MIB - 1, 2 * MIB + 1), (3 * MIB - 7, 3 * MIB)):
        answer = ask(made.url, part(start, stop))
        assert (answer.status, answer.body) == (206, whole[start:stop])
        assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{3 * MIB}"
    assert ask(made.url, {"Range": "bytes=-5"}).body == whole[-5:]
    beyond = ask(made.url, {"Range": f"bytes={3 * MIB}-"})
    assert (beyond.status, beyond.headers["Content-Range"]) == (416, f"bytes */{3 * MIB}")


def test_conditions_follow_the_version(origin: OriginClient) -> None:
    old = origin.create("conditions", MIB)
    before = ask(old.url).body
    assert ask(old.url, {"If-None-Match": old.etag, **part(0, 1)}).status == 304
    new = origin.create("conditions", MIB)
    assert new.etag != old.etag
    assert new.xxh3_128 != old.xxh3_128
    assert ask(old.url, {"If-Match": old.etag, **part(0, 10)}).status == 412
    assert ask(old.url, {"If-None-Match": old.etag}).status == 200
    after = ask(old.url, {"If-Match": new.etag, **part(0, 10)})
    assert (after.status, after.headers["ETag"]) == (206, new.etag)
    assert after.body != before[:10]


def test_only_a_get_of_the_very_url_is_allowed(origin: OriginClient) -> None:
    made = origin.create("signed x", 10)
    other = origin.presign(made.name)
    assert other != made.url
    assert ask(other).body == ask(made.url).body
    for broken in (
        made.url.replace("%20", "+"),
        made.url.replace("%2F", "/"),
        made.url[:-1],
        made.url + "&x=1",
        made.url.partition("?")[0],
    ):
        assert ask(broken).status == 403
    for method in ("HEAD", "PUT", "DELETE"):
        assert ask(made.url, method=method).status == 403
    with pytest.raises(OriginControlError, match="no POST /_bench/urls"):
        origin.presign("nobody made this")


def test_requests_connections_and_bytes_are_counted_and_checks_apart(origin: OriginClient) -> None:
    made = origin.create("counted", 2 * MIB)
    assert ask(made.url, part(0, 1)).status == 206
    assert ask(made.url, {"If-None-Match": made.etag, **part(0, 1)}).status == 304
    ask(made.url, part(0, MIB))
    ask(made.url)
    ask(made.url, {"Range": "bytes=9999999-"})
    stats = origin.stats()
    assert (stats.requests, stats.one_byte_requests, stats.connections) == (3, 2, 5)
    assert stats.body_bytes == 1 + MIB + 2 * MIB
    assert stats.statuses == {"206": 1, "200": 1, "416": 1}
    assert stats.since(stats).statuses == {}
    parts = urlsplit(made.url)
    connection = http.client.HTTPConnection(parts.netloc)
    for _ in range(3):
        connection.request("GET", f"{parts.path}?{parts.query}", headers=part(0, 10))
        connection.getresponse().read()
    connection.close()
    assert origin.stats().since(stats).connections == 1
    origin.reset()
    assert origin.stats().requests == 0


def test_the_next_requests_fail_as_told_and_checks_can_be_spared(origin: OriginClient) -> None:
    made = origin.create("failing", MIB)
    origin.set_fault(Fault("status", requests=2, status=503, after_bytes=1))
    assert [ask(made.url, headers).status for headers in (part(0, 1), part(0, 2), None, None)] == [206, 503, 503, 200]


def test_a_cut_comes_after_so_many_bytes(origin: OriginClient) -> None:
    made = origin.create("cut", 4 * MIB)
    origin.set_fault(Fault("cut", after_bytes=MIB + 7))
    with pytest.raises(ReadError, match=f"closed after {MIB + 7} of {4 * MIB} bytes"):
        Reader().read(made.url)
    assert origin.stats().body_bytes == MIB + 7
    assert Reader().read(made.url).xxh3_128 == made.xxh3_128


def test_a_stall_lasts_until_the_faults_are_cleared(origin: OriginClient) -> None:
    made = origin.create("stalling", 4 * MIB)
    origin.set_fault(Fault("stall", after_bytes=MIB))
    with stalled(made) as connection:
        received = read_body(connection, MIB)
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.recv(1)
        connection.settimeout(30)
        origin.set_fault(None)
        received += read_body(connection, 3 * MIB)
    assert xxhash.xxh3_128_hexdigest(received) == made.xxh3_128


def test_a_stalled_client_may_leave(origin: OriginClient) -> None:
    made = origin.create("left", 4 * MIB)
    origin.set_fault(Fault("stall", after_bytes=MIB))
    with stalled(made) as connection:
        read_body(connection, MIB)
    assert Reader().read(made.url).xxh3_128 == made.xxh3_128


def stalled(made: RemoteObject) -> socket.socket:
    """Ask for the whole object and read the head of the answer."""
    parts = urlsplit(made.url)
    connection = socket.create_connection((parts.hostname, parts.port), timeout=30)
    connection.sendall(f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    assert b" 200 " in head
    return connection


def read_body(connection: socket.socket, length: int) -> bytes:
    body = b""
    while len(body) < length:
        body += connection.recv(length - len(body))
    return body


def test_nonsense_is_refused_with_a_reason(origin: OriginClient) -> None:
    with pytest.raises(OriginControlError, match="cannot have -1 bytes"):
        origin.create("negative", -1)
    with pytest.raises(ValueError, match="no such kind"):
        Fault("explode")  # type: ignore[arg-type]  # the point of it


def test_shaped_origins_give_the_same_bytes(tmp_path: Path) -> None:
    for profile in ("gateway", "s3"):
        with running_origin(profile, tmp_path) as client:
            made = client.create("shaped", MIB + 1)
            assert Reader().read(made.url).xxh3_128 == made.xxh3_128


async def test_a_taken_port_and_an_unknown_profile_are_told() -> None:
    async with serve(Origin(PROFILES["unlimited"])) as address:
        port = int(address.rpartition(":")[2])
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            async with serve(Origin(PROFILES["unlimited"]), port=port):
                pass
    with pytest.raises(ConfigError, match="gateway, s3, unlimited"):
        profile_named("fast")


def test_a_share_of_all_requests_fails_and_the_same_ones_in_each_run(origin: OriginClient) -> None:
    made = origin.create("lasting", 100)

    def statuses() -> list[int]:
        origin.set_fault(Fault("status", fraction=0.25, seed=7, status=503))
        origin.set_fault(Fault("status", fraction=0.25, seed=8, status=500, after_bytes=50))
        return [ask(made.url, part(0, 50) if number % 2 else None).status for number in range(40)]

    first = statuses()
    assert {200, 206, 500, 503} == set(first)
    assert 4 <= first.count(503) <= 16
    origin.set_fault(None)
    assert statuses() == first
    origin.reset()
    assert ask(made.url).status == 200
    with pytest.raises(ValueError, match=r"a fraction of 1\.5"):
        Fault("cut", fraction=1.5)


def test_what_is_sent_twice_and_when_requests_came_is_told(origin: OriginClient) -> None:
    made = origin.create("twice", 1000)
    origin.reset()
    for start, stop in ((0, 300), (700, 1000), (200, 800)):
        ask(made.url, part(start, stop))
    stats = origin.stats()
    assert (stats.body_bytes, stats.repeated_bytes, stats.peak_requests) == (1200, 200, 1)
    assert sum(origin.windows()) == 3
    origin.reset()
    assert origin.windows() == ()
    ask(made.url)
    assert origin.stats().repeated_bytes == 0
