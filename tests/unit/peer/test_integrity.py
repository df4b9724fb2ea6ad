"""What this host does with the checksums of stores: over a real store, with a played network and scheduler."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from p2p.checksums import Checksum, ChecksumKind, Crc
from p2p.control import Condemned, Dropped, Verdict, Verify, Want
from p2p.errors import ChecksumMismatchError
from p2p.parts import Parts
from p2p.ranges import ByteRange
from p2p.telemetry import REGISTRY
from tests.support.attributes import composite
from tests.unit.peer.test_tasks import CONTENT, LAYOUT, SOURCE, TASK, VERSION, Peer, running, whole


def crc(kind: ChecksumKind) -> Checksum:
    whole_crc = Crc(kind)
    whole_crc.update(CONTENT)
    return Checksum(kind, whole_crc.digest())


CRCS = [kind for kind in ChecksumKind if kind.combinable]
CRC = crc(ChecksumKind.CRC32C)
MD5 = Checksum(ChecksumKind.MD5, hashlib.md5(CONTENT).digest())
CUTS = [CONTENT[:2_500_000], CONTENT[2_500_000:2_500_001], CONTENT[2_500_001:]]
COMPOSITE = Checksum(ChecksumKind.CRC32C, composite(ChecksumKind.CRC32C, CUTS), Parts.of(map(len, CUTS)))
WRONG = Checksum(ChecksumKind.CRC32C, bytes(4))


async def verdict(peer: Peer, checksum: Checksum | None) -> bool:
    """Want the whole version as a client's response does; tells whether there was something to compare."""
    if checksum is not None:
        peer.tasks.note(VERSION, checksum)
    claim = await peer.tasks.check(TASK, VERSION, SOURCE)
    if claim is None:
        return False
    async with claim:
        await claim.verdict()
    return True


async def held(peer: Peer) -> int:
    entry = await peer.store.find(VERSION.id)
    if entry is None:
        return 0
    with entry:
        return len(entry.landed)


def mismatches(kind: str) -> float:
    return REGISTRY.get_sample_value("damselfly_checksum_mismatches_total", {"kind": kind}) or 0.0


@pytest.mark.parametrize(
    "checksum", [*(crc(kind) for kind in ChecksumKind if kind.combinable), MD5, COMPOSITE], ids=str
)
async def test_sound_bytes_are_compared_once(tmp_path: Path, checksum: Checksum) -> None:
    async with running(tmp_path) as peer:
        assert await verdict(peer, checksum)
        assert await held(peer) == LAYOUT.count
        assert not await verdict(peer, checksum)
        assert not await verdict(peer, None)


async def test_nothing_is_compared_where_the_store_says_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as peer:
        assert not await verdict(peer, None)


async def test_pieces_that_landed_before_are_read_from_the_file(tmp_path: Path) -> None:
    async with running(tmp_path) as peer:
        await whole(peer, ByteRange(0, 2_500_000))
    async with running(tmp_path) as peer:
        assert await verdict(peer, CRC)
        assert {index for span in peer.network.origin for index in span} == set(range(2, LAYOUT.count))


@pytest.mark.parametrize("checksum", [CRC, MD5, COMPOSITE], ids=str)
async def test_wrong_bytes_are_dropped_and_fetched_anew(tmp_path: Path, checksum: Checksum) -> None:
    before = mismatches(checksum.name)
    async with running(tmp_path) as peer:
        peer.network.wrong = 1
        with pytest.raises(ChecksumMismatchError, match=f"the store says {checksum}"):
            await verdict(peer, checksum)
        assert await held(peer) == 0
        assert await verdict(peer, checksum)
        assert (await whole(peer))[0] == CONTENT
    assert mismatches(checksum.name) == before + 1


