"""Directories that other releases wrote."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from peer.store import StoreStats, schema
from tests.support.pieces import PIECE
from tests.unit.store.conftest import Opener
from tests.unit.store.support import assert_sound, data_file, data_files, filled


def make_format_1(directory: Path) -> None:
    """Take away what format 2 has more, from a directory that is closed."""
    with closing(sqlite3.connect(directory / "index.sqlite")) as index:
        index.execute("DROP INDEX versions_by_verification")
        for column in ("piece_length", "verified"):
            index.execute(f"ALTER TABLE versions DROP COLUMN {column}")
        index.execute("ALTER TABLE totals DROP COLUMN suspect_before")
        index.execute("PRAGMA user_version = 0")
        index.commit()
    (directory / "format").write_text("1\n")


def cut_into(size: int) -> Callable[[int], int]:
    return lambda _: size


async def test_what_format_1_cut_alike_is_kept(
    open_store: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "_piece_length_of_format_1", cut_into(PIECE))
    store = await open_store()
    small, large = await filled(store, "small", length=1000), await filled(store, "large", [0, 2], 2 * PIECE + 5)
    await store.close()
    make_format_1(tmp_path)
    for _ in range(2):
        store = await open_store()
        assert (tmp_path / "format").read_text() == "2\n"
        assert [holding.version async for holding in store.holdings()] == [small, large]
        with await store.awaited(large.id) as entry:
            assert list(entry.landed) == [0, 2]
            assert_sound(entry)
        await store.remove(large.task_id)
        large = await filled(store, "large", [0, 2], 2 * PIECE + 5)
        await store.close()


async def test_what_another_release_cut_otherwise_is_let_go_of(
    open_store: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store()
    small, _ = await filled(store, "small", length=1000), await filled(store, "large", [0, 2], 2 * PIECE + 5)
    await store.close()
    make_format_1(tmp_path)
    monkeypatch.setattr(schema, "_piece_length_of_format_1", cut_into(2 * PIECE))
    store = await open_store()
    assert [holding.version async for holding in store.holdings()] == [small]
    assert store.stats() == StoreStats(1, 1, 1000)
    assert data_files(tmp_path) == [data_file(tmp_path, small)]
    # The next rule finds each version's own one in the index.
    large = await filled(store, "large", [0, 2], 2 * PIECE + 5)
    await store.close()
    monkeypatch.setattr(schema, "_RULE", schema._RULE ^ 1)
    store = await open_store()
    assert [holding.version async for holding in store.holdings()] == [small, large]
    await store.close()
    monkeypatch.setattr(schema, "_RULE", schema._RULE ^ 2)
    monkeypatch.setattr(schema, "piece_length", cut_into(2 * PIECE))
    store = await open_store()
    assert [holding.version async for holding in store.holdings()] == [small]
    await store.close()
    assert list((tmp_path / "trash").iterdir()) == []
