"""The journal: version -> digests of its pieces, in SQLite, so that no holder ever vouches for its own bytes.

It holds canonical identities and digests only, never a URL or a credential. All work happens in one thread, in order: a
read sees every record made before it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from prometheus_client import Counter

from p2p.errors import ConfigError
from p2p.telemetry import REGISTRY, logger

log = logger(__name__)

FILE_NAME = "journal.sqlite"

RETENTION_SECONDS = 90 * 86_400
"""Versions that nobody has asked for in so long are forgotten when the journal is opened."""

READ_SECONDS = 10.0
"""How long a look-up may take; then the version counts as unknown."""

_LAYOUT_VERSION = 1

_FAILURES = Counter(
    "damselfly_journal_failures_total",
    "Reads and writes of the journal that failed; nothing but the memory of digests is lost.",
    ["operation"],
    registry=REGISTRY,
)

_TABLES = """
CREATE TABLE IF NOT EXISTS versions (
    version_id TEXT PRIMARY KEY,
    used INTEGER NOT NULL            -- Unix seconds
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS digests (
    version_id TEXT NOT NULL,
    piece INTEGER NOT NULL,
    digest BLOB NOT NULL,            -- xxh3-128, 16 bytes
    PRIMARY KEY (version_id, piece)
) WITHOUT ROWID;
"""


class DigestJournal(Protocol):
    """What the driver needs of a journal. No method raises or keeps anybody waiting for long."""

    async def read(self, version_id: str) -> dict[int, bytes]:
        """Return what is known of a version, by piece; all that was recorded here before is in it."""

    def record(self, version_id: str, digests: Mapping[int, bytes]) -> None:
        """Record digests, by piece, soon; they replace earlier ones."""

    def forget(self, version_id: str) -> None:
        """Strike a version's digests, soon."""


class Journal:
    """Digests that outlive the swarms they belong to, and with a directory also the process."""

    def __init__(self, database: sqlite3.Connection, thread: ThreadPoolExecutor) -> None:
        self._database = database
        self._thread = thread

    @classmethod
    async def open(cls, directory: Path | None) -> Journal:
        """Open the journal in `directory`, which is made if needed; without one it is kept in memory.

        Raises ConfigError if the directory or the file in it cannot be used.
        """
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
        try:
            database = await asyncio.get_running_loop().run_in_executor(thread, _open, directory)
        except (OSError, sqlite3.Error) as error:
            thread.shutdown(wait=False)
            raise ConfigError(
                f"cannot keep the journal in {str(directory)!r}: {error}; make the directory writable for this user, "
                "or choose another with --state-dir"
            ) from error
        return cls(database, thread)

    async def read(self, version_id: str) -> dict[int, bytes]:
        """Return what is known of a version, by piece; nothing if the journal fails, which is logged and counted."""
        try:
            async with asyncio.timeout(READ_SECONDS):
                return await asyncio.get_running_loop().run_in_executor(self._thread, self._read, version_id)
        except (TimeoutError, sqlite3.Error) as error:
            _FAILURES.labels("read").inc()
            log.warning("journal unreadable", version=version_id, error=str(error) or type(error).__name__)
            return {}

    def record(self, version_id: str, digests: Mapping[int, bytes]) -> None:
        """Record digests, by piece, soon; a failure is logged and counted."""
        self._thread.submit(self._record, version_id, dict(digests)).add_done_callback(_recorded)

    def forget(self, version_id: str) -> None:
        """Strike a version's digests, soon; a failure is logged and counted."""
        self._thread.submit(self._forget, version_id).add_done_callback(_recorded)

    async def close(self) -> None:
        """Finish what was recorded and close the file."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._database.close)
        self._thread.shutdown()

    def _read(self, version_id: str) -> dict[int, bytes]:
        with self._database:
            self._database.execute("UPDATE versions SET used = ? WHERE version_id = ?", (int(time.time()), version_id))
            rows = self._database.execute("SELECT piece, digest FROM digests WHERE version_id = ?", (version_id,))
            return {int(piece): bytes(digest) for piece, digest in rows}

    def _record(self, version_id: str, digests: Mapping[int, bytes]) -> None:
        with self._database:
            self._database.execute("INSERT OR REPLACE INTO versions VALUES (?, ?)", (version_id, int(time.time())))
            self._database.executemany(
                "INSERT OR REPLACE INTO digests VALUES (?, ?, ?)",
                [(version_id, piece, digest) for piece, digest in digests.items()],
            )

    def _forget(self, version_id: str) -> None:
        with self._database:
            self._database.execute("DELETE FROM digests WHERE version_id = ?", (version_id,))


def _recorded(done: Future[None]) -> None:
    if error := done.exception():
        _FAILURES.labels("write").inc()
        log.warning("journal not written", error=str(error))


def _open(directory: Path | None) -> sqlite3.Connection:
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
    path = ":memory:" if directory is None else directory / FILE_NAME
    database = sqlite3.connect(path)
    try:
        _check_layout(database)
        # A crash of the machine may cost the last digests, which are then learnt anew; never the file.
        database.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;")
        database.executescript(_TABLES + f"PRAGMA user_version = {_LAYOUT_VERSION};")
        with database:
            old = (int(time.time()) - RETENTION_SECONDS,)
            stale = "SELECT version_id FROM versions WHERE used < ?"
            database.execute(f"DELETE FROM digests WHERE version_id IN ({stale})", old)  # noqa: S608  # a constant
            database.execute("DELETE FROM versions WHERE used < ?", old)
    except BaseException:
        database.close()
        raise
    return database


def _check_layout(database: sqlite3.Connection) -> None:
    (layout,) = database.execute("PRAGMA user_version").fetchone()
    if layout not in (0, _LAYOUT_VERSION):
        raise sqlite3.DatabaseError(f"its layout has version {layout}, this software knows {_LAYOUT_VERSION}")
