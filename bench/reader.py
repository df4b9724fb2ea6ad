"""The one reader behind every timing: a blocking socket, into nothing, hashing as it reads.

One GET, HTTP/1.1, straight to the origin or in absolute form to a proxy. The URL goes out byte for byte as given, since
a presigned one breaks otherwise. Bytes land in one reused buffer that is in the CPU's cache, are hashed (xxh3-128) and
forgotten, so the disk and fresh memory of the reading side do not colour the result.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import xxhash

from p2p.errors import DamselflyError

BUFFER_BYTES = 1024 * 1024
_LONGEST_HEAD = 64 * 1024


class ReadError(DamselflyError):
    """The object could not be read whole; the text never holds the URL's query."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What one read gave. `seconds` runs from before the connection is made until the last byte is hashed."""

    seconds: float
    first_byte_seconds: float
    length: int
    xxh3_128: str
    cache: str | None
    task_id: str | None


class Reader:
    """Reads objects one after another through one buffer; not for several threads at once."""

    def __init__(self, *, stall_seconds: float = 60.0) -> None:
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._buffer[::4096] = bytes(len(self._buffer[::4096]))  # touched now, not while the clock runs
        self._stall_seconds = stall_seconds

    def read(self, url: str, *, proxy: str | None = None, headers: Sequence[tuple[str, str]] = ()) -> Reading:
        """Read the whole object at `url`, through the proxy at `proxy` ("host:port" or a URL) if given.

        Raises ReadError for anything but a 200 with exactly as many bytes as its Content-Length says, and when nothing
        arrives for `stall_seconds`.
        """
        parts = urlsplit(url)
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise ReadError(f"{shown!r} is not an http or https URL")
        bare = url.partition("#")[0]
        target = bare if proxy else bare[bare.index("://") + 3 :][len(parts.netloc) :]
        if not target.startswith(("/", "http")):
            target = f"/{target}"
        default = 443 if parts.scheme == "https" else 80
        lines = [f"GET {target} HTTP/1.1", f"Host: {_host_field(parts.hostname, parts.port, default)}", "Accept: */*"]
        lines += [f"{name}: {value}" for name, value in (*headers, ("Connection", "close"))]
        request = ("\r\n".join(lines) + "\r\n\r\n").encode()
        address = _address(proxy) if proxy else (parts.hostname, parts.port or default)
        started = time.perf_counter()
        try:
            with socket.create_connection(address, timeout=self._stall_seconds) as plain:
                if parts.scheme == "http" or proxy:
                    return self._exchange(plain, request, started)
                context = ssl.create_default_context()
                with context.wrap_socket(plain, server_hostname=parts.hostname) as secured:
                    return self._exchange(secured, request, started)
        except TimeoutError as error:
            raise ReadError(f"{shown}: nothing arrived for {self._stall_seconds:g} s") from error
        except OSError as error:
            way = f" through {address[0]}:{address[1]}" if proxy else ""
            raise ReadError(f"{shown}{way}: {error.strerror or error}") from error
        except ReadError as error:
            raise ReadError(f"{shown}: {error}") from None

    def _exchange(self, connection: socket.socket, request: bytes, started: float) -> Reading:
        connection.sendall(request)
        filled = 0
        end = -1
        while end < 0:
            got = connection.recv_into(self._buffer[filled:_LONGEST_HEAD])
            if got == 0:
                raise ReadError("the connection was closed before the end of the response's head")
            filled += got
            end = bytes(self._buffer[:filled]).find(b"\r\n\r\n")
        first_byte = time.perf_counter() - started
        status, fields = parse_head(bytes(self._buffer[:end]))
        if status != 200:
            kind = fields.get("x-dragonfly-error-type")
            raise ReadError(f"answered {status}, not 200" + (f" ({kind} error)" if kind else ""))
        if not fields.get("content-length", "").isdecimal():
            raise ReadError("the response has no Content-Length")
        length = int(fields["content-length"])
        body = self._buffer[end + 4 : filled]
        digest = xxhash.xxh3_128(body)
        done = len(body)
        while done < length:
            got = connection.recv_into(self._buffer)
            if got == 0:
                raise ReadError(f"the connection was closed after {done} of {length} bytes")
            digest.update(self._buffer[:got])
            done += got
        if done > length:
            raise ReadError(f"{done - length} bytes more than the Content-Length of {length}")
        return Reading(
            seconds=time.perf_counter() - started,
            first_byte_seconds=first_byte,
            length=length,
            xxh3_128=digest.hexdigest(),
            cache=fields.get("x-cache"),
            task_id=fields.get("x-dragonfly-task-id"),
        )


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Return the status and the fields (names in lower case) of a response's head. Raises ReadError."""
    lines = head.decode("latin-1").split("\r\n")
    version, _, rest = lines[0].partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdecimal():
        raise ReadError(f"not an HTTP/1.1 response: {lines[0][:80]!r}")
    fields = (line.partition(":") for line in lines[1:])
    return int(rest[:3]), {name.strip().lower(): value.strip() for name, _, value in fields}


def _host_field(host: str, port: int | None, default: int) -> str:
    bracketed = f"[{host}]" if ":" in host else host
    return bracketed if port in (None, default) else f"{bracketed}:{port}"


def _address(proxy: str) -> tuple[str, int]:
    parts = urlsplit(proxy if "://" in proxy else f"//{proxy}")
    if parts.scheme not in ("", "http") or parts.hostname is None:
        raise ReadError(f"proxy {proxy!r} is not of the form host:port or http://host:port")
    return parts.hostname, parts.port or 80
