"""The data directory: its lock, its format, the boot that it was last used under, and the data files.

Nothing here knows of pieces. Every function blocks on the disk: the store calls them in threads of its own. What each
file is for, and what survives which crash, is written down in docs/store.md.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock, Thread

from p2p.errors import StoreError, StoreFullError
from p2p.telemetry import logger
from peer.store.disk import DISK, Disk

_LOG = logger(__name__)

FORMAT = 2
"""The number of the on-disk format that this code writes."""

READABLE = ("1", "2")
"""The formats that it reads; what is of an older one is brought up to date when the store is opened."""

_CLEAN = "clean"
_UNKNOWN = "unknown"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def store_error(action: str, path: Path, error: OSError) -> StoreError:
    """Return the error to raise for a failed operation on `path`: StoreFullError where space is what is missing."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFullError(f"cannot {action} {str(path)!r}: {error.strerror}; free space, or lower the capacity")
    return StoreError(f"cannot {action} {str(path)!r}: {error.strerror} (errno {error.errno}){_remedy(error)}")


def unusable(directory: Path, error: OSError) -> StoreError:
    """Return the error for a data directory that cannot be used at all."""
    remedy = _remedy(error) or "; give --data-dir a directory that this user may create and write"
    return StoreError(f"cannot use the data directory {str(directory)!r}: {error.strerror}{remedy}")


def _remedy(error: OSError) -> str:
    if error.errno != errno.EROFS:
        return ""
    return (
        "; its file system is mounted read-only, by the kernel perhaps, after an error of the disk (see dmesg): "
        "mount it writable, or give --data-dir a directory on another"
    )


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return _UNKNOWN


class DataFile:
    """An open data file. Its descriptor is closed when the last reference to this object has gone, and not before.

    A thread that writes holds a reference for as long as it writes. So a descriptor is never closed under it, and its
    bytes can never end up in whichever file the number would have been given to next. A thread closes it: that frees
    the blocks of a file that was removed, which takes long.
    """

    __slots__ = ("_disk", "fd", "path")

    def __init__(self, path: Path, flags: int, disk: Disk = DISK) -> None:
        self.fd = -1
        self.path = path
        self._disk = disk
        _CLOSER.start()
        self.fd = disk.open(path, flags)

    @property
    def is_shared(self) -> bool:
        """Whether the file is, or was, a hard link of a user's as well (`p2p.linkfile`): it must not be written to."""
        state = os.fstat(self.fd)
        return state.st_nlink > 1 or not state.st_mode & stat.S_IWUSR

    def write(self, data: memoryview, offset: int) -> None:
        """Write all of `data` at byte `offset`; from any thread. Raises StoreError, or StoreFullError."""
        try:
            while data:
                written = self._disk.write(self.fd, data, offset)
                data, offset = data[written:], offset + written
        except OSError as error:
            raise store_error("write", self.path, error) from error

    def allocate(self, offset: int, length: int) -> None:
        """Have the file system find room for bytes that are about to be written; does nothing where it cannot.

        Writing then costs a third less CPU time on ext4, what sixteen threads write at once lies in long runs on the
        disk, and a full disk is noticed before the bytes have come. Raises StoreError, or StoreFullError.
        """
        try:
            self._disk.allocate(self.fd, offset, length)
        except OSError as error:
            raise store_error("allocate room in", self.path, error) from error

    def read(self, buffer: memoryview, offset: int) -> int:
        """Read bytes at `offset` into the front of `buffer`; returns how many, 0 at the end. Raises OSError."""
        return os.preadv(self.fd, [buffer], offset)

    @contextlib.contextmanager
    def aside(self) -> Iterator[Callable[[memoryview, int], int]]:
        """Open the file once more and give a `read` that leaves the page cache as it was. Raises OSError.

        What was not in it is thrown out again; what was stays: somebody uses it.
        """
        # By its descriptor: it may have lost its name meanwhile. Nothing is read ahead that would look cached then.
        own = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with contextlib.suppress(OSError):
                os.posix_fadvise(own, 0, 0, os.POSIX_FADV_RANDOM)
            yield partial(_read_aside, own)
        finally:
            os.close(own)

    def __del__(self) -> None:
        if self.fd >= 0:
            _CLOSER.close(self.fd)


