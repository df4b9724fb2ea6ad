from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from pathlib import Path

import pytest

from p2p.control import Holding
from p2p.errors import StoreError, StoreFullError
from p2p.pieces import Bitmap, Span
from p2p.telemetry import REGISTRY
from peer.store import Store, StoreStats
from tests.support.pieces import PIECE
from tests.unit.store.conftest import Opener
from tests.unit.store.support import (
    a_task,
    a_version,
    assert_sound,
    content,
    data_file,
    data_files,
    filled,
    on_disk,
    put,
)

TASK = a_task()
VERSION = a_version(TASK)


async def test_what_was_committed_is_there_after_reopening(open_store: Opener) -> None:
    store = await open_store()
    with await store.entry(TASK, VERSION) as entry:
        await put(entry, [0, 2])
    await store.close()
    store = await open_store()
    assert store.stats() == StoreStats(versions=1, pieces=2, bytes=2 * PIECE)
    found = await store.find(VERSION.id)
    assert found is not None
    with found:
        assert (found.task, found.version) == (TASK, VERSION)
        assert list(found.landed) == [0, 2]
        assert_sound(found)
        await put(found, [1, 3])
        assert found.landed.full


async def test_nothing_is_found_of_what_is_not_held(store: Store) -> None:
    assert await store.find("0" * 32) is None
    with await store.entry(TASK, VERSION):
        assert await store.find(VERSION.id) is None


async def test_an_entry_is_one_object_for_all_who_have_it(store: Store) -> None:
    first, second = await asyncio.gather(store.entry(TASK, VERSION), store.entry(TASK, VERSION))
    assert first is second
    await put(first, [0])
    assert await store.find(VERSION.id) is first
    for _ in range(3):
        first.release()


async def test_finding_an_entry_in_memory_takes_no_turn_of_the_loop(store: Store) -> None:
    await filled(store, "model", length=VERSION.length)
    finding = store.find(VERSION.id)
    with pytest.raises(StopIteration) as returned:
        finding.send(None)
    entry = returned.value.value
    assert entry.version == VERSION
    entry.release()


async def test_a_version_of_another_task_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="is of task"):
        await store.entry(a_task("other"), VERSION)


async def test_an_empty_object_is_held_at_once(open_store: Opener) -> None:
    store = await open_store()
    version = a_version(TASK, length=0)
    with await store.entry(TASK, version) as entry:
        assert entry.landed.full
    await store.close()
    store = await open_store()
    found = await store.find(version.id)
    assert found is not None
    found.release()


async def test_the_entries_of_a_task_are_its_versions(store: Store) -> None:
    other = a_version(TASK, etag="2")
    await filled(store, "model", length=VERSION.length)
    await filled(store, "unrelated")
    with await store.entry(TASK, other):
        entries = await store.entries(TASK.id)
        assert [entry.version for entry in entries] == [VERSION, other]
        for entry in entries:
            entry.release()


async def test_holdings_name_all_that_may_be_served(store: Store) -> None:
    versions = [await filled(store, name, [0, 2], 3 * PIECE) for name in ("a", "b")]
    with await store.entry(TASK, VERSION):
        holdings = [holding async for holding in store.holdings()]
    assert [holding.version for holding in holdings] == versions
    for holding in holdings:
        found = await store.find(holding.version.id)
        assert found is not None
        with found:
            digests = (content(found, 0)[1], content(found, 2)[1])
        assert holding == Holding(holding.version, Bitmap(3, [Span(0, 1), Span(2, 3)]), digests)


async def test_a_version_nothing_ever_landed_of_leaves_nothing_behind(open_store: Opener, tmp_path: Path) -> None:
    store = await open_store()
    with await store.entry(TASK, VERSION) as entry:
        entry.write(0, memoryview(b"x" * 100))
        assert store.stats().versions == 1
    with await store.entry(TASK, VERSION) as entry:
        await put(entry, [3])
        assert_sound(entry)
    with await store.entry(TASK, a_version(TASK, etag="2")):
        pass
    await store.close()
    assert data_files(tmp_path) == [data_file(tmp_path, VERSION)]
    assert list((tmp_path / "trash").iterdir()) == []


