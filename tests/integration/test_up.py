"""`damselfly up`: three daemons on the documented ports, curl through them, and how it all ends."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.origin_client import OriginClient
from tests.support.commands import DAMSELFLY, DEADLINE, run
from tests.support.daemons import curl, fetch
from tests.support.servers import S3Server
from tests.support.stores import s3_store

PORTS = (8000, 8002, 65001, 65002, 65003)
PROXY = "127.0.0.1:65001"


@pytest.fixture(autouse=True)
def _documented_ports() -> None:
    for port in PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                pytest.skip(f"`damselfly up` needs port {port}, which is in use on this machine: {error.strerror}")


class Up:
    """A running `damselfly up`, its first words, and the processes it has started."""

    def __init__(self, directory: Path, *more: str) -> None:
        self.process = subprocess.Popen(
            [*DAMSELFLY, "up", "--data-dir", str(directory), *more], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.said = [self.process.stdout.readline() for _ in range(3)]
        self.children = [
            int(pid)
            for thread in Path(f"/proc/{self.process.pid}/task").iterdir()
            for pid in (thread / "children").read_text().split()
        ]

    def ends(self) -> tuple[int, str]:
        """Wait for the end; return the exit status and the rest of what was said."""
        rest, _ = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, rest


@contextmanager
def running(directory: Path, *more: str) -> Iterator[Up]:
    started = Up(directory, *more)
    try:
        yield started
    finally:
        with started.process:
            for _ in range(2):
                started.process.terminate()


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    """Run the command; whatever is left of it in the end is killed."""
    with running(tmp_path / "up") as started:
        yield started


def header(file: Path, name: str) -> str | None:
    """Return a field of the last answer in a file that curl's --dump-header has written."""
    lines = file.read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.lower().startswith(f"{name}:")), None)


def test_curl_through_it_comes_from_the_disk_the_second_time(up: Up, origin: OriginClient, tmp_path: Path) -> None:
    assert up.said[0] == f"proxy       http://{PROXY}   (logs and data: {tmp_path / 'up'})\n"
    assert up.said[1] == f'try         curl -x http://{PROXY} "$PRESIGNED_URL" -o model.bin\n'
    metrics = up.said[2].split()[-1]
    assert fetch(metrics).status == 200
    assert len(up.children) == 3

    thing = origin.create("model.bin", 9 * 1024 * 1024, sha256=True)
    for expected in ("MISS", "HIT-LOCAL"):
        file, heads = tmp_path / "model.bin", tmp_path / "heads"
        assert curl(origin.presign("model.bin"), file, "--dump-header", str(heads), proxy=f"http://{PROXY}") == 0
        assert hashlib.sha256(file.read_bytes()).hexdigest() == thing.sha256
        assert header(heads, "x-cache") == expected

    beside = run("up", "--data-dir", str(tmp_path / "beside"))
    assert beside.returncode == 1
    assert "cannot listen on 127.0.0.1:8000: Address already in use" in beside.stderr

    up.process.send_signal(signal.SIGINT)
    assert up.ends() == (0, "stopping\n")
    assert not [pid for pid in up.children if Path(f"/proc/{pid}").exists()]
    assert all('"event": "stopped"' in log.read_text() for log in (tmp_path / "up").glob("*.log"))


def test_a_daemon_that_dies_ends_it_by_name(up: Up, tmp_path: Path) -> None:
    data = tmp_path / "up" / "seed-1"
    os.kill(int((data / "lock").read_text()), signal.SIGKILL)
    assert up.ends() == (1, f"seed-1 ended on its own; its log is {data}.log\n")
    assert not [pid for pid in up.children if Path(f"/proc/{pid}").exists()]


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    done = run("up", "--data-dir", str(in_the_way / "data"))
    assert done.returncode == 2
    assert done.stderr.startswith(f"damselfly up: cannot make the directory '{in_the_way / 'data'}': ")
    assert done.stderr.count("\n") == 1


def test_native_names_need_no_more_flags_than_the_credentials(moto_s3: S3Server, tmp_path: Path) -> None:
    store = s3_store(moto_s3, "models-of-up")
    store.put("a/1/model.onnx", b"model")
    file = store.write_credentials(tmp_path / "cloud_credential.json")
    with running(tmp_path / "up", "--cloud-credentials", str(file)):
        secret = ("--cluster-secret-file", str(tmp_path / "up" / "cluster-secret"))
        preheated = run("preheat", store.native("a/"), "--wait", *secret)
        assert (preheated.returncode, "done" in preheated.stdout) == (0, True), preheated.stdout + preheated.stderr
        fetched = run("get", store.native("a/"), "-o", str(tmp_path / "tree"))
        assert fetched.returncode == 0, fetched.stderr
        assert "origin 0 bytes" in fetched.stderr
        assert (tmp_path / "tree" / "1" / "model.onnx").read_bytes() == b"model"
        listed = run("ls", *secret)
        assert (listed.returncode, "models-of-up/a/1/model.onnx" in listed.stdout) == (0, True), listed.stdout
