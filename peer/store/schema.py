"""The index's tables, and how those of an older release become them."""

from __future__ import annotations

import sqlite3
import zlib

from p2p.pieces import GIB, MIB, piece_length

_SCHEMA = """
CREATE TABLE IF NOT EXISTS versions (
    row INTEGER PRIMARY KEY AUTOINCREMENT,  -- never given twice: a removed version's writers cannot reach its successor
    version_id TEXT NOT NULL UNIQUE,
    task_id TEXT NOT NULL,
    canonical TEXT NOT NULL,
    store TEXT NOT NULL,
    length INTEGER NOT NULL,
    kind TEXT NOT NULL,
    validator TEXT NOT NULL,
    pieces INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0,
    unsynced INTEGER NOT NULL DEFAULT 1,    -- the file may hold bytes that are not on the disk
    created REAL NOT NULL,
    last_used REAL NOT NULL,
    piece_length INTEGER NOT NULL DEFAULT 0, -- how it was cut; 0 as format 1 cut objects of this length
    verified REAL NOT NULL DEFAULT 0        -- when all its pieces were last known to be sound
);
CREATE INDEX IF NOT EXISTS versions_of_task ON versions (task_id);
CREATE INDEX IF NOT EXISTS versions_by_use ON versions (last_used, row);
CREATE INDEX IF NOT EXISTS versions_empty ON versions (row) WHERE pieces = 0 AND length > 0;
CREATE INDEX IF NOT EXISTS versions_unsynced ON versions (row) WHERE unsynced = 1;

CREATE TABLE IF NOT EXISTS pieces (
    row INTEGER NOT NULL,
    piece INTEGER NOT NULL,
    digest BLOB NOT NULL,
    epoch INTEGER NOT NULL,                 -- bytes of an older epoch than the current one are to be verified at use
    PRIMARY KEY (row, piece)
) WITHOUT ROWID;

-- Beside the versions, not in them: a directory of a release that knew no pins is read as it is, and vice versa.
CREATE TABLE IF NOT EXISTS pins (version_id TEXT PRIMARY KEY) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS totals (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    epoch INTEGER NOT NULL,
    versions INTEGER NOT NULL,
    pieces INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    suspect_before INTEGER,                 -- pieces of older epochs than this were there when the machine crashed
    doubted REAL NOT NULL DEFAULT 0,        -- what was verified before was there when the store was last not closed
    seen REAL NOT NULL DEFAULT 0            -- the latest time that the store's clock is known to have shown
);
INSERT OR IGNORE INTO totals (one, epoch, versions, pieces, bytes) VALUES (1, 1, 0, 0, 0);

CREATE TRIGGER IF NOT EXISTS version_added AFTER INSERT ON versions BEGIN
    UPDATE totals SET versions = versions + 1, pieces = pieces + NEW.pieces, bytes = bytes + NEW.bytes;
END;
CREATE TRIGGER IF NOT EXISTS version_changed AFTER UPDATE OF pieces, bytes ON versions BEGIN
    UPDATE totals SET pieces = pieces + NEW.pieces - OLD.pieces, bytes = bytes + NEW.bytes - OLD.bytes;
END;
CREATE TRIGGER IF NOT EXISTS version_removed AFTER DELETE ON versions BEGIN
    UPDATE totals SET versions = versions - 1, pieces = pieces - OLD.pieces, bytes = bytes - OLD.bytes;
END;
CREATE TRIGGER IF NOT EXISTS pin_removed AFTER DELETE ON versions BEGIN
    DELETE FROM pins WHERE version_id = OLD.version_id;
END;
"""


_ADDED = (
    ("versions", "piece_length", "INTEGER NOT NULL DEFAULT 0"),
    ("versions", "verified", "REAL NOT NULL DEFAULT 0"),
    ("totals", "suspect_before", "INTEGER"),
    ("totals", "doubted", "REAL NOT NULL DEFAULT 0"),
    ("totals", "seen", "REAL NOT NULL DEFAULT 0"),
)
"""The columns that format 2 has more than format 1; the last two may be missing from it."""

_INDEXES = "CREATE INDEX IF NOT EXISTS versions_by_verification ON versions (verified, row);"


def prepare(connection: sqlite3.Connection) -> None:
    """Make the tables that are missing, and the columns that a table of format 1 lacks. Raises sqlite3.Error.

    The release that wrote it could still use the directory: it gives the columns their defaults, and they mean what it
    does.
    """
    connection.executescript(_SCHEMA)
    for table, name, kind in _ADDED:
        if name not in {known for _, known, *_ in connection.execute(f"PRAGMA table_info({table})")}:
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {name} {kind}")
    connection.executescript(_INDEXES)


def _piece_length_of_format_1(length: int) -> int:
    if length < 4 * GIB:
        return 4 * MIB
    return (8 if length < 32 * GIB else 16) * MIB


_SIZES = tuple(count << shift for shift in range(20, 44) for count in (2, 3))
_RULE = zlib.crc32(repr([(piece_length(size - 1), piece_length(size)) for size in _SIZES]).encode()) & 0x7FFFFFFF
"""What stands for the rule by which objects are cut; the index keeps that of the rule that all its versions follow."""


def cut_otherwise(connection: sqlite3.Connection) -> list[int] | None:
    """Return the rows of the versions that were cut by another rule than today's, None if no rule changed.

    What is one piece by both rules is the same piece. Raises sqlite3.Error.
    """
    (rule,) = connection.execute("PRAGMA user_version").fetchone()
    if rule == _RULE:
        return None
    return [
        row
        for row, length, cut in connection.execute("SELECT row, length, piece_length FROM versions")
        if min(length, cut or _piece_length_of_format_1(length)) != min(length, piece_length(length))
    ]


def mark_rule(connection: sqlite3.Connection) -> None:
    """Note that all versions are cut by today's rule; part of the transaction. Raises sqlite3.Error."""
    connection.execute(f"PRAGMA user_version = {_RULE}")
