"""Configurations of Dragonfly's peers, both generations, and what becomes of them."""

from __future__ import annotations

from base64 import b64encode
from ipaddress import ip_address
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from damselfly.cli import app
from damselfly.importer import PASSWORD_FILE, import_dragonfly
from p2p.errors import ConfigError
from peer.core.rules import Action
from peer.settings import Configuration, load_configuration

GO = r"""
aliveTime: 0s
console: false
verbose: true
scheduler:
  netAddrs:
    - {type: tcp, addr: "10.0.0.1:8002"}
download:
  prefetch: true
  totalRateLimit: 1024Mi
proxy:
  basicAuth: {username: triton, password: hunter2}
  defaultFilter: "Expires&Signature"
  defaultTag: prod
  tcpListen: {listen: 0.0.0.0, port: 65001}
  registryMirror:
    url: https://index.docker.io
    insecure: false
    dynamic: true
    useProxies: true
  proxies:
    - regx: blobs/sha256.*
    - regx: '\.json$'
      direct: true
    - regx: ^http://models.example:9000/
      useHTTPS: true
      redirect: store-1.example:9443
  hijackHTTPS:
    cert: /etc/dragonfly/ca.crt
    key: /etc/dragonfly/ca.key
    hosts:
      - regx: mirror.example.com:443
      - regx: ^registry\.example\.com
        insecure: true
  whiteList:
    - host: models.example
    - host: store-1.example
      ports: ["9443"]
    - regx: .*\.example\.com
"""

RUST = r"""
host: {idc: eu-1}
proxy:
  server:
    ip: 0.0.0.0
    port: 4001
    caCert: /etc/ssl/ca.pem
    caKey: /etc/ssl/ca.key
    basicAuth: {username: admin, password: hunter2}
  rules:
    - regex: 'blobs/sha256.*'
      useTLS: false
    - regex: "^https?://it's.example/"
      useTLS: true
      redirect: https://store.example
      filteredQueryParams: [Signature, Expires, ns]
  registryMirror:
    addr: http://registry.internal:5000
    cert: /etc/ssl/registry.pem
  disableBackToSource: false
  prefetch: true
  prefetchRateLimit: 5GiB
"""


def loaded(text: str, directory: Path) -> Configuration:
    """Return what a peer reads in the printed file."""
    file = directory / "peer.toml"
    file.write_text(import_dragonfly(text).toml, encoding="utf-8")
    (directory / PASSWORD_FILE).write_text("new password\n")
    return load_configuration(file)


def allows(configuration: Configuration, host: str) -> bool:
    return configuration.guard.refusal(host, ip_address("203.0.113.1")) is None


def url_action(configuration: Configuration, url: str) -> Action:
    return configuration.rules.match(url).action


def test_the_go_daemons_file(tmp_path: Path) -> None:
    read = loaded(GO, tmp_path)
    blob = read.rules.match("https://registry.example.com/v2/m/blobs/sha256:0a")
    assert (blob.action, blob.filters, blob.tag, blob.prefetch) == (Action.P2P, ("Expires", "Signature"), "prod", True)
    straight = read.rules.match("http://models.example/config.json")
    assert (straight.action, straight.filters) == (Action.DIRECT, ())
    model = read.rules.match("http://models.example:9000/m")
    assert (model.action, model.tls, model.redirect) == (Action.P2P, True, "store-1.example:9443")
    assert read.proxy.registry_upstream == "https://index.docker.io"
    assert [allows(read, host) for host in ("models.example", "store-1.example", "a.example.com")] == [
        True,
        True,
        False,
    ]
    credentials = b64encode(b"triton:new password").decode()
    read.users.require((("Proxy-Authorization", f"Basic {credentials}"),))
    assert read.ca_dir == tmp_path / "ca"


@pytest.mark.parametrize(
    ("authority", "opened"),
    [
        ("mirror.example.com:443", True),
        ("a.mirror.example.com:443", True),
        ("registry.example.com:8443", True),
        ("a.registry.example.com:443", False),
        ("elsewhere.example:443", False),
    ],
)
def test_the_go_daemons_hijacked_hosts_are_intercepted(tmp_path: Path, authority: str, opened: bool) -> None:
    assert loaded(GO, tmp_path).rules.match(f"https://{authority}/").intercept is opened


def test_what_is_asked_within_a_hijacked_tunnel_finds_its_own_rule(tmp_path: Path) -> None:
    read = loaded(GO, tmp_path)
    assert url_action(read, "https://mirror.example.com/v2/m/blobs/sha256:0a") is Action.P2P
    assert url_action(read, "https://mirror.example.com/config.json") is Action.DIRECT


def test_the_rust_clients_file(tmp_path: Path) -> None:
    read = loaded(RUST, tmp_path)
    assert read.rules.match("https://any.example:8443/").intercept
    first = read.rules.match("http://registry.internal:5000/v2/m/blobs/sha256:0a")
    assert (first.action, first.tls, first.prefetch, first.filters) == (Action.P2P, False, True, ())
    second = read.rules.match("http://it's.example/m")
    assert (second.action, second.tls, second.redirect) == (Action.P2P, True, "store.example")
    assert second.filters == ("Signature", "Expires", "ns")
    assert read.proxy.registry_upstream == "http://registry.internal:5000"
    assert read.users


