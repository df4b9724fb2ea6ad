"""The journal remembers digests, and nothing that it does goes wrong in silence."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

from p2p.errors import ConfigError
from scheduler import journal as journal_module
from scheduler.journal import Journal

A, B = "a" * 32, "b" * 32


def digest(number: int) -> bytes:
    return number.to_bytes(16, "big")


@pytest.mark.parametrize("kept", [True, False])
async def test_what_is_recorded_is_read(tmp_path: Path, kept: bool) -> None:
    journal = await Journal.open(tmp_path if kept else None)
    journal.record(A, {0: digest(1), 7: digest(2)})
    journal.record(A, {7: digest(3)})
    journal.record(B, {1: digest(4)})
    assert await journal.read(A) == {0: digest(1), 7: digest(3)}
    assert await journal.read("c" * 32) == {}
    await journal.close()


async def test_digests_outlive_the_process(tmp_path: Path) -> None:
    directory = tmp_path / "made" / "for it"
    journal = await Journal.open(directory)
    journal.record(A, {0: digest(1)})
    await journal.close()
    journal = await Journal.open(directory)
    assert await journal.read(A) == {0: digest(1)}
    await journal.close()


async def test_what_nobody_uses_for_long_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    journal = await Journal.open(tmp_path)
    journal.record(A, {0: digest(1)})
    journal.record(B, {0: digest(2)})
    await journal.close()
    now += journal_module.RETENTION_SECONDS - 10
    journal = await Journal.open(tmp_path)
    assert await journal.read(A)
    await journal.close()
    now += 20
    journal = await Journal.open(tmp_path)
    assert await journal.read(A) == {0: digest(1)}
    assert await journal.read(B) == {}
    await journal.close()


async def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"file.*--state-dir"):
        await Journal.open(tmp_path / "file")


async def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / journal_module.FILE_NAME).write_bytes(b"not a database at all" * 100)
    with pytest.raises(ConfigError, match="not a database"):
        await Journal.open(tmp_path)


async def test_a_newer_layout_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / journal_module.FILE_NAME) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(ConfigError, match="99"):
        await Journal.open(tmp_path)


async def test_a_journal_that_breaks_costs_only_the_memory(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path)
    with sqlite3.connect(tmp_path / journal_module.FILE_NAME) as database:
        database.execute("DROP TABLE digests")
    database.close()
    journal.record(A, {0: digest(1)})
    assert await journal.read(A) == {}
    await journal.close()
