"""The bench's origin behind a thin link, as a process: what is asked of it is in mid-flight for a while.

`python thin_origin.py 30000000` serves everybody together with so many bytes a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.origin import Origin, serve
from bench.origin_client import OriginClient
from bench.process import Child
from bench.shaping import Profile

_READY_SECONDS = 60.0


@contextlib.contextmanager
def thin_origin(bytes_per_second: float, directory: Path) -> Iterator[OriginClient]:
    """Run an origin with that much for everybody together while the context lasts; its log goes to `directory`."""
    child = Child("origin", [sys.executable, __file__, str(bytes_per_second)], directory / "origin.log")
    try:
        ready = child.wait_ready(time.monotonic() + _READY_SECONDS)
        yield OriginClient(str(ready["http"]), child)
    finally:
        child.terminate()
        child.join(time.monotonic() + 10)


async def _run(bytes_per_second: float) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    profile = Profile("thin", total_rate=bytes_per_second, connection_rate=math.inf, first_byte_seconds=0.005)
    async with serve(Origin(profile), host="127.0.0.1", port=0) as address:
        sys.stdout.write(json.dumps({"event": "ready", "http": address}) + "\n")
        sys.stdout.flush()
        await stopped.wait()


if __name__ == "__main__":
    asyncio.run(_run(float(sys.argv[1])))
