"""Memory that is known to be there when a timed read needs it.

On a virtual machine the first touch of a page that the host has not given yet, or has taken back, costs some twenty
times as much as writing to it (seconds a GiB), and which pages those are changes from second to second. So pages are
touched before the clock runs, held, and given back right before the read that will fill the page cache with them, or
little by little while it does: within seconds the host takes back what lies free.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

_BLOCK_BYTES = 64 * 1024 * 1024
_LEAD_BYTES = 512 * 1024 * 1024
"""How much lies ready at any time while memory is given back little by little."""

_STEP_SECONDS = 0.05

_MARGIN = 1.5
"""The kernel hands out other pages too, and the host takes free ones back while the read runs."""


class MemoryReserve:
    """Touched anonymous memory; leaving it gives everything back. `cpu_seconds` is what this process spent on it."""

    def __init__(self) -> None:
        self.cpu_seconds = 0.0
        self._blocks: list[mmap.mmap] = []

    def fill(self, size: int) -> None:
        """Hold enough for `size` bytes of page cache, or what half of the free memory allows."""
        began = time.thread_time()
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        held = len(self._blocks) * _BLOCK_BYTES
        missing = min(int(size * _MARGIN) - held, (free - held) // 2)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        for _ in range(-(-missing // _BLOCK_BYTES)):
            self._blocks.append(mmap.mmap(-1, _BLOCK_BYTES, flags=flags))
        self.cpu_seconds += time.thread_time() - began

    def release(self, size: int) -> None:
        """Give back enough for `size` bytes of page cache, or all there is."""
        began = time.thread_time()
        for _ in range(min(len(self._blocks), -(-int(size * _MARGIN) // _BLOCK_BYTES))):
            self._blocks.pop().close()
        self.cpu_seconds += time.thread_time() - began

    @contextmanager
    def releasing(self, size: int, bytes_per_second: float) -> Iterator[None]:
        """Give back enough for `size` bytes of page cache, which are written at most so fast."""
        over = threading.Event()

        def release() -> None:
            began, released = time.monotonic(), 0
            while released < size:
                due = _LEAD_BYTES + int((time.monotonic() - began) * bytes_per_second)
                if due - released >= _BLOCK_BYTES:
                    self.release(due - released)
                    released = due
                if over.wait(_STEP_SECONDS):
                    return

        thread = threading.Thread(target=release, name="memory reserve", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self._release_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release_all()

    def _release_all(self) -> None:
        while self._blocks:
            self._blocks.pop().close()
