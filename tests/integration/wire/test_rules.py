"""WIRE §4: rules, proxy authentication and the guard of origins, configured by a file and kept by a peer process."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.cluster import LocalCluster
from bench.process import ChildError
from tests.integration.wire.conftest import CONTENT, SIGNED
from tests.support.clients import curl, replay, triton, triton_request
from tests.support.daemons import exchange, fetch
from tests.support.secrets import secret
from tests.unit.source.raw_origin import RawOrigin, response

PASSWORD = secret("the password of the proxy's user", "hush-hush")
AUTH = {"Proxy-Authorization": "Basic " + base64.b64encode(f"triton:{PASSWORD}".encode()).decode()}
RULES = r"""
[[rules]]
match = '^http://[^/]*/secret/'
action = "deny"

[[rules]]
match = '^http://models\.example/'
redirect = "ORIGIN"
action = "p2p"
filters = ["token"]

[[rules]]
match = '/status/'
errors = "status"

[[rules]]
match = '/reset/'
errors = "reset"

[[rules]]
match = '^https://blocked\.example/'
action = "deny"

[proxy]
deny = ["*.forbidden.example", "127.0.0.2"]

[proxy.users]
triton = { password_file = "password" }
"""


@pytest.fixture
def guarded(tmp_path: Path, store: RawOrigin) -> Iterator[LocalCluster]:
    """A lone peer with RULES, which redirect to `store`."""
    with lone_peer(tmp_path, RULES.replace("ORIGIN", store.base.removeprefix("http://"))) as started:
        yield started


def lone_peer(directory: Path, configuration: str) -> LocalCluster:
    (directory / "password").write_text(PASSWORD + "\n")
    (directory / "peer.toml").write_text(configuration)
    arguments = {"peer-1": ("--config", str(directory / "peer.toml"))}
    return LocalCluster(peers=1, seeds=0, directory=directory, arguments=arguments)


def test_rules_and_users_and_origins(guarded: LocalCluster, store: RawOrigin, tmp_path: Path) -> None:
    """One peer for everything that leaves it as it was."""
    proxy = guarded["peer-1"].addresses["proxy"]
    _first_match_wins(proxy, store)
    _a_redirect_changes_where_and_leaves_the_rest(proxy, store)
    _errors_are_told_as_the_rule_says(proxy, store)
    _credentials_open_the_proxy(proxy, store, tmp_path / "downloaded")
    _origins_that_are_denied(proxy, store)
    log = guarded["peer-1"].log.read_text()
    assert PASSWORD not in log
    assert AUTH["Proxy-Authorization"].removeprefix("Basic ") not in log


def _first_match_wins(proxy: str, store: RawOrigin) -> None:
    answer = fetch(f"{store.base}/secret/status/m", proxy=proxy, headers=AUTH | {"X-Dragonfly-Use-P2P": "true"})
    assert (answer.status, answer.headers["x-dragonfly-error-type"]) == (403, "proxy")
    assert re.search(rb"127\.0\.0\.1:[0-9]+ is denied by the rule .*secret", answer.body)
    tunnel = exchange(
        proxy, f"CONNECT blocked.example:443 HTTP/1.1\r\nHost: x\r\n{_line()}\r\nConnection: close\r\n\r\n".encode()
    )
    assert tunnel.startswith(b"HTTP/1.1 403 ")
    assert store.requests == []


def _a_redirect_changes_where_and_leaves_the_rest(proxy: str, store: RawOrigin) -> None:
    one = fetch("http://models.example/a%2Fb?token=1&v=+", proxy=proxy, headers=AUTH)
    assert (one.status, one.body == CONTENT) == (200, True)
    assert {request.target for request in store.requests} == {"/a%2Fb?token=1&v=+"}
    assert {request.field("Host") for request in store.requests} == {store.base.removeprefix("http://")}
    other = fetch("http://models.example/a%2Fb?token=2&v=+", proxy=proxy, headers=AUTH)
    assert other.headers["x-cache"] == "HIT-LOCAL"
    assert other.headers["x-dragonfly-task-id"] == one.headers["x-dragonfly-task-id"]


def _errors_are_told_as_the_rule_says(proxy: str, store: RawOrigin) -> None:
    serve, store.answer = store.answer, lambda _: response(404, body=b"gone")
    answer = replay(proxy, triton_request(f"{store.base}/status/m?{SIGNED}", _line()))
    assert (answer.status, answer.body) == (404, b"gone")
    with pytest.raises(ConnectionError):
        fetch(f"{store.base}/reset/m", proxy=proxy, headers=AUTH)
    store.answer = serve


def _credentials_open_the_proxy(proxy: str, store: RawOrigin, file: Path) -> None:
    store.requests.clear()
    url = f"{store.base}/m?{SIGNED}"
    for headers in ({}, {"Proxy-Authorization": AUTH["Proxy-Authorization"][:-4]}):
        answer = fetch(url, proxy=proxy, headers=headers)
        assert (answer.status, answer.headers["proxy-authenticate"][:5]) == (407, "Basic")
    origin_form = exchange(proxy, b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert origin_form.startswith(b"HTTP/1.1 407 ")
    target = store.base.removeprefix("http://")
    assert curl("--proxytunnel", url, "--output", str(file), proxy=proxy).code != 0
    assert triton(url, file, proxy=proxy).code != 0
    assert store.requests == []
    assert triton(url, file, proxy=f"http://triton:{PASSWORD}@{proxy}").code == 0
    assert file.read_bytes() == CONTENT
    tunnelled = curl("--proxytunnel", url, "--output", str(file), proxy=f"http://triton:{PASSWORD}@{proxy}")
    assert tunnelled.code == 0, target
    own = fetch(url, proxy=proxy, headers=AUTH | {"Authorization": "Bearer own"})
    assert own.status == 200
    assert store.requests[-1].field("Authorization") == "Bearer own"
    assert all(request.field("Proxy-Authorization") is None for request in store.requests)


def _origins_that_are_denied(proxy: str, store: RawOrigin) -> None:
    hosts = ["169.254.169.254", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "[::ffff:a9fe:a9fe]"]
    for host in (*hosts, "168.63.129.16", "100.100.100.200", "[fd00:ec2::254]", "127.0.0.2", "a.forbidden.example"):
        for url in (f"http://{host}/latest/meta-data/", f"http://{host}/m?{SIGNED}"):
            answer = fetch(url, proxy=proxy, headers=AUTH)
            assert (answer.status, answer.headers["x-dragonfly-error-type"]) == (403, "proxy"), url
            assert b"is denied" in answer.body
    request = f"CONNECT 169.254.169.254:443 HTTP/1.1\r\nHost: x\r\n{_line()}\r\nConnection: close\r\n\r\n"
    assert exchange(proxy, request.encode()).startswith(b"HTTP/1.1 403 ")
    serve = store.answer
    store.answer = lambda _: response(302, "Location: http://169.254.169.254/latest/meta-data/iam/")
    answer = fetch(f"{store.base}/redirected?{SIGNED}", proxy=proxy, headers=AUTH)
    assert (answer.status, answer.headers["x-dragonfly-error-type"]) == (403, "proxy")
    store.answer = serve


def _line() -> str:
    return f"Proxy-Authorization: {AUTH['Proxy-Authorization']}"


def test_a_file_that_cannot_work_ends_the_start(tmp_path: Path) -> None:
    with (
        pytest.raises(ChildError, match=r"peer\.toml: rules number 1\.mach is not a known key; did you mean 'match'"),
        lone_peer(tmp_path, "[[rules]]\nmatch = 'a'\nmach = 'b'\n"),
    ):
        pass
