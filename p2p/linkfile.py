"""A file that a peer holds given to a user of the same machine without a copy: as a reflink, or else as a hard link.

The peer says where the file is and how to know it again (`HeldFile`); the user's own process links it, with that user's
rights. A reflink is a file of its own that shares blocks until either is written to. A hard link is the peer's very
file: it is read-only, and a peer does not write to a file that has another name.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import quote, unquote

from p2p.errors import DamselflyError

ASKED = "X-Damselfly-Link"
"""The request field by which a client on the same machine asks for the file instead of the bytes; its value is 1."""

FILE = "X-Damselfly-File"
"""The field of the answer, a 204, that says which file it is."""

_FICLONE = 0x40049409  # linux/fs.h
_READ_ONLY = 0o444


class LinkError(DamselflyError):
    """A file can only be copied; the text says why, and what would help."""


class Linked(StrEnum):
    """How a file was given."""

    REFLINK = "reflink"
    HARD_LINK = "hard link"


@dataclass(frozen=True, slots=True)
class HeldFile:
    """A whole file of a peer's. By inode, time of the last write and length it is known from one that took its place.

    `length` is in bytes, `modified_ns` in nanoseconds since the epoch.
    """

    path: Path
    inode: int
    modified_ns: int
    length: int

    @classmethod
    def of(cls, path: Path, descriptor: int) -> HeldFile:
        """Return what an open file is known by. Raises OSError."""
        state = os.fstat(descriptor)
        return cls(path, state.st_ino, state.st_mtime_ns, state.st_size)

    def field(self) -> str:
        """Return the value of `FILE`."""
        return f"{self.inode} {self.modified_ns} {self.length} {quote(os.fsencode(self.path))}"

    @classmethod
    def parse(cls, field: str) -> HeldFile:
        """Read the value of `FILE`. Raises LinkError."""
        try:
            inode, modified_ns, length, path = field.split(" ")
            return cls(Path(unquote(path, errors="surrogateescape")), int(inode), int(modified_ns), int(length))
        except ValueError:
            raise LinkError("the peer named its file in a way that is not understood") from None

    def is_(self, state: os.stat_result) -> bool:
        """Tell whether a file is this one, and has not been written to since."""
        return (state.st_ino, state.st_mtime_ns, state.st_size) == (self.inode, self.modified_ns, self.length)


def link_file(held: HeldFile, target: Path) -> Linked:
    """Make `target`, whose name must be free, a reflink or else a hard link of a peer's file; blocks.

    Raises LinkError if neither can be, and OSError if `target` cannot be made at all.
    """
    try:
        source = os.open(held.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise LinkError(
            f"{str(held.path)!r} is not there; the peer is in another container, or has evicted it"
        ) from None
    except OSError as error:
        raise LinkError(
            f"cannot read {str(held.path)!r} ({error.strerror}); run this command as the peer's user to link"
        ) from None
    try:
        if not held.is_(os.fstat(source)):
            raise LinkError(f"{str(held.path)!r} is another file than the peer's; it is in another container")
        if _reflink(source, target):
            return Linked.REFLINK
        try:
            _hard_link(source, target)
        except OSError as error:
            raise LinkError(
                f"no reflink and no hard link of {str(held.path)!r} can be made here ({error.strerror}); put the "
                "output on the file system of the peer's data directory, and be the peer's user"
            ) from None
        return Linked.HARD_LINK
    finally:
        os.close(source)


def _reflink(source: int, target: Path) -> bool:
    clone = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        fcntl.ioctl(clone, _FICLONE, source)
    except OSError:
        target.unlink()
        return False
    finally:
        os.close(clone)
    return True


def _hard_link(source: int, target: Path) -> None:
    before = os.fstat(source).st_mode & 0o7777
    # First, and it takes the owner: there must be no moment with a name by which the peer's file can be written to.
    os.fchmod(source, _READ_ONLY)
    try:
        # By the descriptor, so that it is the file that was looked at; a `src_dir_fd` makes linkat(2) follow the name.
        os.link(f"/proc/self/fd/{source}", target, src_dir_fd=source, follow_symlinks=True)
    except OSError:
        os.fchmod(source, before)
        raise
