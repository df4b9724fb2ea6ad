"""WIRE §3, §4: ranges. Only the pieces that cover them leave the origin, each once, whoever asks and how often."""

from __future__ import annotations

import concurrent.futures
import hashlib
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from bench.cluster import LocalCluster
from bench.content import SyntheticObject
from bench.origin import Fault, Stats
from bench.origin_client import OriginClient, RemoteObject, running_origin
from p2p.pieces import PieceLayout
from p2p.ranges import MAX_RANGES, ByteRange
from tests.support.clients import Outcome, aria2, curl, wget
from tests.support.daemons import Answer, fetch, open_url
from tests.support.pieces import PIECE

SIZE = 10 * PIECE + 4321
LARGE = 24 * PIECE + 4321
LAYOUT = PieceLayout.of(SIZE)

_numbers = count()


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OriginClient]:
    """An origin that counts what it sends."""
    with running_origin("unlimited", tmp_path_factory.mktemp("origin")) as client:
        yield client


class Object:
    """A fresh object, and what the origin has sent since it was made."""

    def __init__(self, origin: OriginClient, size: int) -> None:
        self.remote: RemoteObject = origin.create(f"ranges-{next(_numbers)}.bin", size, sha256=True)
        self.content = SyntheticObject(self.remote.name, size)
        self._origin = origin
        self._before = origin.stats()

    @property
    def url(self) -> str:
        return self.remote.url

    @property
    def cost(self) -> Stats:
        return self._origin.stats().since(self._before)

    @property
    def object_bytes_sent(self) -> int:
        """Bytes beyond those that answered a question for one byte."""
        cost = self.cost
        return cost.body_bytes - cost.one_byte_requests

    def ask(self, proxy: str, wanted: str, **headers: str) -> Answer:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return fetch(self.url, proxy=proxy, headers={"Range": wanted, **fields})

    def is_in(self, file: Path) -> bool:
        return hashlib.sha256(file.read_bytes()).hexdigest() == self.remote.sha256


@pytest.fixture
def thing(counting: OriginClient) -> Object:
    return Object(counting, SIZE)


@pytest.fixture
def large(counting: OriginClient) -> Object:
    return Object(counting, LARGE)


def covering(*ranges: tuple[int, int]) -> int:
    """Return how many bytes the pieces have that cover the half-open ranges."""
    pieces = {index for start, stop in ranges for index in LAYOUT.covering(ByteRange(start, stop))}
    return sum(LAYOUT.size(index) for index in pieces)


@pytest.mark.parametrize(
    ("wanted", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5000000-5000009", 5000000, 5000010),
        (f"bytes={PIECE - 1}-{PIECE}", PIECE - 1, PIECE + 1),
        ("bytes=-10", SIZE - 10, SIZE),
        (f"bytes={9 * PIECE}-", 9 * PIECE, SIZE),
        (f"bytes={SIZE - 1}-{SIZE + 99}", SIZE - 1, SIZE),
    ],
)
def test_one_range_costs_the_pieces_it_touches(thing: Object, proxy: str, wanted: str, start: int, stop: int) -> None:
    answer = thing.ask(proxy, wanted)
    assert (answer.status, answer.body == thing.content.bytes(start, stop)) == (206, True)
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{SIZE}"
    assert answer.headers["content-length"] == str(stop - start)
    assert answer.headers["etag"] == thing.remote.etag
    assert thing.object_bytes_sent == covering((start, stop))


def test_several_ranges_are_one_message_with_a_part_each(thing: Object, proxy: str) -> None:
    runs = [(4 * PIECE, 4 * PIECE + 10), (0, 5), (SIZE - 7, SIZE)]
    wanted = ",".join(f"{start}-{stop - 1}" for start, stop in runs[:2]) + ",-7"
    answer = thing.ask(proxy, f"bytes={wanted}")
    assert answer.status == 206
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert "content-range" not in answer.headers, "each part has its own"
    assert parts_of(answer) == [
        (f"bytes {start}-{stop - 1}/{SIZE}", thing.content.bytes(start, stop)) for start, stop in runs
    ]
    assert thing.object_bytes_sent == covering(*runs)


def parts_of(answer: Answer) -> list[tuple[str, bytes]]:
    """Take a multipart/byteranges message apart, strictly."""
    boundary = re.fullmatch(r"multipart/byteranges; boundary=([0-9a-f]+)", answer.headers["content-type"])
    assert boundary is not None
    first, *parts, last = answer.body.split(f"\r\n--{boundary[1]}".encode())
    assert (first, last) == (b"", b"--\r\n")
    found = []
    for part in parts:
        head, _, body = part.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        assert lines[:2] == ["", "Content-Type: binary/octet-stream"]
        found.append((lines[2].removeprefix("Content-Range: "), body))
    return found


def test_ranges_that_overlap_are_sent_once(thing: Object, proxy: str) -> None:
    answer = thing.ask(proxy, "bytes=100-199,50-149,5000000-5000001")
    assert [name for name, _ in parts_of(answer)] == [f"bytes 50-199/{SIZE}", f"bytes 5000000-5000001/{SIZE}"]
    joined = thing.ask(proxy, "bytes=100-199,50-149")
    assert (joined.status, joined.headers["content-range"]) == (206, f"bytes 50-199/{SIZE}")
    assert joined.body == thing.content.bytes(50, 200)


@pytest.mark.parametrize(
    "wanted",
    [
        ",".join(f"{index * 10}-{index * 10}" for index in range(MAX_RANGES + 1)),
        ",".join(["0-"] * 5),
        "7-3",
        "a-b",
    ],
    ids=["too-many", "the-whole-often", "backwards", "nonsense"],
)
def test_ranges_that_make_no_sense_get_the_whole(thing: Object, proxy: str, wanted: str) -> None:
    answer = thing.ask(proxy, f"bytes={wanted}")
    assert (answer.status, answer.sha256) == (200, thing.remote.sha256)


