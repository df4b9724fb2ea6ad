"""The page cache: reading from it on the event loop without waiting for a disk, and what it is best written with.

Pages that are not in it are found out with RWF_NOWAIT (preadv2(2)) and read by a thread first.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from prometheus_client import Counter

from p2p.errors import StoreError
from p2p.telemetry import REGISTRY

BUFFER_BYTES = 256 * 1024
"""The length of a reused buffer: small enough to stay in the CPU's second-level cache."""

WRITE_BYTES = 240 * 1024
"""How much to write at once to a new file.

Not a power of two, on purpose. Writes of 128 KiB and more at multiples of their size get page-cache folios as large as
they are, and in virtual machines whose free pages the host takes back those are the ones it has taken: 2.7 to 5 system
CPU-seconds a GiB on Linux 6.18 with 256 KiB, against 0.3 to 0.5 with 240 KiB. Where nothing is taken both are alike.
"""

READ_AHEAD_BYTES = 4 * 1024 * 1024
"""How much a thread reads when it is sent for pages that are not in the page cache."""

DISK_SECONDS = 30.0
"""How long one piece of work of a thread on a file may take."""

_PROBE_STRIDE = 128 * 1024
"""How far probes for absent pages lie apart: the kernel reads ahead, and mostly evicts, in runs of this length."""

_READ_AHEAD_THREADS = 4
_KEPT_BUFFERS = 16

FALLBACKS = Counter(
    "damselfly_send_fallbacks",
    "Sends off the straight way: refused (transport), through user space (tls), or read by a thread before every step "
    "(unprobeable).",
    ["reason"],
    registry=REGISTRY,
)
_READ_AHEADS = Counter(
    "damselfly_send_read_aheads", "Times a thread read pages that were not in the page cache.", registry=REGISTRY
)

_buffers: deque[memoryview] = deque(maxlen=_KEPT_BUFFERS)


class AbsentError(Exception):
    """The next bytes are not in the page cache."""


class ShortFileError(StoreError):
    """The file ends before the bytes that were to be sent; what was promised to the receiver cannot be kept."""


def take_buffer() -> memoryview:
    """Return a buffer of BUFFER_BYTES; give it back when it is done with."""
    # Reused, because the first touch of fresh memory costs more than all that is done with it here.
    try:
        return _buffers.pop()
    except IndexError:
        return memoryview(bytearray(BUFFER_BYTES))


def give_buffer(buffer: memoryview) -> None:
    """Let others have a buffer that `take_buffer` returned."""
    _buffers.append(buffer)


def read_some(fd: int, into: memoryview, offset: int, *, wait: bool) -> int:
    """Read some bytes, at least one. Raises ShortFileError, StoreError; unless it may `wait` also AbsentError."""
    try:
        count = os.preadv(fd, [into], offset, 0 if wait else os.RWF_NOWAIT)
    except BlockingIOError:
        raise AbsentError from None
    except OSError as error:
        if not wait and error.errno == errno.EOPNOTSUPP:
            # Such file systems (tmpfs, some of the network) do not say what they have: a thread has to read first.
            FALLBACKS.labels("unprobeable").inc()
            raise AbsentError from None
        raise unreadable(error) from error
    if count == 0:
        raise short(offset)
    return count


def require_present(fd: int, start: int, stop: int) -> None:
    """Raise AbsentError unless the page cache seems to hold bytes `start` to `stop`; never waits for the disk."""
    byte = memoryview(bytearray(1))
    for position in range(start, stop, _PROBE_STRIDE):
        read_some(fd, byte, position, wait=False)
    read_some(fd, byte, stop - 1, wait=False)


async def read_ahead(fd: int, start: int, stop: int) -> int:
    """Have a thread read from `start` on into the page cache; return how far, at most to `stop`. Raises StoreError."""
    _READ_AHEADS.inc()
    stop = min(stop, start + READ_AHEAD_BYTES)
    await in_thread(_threads(), fd, lambda own: _load(own, start, stop))
    return stop


async def in_thread(threads: ThreadPoolExecutor, fd: int, work: Callable[[int], None]) -> None:
    """Have one of `threads` do `work` on a file, and wait. Raises what it raises, and StoreError after DISK_SECONDS."""
    # A thread cannot be cancelled, and its descriptor must not become another file's meanwhile: it has its own.
    own = os.dup(fd)
    working = threads.submit(work, own)
    working.add_done_callback(lambda _: os.close(own))
    try:
        async with asyncio.timeout(DISK_SECONDS):
            await asyncio.wrap_future(working)
    except TimeoutError:
        raise StoreError(f"the disk gave nothing for {DISK_SECONDS:g} s; check it") from None


def short(offset: int) -> ShortFileError:
    """Return the error for a file that ends at `offset`, where more was to come."""
    return ShortFileError(f"the file ends at or before byte {offset}, and more was to be sent; is it being truncated?")


def unreadable(error: OSError) -> StoreError:
    """Return the error for a file that the system cannot read."""
    return StoreError(f"cannot send from a file: {error.strerror} (errno {error.errno}); check the disk")


def _load(fd: int, start: int, stop: int) -> None:
    """Read bytes `start` to `stop` of a file into the page cache; blocks."""
    # What comes after that is on its way from the disk while this is sent. Some file systems cannot be told so.
    try:
        os.posix_fadvise(fd, stop, stop - start, os.POSIX_FADV_WILLNEED)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise unreadable(error) from error
    buffer = take_buffer()
    while start < stop:
        start += read_some(fd, buffer[: min(len(buffer), stop - start)], start, wait=True)
    give_buffer(buffer)


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_READ_AHEAD_THREADS, thread_name_prefix="read-ahead")
