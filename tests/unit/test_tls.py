from __future__ import annotations

import contextlib
import ipaddress
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from typer.testing import CliRunner

from damselfly.cli import app
from p2p.errors import ConfigError
from p2p.tls import (
    CA_FILE,
    KEY_FILE,
    LEAF_DAYS,
    CertificateAuthority,
    LeafContexts,
    certificate_name,
    fingerprint,
)

NOW = datetime.now(UTC)


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority.create(tmp_path, name="test", now=NOW)


class Handshake:
    """A TLS client and a server in memory."""

    def __init__(
        self,
        client: ssl.SSLContext,
        server: ssl.SSLContext,
        host: str,
        session: ssl.SSLSession | None = None,
    ) -> None:
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = client.wrap_bio(down, up, server_hostname=host, session=session)
        self.server = server.wrap_bio(up, down, server_side=True)
        for _ in range(4):
            for end in (self.client, self.server):
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()
        # In TLS 1.3 the tickets come with the first bytes.
        self.server.write(b"x")
        self.client.read(1)


def trusting(directory: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=directory / CA_FILE)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def test_an_authority_is_read_back(tmp_path: Path, authority: CertificateAuthority) -> None:
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    read = CertificateAuthority.load(tmp_path)
    assert read.certificate == authority.certificate
    assert isinstance(read.key.curve, ec.SECP256R1)
    constraints = read.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value) == (True, x509.BasicConstraints(ca=True, path_length=0))


def test_an_authority_is_never_overwritten(tmp_path: Path, authority: CertificateAuthority) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        CertificateAuthority.create(tmp_path, name="other", now=NOW)
    assert CertificateAuthority.load(tmp_path).certificate == authority.certificate


def test_what_is_no_authority_is_told_apart(tmp_path: Path, authority: CertificateAuthority) -> None:
    with pytest.raises(ConfigError, match="damselfly ca init --dir"):
        CertificateAuthority.load(tmp_path / "nowhere")
    key_file = tmp_path / KEY_FILE
    for key, reason in (
        (ec.generate_private_key(ec.SECP256R1()), "is not the key of"),
        (rsa.generate_private_key(65537, 2048), "not an ECDSA key"),
    ):
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        with pytest.raises(ConfigError, match=reason):
            CertificateAuthority.load(tmp_path)
    key_file.write_text("no key at all")
    with pytest.raises(ConfigError, match="not an unencrypted private key"):
        CertificateAuthority.load(tmp_path)
    (tmp_path / CA_FILE).write_text("no certificate")
    with pytest.raises(ConfigError, match="not a certificate"):
        CertificateAuthority.load(tmp_path)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("example.com", "example.com"),
        ("Models.Example.com.", "models.example.com"),
        ("example.co.uk", "example.co.uk"),
        ("bucket.s3.amazonaws.com", "*.s3.amazonaws.com"),
        ("a.b.s3.amazonaws.com", "*.b.s3.amazonaws.com"),
        ("account.blob.core.windows.net", "*.blob.core.windows.net"),
        ("minio", "minio"),
        ("10.1.2.3", "10.1.2.3"),
        ("[2001:DB8::1]", "2001:db8::1"),
    ],
)
def test_the_name_of_a_hosts_leaf(host: str, name: str) -> None:
    assert certificate_name(host) == name


@pytest.mark.parametrize("host", ["minio", "bucket.s3.amazonaws.com", "127.0.0.1", "::1"])
def test_clients_that_trust_the_authority_verify_a_leaf(
    tmp_path: Path, authority: CertificateAuthority, host: str
) -> None:
    done = Handshake(trusting(tmp_path), LeafContexts(authority).get(host, now=NOW), host)
    assert done.client.selected_alpn_protocol() == "http/1.1"
    assert done.client.version() == "TLSv1.3"
    assert b"test" in (done.client.getpeercert(binary_form=True) or b"")


def test_a_leaf_is_for_no_other_host(tmp_path: Path, authority: CertificateAuthority) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        Handshake(trusting(tmp_path), LeafContexts(authority).get("a.example.com", now=NOW), "b.example.com")


def test_a_leaf_says_what_clients_check(authority: CertificateAuthority) -> None:
    leaf = authority.leaf("10.0.0.1", now=NOW).certificate
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.IPAddress(ipaddress.ip_address("10.0.0.1"))]
    assert leaf.not_valid_before_utc < NOW - timedelta(hours=23), "for clients whose clock is slow"
    assert leaf.not_valid_after_utc <= NOW + timedelta(days=LEAF_DAYS)
    leaf.verify_directly_issued_by(authority.certificate)


def test_old_tls_is_refused(authority: CertificateAuthority) -> None:
    assert LeafContexts(authority).get("h", now=NOW).minimum_version is ssl.TLSVersion.TLSv1_2


def test_the_next_handshake_resumes_the_session(tmp_path: Path, authority: CertificateAuthority) -> None:
    leaves, client = LeafContexts(authority), trusting(tmp_path)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        client.maximum_version = version
        first = Handshake(client, leaves.get("h", now=NOW), "h")
        again = Handshake(client, leaves.get("h", now=NOW), "h", session=first.client.session)
        assert (first.client.session_reused, again.client.session_reused) == (False, True)


def test_leaves_are_kept_renewed_and_bounded(authority: CertificateAuthority) -> None:
    leaves = LeafContexts(authority, max_leaves=2)
    first = leaves.get("a.s3.example.com", now=NOW)
    assert leaves.get("b.s3.example.com", now=NOW) is first, "one leaf for all buckets"
    assert leaves.get("a.s3.example.com", now=NOW + timedelta(days=LEAF_DAYS / 2 - 1)) is first
    assert leaves.get("a.s3.example.com", now=NOW + timedelta(days=LEAF_DAYS / 2 + 1)) is not first
    for host in ("b", "c"):
        leaves.get(host, now=NOW)
    assert len(leaves) == 2


def test_the_command_line(tmp_path: Path) -> None:
    run, directory = CliRunner(), str(tmp_path / "ca")
    made = run.invoke(app, ["ca", "init", "--dir", directory])
    certificate = CertificateAuthority.load(Path(directory)).certificate
    assert made.exit_code == 0
    assert fingerprint(certificate) in made.stdout
    again = run.invoke(app, ["ca", "init", "--dir", directory])
    assert again.exit_code == 2
    assert "exists already" in again.stderr
    shown = run.invoke(app, ["ca", "show", "--dir", directory])
    assert certificate == x509.load_pem_x509_certificate(shown.stdout[shown.stdout.index("-----") :].encode())
    assert "PRIVATE" not in shown.stdout
