"""A real Redis on 127.0.0.1 that keeps nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.servers import free_port, require_programs, wait_listening


class RedisServer:
    """A Redis that may be stopped and started again; what it knew is then gone. With a password, if that is given."""

    def __init__(self, directory: Path, password: str = "") -> None:
        self.port = free_port()
        self._directory = directory
        self._password = password
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What `damselfly scheduler --redis` takes."""
        return f"redis://{':' + self._password + '@' if self._password else ''}127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, and return when it listens."""
        log = self._directory / "redis.log"
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no"]
        command += ["--dir", str(self._directory), "--requirepass", self._password]
        with log.open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output)
        wait_listening(self._process, self.port, log, seconds=30)

    def stop(self) -> None:
        """End it at once, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def running_redis(directory: Path, password: str = "") -> Iterator[RedisServer]:
    """Run a Redis while the context lasts; skips the test where there is none."""
    require_programs("Redis", ["redis-server"], ["redis-server"])
    server = RedisServer(directory, password)
    server.start()
    try:
        yield server
    finally:
        server.stop()