async def test_few_files_stay_open_after_their_last_use(open_store: Opener) -> None:
    store = await open_store(idle_entries=2)
    versions = [await filled(store, str(number)) for number in range(5)]
    assert REGISTRY.get_sample_value("damselfly_store_open_entries") == 2
    for version in versions:
        found = await store.find(version.id)
        assert found is not None
        with found:
            assert_sound(found)


# Removing


async def test_a_removed_version_is_gone_and_its_readers_finish(store: Store, tmp_path: Path) -> None:
    with await store.entry(TASK, VERSION) as entry:
        await put(entry, range(3))
        waiter = asyncio.ensure_future(entry.wait(3))
        await asyncio.sleep(0)
        assert await store.remove(TASK.id) == (VERSION.id,)
        assert await store.find(VERSION.id) is None
        assert store.stats() == StoreStats(0, 0, 0)
        assert data_files(tmp_path) == []
        assert on_disk(entry, 2) == content(entry, 2)[0]
        with pytest.raises(StoreError, match="removed"):
            await waiter
        with pytest.raises(StoreError, match="removed"):
            await entry.wait(3)
        with pytest.raises(StoreError, match="removed"):
            entry.write(0, memoryview(b"x"))
        with pytest.raises(StoreError, match="removed"):
            await entry.commit([(3, content(entry, 3)[1])])


async def test_a_commit_in_flight_when_its_version_is_removed_fails(store: Store) -> None:
    with await store.entry(TASK, VERSION) as entry:
        data, digest = content(entry, 0)
        entry.write(0, memoryview(data))
        removal = asyncio.ensure_future(store.remove(TASK.id))
        await asyncio.sleep(0)
        with pytest.raises(StoreError, match="removed"):
            await entry.commit([(0, digest)])
        await removal
        assert store.stats().pieces == 0


async def test_a_writer_of_a_removed_version_cannot_reach_its_successor(store: Store) -> None:
    old = await store.entry(TASK, VERSION)
    await put(old, [0, 1])
    await store.remove(TASK.id)
    with await store.entry(TASK, VERSION) as new, old:
        assert new is not old
        assert not new.landed
        with pytest.raises(StoreError, match="removed"):
            await put(old, [2])
        await put(new, [3])
        assert (list(new.landed), list(old.landed)) == ([3], [0, 1])
        assert_sound(new)
        assert_sound(old)


async def test_removing_what_is_not_there_is_nothing(store: Store) -> None:
    assert await store.remove("0" * 64) == ()


# Room


async def test_the_least_recently_used_versions_make_room(open_store: Opener, tmp_path: Path) -> None:
    dropped: list[str] = []
    before = REGISTRY.get_sample_value("damselfly_store_evicted_total") or 0
    store = await open_store(capacity=4 * PIECE, on_dropped=dropped.append)
    versions = [await filled(store, name) for name in "abcd"]
    again = await store.find(versions[0].id)
    assert again is not None
    again.release()
    await filled(store, "e")
    # A 64th of the capacity is freed on top, hence two.
    assert dropped == [versions[1].id, versions[2].id]
    assert store.stats() == StoreStats(3, 3, 3 * PIECE)
    assert data_file(tmp_path, versions[0]).exists()
    assert not data_file(tmp_path, versions[1]).exists()
    assert REGISTRY.get_sample_value("damselfly_store_evicted_total") == before + 2


async def test_what_is_in_use_is_not_evicted_and_the_capacity_holds(open_store: Opener) -> None:
    store = await open_store(capacity=2 * PIECE)
    first = await store.entry(a_task("a"), a_version(a_task("a"), PIECE))
    await put(first, [0])
    with await store.entry(TASK, VERSION) as entry, first:
        await put(entry, [0])
        with pytest.raises(StoreFullError, match=f"capacity of {2 * PIECE} bytes"):
            await put(entry, [1])
        assert list(entry.landed) == [0]
        assert store.stats().bytes == 2 * PIECE
        await put(entry, [0])
    assert_sound_after = await store.find(first.version_id)
    assert assert_sound_after is not None
    assert_sound_after.release()


