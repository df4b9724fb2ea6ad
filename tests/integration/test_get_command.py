"""`damselfly get` end to end: real command, real cluster, real origin."""

from __future__ import annotations

import hashlib
import re
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.cluster import LocalCluster
from bench.origin_client import OriginClient
from p2p.identity import identify
from tests.support.commands import DAMSELFLY, DEADLINE
from tests.support.daemons import running_cluster

MIB = 1024 * 1024
SIZE = 64 * MIB + 99


@pytest.fixture
def small_cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    """A scheduler, a seed and one peer."""
    with running_cluster(tmp_path / "cluster", peers=1) as cluster:
        yield cluster


def command(cluster: LocalCluster, url: str, output: Path, *more: str, proxy: str | None = None) -> list[str]:
    peer = cluster["peer-1"].addresses
    through = ["--proxy", proxy or peer["proxy"], "--peer-http", peer["http"]]
    return [*DAMSELFLY, "get", url, "-o", str(output), *through, *more]


def get(cluster: LocalCluster, url: str, output: Path, *more: str, proxy: str | None = None) -> tuple[int, str]:
    """Run the command; return its exit status and what it said."""
    done = subprocess.run(
        command(cluster, url, output, *more, proxy=proxy), capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


def sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


class Relay:
    """A TCP relay before a proxy. Of the first answer it passes on `limit` bytes only; `reached` says that it has.

    `heads` are the heads of the requests and answers that went through, one a connection.
    """

    def __init__(self, proxy: str, limit: int) -> None:
        host, _, port = proxy.rpartition(":")
        self._proxy = (host, int(port))
        self._limit: int | None = limit
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.reached = threading.Event()
        self.heads: list[tuple[bytes, bytes]] = []

    def serve_one(self) -> None:
        """Relay one connection with one request; returns when a side has closed it."""
        client, _ = self._listener.accept()
        with client, socket.create_connection(self._proxy, timeout=DEADLINE) as proxy:
            client.settimeout(DEADLINE)
            request = _head(client)
            proxy.sendall(request)
            answer = _head(proxy)
            self.heads.append((request, answer))
            client.sendall(answer)
            left, self._limit = self._limit, None
            while True:
                sources = [client] if left == 0 else [client, proxy]
                readable, _, _ = select.select(sources, [], [], DEADLINE)
                if client in readable:
                    return  # it has sent all it had to say: this is its end
                data = proxy.recv(MIB)[:left]
                if not data:
                    return
                client.sendall(data)
                if left is not None:
                    left -= len(data)
                    if not left:
                        self.reached.set()

    def close(self) -> None:
        self._listener.close()


def _head(sock: socket.socket) -> bytes:
    head = bytearray()
    while not head.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        assert byte, "closed in mid-head"
        head += byte
    return bytes(head)


@contextmanager
def relaying(relay: Relay) -> Iterator[None]:
    """Relay one connection while the context lasts."""
    thread = threading.Thread(target=relay.serve_one, daemon=True)
    thread.start()
    yield
    thread.join(DEADLINE)
    assert not thread.is_alive()


def test_it_says_where_the_bytes_came_from_and_verifies_them(
    small_cluster: LocalCluster, origin: OriginClient, tmp_path: Path
) -> None:
    thing = origin.create("model.bin", SIZE, sha256=True)
    target = tmp_path / "out" / "model.bin"
    target.parent.mkdir()
    status, said = get(small_cluster, thing.url, target, "--digest", f"sha256:{thing.sha256}")
    assert status == 0, said
    assert sha256(target) == thing.sha256
    assert said.startswith(f"{target}: 67.1 MB in ")
    assert re.search(r"\(origin 0 bytes, peers 67\.1 MB, local 0 bytes\); sha256 verified\n$", said), said
    status, said = get(small_cluster, origin.presign("model.bin"), target)
    assert status == 0, said
    assert "(origin 0 bytes, peers 0 bytes, local 67.1 MB)\n" in said
    assert [path.name for path in target.parent.iterdir()] == ["model.bin"]


def test_a_linked_file_is_the_peers_and_stays_whole_when_that_lets_go(
    small_cluster: LocalCluster, origin: OriginClient, tmp_path: Path
) -> None:
    thing = origin.create("model.bin", 3 * MIB, sha256=True)
    target = tmp_path / "model.bin"
    status, said = get(small_cluster, thing.url, target, "--link", "--digest", f"sha256:{thing.sha256}")
    assert status == 0, said
    held = {path.stat().st_ino for path in (tmp_path / "cluster").rglob("data/*/*")}
    if "; a hard link of the peer's file, read-only" in said:
        assert target.stat().st_ino in held
        assert target.stat().st_mode & 0o777 == 0o444
    else:
        assert "; a reflink of the peer's file" in said
        assert target.stat().st_ino not in held
    small_cluster.delete_task(identify(thing.url).id)
    assert sha256(target) == thing.sha256
    # Who may not have the bytes is not told where they are.
    signature = thing.url.rpartition("=")[2]
    other = tmp_path / "other.bin"
    status, said = get(small_cluster, thing.url.replace(signature, "0" * len(signature)), other, "--link")
    assert (status, "403" in said, other.exists()) == (1, True, False)


def test_without_a_seed_the_bytes_are_the_origins(origin: OriginClient, tmp_path: Path) -> None:
    thing = origin.create("model.bin", SIZE)
    with running_cluster(tmp_path / "cluster", peers=1, seeds=0) as cluster:
        status, said = get(cluster, thing.url, tmp_path / "model.bin")
    assert status == 0, said
    assert "(origin 67.1 MB, peers 0 bytes, local 0 bytes)" in said


def test_what_fails_leaves_no_file_and_says_why(
    small_cluster: LocalCluster, origin: OriginClient, tmp_path: Path
) -> None:
    thing = origin.create("model.bin", 9 * MIB, sha256=True)
    directory = tmp_path / "out"
    directory.mkdir()
    target = directory / "model.bin"
    signature = thing.url.rpartition("=")[2]

    wrong = "0" * 64
    status, said = get(small_cluster, thing.url, target, "--digest", f"sha256:{wrong}")
    assert status == 1
    assert f"damselfly get: {target} was not written: " in said
    assert wrong in said
    assert str(thing.sha256) in said

    status, said = get(small_cluster, thing.url.replace(signature, "0" * len(signature)), target)
    assert status == 1
    assert "403" in said
    assert signature not in said

    status, said = get(small_cluster, thing.url.replace("model.bin", "missing.bin"), target)
    assert status == 1
    assert re.search("40[34]", said), said

    small_cluster.kill("peer-1")
    status, said = get(small_cluster, thing.url, target)
    assert status == 1
    assert "start one with `damselfly up`" in said
    assert list(directory.iterdir()) == []


def test_a_killed_download_goes_on_where_it_was(
    small_cluster: LocalCluster, origin: OriginClient, tmp_path: Path
) -> None:
    thing = origin.create("model.bin", SIZE, sha256=True)
    target = tmp_path / "out" / "model.bin"
    target.parent.mkdir()
    # More than the sockets on the way can hold, so that the killed command had written most of it.
    relay = Relay(small_cluster["peer-1"].addresses["proxy"], limit=48 * MIB)
    with relaying(relay):
        killed = subprocess.Popen(command(small_cluster, thing.url, target, proxy=relay.address))
        assert relay.reached.wait(DEADLINE)
        killed.kill()
        assert killed.wait(DEADLINE) == -signal.SIGKILL
    (partial,) = (path for path in target.parent.iterdir() if path.suffix == ".damselfly")
    held = partial.stat().st_size
    assert 16 * MIB <= held <= 48 * MIB
    assert not target.exists()

    with relaying(relay):
        again = origin.presign("model.bin")
        digest = f"sha256:{thing.sha256}"
        status, said = get(small_cluster, again, target, "--digest", digest, proxy=relay.address)
    relay.close()
    assert status == 0, said
    assert "of it from before" in said
    assert sha256(target) == thing.sha256
    request, answer = relay.heads[1]
    assert f"\r\nRange: bytes={held}-\r\n".encode() in request
    assert answer.startswith(b"HTTP/1.1 206 ")
    assert f"\r\nContent-Range: bytes {held}-{SIZE - 1}/{SIZE}\r\n".encode() in answer
    assert [path.name for path in target.parent.iterdir()] == ["model.bin"]
