"""Real daemons for integration tests, and the clients that ask them: http.client, a bare socket, curl."""

from __future__ import annotations

import hashlib
import http.client
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from bench.cluster import LocalCluster
from tests.support.secrets import WATCH
from tests.support.servers import require_programs

CLIENT_SECONDS = 30.0
"""How long a client waits for the next byte before the test fails."""

_CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole HTTP response. Field names of `headers` are in lower case; `body` is left out of the repr."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    @property
    def sha256(self) -> str:
        """The body's digest, in hexadecimal digits."""
        return hashlib.sha256(self.body).hexdigest()


@contextmanager
def running_cluster(directory: Path, *, peers: int = 2, seeds: int = 1) -> Iterator[LocalCluster]:
    """Run a scheduler, seeds and peers; secret, data and logs are in `directory` and stay there."""
    with LocalCluster(peers=peers, seeds=seeds, directory=directory) as cluster:
        yield cluster


@contextmanager
def open_url(
    url: str, *, proxy: str | None = None, method: str = "GET", headers: Mapping[str, str] | None = None
) -> Iterator[http.client.HTTPResponse]:
    """Ask for `url`, byte for byte as given, and yield the response with its body unread.

    `proxy` ("host:port") gets the request in absolute form. Leaving the context closes the connection, whatever is
    left of the body.
    """
    parts = urlsplit(url)
    origin_form = url[url.index("://") + 3 + len(parts.netloc) :] or "/"
    connection = http.client.HTTPConnection(proxy or parts.netloc, timeout=CLIENT_SECONDS)
    try:
        connection.putrequest(method, url if proxy else origin_form, skip_host=True, skip_accept_encoding=True)
        for name, value in {"Host": parts.netloc, "User-Agent": "damselfly-tests", **(headers or {})}.items():
            connection.putheader(name, value)
        connection.endheaders()
        with connection.getresponse() as response:
            yield response
    finally:
        connection.close()


def fetch(
    url: str, *, proxy: str | None = None, method: str = "GET", headers: Mapping[str, str] | None = None
) -> Answer:
    """Ask for `url` as `open_url` does and return the whole answer; raises IncompleteRead if the body ends early."""
    with open_url(url, proxy=proxy, method=method, headers=headers) as response:
        fields = {name.lower(): value for name, value in response.getheaders()}
        answer = Answer(response.status, fields, response.read())
    if proxy and answer.status >= 400:
        WATCH.text("error", f"answer {answer.status} of a proxy", answer.body)
    return answer


def exchange(address: str, request: bytes) -> bytes:
    """Send bytes to `address` ("host:port") and return everything that comes back until the other side closes.

    Raises ConnectionResetError if it resets the connection instead.
    """
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=CLIENT_SECONDS) as connection:
        connection.sendall(request)
        received = bytearray()
        while data := connection.recv(_CHUNK_BYTES):
            received += data
        return bytes(received)


def curl(url: str, file: Path, *arguments: str, proxy: str | None = None) -> int:
    """Let curl download `url` into `file` and return its exit code (18: the body ended early; 22: a status of 400 up).

    Skips the test where curl is missing.
    """
    require_programs("this client", ["curl"], ["curl"])
    command = ["curl", "--silent", "--show-error", "--fail", "--max-time", "60", "--output", str(file), *arguments]
    # An empty proxy: what the developer's environment says about proxies is not for tests.
    return subprocess.run([*command, "--proxy", proxy or "", url], check=False).returncode
