"""How much room the disk has, and a little of it set aside: to evict takes room too, in the index's log."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from p2p.config import Capacity
from p2p.telemetry import logger
from peer.store.disk import Disk
from peer.store.files import unusable

_LOG = logger(__name__)

_BALLAST_BYTES = 4 * 1024 * 1024
_SMALL_SHARE = 64  # of a small disk, no more than a 64th


def capacity_in(directory: Path, capacity: Capacity | None) -> int | None:
    """Return a capacity in bytes, on the disk of `directory`, which is made if need be. Raises StoreError; blocks."""
    if capacity is None:
        return None
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        disk = os.statvfs(directory)
    except OSError as error:
        raise unusable(directory, error) from error
    return capacity.of(disk.f_blocks * disk.f_frsize)


class Ballast:
    """A file without content that goes overboard when the disk is full, and comes back when there is room. Blocks."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self._path = path
        self._disk = disk

    def place(self) -> None:
        """Set room aside, if it is not and there is plenty."""
        with suppress(OSError):
            state = os.statvfs(self._path.parent)
            size = min(_BALLAST_BYTES, state.f_blocks * state.f_frsize // _SMALL_SHARE)
            if self._path.exists() or state.f_bavail * state.f_frsize < 4 * size:
                return
            fd = self._disk.open(self._path, os.O_RDWR | os.O_CREAT)
            try:
                self._disk.allocate(fd, 0, size)
            finally:
                os.close(fd)

    def drop(self) -> bool:
        """Give the room back; tells whether there was any."""
        try:
            held = self._path.stat().st_blocks > 0
            self._disk.unlink(self._path)
        except OSError as error:
            _LOG.warning("room that was set aside cannot be used", path=str(self._path), errno=error.errno)
            return False
        return held
