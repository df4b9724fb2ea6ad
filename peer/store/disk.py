"""What the store does to the disk, one method each: all that can be cut off, fail or come too late goes through here.

Only SQLite's own files are written elsewhere, between the moments that `commit` marks. A test that takes this class'
place sees every step that a crash may follow, and decides what becomes of it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sqlite3
from pathlib import Path

_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE, linux/falloc.h
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})

# Not os.posix_fallocate: where a file system cannot do it the C library writes a byte to every block instead.
_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Disk:
    """The real one. Every method blocks and raises OSError."""

    def open(self, path: Path, flags: int) -> int:
        """Open a file, for this user alone where it is made, and return its descriptor."""
        return os.open(path, flags | os.O_CLOEXEC, 0o600)

    def write(self, fd: int, data: memoryview, offset: int) -> int:
        """Write some of `data` at byte `offset` and return how many bytes."""
        return os.pwrite(fd, data, offset)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        """Have the file system find room for bytes, the file's length staying as it is; nothing where it cannot."""
        if _fallocate(fd, _KEEP_SIZE, offset, length):
            code = ctypes.get_errno()
            if code not in _UNSUPPORTED:
                raise OSError(code, os.strerror(code))

    def truncate(self, fd: int, length: int) -> None:
        """Give a file its length in bytes."""
        os.ftruncate(fd, length)

    def sync(self, path: Path) -> None:
        """Force a file's bytes, or a directory's names, to the disk."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def mkdir(self, path: Path) -> None:
        """Make a directory for this user alone, if it is not there."""
        path.mkdir(mode=0o700, exist_ok=True)

    def put(self, path: Path, text: str) -> None:
        """Write a small text file anew; a crash may leave a part of it."""
        path.write_text(text)

    def rename(self, old: Path, new: Path) -> None:
        """Rename a file; whatever had the new name is gone."""
        old.rename(new)

    def unlink(self, path: Path) -> None:
        """Remove a file, if it is there."""
        path.unlink(missing_ok=True)

    def commit(self, connection: sqlite3.Connection) -> None:
        """End a transaction of the index. Raises sqlite3.Error."""
        connection.execute("COMMIT")


DISK = Disk()
"""The one that a store uses unless it is given another."""
