from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from p2p.errors import OriginStalledError, StoreError, StoreFullError
from p2p.pieces import Bitmap, Span
from peer.store import Store, files
from peer.store.files import DataFile
from tests.support.pieces import PIECE
from tests.unit.store.conftest import Opener
from tests.unit.store.support import a_task, a_version, assert_sound, content, flip_byte, on_disk, put

TASK = a_task()
VERSION = a_version(TASK)


async def waiting(*coroutines: asyncio.Future[None]) -> None:
    """Let every task come to its first real wait."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_a_committed_piece_has_landed_and_can_be_read(store: Store) -> None:
    with await store.entry(TASK, VERSION) as entry:
        assert not entry.landed
        await put(entry, [1, 3])
        assert list(entry.landed) == [1, 3]
        assert_sound(entry)
        assert os.fstat(entry.fd).st_size == VERSION.length


async def test_the_digest_of_a_piece_that_has_not_landed_is_an_error(store: Store) -> None:
    with await store.entry(TASK, VERSION) as entry, pytest.raises(KeyError, match="piece 0"):
        entry.digest(0)


async def test_written_bytes_count_for_nothing_until_they_are_committed(store: Store) -> None:
    with await store.entry(TASK, VERSION) as entry:
        entry.write(0, memoryview(content(entry, 0)[0]))
        assert 0 not in entry.landed
        assert await store.find(VERSION.id) is None


async def test_a_straggler_cannot_touch_a_landed_piece(store: Store) -> None:
    with await store.entry(TASK, VERSION) as entry:
        await put(entry, [1])
        entry.write(0, memoryview(b"x" * 3 * PIECE))
        assert_sound(entry)
        assert (on_disk(entry, 0), on_disk(entry, 2)) == (b"x" * PIECE, b"x" * PIECE)


@pytest.mark.parametrize(("offset", "length"), [(-1, 2), (VERSION.length, 1), (VERSION.length - 1, 2)])
async def test_bytes_beyond_the_object_are_refused(store: Store, offset: int, length: int) -> None:
    with await store.entry(TASK, VERSION) as entry, pytest.raises(ValueError, match="of an object of"):
        entry.write(offset, memoryview(bytes(length)))


async def test_what_is_no_piece_is_refused(store: Store) -> None:
    with await store.entry(TASK, VERSION) as entry:
        with pytest.raises(IndexError, match="piece 4 of 4"):
            await entry.commit([(4, bytes(16))])
        with pytest.raises(ValueError, match="15 bytes"):
            await entry.commit([(0, bytes(15))])
        with pytest.raises(IndexError, match="piece 4 of 4"):
            await entry.wait(4)


async def test_a_second_commit_of_a_piece_changes_nothing(store: Store) -> None:
    with await store.entry(TASK, VERSION) as entry:
        await put(entry, [0])
        await entry.commit([(0, bytes(16))])
        assert_sound(entry)
        assert (store.stats().pieces, store.stats().bytes) == (1, PIECE)


async def test_commits_at_the_same_time_count_a_piece_once(store: Store) -> None:
    with await store.entry(TASK, VERSION) as entry:
        await asyncio.gather(put(entry, [0, 3]), put(entry, [0, 1]), put(entry, [3]))
        assert (store.stats().pieces, store.stats().bytes) == (3, 2 * PIECE + 5)


async def test_a_commit_wakes_everyone_who_waits_for_its_pieces(store: Store) -> None:
    with await store.entry(TASK, VERSION) as entry:
        async with asyncio.TaskGroup() as group:
            waiters = [group.create_task(entry.wait(index)) for index in (0, 0, 1)]
            other = group.create_task(entry.wait(2))
            await waiting()
            await put(entry, [0, 1])
            await asyncio.gather(*waiters)
            assert not other.done()
            await put(entry, [2])


async def test_waiting_for_a_landed_piece_returns_at_once(store: Store) -> None:
    with await store.entry(TASK, VERSION) as entry:
        await put(entry, [0])
        await entry.wait(0)


async def test_a_failure_reaches_those_who_wait_and_not_those_who_come_later(store: Store) -> None:
    with await store.entry(TASK, VERSION) as entry:
        early = asyncio.ensure_future(entry.wait(0))
        await waiting()
        entry.fail(OriginStalledError("nothing came"))
        with pytest.raises(OriginStalledError, match="nothing came"):
            await early
        late = asyncio.ensure_future(entry.wait(0))
        await waiting()
        await put(entry, [0])
        await late


async def test_a_cancelled_waiter_leaves_the_others_waiting(store: Store) -> None:
    with await store.entry(TASK, VERSION) as entry:
        first, second = (asyncio.ensure_future(entry.wait(0)) for _ in range(2))
        await waiting()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await put(entry, [0])
        await second


async def test_a_waiter_may_be_cancelled_in_the_moment_it_is_failed(store: Store) -> None:
    with await store.entry(TASK, VERSION) as entry:
        waiter = asyncio.ensure_future(entry.wait(0))
        await waiting()
        entry.fail(OriginStalledError("nothing came"))
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter


async def test_a_cancelled_commit_still_lands(store: Store) -> None:
    with await store.entry(TASK, VERSION) as entry:
        data, digest = content(entry, 0)
        entry.write(0, memoryview(data))
        commit = asyncio.ensure_future(entry.commit([(0, digest)]))
        await waiting()
        commit.cancel()
        await entry.wait(0)
        assert commit.cancelled()
        assert store.stats().pieces == 1


async def test_verify_drops_and_names_what_is_damaged(store: Store, tmp_path: Path) -> None:
    with await store.entry(TASK, VERSION) as entry:
        await put(entry, range(4))
        flip_byte(tmp_path, VERSION, PIECE)
        flip_byte(tmp_path, VERSION, 3 * PIECE)
        assert await entry.verify(Span(0, 3)) == Bitmap(4, [Span(1, 2)])
        assert list(entry.landed) == [0, 2, 3]
        assert await entry.verify(Span(0, 4)) == Bitmap(4, [Span(3, 4)])
        assert (store.stats().pieces, store.stats().bytes) == (2, 2 * PIECE)
        await put(entry, [1, 3])
        assert entry.landed.full
        assert not await entry.verify(Span(0, 4))


async def test_a_data_file_cut_short_is_damage(store: Store) -> None:
    with await store.entry(TASK, VERSION) as entry:
        await put(entry, range(4))
        os.ftruncate(entry.fd, PIECE + 1)
        assert await entry.verify(Span(0, 4)) == Bitmap(4, [Span(1, 4)])


async def test_pieces_are_suspect_until_they_are_verified(open_store: Opener, tmp_path: Path) -> None:
    store = await open_store()
    with await store.entry(TASK, VERSION) as entry:
        await put(entry, range(4))
    await store.close()
    flip_byte(tmp_path, VERSION, 2 * PIECE + 1)

    store = await open_store(verify_on_use=True)
    entry = await store.entry(TASK, VERSION)
    assert (list(entry.landed), list(entry.suspect)) == ([], [0, 1, 2, 3])
    assert [holding async for holding in store.holdings()] == []
    waiter = asyncio.ensure_future(entry.wait(0))
    await entry.ensure_verified(Span(0, 2))
    await waiter
    assert (list(entry.landed), list(entry.suspect)) == ([0, 1], [2, 3])
    [holding] = [holding async for holding in store.holdings()]
    assert holding.bitmap == entry.landed
    await asyncio.gather(entry.ensure_verified(Span(1, 4)), entry.ensure_verified(Span(0, 4)))
    assert (list(entry.landed), list(entry.suspect)) == ([0, 1, 3], [])
    assert_sound(entry)
    entry.release()
    await store.close()

    store = await open_store(verify_on_use=False)
    with await store.entry(TASK, VERSION) as entry:
        assert list(entry.landed) == [0, 1, 3], "the verdict outlives the process"


async def test_verify_judges_suspect_pieces_too(open_store: Opener, tmp_path: Path) -> None:
    store = await open_store()
    with await store.entry(TASK, VERSION) as entry:
        await put(entry, range(4))
    await store.close()
    flip_byte(tmp_path, VERSION, 0)
    store = await open_store(verify_on_use=True)
    with await store.entry(TASK, VERSION) as entry:
        assert await entry.verify(Span(0, 4)) == Bitmap(4, [Span(0, 1)])
        assert list(entry.landed) == [1, 2, 3]


async def test_a_suspect_piece_may_be_downloaded_instead(open_store: Opener, tmp_path: Path) -> None:
    store = await open_store()
    with await store.entry(TASK, VERSION) as entry:
        await put(entry, range(4))
    await store.close()
    flip_byte(tmp_path, VERSION, 0)
    store = await open_store(verify_on_use=True)
    with await store.entry(TASK, VERSION) as entry:
        await asyncio.gather(entry.ensure_verified(Span(0, 4)), put(entry, [0, 1]))
        await put(entry, [0])
        assert entry.landed.full
        assert_sound(entry)
        assert store.stats().pieces == 4


async def test_an_entry_is_released_once_a_reference(store: Store) -> None:
    entry = await store.entry(TASK, VERSION)
    entry.retain().release()
    entry.release()
    with pytest.raises(RuntimeError, match="more often"):
        entry.release()


async def test_an_entry_that_is_no_longer_open_says_so(store: Store) -> None:
    with await store.entry(TASK, VERSION) as entry:
        pass
    with pytest.raises(StoreError, match="after its last reference"):
        entry.write(0, memoryview(b"x"))
    with pytest.raises(StoreError, match="after its last reference"):
        _ = entry.fd


def test_a_full_disk_is_told_from_other_failures(tmp_path: Path) -> None:
    with pytest.raises(StoreFullError, match=r"/dev/full.*free space"):
        DataFile(Path("/dev/full"), os.O_RDWR).write(memoryview(b"x"), 0)
    path = tmp_path / "read-only"
    path.touch()
    with pytest.raises(StoreError, match=r"read-only.*errno 9") as caught:
        DataFile(path, os.O_RDONLY).write(memoryview(b"x"), 0)
    assert not isinstance(caught.value, StoreFullError)


def test_room_is_found_beforehand_and_holds_no_bytes_yet(tmp_path: Path) -> None:
    file = DataFile(tmp_path / "data", os.O_RDWR | os.O_CREAT)
    os.ftruncate(file.fd, 3 << 20)
    file.allocate(1 << 20, 1 << 20)
    found = file.path.stat()
    assert (found.st_size, found.st_blocks * 512) == (3 << 20, 1 << 20)
    assert os.pread(file.fd, 3 << 20, 0) == bytes(3 << 20)


def test_room_that_cannot_be_had_is_an_error(tmp_path: Path) -> None:
    file = DataFile(tmp_path / "data", os.O_RDWR | os.O_CREAT)
    with pytest.raises(StoreError, match=r"allocate room in .*data"):
        file.allocate(0, 1 << 62)  # beyond what ext4 and xfs can address
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(StoreError, match=r"allocate room in .*pipe"):
        DataFile(pipe, os.O_RDWR).allocate(0, 1)


def test_a_descriptor_outlives_the_entry_for_as_long_as_a_writer_has_it(tmp_path: Path) -> None:
    writers = DataFile(tmp_path / "data", os.O_RDWR | os.O_CREAT)
    entrys = writers
    fd = writers.fd
    del entrys
    os.fstat(fd)
    del writers
    # Closed in their order: by the time the second is, and its pipe at an end, the first has been.
    outlet, inlet = os.pipe()
    files._CLOSER.close(inlet)
    assert os.read(outlet, 1) == b""
    os.close(outlet)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


async def test_listeners_hear_of_each_landing_and_of_the_end(store: Store) -> None:
    task = a_task()
    heard: list[tuple[int, bool]] = []
    with await store.entry(task, a_version(task)) as entry:

        def listener() -> None:
            heard.append((len(entry.landed), entry.retired))

        entry.listen(listener)
        await put(entry, [0, 2])
        await put(entry, [2])
        assert heard == [(1, False), (2, False)]
        await store.remove(task.id)
        assert heard[2:] == [(2, True)]
        entry.unlisten(listener)
