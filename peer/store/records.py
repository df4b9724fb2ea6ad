"""What the index is asked, in SQL. Each function returns work for `Index.submit`."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from p2p.control import Holding
from p2p.errors import StoreError, StoreFullError
from p2p.identity import Store as ObjectStore
from p2p.identity import Task
from p2p.pieces import Bitmap, PieceLayout, piece_length
from p2p.versions import ValidatorKind, Version
from peer.core.evict import Victim
from peer.store.files import DataDirectory, DataFile
from peer.store.index import Work
from peer.store.inventory import pinned_bytes

_MANY = 8192  # rows that one piece of work reads at most: some ten milliseconds of the index's thread


@dataclass(frozen=True, slots=True)
class Epochs:
    """Pieces are recorded under the `current` one; those of one before `suspect_before` are suspect.

    Versions that were verified before `doubted` have pieces of an older epoch than the current one.
    """

    current: int
    suspect_before: int
    doubted: float


@dataclass(frozen=True, slots=True)
class Record:
    """A version as the index has it. `file` is None where the data file is missing.

    Of the pieces that are not suspect those in `unproven` were recorded by a process that was killed.
    """

    row: int
    task: Task
    version: Version
    file: DataFile | None
    trusted: tuple[tuple[int, bytes], ...]
    suspect: tuple[tuple[int, bytes], ...]
    unproven: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Removed:
    """A version that the index no longer has, and the bytes of its pieces."""

    row: int
    version_id: str
    size: int


def load(directory: DataDirectory, version_id: str, epochs: Epochs) -> Work[Record | None]:
    """Read a version and open its file; None for one that the index does not have or has no piece of."""

    def work(db: sqlite3.Connection) -> Callable[[], Record | None]:
        return _opened(db, directory, version_id, epochs)

    return work


def create(directory: DataDirectory, task: Task, version: Version, epochs: Epochs, now: float) -> Work[Record | None]:
    """Read a version, which is recorded first if the index does not have it, and open its file."""

    def work(db: sqlite3.Connection) -> Callable[[], Record | None]:
        # Looked for first: what is there can be read also where nothing can be written any more.
        if db.execute("SELECT 1 FROM versions WHERE version_id = ?", (version.id,)).fetchone() is None:
            db.execute(
                "INSERT INTO versions (version_id, task_id, canonical, store, length, kind, validator, created, "
                "last_used, piece_length, verified) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(version.id, task.id, task.canonical, str(task.store)),
                    *(version.length, str(version.kind), version.validator),
                    *(now, now, piece_length(version.length), now),
                ),
            )
        return _opened(db, directory, version.id, epochs, may_create=True)

    return work


def versions_of(task_id: str) -> Work[tuple[str, ...]]:
    """Read the ids of a task's versions, the oldest first."""

    def work(db: sqlite3.Connection) -> Callable[[], tuple[str, ...]]:
        found = db.execute("SELECT version_id FROM versions WHERE task_id = ? ORDER BY row", (task_id,)).fetchall()
        return lambda: tuple(version_id for (version_id,) in found)

    return work


def _opened(
    db: sqlite3.Connection, directory: DataDirectory, version_id: str, epochs: Epochs, *, may_create: bool = False
) -> Callable[[], Record | None]:
    found = db.execute(
        "SELECT row, pieces, task_id, canonical, store, length, kind, validator FROM versions WHERE version_id = ?",
        (version_id,),
    ).fetchone()
    if found is None:
        return lambda: None
    row, count, task_id, canonical, store, length, kind, validator = found
    held = count > 0
    if not held and length > 0 and not may_create:
        return lambda: None
    pieces = db.execute("SELECT piece, digest, epoch FROM pieces WHERE row = ? ORDER BY piece", (row,)).fetchall()

    def open_file() -> Record:
        file = directory.open_data(version_id) if held else directory.create_data(version_id, length)
        return Record(
            row=row,
            task=Task(task_id, canonical, ObjectStore(store)),
            version=Version(task_id, length, ValidatorKind(kind), validator),
            file=file,
            trusted=tuple((piece, digest) for piece, digest, written in pieces if written >= epochs.suspect_before),
            suspect=tuple((piece, digest) for piece, digest, written in pieces if written < epochs.suspect_before),
            unproven=tuple(piece for piece, _, written in pieces if epochs.suspect_before <= written < epochs.current),
        )

    return open_file


class CapacityError(StoreFullError):
    """The pieces would take the store over its capacity."""


