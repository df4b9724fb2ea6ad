"""What this machine can do: several plain connections that read one object into nothing.

The ceiling of every figure of the origin benchmark. Threads on blocking sockets, each into one buffer of its own that
stays in the CPU's cache; the interpreter is left for the length of each `recv_into`, and asked for a lot at once.
"""

from __future__ import annotations

import contextlib
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from urllib.parse import urlsplit

from bench.reader import ReadError

BUFFER_BYTES = 1024 * 1024
_STALL_SECONDS = 60.0


def read_parallel(url: str, length: int, *, connections: int) -> float:
    """Read `length` bytes at `url` in as many equal ranges as `connections`; return the seconds until the last byte.

    Raises ReadError if an answer is anything but a 206 that is whole; its text never holds the URL's query.
    """
    edges = [length * number // connections for number in range(connections + 1)]
    ranges = [(start, stop) for start, stop in pairwise(edges) if stop > start]
    with ThreadPoolExecutor(len(ranges)) as threads:
        began = time.perf_counter()
        for done in [threads.submit(_read_range, url, start, stop) for start, stop in ranges]:
            done.result()
        return time.perf_counter() - began


def _read_range(url: str, start: int, stop: int) -> None:
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
            missing = stop - start - (filled - end - 4)
            while missing > 0:
                got = connection.recv_into(buffer)
                if not got:
                    raise ReadError(f"{shown}: the connection ended {missing} bytes early")
                missing -= got
    except OSError as error:
        raise ReadError(f"{shown}: {error.strerror or error}") from error
