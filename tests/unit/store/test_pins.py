"""Pins and inventory: what is pinned stays through eviction and restarts, and ages are told."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from p2p.errors import StoreFullError
from p2p.pieces import PieceLayout
from peer.store import Store
from tests.support.pieces import PIECE
from tests.unit.store.support import a_task, a_version, filled, put, ticking


async def test_a_pinned_version_outlives_pressure_and_a_restart(tmp_path: Path) -> None:
    store = await Store.open(tmp_path, capacity=4 * PIECE, clock=ticking())
    pinned = await filled(store, "pinned")
    assert await store.pin(pinned.task_id) == 1
    await store.close()
    store = await Store.open(tmp_path, capacity=4 * PIECE, clock=ticking())
    for number in range(8):
        await filled(store, f"other-{number}")
    assert await store.evict(0) > 0
    assert [row.version_id for row in await store.held()] == [pinned.id]
    assert await store.unpin(pinned.task_id) == 1
    assert await store.evict(0) == PIECE
    await store.close()


async def test_pins_that_fill_the_capacity_are_named(tmp_path: Path) -> None:
    store = await Store.open(tmp_path, capacity=PIECE)
    await store.pin((await filled(store, "pinned")).task_id)
    with pytest.raises(StoreFullError, match=rf"pinned ones \({PIECE} bytes\); unpin some"):
        await filled(store, "another")
    await store.close()


async def test_a_pin_goes_with_its_version(tmp_path: Path) -> None:
    store = await Store.open(tmp_path)
    version = await filled(store, "model")
    await store.pin_version(version.id)
    await store.remove(version.task_id)
    await filled(store, "model")
    assert [row.pinned for row in await store.held()] == [False]
    await store.close()


async def test_pinning_what_is_not_there(tmp_path: Path) -> None:
    store = await Store.open(tmp_path)
    assert await store.pin("0" * 64) == 0
    assert await store.unpin("0" * 64) == 0
    await store.close()


async def test_what_is_held_since_when(tmp_path: Path) -> None:
    now = 1000.0
    store = await Store.open(tmp_path, clock=lambda: now)
    task = a_task("model")
    version = a_version(task, 2 * PIECE)
    entry = await store.entry(task, version)
    await put(entry, [1])
    now = 1010.0
    (row,) = await store.held(task.id)
    assert (row.object, row.pieces, row.pieces_held, row.bytes_held) == (
        task.canonical,
        PieceLayout.of(version.length).count,
        1,
        PIECE,
    )
    assert (row.age_seconds, row.used_seconds, row.in_use) == (10.0, 0.0, True)
    entry.release()
    now = 1015.0
    await filled(store, "other")
    (row,) = await store.held(task.id)
    assert (row.age_seconds, row.used_seconds, row.in_use, row.pinned) == (15.0, 5.0, False, False)
    assert len(await store.held()) == 2
    await store.close()


async def test_a_directory_of_a_release_without_pins_is_read(tmp_path: Path) -> None:
    store = await Store.open(tmp_path)
    version = await filled(store, "model")
    await store.close()
    with sqlite3.connect(tmp_path / "index.sqlite") as index:
        index.execute("DROP TRIGGER pin_removed")
        index.execute("DROP TABLE pins")
    index.close()
    store = await Store.open(tmp_path)
    assert await store.pin(version.task_id) == 1
    await store.close()
