"""Wrong bytes from the origin: found by the store's checksum, dropped on all hosts, and fetched once more."""

from __future__ import annotations

import base64
import hashlib
import http.client
import random
from collections.abc import Iterator

import pytest

from bench.cluster import LocalCluster
from p2p.checksums import ChecksumKind, Crc
from p2p.ranges import parse_range
from tests.support.daemons import fetch, open_url, running_cluster
from tests.support.origins import downloads, running_raw_origin
from tests.unit.source.raw_origin import RawOrigin, RawRequest

SIGNED = "?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AK&X-Amz-SignedHeaders=host&X-Amz-Signature=5ec2e7"
MIB = 1024 * 1024
SMALL = random.Random(1).randbytes(MIB)
LARGE = random.Random(2).randbytes(9 * MIB + 77)


def crc32c(content: bytes) -> str:
    crc = Crc(ChecksumKind.CRC32C)
    crc.update(content)
    return base64.b64encode(crc.digest()).decode()


class Bucket:
    """Answers as GCS does, and flips a bit in as many transfers of the last byte as `wrong` says."""

    def __init__(self, content: bytes, checksum: str) -> None:
        self.content = content
        self.checksum = checksum
        self.wrong = 0

    def answer(self, request: RawRequest) -> bytes:
        length = len(self.content)
        ranges = parse_range(request.field("Range") or "", length)
        assert ranges, request.head
        [wanted] = ranges
        data = self.content[wanted.start : wanted.stop]
        if wanted.stop == length and self.wrong:
            self.wrong -= 1
            data = data[:-1] + bytes([data[-1] ^ 1])
        head = (
            "HTTP/1.1 206 Partial Content",
            f"Content-Range: bytes {wanted.start}-{wanted.stop - 1}/{length}",
            f"Content-Length: {len(data)}",
            'ETag: "one"',
            f"x-goog-hash: {self.checksum}",
        )
        return "\r\n".join((*head, "", "")).encode() + data


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


def ask(cluster: LocalCluster, peer: str, url: str) -> tuple[int, bytes]:
    answer = fetch(url, proxy=cluster[peer].addresses["proxy"])
    return answer.status, answer.body


def mismatches(cluster: LocalCluster, kind: str) -> float:
    prefix = f'damselfly_checksum_mismatches_total{{kind="{kind}"}} '
    total = 0.0
    for name in ("peer-1", "peer-2"):
        text = fetch(f"http://{cluster[name].addresses['http']}/metrics").body.decode()
        total += sum(float(line.removeprefix(prefix)) for line in text.splitlines() if line.startswith(prefix))
    return total


def kinds(content: bytes) -> list[str]:
    md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
    return [f"crc32c={crc32c(content)}", f"md5={md5}"]


@pytest.mark.parametrize("checksum", kinds(SMALL), ids=["crc32c", "md5"])
def test_a_bit_that_flips_on_the_way_costs_a_small_object_one_more_transfer(
    cluster: LocalCluster, checksum: str
) -> None:
    bucket = Bucket(SMALL, checksum)
    before = mismatches(cluster, checksum.partition("=")[0])
    with running_raw_origin(bucket.answer) as origin:
        url = f"{origin.base}/flip-{len(checksum)}{SIGNED}"
        bucket.wrong = 1
        assert ask(cluster, "peer-1", url) == (200, SMALL)
        assert len(downloads(origin)) == 2
        assert ask(cluster, "peer-2", url) == (200, SMALL)
        assert len(downloads(origin)) == 2
    assert mismatches(cluster, checksum.partition("=")[0]) == before + 1


@pytest.mark.parametrize("checksum", kinds(LARGE), ids=["crc32c", "md5"])
def test_a_response_that_has_begun_is_reset_and_the_next_is_right(cluster: LocalCluster, checksum: str) -> None:
    bucket = Bucket(LARGE, checksum)
    with running_raw_origin(bucket.answer) as origin:
        url = f"{origin.base}/flip-{len(checksum)}{SIGNED}"
        bucket.wrong = 1
        with open_url(url, proxy=cluster["peer-1"].addresses["proxy"]) as response:
            assert response.status == 200
            with pytest.raises((ConnectionError, http.client.IncompleteRead)):
                response.read()
        assert ask(cluster, "peer-1", url) == (200, LARGE)
        assert ask(cluster, "peer-2", url) == (200, LARGE)
        assert sum(span_of(origin)) <= 2 * len(LARGE)


def span_of(origin: RawOrigin) -> list[int]:
    """How many bytes each transfer asked for."""
    ranges = [parse_range(request.field("Range") or "", len(LARGE)) for request in downloads(origin)]
    return [len(one) for found in ranges for one in found or ()]


def test_an_object_that_is_always_wrong_is_a_visible_failure_and_nothing_is_kept(cluster: LocalCluster) -> None:
    bucket = Bucket(SMALL, f"crc32c={crc32c(b'something else')}")
    with running_raw_origin(bucket.answer) as origin:
        url = f"{origin.base}/never{SIGNED}"
        answer = fetch(url, proxy=cluster["peer-1"].addresses["proxy"])
        assert answer.status == 502
        assert answer.headers["x-dragonfly-error-type"] == "backend"
        assert "the store says crc32c:" in answer.body.decode()
        assert len(downloads(origin)) == 2
        refused = fetch(url, proxy=cluster["peer-2"].addresses["proxy"])
        assert refused.status == 502
        assert "that was so 2 times, and it is refused" in refused.body.decode()
        assert len(downloads(origin)) == 2
        task_id = answer.body.decode().partition("task: ")[2].strip()
    for name in ("seed-1", "peer-1", "peer-2"):
        status = fetch(f"http://{cluster[name].addresses['http']}/v1/tasks/{task_id}")
        assert status.status == 404, f"{name} holds {status.body!r}"
