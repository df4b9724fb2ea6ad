"""Objects with known pieces, for the tests of the store."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from p2p.digests import piece_digest
from p2p.identity import Store as ObjectStore
from p2p.identity import Task
from p2p.versions import ValidatorKind, Version
from peer.store import Entry, Store
from tests.support.pieces import PIECE


def a_task(name: str = "model") -> Task:
    canonical = f"https://store.example/bucket/{name}"
    return Task(hashlib.sha256(canonical.encode()).hexdigest(), canonical, ObjectStore.S3)


def a_version(task: Task, length: int = 3 * PIECE + 5, etag: str = "1") -> Version:
    return Version(task.id, length, ValidatorKind.ETAG, f'"{etag}"')


@functools.lru_cache(maxsize=64)
def _pattern(version_id: str, index: int, size: int) -> tuple[bytes, bytes]:
    seed = hashlib.sha256(f"{version_id} {index}".encode()).digest()
    data = (seed * (size // len(seed) + 1))[:size]
    return data, piece_digest(data)


def content(entry: Entry, index: int) -> tuple[bytes, bytes]:
    """Return the bytes and the digest of a piece; another version's, or another index', are different ones."""
    return _pattern(entry.version_id, index, entry.layout.size(index))


async def put(entry: Entry, indices: Iterable[int]) -> None:
    """Write and commit pieces, all in one commit."""
    committed = []
    for index in indices:
        data, digest = content(entry, index)
        entry.write(entry.layout.offset(index), memoryview(data))
        committed.append((index, digest))
    await entry.commit(committed)


def on_disk(entry: Entry, index: int) -> bytes:
    return os.pread(entry.fd, entry.layout.size(index), entry.layout.offset(index))


def assert_sound(entry: Entry) -> None:
    """Every piece that counts as landed has its right bytes and digest."""
    for index in entry.landed:
        data, digest = content(entry, index)
        assert on_disk(entry, index) == data
        assert entry.digest(index) == digest


def flip_byte(directory: Path, version: Version, offset: int) -> None:
    """Damage the data file of a version behind the store's back."""
    with data_file(directory, version).open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def data_file(directory: Path, version: Version) -> Path:
    return directory / "data" / version.id[:2] / version.id


def data_files(directory: Path) -> list[Path]:
    return sorted(path for path in (directory / "data").rglob("*") if path.is_file())


def ticking() -> Callable[[], float]:
    """A clock that shows a later time whenever it is looked at."""
    return itertools.count(1.0).__next__


async def filled(store: Store, name: str, indices: Iterable[int] = (0,), length: int = PIECE) -> Version:
    """Put a version into the store, refer to it no longer, and return it."""
    task = a_task(name)
    version = a_version(task, length)
    with await store.entry(task, version) as entry:
        await put(entry, indices)
    return version
