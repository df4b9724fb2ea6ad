"""The daemons as commands: settings that cannot work, a scheduler that is away, and how they stop."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.origin_client import OriginClient
from damselfly.cli import app
from tests.support.commands import NOWHERE, Daemon, peer_arguments, run, running_daemon
from tests.support.daemons import fetch, open_url

MIB = 1024 * 1024
SIZE = 64 * MIB  # far more than what the sockets between the peer and a client hold


def assert_refused(arguments: list[str], *expected: str) -> None:
    """Settings that cannot work are one line on standard error, with the value and the remedy, and status 2."""
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"damselfly {arguments[0]}: ")
    for text in expected:
        assert text in done.stderr


@pytest.mark.parametrize("flag", ["proxy_listen", "piece_listen", "http_listen"])
def test_a_taken_port(tmp_path: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        remedy = f"free the port or choose another with --{flag.replace('_', '-')}"
        assert_refused(peer_arguments(tmp_path, **{flag: address}), address, "already in use", remedy)


def test_an_address_of_another_host(tmp_path: Path) -> None:
    assert_refused(
        peer_arguments(tmp_path, http_listen="192.0.2.1:1", cluster_secret_file=str(secret(tmp_path))),
        "192.0.2.1:1",
        "--http-listen",
    )


def test_a_data_directory_that_cannot_be_made(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    assert_refused(peer_arguments(in_the_way / "data"), str(in_the_way / "data"), "--data-dir")


def test_a_data_directory_of_another_format(tmp_path: Path) -> None:
    (tmp_path / "format").write_text("99\n")
    assert_refused(peer_arguments(tmp_path), str(tmp_path), "99", "--data-dir")


def test_a_data_directory_in_use(tmp_path: Path) -> None:
    with running_daemon(peer_arguments(tmp_path / "data"), tmp_path / "peer.log") as first:
        owner = f"in use by process {first.child.pid}"
        assert_refused(peer_arguments(tmp_path / "data"), str(tmp_path / "data"), owner, "--data-dir")


@pytest.mark.parametrize("flag", ["proxy_listen", "piece_listen"])
def test_the_network_without_a_secret(tmp_path: Path, flag: str) -> None:
    assert_refused(peer_arguments(tmp_path, **{flag: "0.0.0.0:0"}), "0.0.0.0", "--cluster-secret-file")


def test_nothing_to_dial(tmp_path: Path) -> None:
    arguments = peer_arguments(tmp_path, piece_listen=":0", cluster_secret_file=str(secret(tmp_path)))
    assert_refused(arguments, "0.0.0.0:", "--advertise")


def test_a_missing_and_a_short_secret(tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_text("12345\n")
    remedy = "make one with: head -c 32 /dev/urandom"
    arguments = peer_arguments(tmp_path / "data", cluster_secret_file=str(tmp_path / "none"))
    assert_refused(arguments, str(tmp_path / "none"), remedy)
    assert_refused(["scheduler", "--cluster-secret-file", str(short)], str(short), "5 bytes", remedy)


def test_an_authority_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("not a certificate\n")
    assert_refused(peer_arguments(tmp_path / "data", origin_ca_file=str(file)), str(file), "certificate")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["peer", "--capacity", "5XB"], "'--capacity': size '5XB' is not a number with a unit; write for example"),
        (["peer", "--drain", "soon"], "'--drain': duration 'soon' is not a number with a unit; write for example"),
        (["peer", "--proxy-listen", "localhost"], "'--proxy-listen': address 'localhost' has no port"),
        (["peer", "--http-listen", "::1:80"], "'--http-listen': address '::1:80' is ambiguous"),
        (["peer", "--scheduler", "sched:99999"], "'--scheduler': address 'sched:99999' has no port"),
        (["peer", "--label", "zone"], "'--label': label 'zone' is not name=value"),
        (["peer", "--upload-slots", "0"], "'--upload-slots': "),
        (["scheduler", "--grpc-listen", "http://a:1"], "'--grpc-listen': an address is host:port alone"),
        (["get", "http://a/b", "-o", "f", "--digest", "md5:00"], "'--digest': digest 'md5:00' is not of a known kind"),
        (["get", "http://a/b", "-o", "f", "--stall", "2 parsecs"], "'--stall': duration '2 parsecs'"),
        (["peer", "--data-dri", "x"], "No such option: --data-dri"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_bad_values_are_told_on_one_line(arguments: list[str], expected: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("Error: "))
    assert expected in line


def test_a_bad_log_level(tmp_path: Path) -> None:
    assert_refused([*peer_arguments(tmp_path), "--log-level", "loud"], "'loud'", "debug, info, warning, error")


def test_a_peer_without_its_scheduler_says_so_and_goes_to_the_origin(tmp_path: Path, origin: OriginClient) -> None:
    thing = origin.create("model.bin", 9 * MIB, sha256=True)
    with running_daemon(peer_arguments(tmp_path / "data"), tmp_path / "peer.log") as peer:
        complaint = peer.event("scheduler unreachable")
        assert complaint["scheduler"] == NOWHERE
        assert "origin" in complaint["consequence"]
        state = fetch(f"http://{peer.addresses['http']}/readyz")
        assert state.status == 200
        assert json.loads(state.body)["schedulers"] == {NOWHERE: "unreachable"}
        assert fetch(thing.url, proxy=peer.addresses["proxy"]).sha256 == thing.sha256
        finished = peer.event("download finished")
        assert (finished["bytes_origin"], finished["bytes_parents"]) == (thing.length, 0)
        peer.child.terminate()
        assert peer.join() == 0


@contextmanager
def held_response(
    tmp_path: Path, origin: OriginClient, drain: str
) -> Iterator[tuple[Daemon, http.client.HTTPResponse, str]]:
    """Yield a peer that has been told to stop, a response it is sending, and its proxy's address."""
    thing = origin.create("model.bin", SIZE, sha256=True)
    with running_daemon(peer_arguments(tmp_path / "data", drain=drain), tmp_path / "peer.log") as peer:
        proxy = peer.addresses["proxy"]
        with open_url(thing.url, proxy=proxy) as response:
            assert len(response.read(MIB)) == MIB
            peer.child.terminate()
            peer.event("stopping")
            yield peer, response, proxy


def test_a_response_under_way_is_finished_and_new_clients_are_refused(tmp_path: Path, origin: OriginClient) -> None:
    with held_response(tmp_path, origin, "1h") as (peer, response, proxy):
        state = fetch(f"http://{peer.addresses['http']}/readyz")
        assert (state.status, json.loads(state.body)["ready"]) == (503, False)
        for address in (proxy, peer.addresses["pieces"]):
            host, _, port = address.rpartition(":")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((host, int(port)), timeout=30)
        assert len(response.read()) == SIZE - MIB
        assert peer.event("stopped")
        assert peer.join() == 0


def test_told_twice_it_ends_at_once(tmp_path: Path, origin: OriginClient) -> None:
    with held_response(tmp_path, origin, "1h") as (peer, response, _):
        peer.child.terminate()
        assert peer.join() == 0
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()


def test_what_outlasts_the_draining_is_cut_off(tmp_path: Path, origin: OriginClient) -> None:
    with held_response(tmp_path, origin, "10ms") as (peer, response, _):
        assert peer.event("requests cut off by shutdown")["requests"] == 1
        assert peer.join() == 0
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()


def secret(directory: Path) -> Path:
    path = directory / "cluster-secret"
    path.write_text("sixteen bytes and more\n")
    return path
