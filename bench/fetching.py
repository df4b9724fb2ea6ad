"""Has a seed bring an object, without a client that reads it: asked for through its proxy, and watched from aside."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from bench.reader import ReadError

_LOOK_SECONDS = (0.01, 0.25)
"""How long it takes at the least and at the most until a seed is asked again how far it is. In between it is a third of
what it will yet need at its rate so far: what is measured takes seconds, and each look costs the seed CPU time."""
_ANSWER_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Progress:
    """What a host holds of one version, and how many bytes of it came from the origin."""

    pieces_held: int
    pieces: int
    from_origin: int
    downloading: bool


class Fetch:
    """A request for all of `url` at the proxy of one host, whose body nobody reads; leaving the context ends it.

    Its few bytes in the socket's buffers aside, the host does for it what it does for a preheat: it fetches everything
    as fast as it can. Raises ReadError for an answer that is not 200; its text never holds the URL's query.
    """

    def __init__(self, url: str, proxy: str, admin: str, *, headers: Sequence[tuple[str, str]] = ()) -> None:
        self._url = url
        self._headers = headers
        self._proxy = proxy
        self._admin = admin
        self._connection: socket.socket | None = None
        self.task_id = ""

    def __enter__(self) -> Self:
        host, _, port = self._proxy.rpartition(":")
        parts = urlsplit(self._url)
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS))
            fields = (("Host", parts.netloc), ("Accept", "*/*"), *self._headers)
            lines = (f"GET {self._url} HTTP/1.1", *(f"{name}: {value}" for name, value in fields), "", "")
            connection.sendall("\r\n".join(lines).encode())
            # Read by a bound: the response would take all of the body into its buffer otherwise.
            head = bytearray()
            while b"\r\n\r\n" not in head:
                got = connection.recv(4096)
                if not got:
                    raise ReadError(f"{parts.path}: the proxy closed the connection without an answer")
                head += got
            status, answered = _parse(bytes(head))
            if status != 200:
                raise ReadError(f"{parts.path}: the proxy answered {status}, not 200")
            self.task_id = answered.get("x-dragonfly-task-id", "")
            self._connection = connection
            stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            self._connection.close()

    def progress(self) -> Progress:
        """Ask the host what it holds."""
        connection = http.client.HTTPConnection(self._admin, timeout=_ANSWER_SECONDS)
        with contextlib.closing(connection):
            connection.request("GET", f"/v1/tasks/{self.task_id}")
            answer = json.loads(connection.getresponse().read())
        rows = answer.get("versions", [])
        return Progress(
            sum(row["pieces_held"] for row in rows),
            sum(row["pieces"] for row in rows),
            sum(row["bytes_from_origin"] for row in rows),
            any(row["downloading"] for row in rows),
        )


def wait_complete(fetches: Sequence[Fetch], deadline: float, *, share: float = 1.0) -> None:
    """Return when every host holds that share of its object's pieces. Raises ReadError at `deadline` (monotonic)."""
    shortest, longest = _LOOK_SECONDS
    began = time.monotonic()
    waiting = list(fetches)
    while waiting:
        held = [(fetch, fetch.progress()) for fetch in waiting]
        waiting = [fetch for fetch, now in held if not now.pieces or now.pieces_held < now.pieces * share]
        # It has been under way since the answer's head came, which waits for the first piece.
        if any(fetch in waiting and not now.downloading for fetch, now in held):
            raise ReadError("the seed gave the download up; its log says why")
        if waiting and time.monotonic() > deadline:
            raise ReadError("the seed did not get the whole object within the deadline")
        if waiting:
            done = min(now.pieces_held / max(1.0, now.pieces * share) for fetch, now in held if fetch in waiting)
            left = (time.monotonic() - began) * (1 - done) / max(done, 0.01)
            time.sleep(min(max(shortest, left / 3), longest))


def counter(admin: str, name: str) -> int:
    """Return the sum of a metric over all its labels, as the daemon at `admin` ("host:port") tells it; 0 without it."""
    connection = http.client.HTTPConnection(admin, timeout=_ANSWER_SECONDS)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return round(sum(float(value) for series, _, value in lines if series.partition("{")[0] == name))


def _parse(head: bytes) -> tuple[int, dict[str, str]]:
    lines = head.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in lines[1:])
    return int(lines[0].split(" ")[1]), {name.strip().lower(): value.strip() for name, _, value in fields}
