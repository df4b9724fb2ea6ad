from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import replace
from pathlib import Path

import pytest

from p2p.linkfile import HeldFile, Linked, LinkError, link_file
from p2p.pieces import Span
from tests.unit.store.conftest import Opener, open_store
from tests.unit.store.support import a_task, a_version, flip_byte, put

__all__ = ["open_store"]

CONTENT = b"all of an object"


@pytest.fixture
def held(tmp_path: Path) -> HeldFile:
    """A peer's file, with a name that has to be escaped."""
    path = tmp_path / "store, or ü%20"
    path.write_bytes(CONTENT)
    path.chmod(0o600)
    with path.open("rb") as file:
        return HeldFile.of(path, file.fileno())


def no_reflinks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "ioctl", refuse)


def test_a_field_is_read_as_it_was_written(held: HeldFile) -> None:
    assert HeldFile.parse(held.field()) == held
    for bad in ("", "1 2 /x", "a b c d"):
        with pytest.raises(LinkError, match="not understood"):
            HeldFile.parse(bad)


def test_a_reflink_comes_first(held: HeldFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def clone(target: int, request: int, source: int) -> int:
        assert request == 0x40049409
        return os.pwrite(target, os.pread(source, 100, 0), 0)

    monkeypatch.setattr(fcntl, "ioctl", clone)
    target = tmp_path / "mine"
    assert link_file(held, target) is Linked.REFLINK
    assert target.read_bytes() == CONTENT
    assert target.stat().st_ino != held.inode
    assert held.path.stat().st_mode & 0o777 == 0o600


def test_a_hard_link_comes_next_and_is_read_only(
    held: HeldFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_reflinks(monkeypatch)
    target = tmp_path / "mine"
    assert link_file(held, target) is Linked.HARD_LINK
    assert (target.stat().st_ino, target.stat().st_mode & 0o777) == (held.inode, 0o444)
    # Known again: a link is no write.
    assert link_file(held, tmp_path / "another") is Linked.HARD_LINK


def test_what_cannot_be_linked_says_what_would_help(
    held: HeldFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_reflinks(monkeypatch)

    def elsewhere(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", elsewhere)
    target = tmp_path / "mine"
    with pytest.raises(LinkError, match="put the output on the file system of the peer's data directory"):
        link_file(held, target)
    assert not target.exists()
    assert held.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("other", ["inode", "modified_ns", "length"])
def test_another_file_of_that_name_is_not_taken(held: HeldFile, tmp_path: Path, other: str) -> None:
    with pytest.raises(LinkError, match="another file"):
        link_file(replace(held, **{other: getattr(held, other) + 1}), tmp_path / "mine")
    with pytest.raises(LinkError, match="is not there"):
        link_file(replace(held, path=tmp_path / "gone"), tmp_path / "mine")


def test_a_file_that_may_not_be_read_names_the_remedy(
    held: HeldFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(LinkError, match="run this command as the peer's user"):
        link_file(held, tmp_path / "mine")


async def test_a_store_opens_a_shared_file_again_and_never_mends_it(
    open_store: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_reflinks(monkeypatch)
    task = a_task()
    version, other = a_version(task, 1000), a_version(task, 1000, "2")
    dropped: list[str] = []
    store = await open_store(idle_entries=1, on_dropped=dropped.append)
    mine = tmp_path / "mine"
    with await store.entry(task, version) as entry:
        await put(entry, [0])
        link_file(HeldFile.of(entry.path, entry.fd), mine)
        assert entry.is_shared
        inode = os.fstat(entry.fd).st_ino
    with await store.entry(task, other) as another:
        await put(another, [0])
    with await store.entry(task, version) as entry:
        assert list(entry.landed) == [0]
        mine.chmod(0o600)
        flip_byte(tmp_path, version, 5)
        damaged = mine.read_bytes()
        assert list(await entry.verify(Span(0, 1))) == [0]
        assert entry.retired
    assert dropped == [version.id]
    with await store.entry(task, version) as entry:
        await put(entry, [0])
        assert os.fstat(entry.fd).st_ino != inode
        assert not entry.is_shared
    assert mine.read_bytes() == damaged


async def test_a_removed_version_leaves_its_links_whole(
    open_store: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_reflinks(monkeypatch)
    task = a_task()
    version = a_version(task, 1000)
    mine = tmp_path / "mine"
    store = await open_store()
    with await store.entry(task, version) as entry:
        await put(entry, [0])
        link_file(HeldFile.of(entry.path, entry.fd), mine)
        path, content = entry.path, mine.read_bytes()
    # A removal that the index had done and the disk not: the name is still there when the version comes again.
    os.link(mine, tmp_path / "left")
    assert await store.evict(0) == 1000
    (tmp_path / "left").rename(path)
    with await store.entry(task, version) as entry:
        assert os.fstat(entry.fd).st_ino != mine.stat().st_ino
        entry.write(0, memoryview(b"\0" * 1000))
    await store.close()
    assert mine.read_bytes() == content
