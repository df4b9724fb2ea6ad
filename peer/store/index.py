"""The index's thread: one SQLite connection, and everything waiting for it in one transaction (group commit).

Work is done strictly in the order of its submission, whole batches of it between one BEGIN and one COMMIT, and its
outcome reaches the event loop in that same order. The files of the data directory are made and taken away in this
thread too, after the COMMIT: the order of events in the index is their order on the disk and in memory.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from p2p.errors import StoreError, StoreFullError
from peer.store.disk import DISK, Disk
from peer.store.metrics import COMMIT_SECONDS, HELD_BYTES, HELD_PIECES, HELD_VERSIONS
from peer.store.schema import prepare

T = TypeVar("T")

Work = Callable[[sqlite3.Connection], Callable[[], T]]
"""Reads and writes the index; what it returns is called once the transaction is committed and gives the result."""

# Commits append to the log without waiting for the disk; a checkpoint waits for it. 4096 pages (16 MiB) of log are more
# than a thousand transactions, so that the wait is rare and the log small.
_CHECKPOINT_PAGES = 4096


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What the store holds: versions (whole or in part), pieces, and the bytes of those pieces."""

    versions: int
    pieces: int
    bytes: int


@dataclass(frozen=True, slots=True)
class _Job:
    work: Work[Any]
    then: Callable[[Any], None] | None
    future: asyncio.Future[Any]


@dataclass(slots=True)
class _Outcome:
    job: _Job
    result: Any = None
    error: Exception | None = None


class Index:
    """The index of one store; made and used on one event loop, whose `submit` is the only way in."""

    def __init__(self, path: Path, disk: Disk = DISK) -> None:
        self._path = path
        self._disk = disk
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._stopping = False
        self._stopped: asyncio.Future[None] = self._loop.create_future()
        # A daemon thread: should the loop die without close(), the process still ends, and loses nothing by it.
        self._thread = threading.Thread(target=self._run, name="store-index", daemon=True)
        self._thread.start()
        self.stats = StoreStats(0, 0, 0)

    def submit(self, work: Work[T], *, then: Callable[[T], None] | None = None) -> asyncio.Future[T]:
        """Queue `work` for the index's thread; the future gets its result or its error.

        `then` is called with the result on the loop, in the order of submission and before the future is done, even if
        nobody waits for the future any more: what must follow from a committed transaction belongs there. Errors of
        SQLite arrive as StoreError. Raises StoreError once the index is stopped.
        """
        if self._stopping:
            raise StoreError(f"the index {str(self._path)!r} is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put(_Job(work, then, future))
        return future

    async def stop(self) -> None:
        """Finish what is queued and force it to the disk; nothing may be submitted afterwards.

        Raises StoreError if the disk does not have it all; the thread and the connection are gone in any case.
        """
        self._stopping = True
        self._jobs.put(None)
        try:
            await asyncio.shield(self._stopped)
        finally:
            self._thread.join()

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        stopping = False
        while not stopping:
            batch = self._next_batch()
            stopping = batch[-1] is None
            jobs = [job for job in batch if job is not None]
            outcomes = [_Outcome(job) for job in jobs]
            stats: StoreStats | None = None
            try:
                if connection is None:
                    connection = connect(self._path)
                stats = _transact(connection, outcomes, self._disk)
            except Exception as error:  # noqa: BLE001  # whoever waits must hear of it, whatever it is
                for outcome in outcomes:
                    outcome.error = outcome.error or self._explained(error)
            for outcome in outcomes:
                if isinstance(outcome.error, sqlite3.Error):
                    outcome.error = self._explained(outcome.error)
            self._call(self._settle, outcomes, stats)
        try:
            if connection is not None:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                connection.close()
        except sqlite3.Error as error:
            self._call(self._stopped.set_exception, self._explained(error))
        else:
            self._call(self._stopped.set_result, None)

    def _next_batch(self) -> list[_Job | None]:
        batch = [self._jobs.get()]
        while batch[-1] is not None:
            try:
                batch.append(self._jobs.get_nowait())
            except queue.Empty:
                break
        return batch

    def _explained(self, error: Exception) -> Exception:
        if not isinstance(error, sqlite3.Error):
            return error
        kind = StoreFullError if primary_code(error) == sqlite3.SQLITE_FULL else StoreError
        explained = kind(f"the index {str(self._path)!r} failed: {error}; see that its disk has room and is sound")
        explained.__cause__ = error
        return explained

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            # The loop was closed without close(): nobody is left to tell.
            return

    def _settle(self, outcomes: list[_Outcome], stats: StoreStats | None) -> None:
        if stats is not None:
            self.stats = stats
            HELD_VERSIONS.set(stats.versions)
            HELD_PIECES.set(stats.pieces)
            HELD_BYTES.set(stats.bytes)
        for outcome in outcomes:
            job = outcome.job
            if outcome.error is None and job.then is not None:
                job.then(outcome.result)
            if job.future.done():
                continue  # cancelled
            if outcome.error is None:
                job.future.set_result(outcome.result)
            else:
                job.future.set_exception(outcome.error)


def primary_code(error: sqlite3.Error) -> int | None:
    """Return SQLite's result code without its extension; None for an error of the Python module itself."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def connect(path: Path) -> sqlite3.Connection:
    """Open the index, made if need be, for this thread. Raises sqlite3.Error."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        prepare(connection)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _transact(connection: sqlite3.Connection, outcomes: list[_Outcome], disk: Disk) -> StoreStats | None:
    """Do all the work in one transaction; fill in the outcomes. Returns what is held now, None if nothing changed."""
    if not outcomes:
        return None
    changes, begun = connection.total_changes, time.perf_counter()
    remainders: list[tuple[_Outcome, Callable[[], Any]]] = []
    connection.execute("BEGIN")
    try:
        for outcome in outcomes:
            connection.execute("SAVEPOINT job")
            try:
                remainders.append((outcome, outcome.job.work(connection)))
            except Exception as error:  # noqa: BLE001  # this work fails alone; its waiter gets the error
                outcome.error = error
                connection.execute("ROLLBACK TO job")
            connection.execute("RELEASE job")
        row = connection.execute("SELECT versions, pieces, bytes FROM totals").fetchone()
        disk.commit(connection)
    except sqlite3.Error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    if connection.total_changes != changes:
        COMMIT_SECONDS.observe(time.perf_counter() - begun)
    for outcome, remainder in remainders:
        try:
            outcome.result = remainder()
        except Exception as error:  # noqa: BLE001  # as above
            outcome.error = error
    return StoreStats(*row)
