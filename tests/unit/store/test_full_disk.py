"""A disk that is full, as a small tmpfs: what was used least goes at once, and nothing is stuck."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2p.config import parse_capacity
from p2p.errors import ConfigError, StoreFullError
from p2p.pieces import MIB
from peer.store import Entry, Store
from peer.store.space import capacity_in
from tests.support.disks import mounted
from tests.support.pieces import PIECE
from tests.unit.store.support import a_task, a_version, assert_sound, content, filled

DISK_BYTES = 8 * PIECE


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path, f"size={DISK_BYTES}"):
        yield tmp_path


async def land(entry: Entry, index: int) -> None:
    """Land a piece as a transfer does: from a thread."""
    data, digest = content(entry, index)
    await asyncio.to_thread(entry.allocate, entry.layout.offset(index), len(data))
    await asyncio.to_thread(entry.write, entry.layout.offset(index), memoryview(data))
    await entry.commit([(index, digest)])


async def test_a_full_disk_makes_room_at_once_and_goes_on(small_disk: Path) -> None:
    dropped: list[str] = []
    store = await Store.open(small_disk, on_dropped=dropped.append)
    old = [await filled(store, name) for name in "abc"]
    task = a_task("large")
    version = a_version(task, 6 * PIECE)
    with await store.entry(task, version) as entry:
        await asyncio.gather(*(land(entry, index) for index in range(6)))
        assert entry.landed.full
        assert_sound(entry)
        assert dropped
        assert set(dropped) <= {gone.id for gone in old}
        # All that is left is in use: that is said, and nothing waits for ever.
        other = a_task("other")
        with await store.entry(other, a_version(other, 6 * PIECE)) as hopeless:
            landings = await asyncio.gather(*(land(hopeless, index) for index in range(6)), return_exceptions=True)
            assert any(isinstance(outcome, StoreFullError) for outcome in landings)
            del landings  # their tracebacks hold the file open
            assert not hopeless.landed.full
    # With nobody reading any more there is room again.
    with await store.entry(other, a_version(other, 6 * PIECE)) as entry:
        for index in range(6):
            if index not in entry.landed:
                await land(entry, index)
        assert_sound(entry)
    await store.close()
    store = await Store.open(small_disk)
    found = await store.find(a_version(other, 6 * PIECE).id)
    assert found is not None
    with found:
        assert found.landed.full
        assert_sound(found)
    await store.close()


async def test_an_index_without_room_can_still_forget(small_disk: Path) -> None:
    store = await Store.open(small_disk)
    await filled(store, "old")
    await asyncio.to_thread(fill_up, small_disk / "somebody-elses")
    new = a_task("new")
    with await store.entry(new, a_version(new, PIECE // 2)) as entry:
        await land(entry, 0)
        assert_sound(entry)
    await store.close()


def fill_up(path: Path) -> None:
    """Take all the room there is."""
    with path.open("wb", buffering=0) as file:
        block = bytes(MIB // 16)
        while len(block) >= 512:
            try:
                file.write(block)
            except OSError:
                block = block[: len(block) // 2]


def test_a_capacity_may_be_a_share_of_the_disk(small_disk: Path) -> None:
    assert capacity_in(small_disk, parse_capacity("50%")) == DISK_BYTES // 2
    assert capacity_in(small_disk, parse_capacity("7KiB")) == 7 * 1024
    assert capacity_in(small_disk, None) is None
    for text in ("0%", "101%"):
        with pytest.raises(ConfigError, match="no share of a disk"):
            parse_capacity(text)
