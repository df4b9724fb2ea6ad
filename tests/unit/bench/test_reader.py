import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import xxhash

from bench.reader import BUFFER_BYTES, Reader, ReadError

SECRET_URL = "http://{}/bucket/a%2Fb+c?X-Amz-Signature=s3cr3t&x=%7e"


class Server:
    """Answers one connection with the same bytes, whatever is asked, and remembers the request."""

    def __init__(self, answer: bytes) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.request = b""
        self._answer = answer
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            while b"\r\n\r\n" not in self.request:
                self.request += connection.recv(65536)
            connection.sendall(self._answer)

    def close(self) -> None:
        self._thread.join()
        self._listener.close()


@contextmanager
def serving(answer: bytes) -> Iterator[Server]:
    server = Server(answer)
    try:
        yield server
    finally:
        server.close()


def ok(body: bytes, *fields: str) -> bytes:
    head = "\r\n".join(("HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *fields))
    return f"{head}\r\n\r\n".encode() + body


def test_reads_the_whole_body_and_says_what_it_saw() -> None:
    body = bytes(range(256)) * (3 * BUFFER_BYTES // 256) + b"tail"
    with serving(ok(body, "x-cache: HIT-REMOTE", "X-Dragonfly-Task-ID: abc")) as server:
        reading = Reader().read(SECRET_URL.format(server.address))
    assert (reading.length, reading.xxh3_128) == (len(body), xxhash.xxh3_128_hexdigest(body))
    assert (reading.cache, reading.task_id) == ("HIT-REMOTE", "abc")
    assert 0 < reading.first_byte_seconds <= reading.seconds
    request = server.request.decode()
    assert request.startswith("GET /bucket/a%2Fb+c?X-Amz-Signature=s3cr3t&x=%7e HTTP/1.1\r\n")
    assert f"Host: {server.address}\r\n" in request


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_asks_a_proxy_in_absolute_form(scheme: str) -> None:
    with serving(ok(b"")) as server:
        reading = Reader().read(
            f"{scheme}://store.example:9000/b/k?sig=%2B", proxy=f"http://{server.address}", headers=[("X-Tag", "one")]
        )
    assert (reading.length, reading.cache) == (0, None)
    request = server.request.decode()
    assert request.startswith(f"GET {scheme}://store.example:9000/b/k?sig=%2B HTTP/1.1\r\n")
    assert "Host: store.example:9000\r\n" in request
    assert "X-Tag: one\r\n" in request


def test_a_url_without_a_path_asks_for_the_root() -> None:
    with serving(ok(b"x")) as server:
        Reader().read(f"http://{server.address}?a=b#fragment")
    assert server.request.startswith(b"GET /?a=b HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            b"HTTP/1.1 403 Forbidden\r\nX-Dragonfly-Error-Type: backend\r\n\r\n",
            r"answered 403, not 200 \(backend error\)",
        ),
        (b"HTTP/1.1 206 Partial Content\r\nContent-Length: 1\r\n\r\nx", "answered 206"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "no Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345", "closed after 5 of 10 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n12345", "3 bytes more"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "before the end of the response's head"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not an HTTP/1.1 response"),
    ],
)
def test_anything_but_the_whole_object_is_an_error_without_secrets(answer: bytes, message: str) -> None:
    with serving(answer) as server, pytest.raises(ReadError, match=message) as caught:
        Reader().read(SECRET_URL.format(server.address))
    assert "s3cr3t" not in str(caught.value)
    assert server.address in str(caught.value)


def test_what_cannot_be_asked_is_an_error_without_secrets() -> None:
    with pytest.raises(ReadError, match="not an http or https URL"):
        Reader().read("ftp://user:pw@host/x?token=1")
    with pytest.raises(ReadError, match="not of the form host:port"):
        Reader().read("http://host/x", proxy="socks5://host:1")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ReadError, match=f"through {address}"):
        Reader().read("http://host/x?token=1", proxy=address)


def test_a_silent_server_is_given_up_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ReadError, match="nothing arrived for"):
            Reader(stall_seconds=0.01).read(f"http://{address}/x")