def test_a_range_past_the_end_is_416_and_costs_nothing(thing: Object, proxy: str) -> None:
    answer = thing.ask(proxy, f"bytes={SIZE}-")
    assert (answer.status, answer.headers["content-range"]) == (416, f"bytes */{SIZE}")
    assert answer.headers["x-dragonfly-error-type"] == "proxy"
    assert thing.object_bytes_sent == 0


def test_if_range_takes_the_range_only_of_the_version_it_names(thing: Object, proxy: str) -> None:
    etag = thing.remote.etag
    modified = thing.ask(proxy, "bytes=0-9").headers["last-modified"]
    for condition in (etag, modified):
        answer = thing.ask(proxy, "bytes=0-9", If_Range=condition)
        assert (answer.status, answer.body) == (206, thing.content.bytes(0, 10))
    for condition in ('"another"', f"W/{etag}", "Thu, 01 Jan 2026 00:00:00 GMT", "nonsense"):
        answer = thing.ask(proxy, "bytes=0-9", If_Range=condition)
        assert (answer.status, answer.sha256) == (200, thing.remote.sha256)


def test_head_is_answered_without_a_byte_of_the_object(thing: Object, proxy: str) -> None:
    answer = fetch(thing.url, proxy=proxy, method="HEAD", headers={"Range": "bytes=0-9"})
    assert (answer.status, answer.headers["content-length"]) == (200, str(SIZE))
    assert answer.headers["accept-ranges"] == "bytes"
    assert thing.object_bytes_sent == 0


def test_a_first_part_goes_out_before_the_last_is_here(thing: Object, proxy: str, counting: OriginClient) -> None:
    assert thing.ask(proxy, "bytes=0-99").status == 206
    wanted = {"Range": f"bytes=0-99,{8 * PIECE}-{8 * PIECE + 99}"}
    counting.set_fault(Fault(kind="stall", requests=1, after_bytes=1))
    try:
        with open_url(thing.url, proxy=proxy, headers=wanted) as response:
            assert thing.content.bytes(0, 100) in response.read(300)
            counting.set_fault(None)
            assert thing.content.bytes(8 * PIECE, 8 * PIECE + 100) in response.read()
    finally:
        counting.set_fault(None)


def test_parallel_ranges_of_containerd_cost_one_copy(large: Object, fleet: LocalCluster) -> None:
    """It splits a layer into equal chunks and asks for several at once; here at two peers, beside a whole read."""
    proxies = [fleet[name].addresses["proxy"] for name in ("peer-1", "peer-2")]
    step = LARGE // 11
    runs = [(start, min(start + step, LARGE)) for start in range(0, LARGE, step)]

    def take(number: int, run: tuple[int, int]) -> bytes:
        return large.ask(proxies[number % 2], f"bytes={run[0]}-{run[1] - 1}").body

    with concurrent.futures.ThreadPoolExecutor(len(runs) + 1) as clients:
        whole = clients.submit(fetch, large.url, proxy=proxies[0])
        chunks = list(clients.map(take, range(len(runs)), runs))
    assert hashlib.sha256(b"".join(chunks)).hexdigest() == whole.result().sha256 == large.remote.sha256
    assert large.object_bytes_sent == LARGE


def test_aria2_with_four_connections_costs_one_copy(large: Object, proxy: str, file: Path) -> None:
    with open_url(large.url, proxy=proxy) as beside:
        outcome = aria2(large.url, file, "-x4", "-s4", "--min-split-size=1M", proxy=proxy)
        assert_done(outcome)
        assert hashlib.sha256(beside.read()).hexdigest() == large.remote.sha256
    assert large.is_in(file)
    # It hangs up on connections that it comes not to need, so that some questions for one byte got no answer.
    assert LARGE <= large.cost.body_bytes <= LARGE + large.cost.one_byte_requests


def test_wget_continues_where_it_was(large: Object, proxy: str, file: Path) -> None:
    start = 17 * PIECE + 5
    file.write_bytes(large.content.bytes(0, start))
    assert_done(wget("--continue", "--output-document", str(file), large.url, proxy=proxy))
    assert large.is_in(file)
    layout = PieceLayout.of(LARGE)
    rest = sum(layout.size(index) for index in layout.covering(ByteRange(start, LARGE)))
    assert large.object_bytes_sent == rest, "what it had already was not fetched again"


def test_curl_takes_parts_and_continues(large: Object, proxy: str, file: Path) -> None:
    assert_done(curl("--range", f"0-{17 * PIECE}", "--output", str(file), large.url, proxy=proxy))
    assert_done(curl("--continue-at", "-", "--output", str(file), large.url, proxy=proxy))
    assert large.is_in(file)
    assert large.object_bytes_sent == LARGE


def test_prefetch_takes_the_rest_once(large: Object, proxy: str) -> None:
    part = large.ask(proxy, "bytes=5000000-5000009", X_Dragonfly_Prefetch="true")
    assert (part.status, part.body) == (206, large.content.bytes(5000000, 5000010))
    whole = fetch(large.url, proxy=proxy)
    assert whole.sha256 == large.remote.sha256
    assert large.object_bytes_sent == LARGE


def test_prefetch_must_be_true_or_false(thing: Object, proxy: str) -> None:
    answer = thing.ask(proxy, "bytes=0-9", X_Dragonfly_Prefetch="perhaps")
    assert answer.status == 400
    assert b"X-Dragonfly-Prefetch: 'perhaps' is neither true nor false" in answer.body


def assert_done(outcome: Outcome) -> None:
    assert outcome.code == 0, outcome.said
