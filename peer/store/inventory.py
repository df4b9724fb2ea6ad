"""What operators ask of the index: what is held since when, and which versions are pinned. Work for `Index.submit`."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from p2p.fetches import HeldVersion
from p2p.pieces import PieceLayout
from peer.store.index import Work

_PAGE = 4096  # rows that one piece of work reads: some ten milliseconds of the index's thread


@dataclass(frozen=True, slots=True)
class Stock:
    """One version as the index has it. `created` and `last_used` are times of the store's clock, in seconds."""

    row: int
    task_id: str
    canonical: str
    version_id: str
    length: int
    pieces: int
    bytes: int
    created: float
    last_used: float
    pinned: bool

    def held(self, now: float, *, in_use: bool) -> HeldVersion:
        """Return what operators see of it; `now` is a time of the same clock, which may have been set back."""
        return HeldVersion(
            task_id=self.task_id,
            object=self.canonical,
            version_id=self.version_id,
            length=self.length,
            pieces=PieceLayout.of(self.length).count,
            pieces_held=self.pieces,
            bytes_held=self.bytes,
            age_seconds=max(0.0, now - self.created),
            used_seconds=0.0 if in_use else max(0.0, now - self.last_used),
            pinned=self.pinned,
            in_use=in_use,
        )


def stock(after: int, task_id: str | None) -> Work[tuple[Stock, ...]]:
    """Read the versions (of a task) behind row `after`, in the order of their rows; none at the end."""

    def work(db: sqlite3.Connection) -> Callable[[], tuple[Stock, ...]]:
        found = db.execute(
            "SELECT row, task_id, canonical, version_id, length, pieces, bytes, created, last_used, "
            "version_id IN (SELECT version_id FROM pins) "
            "FROM versions WHERE row > ? AND (? IS NULL OR task_id = ?) AND (pieces > 0 OR length = 0) "
            "ORDER BY row LIMIT ?",
            (after, task_id, task_id, _PAGE),
        ).fetchall()
        return lambda: tuple(Stock(*(*fields, bool(pinned))) for *fields, pinned in found)

    return work


def pin(column: str, value: str) -> Work[int]:
    """Pin the versions whose `column` (task_id or version_id) has a value; returns how many there are."""

    def work(db: sqlite3.Connection) -> Callable[[], int]:
        db.execute(f"INSERT OR IGNORE INTO pins SELECT version_id FROM versions WHERE {column} = ?", (value,))  # noqa: S608  # ours
        (count,) = db.execute(f"SELECT count(*) FROM versions WHERE {column} = ?", (value,)).fetchone()  # noqa: S608
        return lambda: int(count)

    return work


def unpin(task_id: str) -> Work[int]:
    """Let go of a task's pins; returns how many there were."""

    def work(db: sqlite3.Connection) -> Callable[[], int]:
        gone = db.execute(
            "DELETE FROM pins WHERE version_id IN (SELECT version_id FROM versions WHERE task_id = ?)", (task_id,)
        )
        return lambda: gone.rowcount

    return work


def pinned_bytes(db: sqlite3.Connection) -> int:
    """Return how many bytes the pieces of pinned versions take."""
    (size,) = db.execute("SELECT coalesce(sum(bytes), 0) FROM versions JOIN pins USING (version_id)").fetchone()
    return int(size)
