from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import pytest

from bench.load import LoadError, run_load
from bench.origin_client import OriginClient
from bench.proxy import Contender, Cost, Result, cost, request_for
from bench.rivals import RIVALS

BODY = b"x" * 1000
REQUEST = b"GET / HTTP/1.1\r\n\r\n"


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[tuple[str, int]]:
    """Answer every request on every connection with the same octets."""
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError):
            while connection.recv(65536):
                connection.sendall(answer)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threads.append(threading.Thread(target=serve, args=(connection,)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        yield listener.getsockname()
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()
    for thread in threads:
        thread.join()


def test_a_load_counts_whole_answers() -> None:
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + BODY) as address:
        load = run_load(address, repeat(REQUEST), body_bytes=1000, connections=3, seconds=0.05)
    assert load.requests == len(load.latencies) > 0
    assert 0 < load.latency(0.5) <= load.latency(1.0)


def test_a_load_ends_with_its_requests() -> None:
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + BODY) as address:
        load = run_load(address, repeat(REQUEST, 5), body_bytes=1000, connections=3)
        none = run_load(address, (), body_bytes=1000, connections=1)
    assert (load.requests, none.requests) == (5, 0)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 1000\r\n\r\n" + BODY,
        b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n" + BODY[1:],
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + BODY + b"x",
    ],
)
def test_a_load_takes_no_other_answer_for_a_quick_one(answer: bytes) -> None:
    with answering(answer) as address, pytest.raises(LoadError):
        run_load(address, repeat(REQUEST), body_bytes=1000, connections=1, seconds=5.0)


def test_figures_name_what_is_missing() -> None:
    one = Cost("damselfly peer", "this checkout", 4000.0, 3900.0, 0.001, 0.002, 1.0, 4000, 0)
    figures = Result(65536, 16, 4.0, 3, 60.0, [one], ["squid"]).figures()
    assert figures["proxies"][0]["requests_per_cpu_second"] == 4000.0
    assert figures["proxies"][1] == {"name": "squid", "installed": False}


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_answers_from_its_cache(name: str, origin: OriginClient, tmp_path: Path) -> None:
    rival = RIVALS[name]
    if rival.find() is None:
        pytest.skip(f"{name} is not installed")
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    url = origin.create("models/small", 65536).url
    with rival.running(tmp_path) as running:
        contender = Contender(name, running.version, running.address, running.child)
        taken = cost(contender, origin, request_for(url), size=65536, connections=2, seconds=0.2)
    assert taken.version[0].isdigit()
    assert (taken.requests > 0, taken.origin_requests) == (True, 0)