def _read_aside(fd: int, buffer: memoryview, offset: int) -> int:
    try:
        return os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        count = os.preadv(fd, [buffer], offset)
        os.posix_fadvise(fd, offset, count, os.POSIX_FADV_DONTNEED)
        return count
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        # Such file systems (tmpfs, some of the network) do not say what they have cached.
        return os.preadv(fd, [buffer], offset)


class _Closer:
    """Closes files in a thread of its own."""

    def __init__(self) -> None:
        self._unwanted: SimpleQueue[int | Event] = SimpleQueue()
        self._begin = Lock()
        self._thread: Thread | None = None

    def start(self) -> None:
        """Start the thread, if that has not been done: in the end, where a reference goes, none can be."""
        with self._begin:
            if self._thread is None:
                self._thread = Thread(target=self._run, name="closer", daemon=True)
                self._thread.start()

    def close(self, fd: int) -> None:
        """Have a descriptor closed; at any moment, in any thread."""
        self._unwanted.put(fd)

    def wait(self) -> None:
        """Return when all is closed that was to be closed until now."""
        self.start()
        done = Event()
        self._unwanted.put(done)
        done.wait()

    def _run(self) -> None:
        while True:
            match self._unwanted.get():
                case Event() as reached:
                    reached.set()
                case int(fd):
                    os.close(fd)


_CLOSER = _Closer()


def wait_until_closed() -> None:
    """Return when the descriptors of all data files that nobody holds any more are closed; blocks."""
    _CLOSER.wait()


