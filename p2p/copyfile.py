"""Sending a file's bytes to where they have to pass through user space: TLS, which encrypts them there.

The counterpart of `p2p.sendfile` for connections that are not plain TCP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from p2p.pagecache import FALLBACKS, AbsentError, give_buffer, read_ahead, read_some, take_buffer


async def copy_file(write: Callable[[bytes], Awaitable[None]], fd: int, offset: int, count: int) -> None:
    """Pass bytes `offset` to `offset + count` of the file `fd` to `write`, a block at a time.

    `write` holds the pace: it returns when the receiver has taken enough for more to come, and keeps its own deadline.
    Raises what it raises, ShortFileError when the file ends early, and StoreError when it cannot be read; an unknown
    part has been sent then, and the caller has to abort the connection.
    """
    FALLBACKS.labels("tls").inc()
    stop, read_until = offset + count, offset
    while offset < stop:
        buffer = take_buffer()
        try:
            wanted = buffer[: min(len(buffer), stop - offset)]
            taken = read_some(fd, wanted, offset, wait=offset + len(wanted) <= read_until)
            # A copy, because the transport may hold on to what it cannot yet send.
            block = bytes(wanted[:taken])
        except AbsentError:
            read_until = await read_ahead(fd, offset, stop)
            continue
        finally:
            give_buffer(buffer)
        await write(block)
        offset += taken
        # A receiver that keeps up never makes `write` wait: the event loop's other work has its turn here.
        await asyncio.sleep(0)
