"""An origin on a raw socket for tests whose clients are processes: it runs in a thread, and they block."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from tests.unit.source.raw_origin import Answer, RawOrigin, RawRequest, raw_origin

_START_SECONDS = 10.0


@contextmanager
def running_raw_origin(answer: Answer, *, tls: ssl.SSLContext | None = None) -> Iterator[RawOrigin]:
    """Serve what `answer` says while the context lasts; the requests so far may be read at any time."""
    started: Future[tuple[RawOrigin, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        async with raw_origin(answer, tls=tls) as origin:
            stopped = asyncio.Event()
            started.set_result((origin, asyncio.get_running_loop(), stopped))
            await stopped.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="raw-origin")
    thread.start()
    origin, loop, stopped = started.result(_START_SECONDS)
    try:
        yield origin
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join()


def downloads(origin: RawOrigin) -> list[RawRequest]:
    """Return the requests that asked for more than one byte: all but the peers' questions after the version."""
    return [request for request in origin.requests if request.field("Range") != "bytes=0-0"]
