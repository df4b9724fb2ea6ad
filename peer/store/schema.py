"""The index's tables."""

SCHEMA = """
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
    last_used REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS versions_of_task ON versions (task_id);
CREATE INDEX IF NOT EXISTS versions_by_use ON versions (last_used, row);
CREATE INDEX IF NOT EXISTS versions_empty ON versions (row) WHERE pieces = 0 AND length > 0;
CREATE INDEX IF NOT EXISTS versions_unsynced ON versions (row) WHERE unsynced = 1;

CREATE TABLE IF NOT EXISTS pieces (
    row INTEGER NOT NULL,
    piece INTEGER NOT NULL,
    digest BLOB NOT NULL,
    epoch INTEGER NOT NULL,                 -- bytes of an older epoch than the current one are to be verified
    PRIMARY KEY (row, piece)
) WITHOUT ROWID;

-- Beside the versions, not in them: a directory of a release that knew no pins is read as it is, and vice versa.
CREATE TABLE IF NOT EXISTS pins (version_id TEXT PRIMARY KEY) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS totals (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    epoch INTEGER NOT NULL,
    versions INTEGER NOT NULL,
    pieces INTEGER NOT NULL,
    bytes INTEGER NOT NULL
);
INSERT OR IGNORE INTO totals VALUES (1, 1, 0, 0, 0);

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
