"""Disks that take note of every step, or fail at one of them; and a life of a store that takes all kinds of steps."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from p2p.errors import StoreError
from p2p.identity import Task
from p2p.pieces import PieceLayout, Span
from p2p.versions import Version
from peer.store import Entry, Store
from peer.store.disk import Disk
from tests.support.pieces import PIECE
from tests.unit.store.support import a_task, a_version, assert_sound, flip_byte, put, ticking

TASKS = [a_task("a"), a_task("b"), a_task("c")]
VERSIONS = [
    a_version(TASKS[0], PIECE + 700),
    a_version(TASKS[0], 900, "2"),
    a_version(TASKS[1], 1000),
    a_version(TASKS[2], 0),
]
CAPACITY = PIECE + 2000

Piece = tuple[Version, int]


@dataclass
class Model:
    """What must be held: all that was acknowledged, and of that what an orderly close has put on the disk for good.

    While a commit goes beyond the capacity, pieces of versions that are not in use are `at_risk`: they may be gone.
    """

    held: set[Piece] = field(default_factory=set)
    durable: set[Piece] = field(default_factory=set)
    at_risk: set[Piece] = field(default_factory=set)

    @contextmanager
    def growing(self, version: Version, indices: Sequence[int]) -> Iterator[None]:
        """Hold while pieces of a version are committed, and have them held afterwards."""
        fresh = {(version, index) for index in indices}
        if sum(PieceLayout.of(one.length).size(index) for one, index in self.held | fresh) > CAPACITY:
            self.at_risk = {piece for piece in self.held if piece[0] != version}
        try:
            yield
        finally:
            self.at_risk = set()
        self.held |= fresh

    def gone(self, *versions: Version) -> None:
        """Nothing of these need be there any more, from the moment on in which their removal begins."""
        for kept in (self.held, self.durable):
            kept -= {piece for piece in kept if piece[0] in versions}

    def evicted(self, version_id: str) -> None:
        """As `gone`, for what a store drops by itself."""
        self.gone(*(version for version in VERSIONS if version.id == version_id))


def task_of(version: Version) -> Task:
    [task] = [task for task in TASKS if task.id == version.task_id]
    return task


async def live(directory: Path, disk: Disk, model: Model, *, lives: int = 2, tolerant: bool = False) -> None:
    """Open, write, commit, remove, evict, find damage, close, and again; with `tolerant` go on after a StoreError."""
    trouble = suppress(StoreError) if tolerant else nullcontext()
    clock = ticking()

    async def land(version: Version, *indices: int) -> None:
        with trouble, await store.entry(task_of(version), version) as entry, model.growing(version, indices):
            await put(entry, indices)

    for _ in range(lives):
        with trouble:
            store = await Store.open(
                directory, clock=clock, capacity=CAPACITY, on_dropped=model.evicted, idle_entries=1, disk=disk
            )
            with trouble, await store.entry(TASKS[0], VERSIONS[0]) as entry:
                entry.allocate(0, 500)
                entry.write(0, memoryview(b"x" * 500))  # a transfer that never ends
            await land(VERSIONS[1], 0)
            await land(VERSIONS[0], 1)
            await land(VERSIONS[3])
            with trouble:
                await store.pin(TASKS[0].id)
                model.gone(VERSIONS[1], VERSIONS[0])
                await store.remove(TASKS[0].id)
            await land(VERSIONS[2], 0)
            await land(VERSIONS[0], 0, 1)  # takes VERSIONS[2] along
            await land(VERSIONS[1], 0)
            with trouble, await store.entry(TASKS[0], VERSIONS[1]) as entry:
                if entry.landed:
                    model.gone(VERSIONS[1])
                    flip_byte(directory, VERSIONS[1], 3)
                    assert list(await entry.verify(Span(0, 1))) == [0]
            await land(VERSIONS[1], 0)
            await store.close()
            if (directory / "boot-id").read_text() == "clean\n":
                model.durable = set(model.held)


class Counting(Disk):
    """Calls `step` with the name of each change to the disk, before and after it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._names: dict[int, Path] = {}
        self._torn = False

    def before(self, name: str) -> None:
        """Come before a change; may raise instead of it."""

    def after(self, name: str) -> None:
        """Come after a change."""

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        with self._lock:
            self.before(name)
            yield
            self.after(name)

    def open(self, path: Path, flags: int) -> int:
        if not flags & os.O_CREAT:
            fd = super().open(path, flags)
        else:
            with self._step("open"):
                fd = super().open(path, flags)
                self.created(path)
        with self._lock:
            self._names[fd] = path
        return fd

    def write(self, fd: int, data: memoryview, offset: int) -> int:
        # Half of it, and the rest the next time: a crash in the middle of a write is a step of its own.
        with self._step("write"):
            self._torn = not self._torn
            count = super().write(fd, data[: max(1, len(data) // 2)] if self._torn else data, offset)
            self.wrote(self._names[fd], offset, count)
        return count

    def allocate(self, fd: int, offset: int, length: int) -> None:
        with self._step("allocate"):
            super().allocate(fd, offset, length)

    def truncate(self, fd: int, length: int) -> None:
        with self._step("truncate"):
            super().truncate(fd, length)

    def sync(self, path: Path) -> None:
        with self._step("sync"):
            super().sync(path)
            self.synced(path)

    def mkdir(self, path: Path) -> None:
        with self._step("mkdir"):
            super().mkdir(path)

    def put(self, path: Path, text: str) -> None:
        with self._step("put"):
            super().put(path, text)

    def rename(self, old: Path, new: Path) -> None:
        with self._step("rename"):
            super().rename(old, new)
            self.removed(old)

    def unlink(self, path: Path) -> None:
        with self._step("unlink"):
            super().unlink(path)

    def commit(self, connection: sqlite3.Connection) -> None:
        with self._step("commit"):
            super().commit(connection)

    def created(self, path: Path) -> None:
        """Hear of a file that may be new."""

    def wrote(self, path: Path, offset: int, count: int) -> None:
        """Hear of bytes that are in the page cache."""

    def synced(self, path: Path) -> None:
        """Hear of a file's bytes, or a directory's names, that are on the disk."""

    def removed(self, path: Path) -> None:
        """Hear of a file that is no longer at its place."""


@dataclass(frozen=True)
class Copy:
    """The directory as a crash right after `step` leaves it.

    `unwritten` are the bytes (file, offset, count) that only the page cache has, `unnamed` the files whose names are
    there only; both relative to the directory.
    """

    number: int
    step: str
    directory: Path
    held: frozenset[Piece]
    durable: frozenset[Piece]
    unwritten: tuple[tuple[Path, int, int], ...]
    unnamed: tuple[Path, ...]


class Witness(Counting):
    """Copies the directory before and after each step."""

    def __init__(self, directory: Path, shelf: Path, model: Model) -> None:
        super().__init__()
        self.copies: list[Copy] = []
        self._directory = directory
        self._shelf = shelf
        self._model = model
        self._unwritten: list[tuple[Path, int, int]] = []
        self._unnamed: dict[Path, None] = {}

    def before(self, name: str) -> None:
        if name == "commit":
            self._copy("before commit")

    def after(self, name: str) -> None:
        self._copy(name)

    def created(self, path: Path) -> None:
        if path.stat().st_size == 0:
            self._unnamed[path.relative_to(self._directory)] = None

    def wrote(self, path: Path, offset: int, count: int) -> None:
        self._unwritten.append((path.relative_to(self._directory), offset, count))

    def synced(self, path: Path) -> None:
        where = path.relative_to(self._directory)
        self._unwritten = [write for write in self._unwritten if write[0] != where]
        self._unnamed = {name: None for name in self._unnamed if name.parent != where}

    def removed(self, path: Path) -> None:
        self._unwritten = [write for write in self._unwritten if self._directory / write[0] != path]

    def _copy(self, step: str) -> None:
        number = len(self.copies)
        target = self._shelf / str(number)
        copy_sparse(self._directory, target)
        self.copies.append(
            Copy(
                number,
                step,
                target,
                frozenset(self._model.held - self._model.at_risk),
                frozenset(self._model.durable - self._model.at_risk),
                tuple(self._unwritten),
                tuple(self._unnamed),
            )
        )


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a directory, holes as holes."""
    for place, _, names in os.walk(source):
        there = target / Path(place).relative_to(source)
        there.mkdir(parents=True)
        for name in names:
            with (Path(place) / name).open("rb") as old, (there / name).open("wb") as new:
                size = os.fstat(old.fileno()).st_size
                position = 0
                while position < size:
                    try:
                        position = os.lseek(old.fileno(), position, os.SEEK_DATA)
                    except OSError:
                        break  # only a hole is left
                    stop = os.lseek(old.fileno(), position, os.SEEK_HOLE)
                    new.seek(position)
                    new.write(os.pread(old.fileno(), stop - position, position))
                    position = stop
                new.truncate(size)


def lose_with_the_machine(copy: Copy, dice: random.Random, target: Path) -> None:
    """Make of a copy what a crash of the operating system may leave: some of what was not forced to it is lost."""
    shutil.rmtree(target, ignore_errors=True)
    copy_sparse(copy.directory, target)
    for where, offset, count in copy.unwritten:
        if dice.random() < 0.5 and (target / where).exists():
            with (target / where).open("r+b") as file:
                file.seek(offset)
                file.write(bytes(count))
    for where in copy.unnamed:
        if dice.random() < 0.3:
            (target / where).unlink(missing_ok=True)
    tear(target / "index.sqlite-wal", dice)
    # The kernel's memory of who has which page of the log is gone, too.
    (target / "index.sqlite-shm").unlink(missing_ok=True)
    boot = target / "boot-id"
    if boot.exists() and boot.read_text() not in ("clean\n", ""):
        boot.write_text("the boot before\n")


def tear(log: Path, dice: random.Random) -> None:
    """Cut SQLite's log anywhere, or leave its length and put zeros or noise over its end."""
    if not log.exists() or not (size := log.stat().st_size):
        return
    keep = dice.randrange(size + 1)
    with log.open("r+b") as file:
        match dice.choice(["cut", "zeros", "noise", "whole"]):
            case "cut":
                file.truncate(keep)
            case "zeros":
                file.seek(keep)
                file.write(bytes(size - keep))
            case "noise":
                file.seek(keep)
                file.write(dice.randbytes(size - keep))


class Failing(Counting):
    """Raises an error in place of the steps whose numbers `fails` accepts; counts all of them."""

    def __init__(self, code: int, fails: Callable[[int], bool]) -> None:
        super().__init__()
        self.count = 0
        self._code = code
        self._fails = fails

    def before(self, name: str) -> None:
        number, self.count = self.count, self.count + 1
        if self._fails(number):
            if name == "commit":
                raise sqlite3.OperationalError(os.strerror(self._code))
            raise OSError(self._code, os.strerror(self._code))


async def landed_pieces(store: Store) -> set[Piece]:
    """Return every piece that the store would serve, having looked at its bytes."""
    found: set[Piece] = set()
    for version in VERSIONS:
        entry = await store.find(version.id)
        if entry is not None:
            with entry:
                await entry.ensure_verified(Span(0, max(1, entry.layout.count)))
                assert_sound(entry)
                found |= {(version, index) for index in entry.landed}
    return found


def assert_counted(store: Store, landed: set[Piece]) -> None:
    """The totals are those of the pieces that are there."""
    sizes = [PieceLayout.of(version.length).size(index) for version, index in landed]
    assert (store.stats().pieces, store.stats().bytes) == (len(sizes), sum(sizes))


def rest_of(entry: Entry) -> list[int]:
    """The pieces that have not landed."""
    return [index for index in range(entry.layout.count) if index not in entry.landed]