class DataDirectory:
    """A data directory whose lock this process holds.

    `was_clean` says whether the last user closed it in good order, `same_boot` whether the operating system has run
    since; if neither, bytes that it had recorded may be missing from the files. `untidy` says that a file without a
    version was left behind.
    """

    def __init__(self, path: Path, disk: Disk = DISK) -> None:
        """Lock and check the directory, which is made if need be. Raises StoreError."""
        self.path = path
        self.disk = disk
        self.untidy = False
        self.index_path = path / "index.sqlite"
        self._data = path / "data"
        self._trash = path / "trash"
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = self._take_lock()
        except OSError as error:
            raise unusable(path, error) from error
        try:
            self._check_format()
            disk.mkdir(self._data)
            disk.mkdir(self._trash)
            last = self._last_use()
        except OSError as error:
            self.unlock()
            raise store_error("use", path, error) from error
        except StoreError:
            self.unlock()
            raise
        self.was_clean = last == _CLEAN
        self._boot = _boot_id()
        self.same_boot = last == self._boot != _UNKNOWN

    def _take_lock(self) -> int:
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise StoreError(
                f"the data directory {str(self.path)!r} is in use by process {holder}; "
                "stop that process, or give this one a --data-dir of its own"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return descriptor

    def _check_format(self) -> None:
        path = self.path / "format"
        try:
            found = path.read_text(errors="replace").strip()
        except FileNotFoundError:
            if not self.index_path.exists():
                self._write_durably(path, str(FORMAT))
                found = str(FORMAT)
            else:
                found = "unknown"
        if found not in READABLE:
            raise StoreError(
                f"the data directory {str(self.path)!r} has format {found[:32]!r}, and this release reads formats "
                f"{' and '.join(READABLE)}; give it another --data-dir, or empty that one"
            )
        self._outdated = found != str(FORMAT)

    def mark_format(self) -> None:
        """Say, durably, that the directory has this release's format now. Raises StoreError."""
        if self._outdated:
            try:
                self._write_durably(self.path / "format", str(FORMAT))
            except OSError as error:
                raise store_error("write", self.path / "format", error) from error
            self._outdated = False

    def _last_use(self) -> str:
        try:
            return (self.path / "boot-id").read_text(errors="replace").strip()
        except FileNotFoundError:
            return "" if self.index_path.exists() else _CLEAN

    def _write_durably(self, path: Path, text: str) -> None:
        fresh = path.with_name(path.name + ".new")
        self.disk.put(fresh, text + "\n")
        self.disk.sync(fresh)
        self.disk.rename(fresh, path)
        self.disk.sync(self.path)

    def mark_in_use(self) -> None:
        """Say, durably, that once this boot ends files may hold less than the index says. Raises StoreError."""
        self._mark(self._boot)

    def mark_clean(self) -> None:
        """Say, durably, that all that the index says is on the disk. Raises StoreError."""
        self._mark(_CLEAN)

    def _mark(self, text: str) -> None:
        try:
            self._write_durably(self.path / "boot-id", text)
        except OSError as error:
            raise store_error("write", self.path / "boot-id", error) from error

    def unlock(self) -> None:
        """Let go of the directory; the object is of no use afterwards."""
        os.close(self._lock)

    def data_path(self, version_id: str) -> Path:
        """Return where the bytes of a version are."""
        return self._data / version_id[:2] / version_id

    def open_data(self, version_id: str) -> DataFile | None:
        """Open a version's data file, None if there is none; one that users share is read-only. Raises StoreError."""
        path = self.data_path(version_id)
        try:
            try:
                return DataFile(path, os.O_RDWR, self.disk)
            except OSError as error:
                # One that users share, or a file system that has become read-only: it can be read all the same.
                if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                    raise
                return DataFile(path, os.O_RDONLY, self.disk)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise store_error("open", path, error) from error

    def create_data(self, version_id: str, length: int) -> DataFile:
        """Open a version's data file, a sparse one of `length` bytes if there is none. Raises StoreError.

        What a file of that name already holds stays: two openings of a fresh version may overlap, and a byte that was
        never recorded is never served. Only one that users share, left there by a removal that failed, loses its name.
        """
        path = self.data_path(version_id)
        try:
            self.disk.mkdir(path.parent)
            try:
                file = DataFile(path, os.O_RDWR | os.O_CREAT, self.disk)
                shared = file.is_shared
            except PermissionError:
                shared = True
            if shared:
                self.disk.unlink(path)
                file = DataFile(path, os.O_RDWR | os.O_CREAT, self.disk)
            self.disk.truncate(file.fd, length)
        except OSError as error:
            raise store_error("create", path, error) from error
        return file

    def sync_data(self, version_ids: Iterable[str], deadline: float) -> list[str]:
        """Force data files and their names to the disk until `deadline` (monotonic seconds); returns those done.

        A file that is gone is done. Raises StoreError.
        """
        done: list[str] = []
        try:
            for version_id in version_ids:
                if time.monotonic() > deadline:
                    break
                with contextlib.suppress(FileNotFoundError):
                    self.disk.sync(self.data_path(version_id))
                done.append(version_id)
            for shard in {self.data_path(version_id).parent for version_id in done}:
                self.disk.sync(shard)
            self.disk.sync(self._data)
        except OSError as error:
            raise store_error("force to the disk", self._data, error) from error
        return done

    def discard(self, version_id: str, row: int) -> None:
        """Take a version's data file out of the way; `empty_trash` frees its blocks, which takes longer.

        The index has let go of it: a file that cannot be moved stays until the next opening tidies up.
        """
        path = self.data_path(version_id)
        try:
            self.disk.rename(path, self._trash / f"{version_id}.{row}")
        except FileNotFoundError:
            return
        except OSError as error:
            _LOG.warning("removed data still takes up room", path=str(path), errno=error.errno)
            self.untidy = True

    def empty_trash(self) -> None:
        """Unlink everything that was discarded. Raises OSError."""
        for path in self._trash.iterdir():
            # Missing: two threads may be at it.
            self.disk.unlink(path)

    def shards(self) -> Iterator[tuple[str, set[str]]]:
        """Yield for each possible two-digit prefix the names of the data files under it. Raises OSError."""
        for number in range(256):
            prefix = f"{number:02x}"
            try:
                names = {entry.name for entry in os.scandir(self._data / prefix)}
            except FileNotFoundError:
                names = set()
            yield prefix, names

    def unlink_stray(self, prefix: str, name: str) -> None:
        """Remove a file of a shard that the index does not know. Raises OSError."""
        self.disk.unlink(self._data / prefix / name)