async def test_commits_at_once_never_exceed_the_capacity(open_store: Opener) -> None:
    store = await open_store(capacity=3 * PIECE)
    for name in "abc":
        await filled(store, name)
    with await store.entry(TASK, VERSION) as entry:
        await asyncio.gather(*(put(entry, [index]) for index in range(3)))
        assert store.stats() == StoreStats(1, 3, 3 * PIECE)


async def test_evict_frees_down_to_a_target(store: Store) -> None:
    versions = [await filled(store, name) for name in "abcd"]
    with await store.entry(a_task("a"), versions[0]):
        assert await store.evict(2 * PIECE) == 2 * PIECE
        assert [holding.version async for holding in store.holdings()] == [versions[0], versions[3]]
        assert await store.evict(0) == PIECE
    assert await store.evict(0) == PIECE
    assert await store.evict(0) == 0


async def test_the_order_of_use_survives_a_restart(open_store: Opener) -> None:
    store = await open_store()
    versions = [await filled(store, name) for name in "ab"]
    again = await store.find(versions[0].id)
    assert again is not None
    again.release()
    await store.close()
    store = await open_store()
    await store.evict(PIECE)
    assert [holding.version async for holding in store.holdings()] == [versions[0]]


async def test_finding_a_version_while_it_is_evicted_gives_all_of_it_or_nothing(store: Store) -> None:
    for _ in range(20):
        version = await filled(store, "model", range(4), VERSION.length)
        eviction = asyncio.ensure_future(store.evict(0))
        found = None
        while not eviction.done():
            found = await store.find(version.id)
            if found is not None:
                assert not found.retired
                assert_sound(found)
                found.release()
            await asyncio.sleep(0)
        await eviction
        assert await store.find(version.id) is None


# The directory


async def test_a_taken_directory_names_its_holder(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=rf"{tmp_path}.*in use by process {os.getpid()}.*--data-dir"):
        await Store.open(tmp_path)


@pytest.mark.parametrize("found", ["3", "", "banana"])
async def test_a_foreign_format_is_refused(tmp_path: Path, found: str) -> None:
    (tmp_path / "format").write_text(found)
    with pytest.raises(StoreError, match=rf"format '{found}'.*reads formats 1 and 2"):
        await Store.open(tmp_path)


async def test_an_index_without_a_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.sqlite").touch()
    with pytest.raises(StoreError, match=r"format 'unknown'.*reads formats 1 and 2"):
        await Store.open(tmp_path)


async def test_an_unusable_directory_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"cannot use the data directory.*file/below.*--data-dir"):
        await Store.open(tmp_path / "file" / "below")


async def test_a_refused_opening_leaves_the_directory_free(tmp_path: Path) -> None:
    (tmp_path / "format").write_text("3")
    with pytest.raises(StoreError):
        await Store.open(tmp_path)
    (tmp_path / "format").unlink()
    await (await Store.open(tmp_path)).close()


async def test_another_boot_makes_pieces_suspect_unless_the_store_was_closed(
    open_store: Opener, tmp_path: Path
) -> None:
    store = await open_store()
    await filled(store, "model", range(4), VERSION.length)
    running = (tmp_path / "boot-id").read_text()
    await store.close()
    assert (tmp_path / "boot-id").read_text() == "clean\n"

    for last, trusted in (("clean\n", True), (running, True), ("another boot\n", False)):
        (tmp_path / "boot-id").write_text(last)
        store = await open_store()
        assert (tmp_path / "boot-id").read_text() == running
        with await store.entry(TASK, VERSION) as entry:
            assert (entry.landed.full, bool(entry.suspect)) == (trusted, not trusted)
        await store.close()

    (tmp_path / "boot-id").unlink()
    store = await open_store()
    with await store.entry(TASK, VERSION) as entry:
        assert entry.suspect


