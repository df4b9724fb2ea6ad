"""What a store does by itself, on a virtual clock: verify, let go of what nobody uses, make room ahead of need."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from p2p.errors import ConfigError
from p2p.pieces import Span
from peer.settings import load_configuration
from peer.store import Store, StoreSettings, Upkeep
from peer.store.files import DataFile
from peer.store.metrics import SCRUB_DAMAGED, SCRUBBED_BYTES
from peer.store.upkeep import DAY_SECONDS, FASTEST_BYTES
from tests.support.pieces import PIECE
from tests.unit.store.conftest import Opener
from tests.unit.store.support import filled, flip_byte


class Time:
    """A clock that only sleeping moves on."""

    def __init__(self) -> None:
        self.now = 5000.0
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


def read_and_damaged() -> tuple[float, float]:
    return SCRUBBED_BYTES._value.get(), SCRUB_DAMAGED._value.get()


async def landed(store: Store, version_id: str) -> list[int]:
    entry = await store.find(version_id)
    if entry is None:
        return []
    with entry:
        assert not entry.unproven
        return list(entry.landed)


@pytest.mark.parametrize("machine", [True, False])
async def test_what_a_crash_left_is_verified_and_what_is_damaged_is_told(
    open_store: Opener, tmp_path: Path, machine: bool
) -> None:
    store = await open_store()
    versions = [await filled(store, name, range(3), 3 * PIECE) for name in "ab"]
    await store.close(sync_seconds=-1)
    flip_byte(tmp_path, versions[0], PIECE + 3)
    time = Time()
    told: list[tuple[str, tuple[Span, ...]]] = []
    store = await open_store(
        clock=time, verify_on_use=machine or None, on_damaged=lambda version_id, spans: told.append((version_id, spans))
    )
    assert bool([holding async for holding in store.holdings()]) is not machine
    read, damaged = read_and_damaged()
    begun = time.now
    await Upkeep(store, StoreSettings(), sleep=time.sleep).scrub_all()
    assert read_and_damaged() == (read + 6 * PIECE, damaged + 1)
    assert sum(time.sleeps[:-1]) == time.now - time.sleeps[-1] - begun >= 6 * PIECE / FASTEST_BYTES
    assert [await landed(store, version.id) for version in versions] == [[0, 2], [0, 1, 2]]
    # What was never announced need not be taken back.
    assert told == ([] if machine else [(versions[0].id, (Span(1, 2),))])
    await Upkeep(store, StoreSettings(), sleep=time.sleep).scrub_all()
    assert read_and_damaged() == (read + 6 * PIECE, damaged + 1)


async def test_all_is_verified_once_in_a_while_and_not_used_by_that(open_store: Opener, tmp_path: Path) -> None:
    time = Time()
    store = await open_store(clock=time)
    first, second = await filled(store, "first", range(2), 2 * PIECE), await filled(store, "second")
    upkeep = Upkeep(store, StoreSettings(scrub_seconds=30 * DAY_SECONDS), sleep=time.sleep)
    read, damaged = read_and_damaged()
    time.now += 29 * DAY_SECONDS
    await upkeep.scrub_all()
    assert read_and_damaged() == (read, damaged)
    flip_byte(tmp_path, first, 7)
    time.now += DAY_SECONDS
    await upkeep.scrub_all()
    assert read_and_damaged() == (read + 3 * PIECE, damaged + 1)
    assert await landed(store, second.id) == [0]
    ages = {row.version_id: row.used_seconds for row in await store.held()}
    assert ages[first.id] > 30 * DAY_SECONDS
    await upkeep.scrub_all()
    assert read_and_damaged() == (read + 3 * PIECE, damaged + 1)


async def test_a_scrub_waits_while_something_is_in_use_but_not_for_ever(open_store: Opener) -> None:
    time = Time()
    store = await open_store(clock=time)
    version = await filled(store, "model")
    time.now += 30 * DAY_SECONDS + 1
    entry = await store.find(version.id)
    assert entry is not None
    with entry:
        assert store.busy
        read, _ = read_and_damaged()
        await Upkeep(store, StoreSettings(), sleep=time.sleep).scrub_all()
    assert time.sleeps[:60] == [1.0] * 60
    assert read_and_damaged()[0] == read + PIECE


async def test_the_page_cache_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"cached--absent--")
    file = DataFile(path, os.O_RDWR)
    real, thrown = os.preadv, []

    def preadv(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags & os.RWF_NOWAIT and offset >= 8:
            raise BlockingIOError
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, offset, length, advice: thrown.append((offset, length, advice)))
    view = memoryview(bytearray(8))
    with file.aside() as read:
        assert [(read(view, offset), bytes(view)) for offset in (0, 8)] == [(8, b"cached--"), (8, b"absent--")]
    assert thrown == [(0, 0, os.POSIX_FADV_RANDOM), (8, 8, os.POSIX_FADV_DONTNEED)]


async def test_what_nobody_uses_goes_unless_it_is_pinned(open_store: Opener) -> None:
    time = Time()
    dropped: list[str] = []
    store = await open_store(clock=time, on_dropped=dropped.append)
    old, pinned, used = [await filled(store, name) for name in ("old", "pinned", "used")]
    await store.pin(pinned.task_id)
    entry = await store.find(used.id)
    assert entry is not None
    time.now += 14 * DAY_SECONDS + 1
    fresh = await filled(store, "fresh")
    assert await store.expire(14 * DAY_SECONDS) == 1
    assert dropped == [old.id]
    entry.release()
    # It has just been used.
    assert await store.expire(14 * DAY_SECONDS) == 0
    assert {row.version_id for row in await store.held()} == {pinned.id, used.id, fresh.id}


@pytest.mark.parametrize("jump", [-DAY_SECONDS, 365 * DAY_SECONDS])
async def test_a_wall_clock_that_jumps_changes_no_order_and_lets_nothing_expire(
    open_store: Opener, jump: float
) -> None:
    wall = 1e9
    time = Time()
    store = await open_store(clock=time, wall=lambda: wall)
    versions = []
    for name in "abc":
        versions.append((await filled(store, name)).id)
        time.now += 1.0
    await store.close()
    wall += jump
    time = Time()
    store = await open_store(clock=time, wall=lambda: wall)
    versions.append((await filled(store, "d")).id)
    wall += jump  # while it runs, nobody looks
    rows = sorted(await store.held(), key=lambda row: -row.used_seconds)
    assert [row.version_id for row in rows] == versions
    assert all(0 <= row.used_seconds <= DAY_SECONDS + 3 for row in rows)
    assert await store.expire(14 * DAY_SECONDS) == 0
    await store.evict(2 * PIECE)
    assert {row.version_id for row in await store.held()} == set(versions[2:])


async def test_room_is_made_ahead_of_need_between_the_marks(open_store: Opener) -> None:
    dropped: list[str] = []
    store = await open_store(capacity=10 * PIECE, high=0.8, low=0.5, on_dropped=dropped.append)
    versions = [await filled(store, f"model-{number}") for number in range(8)]
    ahead = asyncio.create_task(store.room_ahead())
    await asyncio.sleep(0)
    assert not ahead.done()
    await filled(store, "one-more")
    await ahead
    assert store.stats().bytes == 5 * PIECE
    assert dropped == [version.id for version in versions[:4]]


def test_settings_are_read_from_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "damselfly.toml"
    file.write_text('[store]\nscrub = "off"\nttl = "14d"\nhigh = "95%"\nlow = "90%"\n')
    assert load_configuration(file).store == StoreSettings(None, 14 * DAY_SECONDS, 0.95, 0.9)
    file.write_text("")
    assert load_configuration(file).store == StoreSettings()
    file.write_text('[store]\nhigh = "64%"\n')
    assert load_configuration(file).store == StoreSettings(high=0.64, low=0.63)
    for text, complaint in (
        ('scrub = "0"', "store.scrub"),
        ('high = "1GiB"', "no share"),
        ('high = "50%"\nlow = "60%"', "low is above high"),
        ('tll = "1d"', "did you mean 'ttl'"),
    ):
        file.write_text(f"[store]\n{text}\n")
        with pytest.raises(ConfigError, match=complaint):
            load_configuration(file)
