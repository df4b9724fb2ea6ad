from __future__ import annotations

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from typer.testing import CliRunner

from damselfly.cli import app
from p2p.errors import ConfigError
from p2p.mtls import AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE, ClusterTls, explain, tls_error
from p2p.tls import CertificateAuthority
from peer.settings import load_configuration
from tests.support.mtls import TestAuthority

NOW = datetime.now(UTC)


class Handshake:
    """Two members in memory; after `run` each has shown the other its certificate."""

    def __init__(self, client: ssl.SSLContext, server: ssl.SSLContext) -> None:
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = client.wrap_bio(down, up)
        self.server = server.wrap_bio(up, down, server_side=True)

    def run(self) -> None:
        for end in (self.client, self.server, self.client, self.server):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue


def test_members_of_one_authority_know_each_other(tmp_path: Path) -> None:
    authority = TestAuthority(tmp_path)
    handshake = Handshake(ClusterTls.load(authority.member("a")).client, ClusterTls.load(authority.member("b")).server)
    handshake.run()
    assert handshake.client.version() == "TLSv1.3"
    subject = handshake.server.getpeercert()
    assert subject is not None
    assert subject["subject"] == ((("commonName", "a"),),)


def test_a_stranger_is_found_out_by_either_side(tmp_path: Path) -> None:
    ours, theirs = TestAuthority(tmp_path / "ours"), TestAuthority(tmp_path / "theirs")
    member, stranger = ClusterTls.load(ours.member("a")), ClusterTls.load(theirs.member("b"))
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        Handshake(member.client, stranger.server).run()
    assert "not one of this cluster" in explain(caught.value)
    assert "--cluster-tls-dir" in explain(caught.value)


def test_a_leaf_for_intercepted_tls_is_no_member(tmp_path: Path) -> None:
    authority = TestAuthority(tmp_path)
    server = ClusterTls.load(authority.member("b")).server
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    leaf = CertificateAuthority.load(tmp_path / "ca").leaf("host.example", now=NOW)
    files = tmp_path / "leaf.pem"
    files.write_bytes(
        leaf.certificate.public_bytes(Encoding.PEM)
        + leaf.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    )
    client.load_cert_chain(files, password="x")
    with pytest.raises(ssl.SSLError):
        Handshake(client, server).run()


@pytest.mark.parametrize("missing", [AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE])
def test_a_file_that_is_missing_is_named(tmp_path: Path, missing: str) -> None:
    directory = TestAuthority(tmp_path).member("a")
    (directory / missing).unlink()
    with pytest.raises(ConfigError, match=f"{missing}.*damselfly ca issue"):
        ClusterTls.load(directory)


@pytest.mark.parametrize("name", [AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE])
def test_a_file_that_holds_something_else_is_an_error_that_repeats_nothing(tmp_path: Path, name: str) -> None:
    directory = TestAuthority(tmp_path).member("a")
    (directory / name).write_text("swordfish")
    with pytest.raises(ConfigError, match="cannot be used") as caught:
        ClusterTls.load(directory)
    assert "swordfish" not in str(caught.value)


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_password(tmp_path: Path) -> None:
    directory = TestAuthority(tmp_path).member("a")
    key = ec.generate_private_key(ec.SECP256R1())
    encrypted = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"swordfish"))
    (directory / KEY_FILE).write_bytes(encrypted)
    with pytest.raises(ConfigError, match="unencrypted"):
        ClusterTls.load(directory)


def test_issue_writes_what_a_host_needs_and_overwrites_nothing(tmp_path: Path) -> None:
    run = CliRunner().invoke
    assert run(app, ["ca", "init", "--dir", f"{tmp_path}/ca", "--name", "cluster"]).exit_code == 0
    arguments = ["ca", "issue", "--dir", f"{tmp_path}/ca", "--out", f"{tmp_path}/a", "--name", "a", "--days", "30"]
    told = run(app, arguments)
    assert told.exit_code == 0
    assert "PRIVATE" not in told.output
    assert stat.S_IMODE((tmp_path / "a" / KEY_FILE).stat().st_mode) == 0o600
    certificate = x509.load_pem_x509_certificate((tmp_path / "a" / CERTIFICATE_FILE).read_bytes())
    assert timedelta(days=29) < certificate.not_valid_after_utc - NOW < timedelta(days=31)
    ClusterTls.load(tmp_path / "a")
    again = run(app, arguments)
    assert (again.exit_code, "exists already" in again.output) == (2, True)


def test_the_directory_may_stand_in_the_configuration_file(tmp_path: Path) -> None:
    file = tmp_path / "peer.toml"
    file.write_text('[cluster]\ntls_dir = "tls"\n')
    assert load_configuration(file).cluster_tls_dir == tmp_path / "tls"
    file.write_text('[cluster]\ntls-dir = "tls"\n')
    with pytest.raises(ConfigError, match="did you mean 'tls_dir'"):
        load_configuration(file)


def test_what_is_no_error_of_tls_is_told_apart() -> None:
    assert tls_error(OSError("refused")) is None
    cause = ssl.SSLError("x")
    error = OSError("aiohttp's")
    error.__cause__ = cause
    assert tls_error(error) is cause
