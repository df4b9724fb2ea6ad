"""What happens to a data directory when it is opened, by how its last use ended.

Closed in good order: nothing. The process died: what it began and did not record is cleared away, and the index starts
a new epoch, so that every recorded piece is verified before a byte of it is used again. The operating system died too:
besides, these pieces are suspect, and nobody is told of them before that.
However it ended, versions that an older release cut into other pieces than this one does are let go of.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from p2p.errors import StoreError
from p2p.telemetry import logger
from peer.store.files import DataDirectory, store_error
from peer.store.index import Work, connect, primary_code
from peer.store.records import Epochs
from peer.store.schema import cut_otherwise, mark_rule

_LOG = logger(__name__)


def discard_broken_index(directory: DataDirectory) -> bool:
    """Delete an index that SQLite cannot read: a cache starts empty rather than not at all. Tells whether it did.

    A crash of a process cannot break the index, so it is read in full only after a crash of the operating system.
    Raises StoreError if the index cannot be opened for another reason.
    """
    path = directory.index_path
    try:
        try:
            connection = connect(path)
            try:
                problems = []
                if not (directory.was_clean or directory.same_boot):
                    problems = [text for (text,) in connection.execute("PRAGMA quick_check") if text != "ok"]
            finally:
                connection.close()
        except sqlite3.DatabaseError as error:
            if primary_code(error) not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise StoreError(f"cannot open the index {str(path)!r}: {error}; see that its disk has room") from error
            problems = [str(error)]
        if problems:
            _LOG.error("index is broken, the store starts empty", path=str(path), problems=problems[:5])
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
    except OSError as error:
        raise store_error("open", path, error) from error
    return bool(problems)


def recover(directory: DataDirectory, *, suspicious: bool, tidy: bool, now: float) -> Work[Epochs]:
    """Return work whose result are the epochs from `now` on, a time of the store's clock.

    `suspicious` makes all pieces suspect. `tidy` has each verified at its next use, and clears away rows without a
    piece, data files without a row, rows without a file, and the trash.
    """

    def work(db: sqlite3.Connection) -> Callable[[], Epochs]:
        db.execute("UPDATE totals SET suspect_before = coalesce(suspect_before, epoch)")
        if suspicious or tidy:
            db.execute("UPDATE totals SET epoch = epoch + 1, doubted = ?", (now,))
        if suspicious:
            db.execute("UPDATE totals SET suspect_before = epoch")
        epochs = Epochs(*db.execute("SELECT epoch, suspect_before, doubted FROM totals").fetchone())
        recut = _let_go_of_other_cuts(db)
        strays = _paired(db, directory) if tidy else []

        def clear() -> Epochs:
            for version_id, row in recut:
                directory.discard(version_id, row)
            for prefix, name in strays:
                directory.unlink_stray(prefix, name)
            if tidy:
                directory.empty_trash()
            return epochs

        return clear

    return work


def _let_go_of_other_cuts(db: sqlite3.Connection) -> list[tuple[str, int]]:
    """Forget the versions that an older release cut otherwise; return the id and the row of each.

    Their digests are of other spans of bytes than anybody asks for now, and nobody here can vouch for new ones.
    """
    rows = cut_otherwise(db)
    if rows is None:
        return []
    gone: list[tuple[str, int]] = []
    size = 0
    for row in rows:
        version_id, held = db.execute("SELECT version_id, bytes FROM versions WHERE row = ?", (row,)).fetchone()
        gone.append((version_id, row))
        size += held
    db.executemany("DELETE FROM pieces WHERE row = ?", [(row,) for row in rows])
    db.executemany("DELETE FROM versions WHERE row = ?", [(row,) for row in rows])
    mark_rule(db)
    if gone:
        _LOG.warning("versions that an older release cut otherwise are let go of", count=len(gone), bytes=size)
    return gone


def _paired(db: sqlite3.Connection, directory: DataDirectory) -> list[tuple[str, str]]:
    db.execute("DELETE FROM versions WHERE pieces = 0 AND length > 0")
    strays: list[tuple[str, str]] = []
    for prefix, names in directory.shards():
        rows = dict(
            db.execute("SELECT version_id, row FROM versions WHERE version_id BETWEEN ? AND ?", (prefix, prefix + "g"))
        )
        strays += [(prefix, name) for name in names if name not in rows]
        lost = [(row,) for version_id, row in rows.items() if version_id not in names]
        if lost:
            _LOG.error("data files are gone, their versions are forgotten", count=len(lost), prefix=prefix)
        db.executemany("DELETE FROM pieces WHERE row = ?", lost)
        db.executemany("DELETE FROM versions WHERE row = ?", lost)
    return strays
