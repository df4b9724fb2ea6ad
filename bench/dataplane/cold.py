"""Cold: how long after the origin's first byte a client has the first byte of an object that nobody held."""

from __future__ import annotations

import contextlib
import socket
import time
import uuid
from collections.abc import Iterator
from urllib.parse import urlsplit

from bench.dataplane.figures import Figure, by_name
from bench.dataplane.plan import Field, Plan, Progress, running
from bench.reader import ReadError, parse_head
from bench.shaping import PROFILES, Profile
from p2p.pieces import PieceLayout

SECTION = "cold, first byte"
_PROFILES = ("gateway", "s3")
_PIECE_TIMES, _MORE_SECONDS = 2, 0.020
"""The bound: so many times what a piece takes over one of the origin's connections, and so many seconds more."""
_STALL_SECONDS = 60.0


def measure(plan: Plan, progress: Progress) -> Iterator[Figure]:
    """Ask for fresh objects through a peer behind a seed, and for comparison straight from the origin."""
    for name in _PROFILES:
        with running(name, plan, peers=1, seeds=1) as field:
            rounds = []
            for number in range(plan.rounds + 1):
                progress(f"{SECTION}, {name}, round {number}" if number else f"{SECTION}, {name}, warm-up")
                rounds.append(delays(field, plan.large))
        values = by_name(rounds[1:])
        bound = allowed_seconds(PROFILES[name], plan.large) * 1e3
        yield Figure(SECTION, f"{name}: after the origin's", "seconds", values["after the origin's"], most=bound)
        yield Figure(SECTION, f"{name}: after a direct read's", "seconds", values["after a direct read's"])


def allowed_seconds(profile: Profile, size: int) -> float:
    """Return how long after the origin's first byte the client's may come, for an object of `size` bytes."""
    rate = min(profile.connection_rate, profile.total_rate)
    return _PIECE_TIMES * PieceLayout.of(size).piece_length / rate + _MORE_SECONDS


def delays(field: Field, size: int) -> dict[str, float]:
    """Ask for a fresh object through peer-1; return by how many seconds its first byte came later, and than what."""
    made = field.origin.create(f"models/{uuid.uuid4()}/1/model.bin", size)
    began = time.monotonic()
    direct = first_byte_at(made.url)[0] - began
    field.origin.reset()
    began = time.monotonic()
    at, task_id = first_byte_at(made.url, proxy=field.cluster["peer-1"].addresses["proxy"])
    left_at = field.origin.stats().first_byte_at
    field.cluster.delete_task(task_id)
    return {"after the origin's": at - left_at, "after a direct read's": at - began - direct}


def first_byte_at(url: str, *, proxy: str | None = None) -> tuple[float, str]:
    """Return when the first byte of the body was here (monotonic seconds), and the task's id; the rest is not read.

    Raises ReadError for an answer that is not 200; its text never holds the URL's query.
    """
    parts = urlsplit(url)
    host, _, port = (proxy or parts.netloc).rpartition(":")
    target = url if proxy else f"{parts.path}?{parts.query}"
    with contextlib.closing(socket.create_connection((host, int(port)), timeout=_STALL_SECONDS)) as connection:
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\nAccept: */*\r\n\r\n".encode())
        head = bytearray()
        while not head.partition(b"\r\n\r\n")[2]:
            got = connection.recv(4096)
            if not got:
                raise ReadError(f"{parts.path}: the connection ended before the body began")
            head += got
        at = time.monotonic()
    status, fields = parse_head(bytes(head.partition(b"\r\n\r\n")[0]))
    if status != 200:
        raise ReadError(f"{parts.path}: answered {status}, not 200")
    return at, fields.get("x-dragonfly-task-id", "")