async def test_a_store_that_had_no_time_to_reach_the_disk_is_not_clean(open_store: Opener, tmp_path: Path) -> None:
    store = await open_store()
    await filled(store, "model")
    await store.close(sync_seconds=-1)
    assert (tmp_path / "boot-id").read_text() != "clean\n"


async def test_what_a_killed_process_left_half_done_is_cleared_away(open_store: Opener, tmp_path: Path) -> None:
    store = await open_store()
    lost, kept = [await filled(store, name) for name in "ab"]
    await store.close()
    running = Path("/proc/sys/kernel/random/boot_id").read_text()  # noqa: ASYNC240  # waits for no disk
    (tmp_path / "boot-id").write_text(running)
    data_file(tmp_path, lost).unlink()
    stray = data_file(tmp_path, a_version(TASK, etag="stray"))
    stray.parent.mkdir(exist_ok=True)
    stray.touch()
    (tmp_path / "trash" / "old").touch()
    with sqlite3.connect(tmp_path / "index.sqlite") as index:
        index.execute(
            "INSERT INTO versions (version_id, task_id, canonical, store, length, kind, validator, created, last_used) "
            "VALUES ('ff', 'ff', '', 's3', 7, 'etag', '', 0, 0)"
        )
    index.close()

    store = await open_store()
    assert store.stats() == StoreStats(1, 1, PIECE)
    assert [holding.version async for holding in store.holdings()] == [kept]
    assert data_files(tmp_path) == [data_file(tmp_path, kept)]
    assert list((tmp_path / "trash").iterdir()) == []


async def test_a_data_file_that_vanishes_takes_its_version_along(open_store: Opener, tmp_path: Path) -> None:
    store = await open_store(idle_entries=1)
    await filled(store, "model", range(4), VERSION.length)
    await filled(store, "other")
    data_file(tmp_path, VERSION).unlink()
    assert await store.find(VERSION.id) is None
    with await store.entry(TASK, VERSION) as entry:
        assert not entry.landed
        await put(entry, [0])
        assert_sound(entry)


@pytest.mark.parametrize("offset", [0, 100, 5000])
async def test_a_broken_index_starts_an_empty_store(open_store: Opener, tmp_path: Path, offset: int) -> None:
    store = await open_store()
    await filled(store, "model")
    await store.close()
    with (tmp_path / "index.sqlite").open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 4000)
    (tmp_path / "boot-id").write_text("another boot\n")
    store = await open_store()
    assert store.stats() == StoreStats(0, 0, 0)
    assert data_files(tmp_path) == []
    await filled(store, "model")


# Closing


async def test_a_closed_store_takes_no_more_and_its_readers_finish(open_store: Opener) -> None:
    store = await open_store()
    entry = await store.entry(TASK, VERSION)
    await put(entry, [0])
    waiter = asyncio.ensure_future(entry.wait(1))
    await asyncio.sleep(0)
    await store.close()
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await waiter
    with pytest.raises(StoreError, match="closed"):
        await put(entry, [1])
    for refused in (store.find(VERSION.id), store.entry(TASK, VERSION), store.remove(TASK.id), store.evict(0)):
        with pytest.raises(StoreError, match="closed"):
            await refused
    assert on_disk(entry, 0) == content(entry, 0)[0]
    entry.release()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_closing_leaves_no_thread_and_no_descriptor_behind(tmp_path: Path) -> None:
    store = await Store.open(tmp_path)
    await filled(store, "warm up")
    await store.close()
    before = open_descriptors()
    store = await Store.open(tmp_path)
    await filled(store, "model")
    await store.close()
    assert open_descriptors() == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("store")]


async def test_a_version_is_awaited_until_somebody_begins_with_it(store: Store) -> None:
    task = a_task()
    version = a_version(task)
    waiting = asyncio.ensure_future(store.awaited(version.id))
    await filled(store, "another")
    assert not waiting.done()
    with await store.entry(task, version) as entry, await waiting as awaited:
        assert awaited is entry
        assert not awaited.held
    held = await filled(store, "held")
    with await store.awaited(held.id) as entry:
        assert entry.held
