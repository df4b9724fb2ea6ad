"""What the real servers behind the tests have in common: where they listen, when they are ready, who may lack them."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

REQUIRE_SERVERS = "DAMSELFLY_REQUIRE_SERVERS"
"""Set to 1 (by .ci/run) a missing server fails the tests that need it; unset it skips them."""

_POLL_SECONDS = 0.01
_PORTS = range(10_000, 32_768)
_DRAWN = random.SystemRandom()  # not the generator that Hypothesis seeds: each process would draw the same
_TAIL_BYTES = 4000


class ServerError(Exception):
    """A server of a test did not start; the text ends with the last lines of its log."""


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running S3 server. `checks_signatures` tells whether it refuses a presigned URL that was tampered with."""

    name: str
    endpoint: str
    client: Any = field(repr=False)  # a boto3 client: it makes its classes at run time
    checks_signatures: bool
    logs: tuple[Path, ...] = ()

    def put(self, bucket: str, key: str, data: bytes) -> str:
        """Store an object, making the bucket if need be, and return its ETag, quotes included."""
        self.client.create_bucket(Bucket=bucket)
        return str(self.client.put_object(Bucket=bucket, Key=key, Body=data)["ETag"])

    def presign(self, bucket: str, key: str, *, seconds: int = 3600) -> str:
        """Return a URL (SigV4, path style, signing only the host) that may GET the object for `seconds`."""
        arguments = {"Params": {"Bucket": bucket, "Key": key}, "ExpiresIn": seconds}
        return str(self.client.generate_presigned_url("get_object", **arguments))


def s3_client(endpoint: str, access_key: str, secret_key: str) -> Any:
    """Return a boto3 client for a server of a test: path style, no second tries, short time-outs."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        region_name="us-east-1",
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            connect_timeout=5,
            read_timeout=30,
            retries={"max_attempts": 0},
        ),
    )


def require_programs(server: str, programs: Sequence[str], packages: Sequence[str]) -> None:
    """Skip the test if a program is missing, or fail it where servers are required; both say what to install."""
    missing = [program for program in programs if shutil.which(program) is None]
    if not missing:
        return
    reason = f"{server} needs {', '.join(missing)}; on Debian: apt-get install {' '.join(packages)}"
    if os.environ.get(REQUIRE_SERVERS) == "1":
        pytest.fail(f"{reason} ({REQUIRE_SERVERS} forbids a skip)", pytrace=False)
    pytest.skip(reason)


def free_port() -> int:
    """Return a TCP port on 127.0.0.1 that is free now, for servers that cannot choose one and say which.

    It is none of those that the system gives away by itself (32768 up, on Linux): nobody else gets it meanwhile,
    however many tests and daemons run beside this one.
    """
    while True:
        port = _DRAWN.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_listening(process: subprocess.Popen[bytes], port: int, log: Path, *, seconds: float) -> None:
    """Return once `process` accepts connections on 127.0.0.1:`port`; raise ServerError if it ends or takes too long."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=seconds).close()
        except ConnectionRefusedError:
            pass
        else:
            return
        # The pause between two tries ends at once if the process does.
        try:
            code = process.wait(_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if time.monotonic() < deadline:
                continue
            raise ServerError(
                f"nothing listens on port {port} after {seconds:g} s; {log} ends with:\n{tail(log)}"
            ) from None
        raise ServerError(f"the server for port {port} ended with code {code}; {log} ends with:\n{tail(log)}")


def tail(log: Path) -> str:
    """Return the end of a log file, whole lines where it is long."""
    if not log.exists():
        return "(no log)"
    data = log.read_bytes()
    if len(data) > _TAIL_BYTES:
        data = b"[...]\n" + data[-_TAIL_BYTES:].partition(b"\n")[2]
    return data.decode(errors="replace")
