"""A disk that has become read-only: what is held is still read, and all else is an error at once."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2p.config import parse_capacity
from p2p.errors import StoreError, StoreFullError
from p2p.tasks import TaskScope
from peer.store import Store
from peer.store.disk import Disk
from peer.store.space import capacity_in
from peer.tasks import TaskManager
from tests.support.disks import mounted
from tests.support.pieces import PIECE
from tests.unit.peer.test_tasks import Network, Peer, Schedulers, whole
from tests.unit.store.support import assert_sound, filled


class Worn(Disk):
    """Refuses every change once it has `failed` with an error code."""

    def __init__(self) -> None:
        self.failed = 0
        self._changes = 0

    def _check(self) -> None:
        if self.failed:
            raise OSError(self.failed, os.strerror(self.failed))

    def open(self, path: Path, flags: int) -> int:
        if flags & os.O_CREAT or (flags & os.O_RDWR and self.failed == errno.EROFS):
            self._check()
        return super().open(path, flags)

    def write(self, fd: int, data: memoryview, offset: int) -> int:
        self._check()
        return super().write(fd, data, offset)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        self._check()
        super().allocate(fd, offset, length)

    def truncate(self, fd: int, length: int) -> None:
        self._check()
        super().truncate(fd, length)

    def sync(self, path: Path) -> None:
        self._check()
        super().sync(path)

    def mkdir(self, path: Path) -> None:
        self._check()
        super().mkdir(path)

    def put(self, path: Path, text: str) -> None:
        self._check()
        super().put(path, text)

    def rename(self, old: Path, new: Path) -> None:
        self._check()
        super().rename(old, new)

    def unlink(self, path: Path) -> None:
        self._check()
        super().unlink(path)

    def commit(self, connection: sqlite3.Connection) -> None:
        before, self._changes = self._changes, connection.total_changes
        if self.failed and before != self._changes:
            raise sqlite3.OperationalError(os.strerror(self.failed))
        super().commit(connection)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EIO])
async def test_a_disk_that_fails_while_it_is_used_gives_what_it_has_and_errors_for_the_rest(
    tmp_path: Path, code: int
) -> None:
    disk = Worn()
    store = await Store.open(tmp_path, idle_entries=1, disk=disk)
    held = [await filled(store, name) for name in "abc"]
    network, schedulers = Network(), Schedulers()
    async with TaskScope() as scope:
        tasks = TaskManager(store, network, schedulers, scope, secret=None, seed=False)
        peer = Peer(store, tasks, network, schedulers)
        network.gate.clear()
        reading = asyncio.create_task(whole(peer))
        await network.asked.wait()
        disk.failed = code
        network.gate.set()
        # Under way: its client, who may have some bytes already, hears of it.
        with pytest.raises(StoreError, match=os.strerror(code)) as failure:
            await reading
        assert not isinstance(failure.value, StoreFullError)
        # From the beginning: the proxy hears of it before it has sent anything, and goes straight to the origin.
        with pytest.raises(StoreError, match=os.strerror(code)):
            await whole(peer)
        for version in held:
            entry = await store.find(version.id)
            assert entry is not None
            with entry:
                assert list(entry.landed) == [0]
                assert_sound(entry)
        await tasks.stop()
    with contextlib.suppress(StoreError):
        await store.close()
    disk.failed = 0
    store = await Store.open(tmp_path, disk=disk)
    assert {row.version_id for row in await store.held()} == {version.id for version in held}
    assert store.stats().bytes == 3 * PIECE
    await store.close()


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path, "ro,size=64k"):
        yield tmp_path


async def test_a_read_only_disk_is_named_at_the_start_with_what_to_do(read_only_disk: Path) -> None:
    for directory in (read_only_disk, read_only_disk / "below"):
        with pytest.raises(StoreError, match=rf"'{directory}': Read-only file system; .*mount it writable.*--data-dir"):
            await Store.open(directory)
    with pytest.raises(StoreError, match="mount it writable"):
        capacity_in(read_only_disk / "below", parse_capacity("80%"))