def commit(
    row: int, layout: PieceLayout, pieces: Sequence[tuple[int, bytes]], epoch: int, capacity: int | None
) -> Work[None]:
    """Record pieces of a version and their digests.

    Raises StoreError if the version has been removed, CapacityError if more than `capacity` bytes would be held.
    """

    def work(db: sqlite3.Connection) -> Callable[[], None]:
        added = size = 0
        for piece, digest in pieces:
            inserted = db.execute("INSERT OR IGNORE INTO pieces VALUES (?, ?, ?, ?)", (row, piece, digest, epoch))
            if inserted.rowcount:
                added, size = added + 1, size + layout.size(piece)
            else:
                again = (digest, epoch, row, piece)
                db.execute("UPDATE pieces SET digest = ?, epoch = ? WHERE row = ? AND piece = ?", again)
        if not _count(db, row, added, size):
            raise StoreError("the version was removed from the store while it was downloaded; ask for it again")
        if capacity is not None and size:
            (held,) = db.execute("SELECT bytes FROM totals").fetchone()
            if held > capacity:
                pinned = pinned_bytes(db)
                raise CapacityError(
                    f"the store's capacity of {capacity} bytes is taken by versions in use"
                    + (f" and by pinned ones ({pinned} bytes); unpin some (`damselfly unpin`)," if pinned else ";")
                    + " raise it, or ask for less"
                )
        return _nothing

    return work


def confirm(row: int, pieces: Sequence[int], epoch: int) -> Work[None]:
    """Record that pieces of an older epoch were found to be as recorded."""

    def work(db: sqlite3.Connection) -> Callable[[], None]:
        values = [(epoch, row, piece) for piece in pieces]
        db.executemany("UPDATE pieces SET epoch = ? WHERE row = ? AND piece = ?", values)
        return _nothing

    return work


def forget(row: int, layout: PieceLayout, pieces: Sequence[int], *, older_than: int | None) -> Work[None]:
    """Take damaged pieces out; with `older_than` only those that were not recorded anew in that epoch."""

    def work(db: sqlite3.Connection) -> Callable[[], None]:
        gone = size = 0
        for piece in pieces:
            deleted = db.execute(
                "DELETE FROM pieces WHERE row = ? AND piece = ? AND (? IS NULL OR epoch < ?)",
                (row, piece, older_than, older_than),
            )
            if deleted.rowcount:
                gone, size = gone + 1, size + layout.size(piece)
        _count(db, row, -gone, -size)
        return _nothing

    return work


def _count(db: sqlite3.Connection, row: int, pieces: int, size: int) -> bool:
    changed = db.execute(
        "UPDATE versions SET pieces = pieces + ?, bytes = bytes + ?, unsynced = 1 WHERE row = ?", (pieces, size, row)
    )
    return changed.rowcount == 1


def _nothing() -> None:
    """End work that has no result."""


def remove_task(directory: DataDirectory, task_id: str) -> Work[tuple[Removed, ...]]:
    """Remove every version of a task."""
    return partial(_removed, directory, "task_id = ?", [(task_id,)])


def remove_versions(directory: DataDirectory, version_ids: Sequence[str]) -> Work[tuple[Removed, ...]]:
    """Remove versions, pieces and all."""
    return partial(_removed, directory, "version_id = ?", [(version_id,) for version_id in version_ids])


def remove_if_empty(directory: DataDirectory, row: int) -> Work[tuple[Removed, ...]]:
    """Remove a version unless a piece of it has been recorded."""
    return partial(_removed, directory, "row = ? AND pieces = 0", [(row,)])


def _removed(
    directory: DataDirectory, condition: str, parameters: Sequence[tuple[str | int]], db: sqlite3.Connection
) -> Callable[[], tuple[Removed, ...]]:
    gone: list[Removed] = []
    for values in parameters:
        found = db.execute(f"SELECT row, version_id, bytes FROM versions WHERE {condition}", values)  # noqa: S608  # ours
        gone += [Removed(*fields) for fields in found]
    rows = [(removed.row,) for removed in gone]
    db.executemany("DELETE FROM pieces WHERE row = ?", rows)
    db.executemany("DELETE FROM versions WHERE row = ?", rows)

    def discard() -> tuple[Removed, ...]:
        for removed in gone:
            directory.discard(removed.version_id, removed.row)
        return tuple(gone)

    return discard


