"""A crash after every step that a store takes: of the process, and of the whole machine; and every step failing."""

from __future__ import annotations

import errno
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from peer.store import Store
from tests.unit.store.faults import (
    CAPACITY,
    TASKS,
    VERSIONS,
    Failing,
    Model,
    Witness,
    assert_counted,
    landed_pieces,
    live,
    lose_with_the_machine,
    rest_of,
    task_of,
)
from tests.unit.store.support import assert_sound, data_files, put

# Hundreds of directories are copied and opened: what is tested is the order of steps, and waits for no disk.
MEMORY = Path("/dev/shm")


@pytest.fixture
def shelf() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="damselfly-crashes-", dir=MEMORY if MEMORY.is_dir() else None) as made:
        yield Path(made)


@pytest.fixture
async def witness(shelf: Path) -> Witness:
    model = Model()
    disk = Witness(shelf / "store", shelf, model)
    await live(shelf / "store", disk, model)
    steps = {copy.step for copy in disk.copies}
    assert steps >= {"before commit", "commit", "write", "sync", "rename", "unlink", "open", "truncate", "put", "mkdir"}
    return disk


async def test_a_crash_after_any_step_loses_nothing_and_serves_nothing_unverified(
    witness: Witness, shelf: Path
) -> None:
    for copy in witness.copies:
        story = f"after step {copy.number} ({copy.step})"
        store = await Store.open(copy.directory)
        landed = await landed_pieces(store)
        assert landed >= copy.held, story
        assert_counted(store, landed)
        recorded = {version.id for version, _ in landed} | {version.id for version in VERSIONS if not version.length}
        assert {path.name for path in data_files(copy.directory)} <= recorded, story
        assert not list((copy.directory / "trash").iterdir()), story
        await store.close(sync_seconds=-1)

        dice = random.Random(copy.number)
        lose_with_the_machine(copy, dice, shelf / "after")
        clean = (shelf / "after" / "boot-id").exists() and (shelf / "after" / "boot-id").read_text() == "clean\n"
        store = await Store.open(shelf / "after")
        if not clean:
            assert [holding async for holding in store.holdings()] == [], story
        landed = await landed_pieces(store)
        assert landed >= (copy.held if clean else copy.durable), story
        assert_counted(store, landed)
        await store.close(sync_seconds=-1)
    assert len(witness.copies) > 100


async def test_a_step_that_fails_costs_only_itself(shelf: Path) -> None:
    healthy = Failing(errno.EIO, lambda _: False)
    await live(shelf / "healthy", healthy, Model(), lives=1)
    for number in range(healthy.count):
        code = (errno.EIO, errno.ENOSPC, errno.EROFS)[number % 3]
        directory, model = shelf / str(number), Model()
        await live(directory, Failing(code, number.__eq__), model, lives=1, tolerant=True)
        store = await Store.open(directory, capacity=CAPACITY)
        landed = await landed_pieces(store)
        assert landed >= model.held, f"step {number} failed with {errno.errorcode[code]}"
        await store.remove(TASKS[1].id)
        with await store.entry(task_of(VERSIONS[0]), VERSIONS[0]) as entry:
            await put(entry, rest_of(entry))
            assert entry.landed.full
            assert_sound(entry)
        await store.close(sync_seconds=-1)
