"""Prefetch and whole-object digests over a real store and the real task manager; only the network is played."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from p2p.control import Dropped, Source
from p2p.digests import ExpectedDigest
from p2p.errors import DigestMismatchError, OriginRefusedError, StoppingError
from p2p.identity import identify
from p2p.pieces import Span
from p2p.ranges import ByteRange
from p2p.telemetry import REGISTRY
from p2p.versions import ValidatorKind, Version
from peer import prefetch
from tests.support.pieces import PIECE
from tests.unit.peer.test_tasks import CONTENT, LAYOUT, SOURCE, TASK, VERSION, Peer, running, whole

RIGHT = ExpectedDigest("sha256", hashlib.sha256(CONTENT).hexdigest())
WRONG = ExpectedDigest("sha256", "0" * 64)


def fetched(peer: Peer) -> list[int]:
    return [index for span in peer.network.origin for index in span]


def ended(outcome: str) -> float:
    return REGISTRY.get_sample_value("damselfly_prefetches_total", {"outcome": outcome}) or 0.0


def verdicts(verdict: str) -> float:
    return REGISTRY.get_sample_value("damselfly_object_digests_total", {"verdict": verdict}) or 0.0


async def until_over() -> None:
    """Wait for the prefetches there are."""
    running = [task for task in asyncio.all_tasks() if task.get_name().startswith("prefetch of")]
    await asyncio.gather(*running)


async def test_a_prefetch_takes_what_is_missing_and_nothing_twice(tmp_path: Path) -> None:
    async with running(tmp_path) as peer:
        before = ended("complete")
        await whole(peer, ByteRange(PIECE, 2 * PIECE))
        for _ in range(3):
            peer.tasks.prefetch(TASK, VERSION, SOURCE)
        await until_over()
        assert sorted(fetched(peer)) == list(range(LAYOUT.count))
        assert await whole(peer) == (CONTENT, "local")
        assert ended("complete") == before + 1, "of one version there is one at a time"


async def test_what_a_client_waits_for_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "WINDOW_BYTES", PIECE)
    async with running(tmp_path) as peer:
        peer.network.gate.clear()
        peer.tasks.prefetch(TASK, VERSION, SOURCE)
        await peer.network.asked.wait()
        peer.network.asked.clear()
        client = asyncio.ensure_future(whole(peer, ByteRange(3 * PIECE, 4 * PIECE)))
        await peer.network.asked.wait()
        assert peer.network.origin == [Span(0, 1), Span(3, 4)], "beside the client's there is one window and no more"
        peer.network.gate.set()
        assert (await client)[0] == CONTENT[3 * PIECE : 4 * PIECE]
        await until_over()
        assert sorted(fetched(peer)) == list(range(LAYOUT.count))


async def test_a_prefetch_waits_until_no_client_does(tmp_path: Path) -> None:
    async with running(tmp_path) as peer:
        peer.network.gate.clear()
        client = asyncio.ensure_future(whole(peer, ByteRange(0, 1)))
        await peer.network.asked.wait()
        peer.tasks.prefetch(TASK, VERSION, SOURCE)
        # The prefetch has taken its reference by the time this reader has taken another.
        (await peer.tasks.open(TASK, VERSION, SOURCE, ByteRange(0, 1))).close()
        assert peer.network.origin == [Span(0, 1)]
        peer.network.gate.set()
        await client
        await until_over()
        assert sorted(fetched(peer)) == list(range(LAYOUT.count))


async def test_a_prefetch_ends_with_its_credential(tmp_path: Path) -> None:
    async with running(tmp_path) as peer:
        before = ended("ended")
        peer.network.failures.extend(OriginRefusedError(403, "expired") for _ in range(9))
        peer.tasks.prefetch(TASK, VERSION, SOURCE)
        await until_over()
        assert ended("ended") == before + 1
        peer.network.failures.clear()
        peer.tasks.prefetch(TASK, VERSION, Source("http://origin/model.bin?renewed"))
        await until_over()
        assert (await whole(peer))[1] == "local"


async def test_prefetches_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "MAX_KNOWN", 3)
    async with running(tmp_path) as peer:
        peer.network.gate.clear()
        before = ended("skipped")
        for number in range(5):
            task = identify(f"http://origin/{number}")
            peer.tasks.prefetch(task, Version(task.id, len(CONTENT), ValidatorKind.ETAG, '"a"'), SOURCE)
        assert ended("skipped") == before + 2

        def begun() -> int:
            return sum(span.start == 0 for span in peer.network.origin)

        while begun() < prefetch.MAX_RUNNING:
            peer.network.asked.clear()
            await peer.network.asked.wait()
        assert begun() == prefetch.MAX_RUNNING
        peer.network.gate.set()
        await until_over()


async def test_stopping_ends_prefetches_and_begins_none(tmp_path: Path) -> None:
    async with running(tmp_path) as peer:
        peer.network.gate.clear()
        peer.tasks.prefetch(TASK, VERSION, SOURCE)
        await peer.network.asked.wait()
        await peer.tasks.stop()
        await until_over()
        begun = len(peer.network.origin)
        peer.tasks.prefetch(TASK, VERSION, SOURCE)
        assert len(peer.network.origin) == begun


async def verify(peer: Peer, expected: ExpectedDigest) -> None:
    async with await peer.tasks.verify(TASK, VERSION, SOURCE, expected) as verification:
        await verification.verdict()


async def test_a_version_is_hashed_once(tmp_path: Path) -> None:
    async with running(tmp_path) as peer:
        hashed, known = verdicts("verified"), verdicts("known")
        await asyncio.gather(*(verify(peer, RIGHT) for _ in range(5)))
        assert sorted(fetched(peer)) == list(range(LAYOUT.count))
        await verify(peer, RIGHT)
        await verify(peer, ExpectedDigest("sha512", hashlib.sha512(CONTENT).hexdigest()))
        assert (verdicts("verified") + verdicts("known")) - (hashed + known) == 7
        assert verdicts("known") > known


async def test_another_digest_drops_the_version_and_tells_the_scheduler(tmp_path: Path) -> None:
    async with running(tmp_path) as peer:
        await whole(peer)
        peer.schedulers.address = "127.0.0.1:8002"
        before = verdicts("mismatch")
        with pytest.raises(DigestMismatchError):
            await verify(peer, WRONG)
        assert verdicts("mismatch") == before + 1
        assert peer.schedulers.last(Dropped) == Dropped(VERSION.id)
        assert await peer.tasks.status(TASK.id) == ()
        assert await peer.store.find(VERSION.id) is None


async def test_what_somebody_expected_stays_whatever_others_expect(tmp_path: Path) -> None:
    async with running(tmp_path) as peer:
        await verify(peer, RIGHT)
        with pytest.raises(DigestMismatchError):
            await verify(peer, WRONG)
        assert await whole(peer) == (CONTENT, "local")


async def test_what_was_fetched_anew_is_judged_by_its_own_bytes(tmp_path: Path) -> None:
    async with running(tmp_path) as peer:
        await verify(peer, RIGHT)
        await peer.store.remove(TASK.id)
        entry = await peer.store.entry(TASK, VERSION)
        for index in range(LAYOUT.count):
            entry.write(LAYOUT.offset(index), memoryview(bytes(LAYOUT.size(index))))
        await entry.commit([(index, bytes([index]) * 16) for index in range(LAYOUT.count)])
        entry.release()
        peer.schedulers.address = "127.0.0.1:8002"
        with pytest.raises(DigestMismatchError):
            await verify(peer, RIGHT)


async def test_a_client_that_leaves_ends_its_verification_and_nobody_elses(tmp_path: Path) -> None:
    async with running(tmp_path) as peer:
        peer.network.gate.clear()
        leaving = asyncio.ensure_future(verify(peer, RIGHT))
        await peer.network.asked.wait()
        staying = asyncio.ensure_future(verify(peer, RIGHT))
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        peer.network.gate.set()
        await staying


async def test_what_ends_the_download_is_the_verdict(tmp_path: Path) -> None:
    async with running(tmp_path) as peer:
        peer.network.failures.extend(OriginRefusedError(403, "expired") for _ in range(9))
        with pytest.raises(OriginRefusedError):
            await verify(peer, RIGHT)
        await peer.tasks.stop()
        with pytest.raises(StoppingError):
            await verify(peer, RIGHT)