def oldest(
    after: tuple[float, int], limit: int, unused_since: float
) -> Work[tuple[tuple[tuple[float, int], Victim], ...]]:
    """Read the least recently used versions that are not pinned behind the key `after`, each with its own key.

    None that was used at the time `unused_since` or later.
    """

    def work(db: sqlite3.Connection) -> Callable[[], tuple[tuple[tuple[float, int], Victim], ...]]:
        found = db.execute(
            "SELECT last_used, row, version_id, bytes FROM versions WHERE (last_used, row) > (?, ?) "
            "AND last_used < ? AND version_id NOT IN (SELECT version_id FROM pins) ORDER BY last_used, row LIMIT ?",
            (*after, unused_since, limit),
        ).fetchall()
        return lambda: tuple(((used, row), Victim(version_id, size, used)) for used, row, version_id, size in found)

    return work


def latest() -> Work[float]:
    """Read the latest time in the index, 0 if there is none."""

    def work(db: sqlite3.Connection) -> Callable[[], float]:
        (time,) = db.execute(
            "SELECT max(seen, (SELECT coalesce(max(last_used), 0) FROM versions)) FROM totals"
        ).fetchone()
        return lambda: float(time)

    return work


def mark_time(now: float) -> Work[None]:
    """Record which time it is."""

    def work(db: sqlite3.Connection) -> Callable[[], None]:
        db.execute("UPDATE totals SET seen = ? WHERE seen < ?", (now, now))
        return _nothing

    return work


@dataclass(frozen=True, slots=True)
class Due:
    """A version that was last verified at a time of the store's clock."""

    verified: float
    row: int
    version_id: str


def due(after: tuple[float, int], before: float) -> Work[Due | None]:
    """Read which version behind the key `after` (verified, row) has not been verified for longest.

    None if all there are were verified at the time `before` or later.
    """

    def work(db: sqlite3.Connection) -> Callable[[], Due | None]:
        found = db.execute(
            "SELECT verified, row, version_id FROM versions WHERE (verified, row) > (?, ?) AND verified < ? "
            "ORDER BY verified, row LIMIT 1",
            (*after, before),
        ).fetchone()
        return lambda: None if found is None else Due(*found)

    return work


def mark_verified(row: int, when: float) -> Work[None]:
    """Record that all pieces of a version were known to be sound at a time."""

    def work(db: sqlite3.Connection) -> Callable[[], None]:
        db.execute("UPDATE versions SET verified = ? WHERE row = ?", (when, row))
        return _nothing

    return work


def touch(used: Sequence[tuple[float, int]]) -> Work[None]:
    """Record when versions were last used: pairs of time and row."""

    def work(db: sqlite3.Connection) -> Callable[[], None]:
        db.executemany("UPDATE versions SET last_used = ? WHERE row = ?", used)
        return _nothing

    return work


def holdings(after: int, epochs: Epochs) -> Work[tuple[int, tuple[Holding, ...]] | None]:
    """Read what may be served at once of the versions behind row `after`, and the last row read; None at the end."""

    def work(db: sqlite3.Connection) -> Callable[[], tuple[int, tuple[Holding, ...]] | None]:
        last, rows = after, 0
        found: list[Holding] = []
        versions = db.execute(
            "SELECT row, pieces, task_id, length, kind, validator FROM versions WHERE row > ? ORDER BY row", (after,)
        )
        for row, count, task_id, length, kind, validator in versions:
            if rows >= _MANY:
                break
            last, rows = row, rows + count + 1
            pieces = db.execute(
                "SELECT piece, digest FROM pieces WHERE row = ? AND epoch >= ? ORDER BY piece",
                (row, epochs.suspect_before),
            ).fetchall()
            if not pieces:
                continue
            bitmap = Bitmap(PieceLayout.of(length).count)
            for piece, _ in pieces:
                bitmap.add_piece(piece)
            version = Version(task_id, length, ValidatorKind(kind), validator)
            found.append(Holding(version, bitmap, tuple(digest for _, digest in pieces)))
        return (lambda: (last, tuple(found))) if rows else (lambda: None)

    return work


def unsynced() -> Work[tuple[str, ...]]:
    """Read the id of each version whose file may hold bytes that are not on the disk."""

    def work(db: sqlite3.Connection) -> Callable[[], tuple[str, ...]]:
        found = db.execute("SELECT version_id FROM versions WHERE unsynced = 1").fetchall()
        return lambda: tuple(version_id for (version_id,) in found)

    return work


def mark_synced(version_ids: Sequence[str]) -> Work[None]:
    """Record that all bytes of these versions are on the disk."""

    def work(db: sqlite3.Connection) -> Callable[[], None]:
        values = [(version_id,) for version_id in version_ids]
        db.executemany("UPDATE versions SET unsynced = 0 WHERE version_id = ?", values)
        return _nothing

    return work
