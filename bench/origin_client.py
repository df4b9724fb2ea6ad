"""Starts the bench's origin as a process and talks to its `/_bench/` side; all calls block."""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.origin import Fault, Stats
from bench.process import Child
from p2p.errors import DamselflyError

_TIMEOUT_SECONDS = 60.0


class OriginControlError(DamselflyError):
    """The bench's origin did not do as it was told."""


@dataclass(frozen=True, slots=True)
class RemoteObject:
    """An object at the origin. The URL is presigned, so the repr leaves it out."""

    name: str
    url: str = field(repr=False)
    etag: str
    length: int
    xxh3_128: str
    sha256: str | None


class OriginClient:
    """The origin at `address` ("host:port"), which runs as `child`."""

    def __init__(self, address: str, child: Child) -> None:
        self.address = address
        self.child = child

    def create(self, name: str, size: int, *, seed: int = 0, sha256: bool = False) -> RemoteObject:
        """Make an object of `size` bytes, or overwrite it; `sha256` asks for that digest too (a second a GiB)."""
        answer = self._call("POST", "objects", {"name": name, "size": size, "seed": seed, "sha256": sha256})
        return RemoteObject(name, answer["url"], answer["etag"], answer["bytes"], answer["xxh3_128"], answer["sha256"])

    def create_tree(self, name: str, count: int, size: int) -> tuple[str, ...]:
        """Make `count` objects of `size` bytes each, name/0, name/1, …, and return their presigned URLs."""
        return tuple(self._call("POST", "trees", {"name": name, "count": count, "size": size})["urls"])

    def presign(self, name: str) -> str:
        """Return another presigned URL of an object that exists."""
        return str(self._call("POST", "urls", {"name": name})["url"])

    def stats(self) -> Stats:
        """Return the counters."""
        return Stats(**self._call("GET", "stats"))

    def windows(self) -> tuple[int, ...]:
        """Return how many requests came in each 100 ms since the last reset, from the first to the last one."""
        return tuple(self._call("GET", "windows")["requests"])

    def reset(self) -> None:
        """Clear counters and faults."""
        self._call("POST", "reset")

    def set_fault(self, fault: Fault | None) -> None:
        """Let a fault happen from now on; None forgets all of them and lets stalled responses go on."""
        if fault is None:
            self._call("DELETE", "faults")
        else:
            self._call("POST", "faults", asdict(fault))

    def _call(self, method: str, action: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self.address, timeout=_TIMEOUT_SECONDS)
        with contextlib.closing(connection):
            connection.request(method, f"/_bench/{action}", None if body is None else json.dumps(body))
            response = connection.getresponse()
            answer: dict[str, Any] = json.loads(response.read())
        if response.status != 200:
            raise OriginControlError(f"{method} /_bench/{action} at {self.address}: {answer.get('error')}")
        return answer


@contextlib.contextmanager
def running_origin(
    profile: str, directory: Path, *, host: str = "127.0.0.1", before: Sequence[str] = ()
) -> Iterator[OriginClient]:
    """Run an origin with the named profile while the context lasts; its log goes to `directory`.

    It listens on `host`; `before` are words before its command, which may let it run elsewhere.
    """
    command = [*before, sys.executable, "-m", "bench.origin", "--profile", profile, "--host", host]
    child = Child("origin", command, directory / "origin.log")
    try:
        ready = child.wait_ready(time.monotonic() + _TIMEOUT_SECONDS)
        yield OriginClient(str(ready["http"]), child)
    finally:
        child.terminate()
        child.join(time.monotonic() + 10)