@pytest.mark.parametrize("scheduler", [False, True])
async def test_parts_that_were_only_assumed_settle_it_without_a_verdict(tmp_path: Path, scheduler: bool) -> None:
    assumed = replace(COMPOSITE, parts=Parts.equal(4_000_000, 3, len(CONTENT)), assumed=True)
    async with running(tmp_path, scheduler=scheduler) as peer:
        if scheduler:
            peer.schedulers.address = None
            await whole(peer)  # lands without anybody's help
            peer.schedulers.address = "127.0.0.1:8002"
        unknown = REGISTRY.get_sample_value("damselfly_object_digests_total", {"verdict": "unknown"}) or 0.0
        assert await verdict(peer, assumed)
        if scheduler:
            peer.schedulers.heard.clear()
            peer.tasks.told(Verify(VERSION.id))
            await peer.schedulers.heard.wait()
            assert peer.schedulers.last(Verdict) == Verdict(VERSION.id, sound=True)
        assert await held(peer) == LAYOUT.count
        assert not await verdict(peer, assumed)
    assert REGISTRY.get_sample_value("damselfly_object_digests_total", {"verdict": "unknown"}) == unknown + 1


async def test_many_clients_of_wrong_bytes_are_one_mismatch(tmp_path: Path) -> None:
    before = mismatches("crc32c")
    async with running(tmp_path) as peer:
        peer.network.wrong = 1
        outcomes = await asyncio.gather(*(verdict(peer, CRC) for _ in range(5)), return_exceptions=True)
        assert all(isinstance(outcome, ChecksumMismatchError) for outcome in outcomes)
        assert await verdict(peer, CRC)
    assert mismatches("crc32c") == before + 1


async def test_a_version_that_is_wrong_twice_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as peer:
        for _ in range(2):
            with pytest.raises(ChecksumMismatchError):
                await verdict(peer, WRONG)
        fetched = len(peer.network.origin)
        with pytest.raises(ChecksumMismatchError, match=r"crc32c:00000000 .* 2 times, and it is refused"):
            await verdict(peer, WRONG)
        assert len(peer.network.origin) == fetched
        assert await held(peer) == 0


async def test_what_completes_in_pieces_is_compared_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    removed = asyncio.Event()
    async with running(tmp_path) as peer:
        remove_version = peer.store.remove_version

        async def remove(version_id: str) -> None:
            await remove_version(version_id)
            removed.set()

        monkeypatch.setattr(peer.store, "remove_version", remove)
        peer.network.wrong = 1
        peer.tasks.note(VERSION, CRC)
        await whole(peer, ByteRange(0, 5))
        await whole(peer, ByteRange(5, len(CONTENT)))
        await removed.wait()
        assert await held(peer) == 0


async def test_a_scheduler_elects_and_hears_the_verdict(tmp_path: Path) -> None:
    async with running(tmp_path, scheduler=True) as peer:
        peer.schedulers.address = None
        await whole(peer)  # lands without anybody's help
        peer.schedulers.address = "127.0.0.1:8002"
        assert await verdict(peer, MD5)
        assert peer.schedulers.last(Want) == Want(VERSION, (), None, str(MD5))
        peer.schedulers.heard.clear()
        peer.tasks.told(Verify(VERSION.id))
        await peer.schedulers.heard.wait()
        assert peer.schedulers.last(Verdict) == Verdict(VERSION.id, sound=True)
        assert not await verdict(peer, MD5)


async def test_the_scheduler_hears_of_wrong_bytes_and_has_them_dropped(tmp_path: Path) -> None:
    async with running(tmp_path, scheduler=True) as peer:
        peer.schedulers.address = None
        peer.network.wrong = 1
        await whole(peer)
        peer.schedulers.address = "127.0.0.1:8002"
        judging = asyncio.ensure_future(verdict(peer, CRC))
        while (bad := peer.schedulers.last(Verdict)) is None:
            peer.schedulers.heard.clear()
            await peer.schedulers.heard.wait()
        assert isinstance(bad, Verdict)
        assert not bad.sound
        assert await held(peer) == LAYOUT.count  # until the scheduler says so
        peer.tasks.told(Condemned(VERSION.id, bad.detail))
        with pytest.raises(ChecksumMismatchError):
            await judging
        assert peer.schedulers.last(Dropped) == Dropped(VERSION.id)
        assert await held(peer) == 0


async def test_readers_of_a_condemned_version_fail_with_the_reason(tmp_path: Path) -> None:
    async with running(tmp_path, scheduler=True) as peer:
        peer.network.gate.clear()
        async with await peer.tasks.open(TASK, VERSION, SOURCE) as reader:
            peer.tasks.told(Condemned(VERSION.id, "bad crc32c at host b"))
            with pytest.raises(ChecksumMismatchError, match="bad crc32c at host b"):
                await reader.ready(0)
