"""What this machine can do: several plain connections that read one object into nothing, or into a file.

The ceiling of every figure of the origin benchmark. Threads on blocking sockets, each into one buffer of its own that
stays in the CPU's cache; the interpreter is left for the length of each `recv_into`, and asked for a lot at once.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

from bench.reader import ReadError

BUFFER_BYTES = 256 * 1024
_STALL_SECONDS = 60.0


def read_parallel(url: str, length: int, *, connections: int, file: Path | None = None) -> float:
    """Read `length` bytes at `url` in as many equal ranges as `connections`; return the seconds until the last byte.

    With `file` the bytes are written there, each at its place, and otherwise forgotten.
    Raises ReadError if an answer is anything but a 206 that is whole; its text never holds the URL's query.
    """
    edges = [length * number // connections for number in range(connections + 1)]
    ranges = [(start, stop) for start, stop in pairwise(edges) if stop > start]
    with ExitStack() as stack:
        descriptor = None
        if file is not None:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, descriptor)
        threads = stack.enter_context(ThreadPoolExecutor(len(ranges)))
        began = time.perf_counter()
        for done in [threads.submit(_read_range, url, start, stop, descriptor) for start, stop in ranges]:
            done.result()
        return time.perf_counter() - began


def _read_range(url: str, start: int, stop: int, file: int | None) -> None:
    parts = urlsplit(url)
    shown = f"{parts.scheme}://{parts.netloc}{parts.path}"
    request = (
        f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        f"Range: bytes={start}-{stop - 1}\r\nConnection: close\r\n\r\n"
    )
    buffer = memoryview(bytearray(BUFFER_BYTES))
    try:
        with contextlib.closing(
            socket.create_connection((parts.hostname, parts.port or 80), timeout=_STALL_SECONDS)
        ) as connection:
            connection.sendall(request.encode())
            filled, end = 0, -1
            while end < 0:
                got = connection.recv_into(buffer[filled : 64 * 1024])
                if not got:
                    raise ReadError(f"{shown}: the connection ended within the head of the answer")
                filled += got
                end = bytes(buffer[:filled]).find(b"\r\n\r\n")
            if bytes(buffer[:12]) != b"HTTP/1.1 206":
                raise ReadError(f"{shown}: answered {bytes(buffer[9:12]).decode('latin-1')}, not 206")
            body = buffer[end + 4 : filled]
            while True:
                if file is not None:
                    os.pwrite(file, body, start)
                start += len(body)
                if start >= stop:
                    return
                got = connection.recv_into(buffer)
                if not got:
                    raise ReadError(f"{shown}: the connection ended {stop - start} bytes early")
                body = buffer[:got]
    except OSError as error:
        raise ReadError(f"{shown}: {error.strerror or error}") from error