def noted(text: str) -> set[str]:
    return {note.partition(": ")[0] for note in import_dragonfly(text).notes}


def test_what_has_no_counterpart_is_named_and_what_asks_for_nothing_is_not() -> None:
    assert noted(GO) == {
        "aliveTime",
        "verbose",
        "scheduler",
        "download.totalRateLimit",
        "proxy.tcpListen",
        "proxy.registryMirror.useProxies",
        "proxy.hijackHTTPS.hosts number 2.insecure",
        "proxy.whiteList number 2.ports",
        "proxy.whiteList number 3.regx",
    }
    assert noted(RUST) == {
        "host",
        "proxy.server.ip",
        "proxy.server.port",
        "proxy.registryMirror.cert",
        "proxy.prefetchRateLimit",
    }


@pytest.mark.parametrize("text", [GO, RUST])
def test_no_password_is_repeated(text: str) -> None:
    imported = import_dragonfly(text)
    assert "hunter2" not in imported.toml + "".join(imported.notes)


@pytest.mark.parametrize(
    ("proxy", "place"),
    [
        ("proxies: [{direct: true}]", "proxy.proxies number 1"),
        ("proxies: [{regx: '(?<n>a)'}]", "proxy.proxies number 1.regx or regex"),
        ("rules: [{regex: '[[:alpha:]]'}]", "proxy.rules number 1.regx or regex"),
        ("rules: [{regex: 'https://a:443/'}]", "proxy.rules number 1"),
        ("rules: [{regex: a, redirect: 'http://u:hunter2@b/c'}]", "proxy.rules number 1.redirect"),
        ("rules: [{regex: a, redirect: 'store.example:99999'}]", "proxy.rules number 1.redirect"),
        ("registryMirror: {addr: 'registry.example:0'}", "proxy.registryMirror.url or addr"),
        ("rules: [{regex: a, useTLS: hunter2}]", "proxy.rules number 1.useTLS"),
        ("rules: [{regex: a, filteredQueryParams: hunter2}]", "proxy.rules number 1.filteredQueryParams"),
        ("registryMirror: {url: 'https://u:hunter2@registry.example'}", "proxy.registryMirror.url or addr"),
        ("registryMirror: {url: 'https://registry.example', dynamic: false}", "proxy.registryMirror.dynamic"),
        ("hijackHTTPS: {hosts: [{regx: '('}]}", "proxy.hijackHTTPS.hosts number 1.regx"),
        ("defaultTag: prod", "proxy"),
        ("whiteList: [{host: 'http://u:hunter2@a'}]", "proxy.whiteList number 1.host"),
    ],
)
def test_what_cannot_be_said_is_named_without_its_value(tmp_path: Path, proxy: str, place: str) -> None:
    text = f"proxy: {{{proxy}}}"
    assert place in noted(text)
    assert "hunter2" not in "".join(import_dragonfly(text).notes)
    loaded(text, tmp_path)


def test_a_white_list_that_cannot_be_said_lets_nobody_through(tmp_path: Path) -> None:
    assert not allows(loaded("proxy: {whiteList: [{regx: example}]}", tmp_path), "example")


@pytest.mark.parametrize("auth", ["{password: hunter2}", "{username: 'a:b', password: hunter2}", "hunter2"])
def test_users_are_never_left_out(auth: str) -> None:
    with pytest.raises(ConfigError, match=r"^proxy\.basicAuth") as raised:
        import_dragonfly(f"proxy: {{basicAuth: {auth}}}")
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "a: [",
        "proxy:\n  password: 'hunter2\n",
        "a: 2026-99-99",
        "proxy: 1",
        "proxy: {rules: {a: b}}",
        "a: !!x 1",
    ],
)
def test_what_is_not_such_a_file_is_refused_without_its_text(text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        import_dragonfly(text)
    assert "hunter2" not in str(raised.value)


@given(
    match=st.text(min_size=1, alphabet=st.characters(exclude_categories=["Cs"])),
    tag=st.text(alphabet=st.characters(exclude_categories=["Cs"])),
)
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, match: str, tag: str) -> None:
    read = loaded(
        yaml.safe_dump({"proxy": {"defaultTag": tag, "rules": [{"regex": match}]}}), tmp_path_factory.mktemp("p")
    )
    for rule in read.rules:
        assert (rule.pattern.pattern, rule.tag) == (match, tag or None)


def test_the_command_prints_the_file_and_says_the_rest_on_stderr(tmp_path: Path) -> None:
    file = tmp_path / "dfget.yaml"
    file.write_text(GO)
    result = CliRunner().invoke(app, ["config", "import", str(file)])
    assert (result.exit_code, result.stdout) == (0, import_dragonfly(GO).toml)
    assert len(result.stderr.splitlines()) == len(import_dragonfly(GO).notes)
    missing = CliRunner().invoke(app, ["config", "import", str(tmp_path / "absent")])
    assert (missing.exit_code, missing.stdout) == (2, "")
