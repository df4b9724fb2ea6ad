"""Authorities and what they sign: the one that intercepted TLS is opened with, and the cluster's own (`p2p.mtls`).

The operator makes an authority once (`damselfly ca init`) and has the clients trust it; a peer signs a leaf for each
host whose TLS it opens. Leaves live in memory only. Each has one `ssl.SSLContext` for as long as it is used: session
tickets are good for the context that issued them, and they are what makes the next file's handshake cheap.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.backends.openssl import backend as _backend  # noqa: F401  # else by the first leaf, in the loop
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from p2p.errors import ConfigError
from p2p.mtls import AUTHORITY_FILE, CERTIFICATE_FILE
from p2p.mtls import KEY_FILE as MEMBER_KEY_FILE

CA_FILE = "ca.pem"
"""The authority's certificate, in its directory: what clients are to trust."""

KEY_FILE = "ca-key.pem"
"""The authority's key, in its directory: whoever has it can be any host to those clients."""

CA_DAYS = 3650
LEAF_DAYS = 30
"""How long certificates are good for. Leaves are made anew at half their life, and outlive no process."""

MEMBER_DAYS = 3650
"""How long a member's certificate is good for, if nothing shorter is asked for."""

MAX_LEAVES = 1024
"""Leaves kept; the least recently used go first."""

_SKEW = timedelta(days=1)  # clocks of clients may be slow
_WILDCARD_LABELS = 4


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """A certificate and the key that signs in its name."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, directory: Path, *, name: str, now: datetime) -> CertificateAuthority:
        """Make an authority (ECDSA, P-256) called `name`, and write it to `directory`, which is made if need be.

        The key's file is for its owner only. Raises ConfigError if there is an authority already: clients trust it.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            _builder(subject, subject, key.public_key(), now, now + timedelta(days=CA_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        try:
            directory.mkdir(parents=True, exist_ok=True)
            # The key first: what stops half-way leaves nothing that clients could be told to trust.
            _write_new(directory / KEY_FILE, _key_pem(key), mode=0o600)
            _write_new(directory / CA_FILE, _pem(certificate), mode=0o644)
        except FileExistsError as error:
            raise ConfigError(
                f"{error.filename!r} exists already, and clients may trust it; choose another --dir, or remove "
                f"{KEY_FILE} and {CA_FILE} if nobody does"
            ) from error
        except OSError as error:
            raise ConfigError(f"cannot write an authority to {str(directory)!r}: {error.strerror}") from error
        return cls(certificate, key)

    @classmethod
    def load(cls, directory: Path) -> CertificateAuthority:
        """Read what `create` wrote. Raises ConfigError, also for a key of another kind or of another certificate."""
        certificate = cls.load_certificate(directory)
        path = directory / KEY_FILE
        try:
            key = serialization.load_pem_private_key(_read(path), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            # Not chained: nothing of a key's file belongs into a log.
            raise ConfigError(f"{str(path)!r} is not an unencrypted private key in PEM") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError(f"{str(path)!r} is not an ECDSA key; make an authority with: damselfly ca init")
        if certificate.public_key() != key.public_key():
            raise ConfigError(f"{str(path)!r} is not the key of {str(directory / CA_FILE)!r}; restore the pair")
        return cls(certificate, key)

    @staticmethod
    def load_certificate(directory: Path) -> x509.Certificate:
        """Read the authority's certificate alone. Raises ConfigError."""
        path = directory / CA_FILE
        try:
            return x509.load_pem_x509_certificate(_read(path))
        except ValueError as error:
            raise ConfigError(f"{str(path)!r} is not a certificate in PEM: {error}") from error

    def leaf(self, name: str, *, now: datetime) -> Leaf:
        """Sign a leaf with a fresh key for a host name (`*.` for its whole level) or an IP address."""
        key = ec.generate_private_key(ec.SECP256R1())
        until = min(now + timedelta(days=LEAF_DAYS), self.certificate.not_valid_after_utc)
        # The subject says nothing: names stand in the extension (RFC 9525 §2), and here they may be too long.
        certificate = _builder(x509.Name([]), self.certificate.subject, key.public_key(), now, until).add_extension(
            x509.SubjectAlternativeName([_general_name(name)]), critical=True
        )
        return Leaf(self._signed(certificate, ExtendedKeyUsageOID.SERVER_AUTH), key)

    def issue(self, directory: Path, name: str, *, now: datetime, days: int = MEMBER_DAYS) -> x509.Certificate:
        """Sign a certificate for a member of the cluster called `name`, and write what `p2p.mtls` reads to `directory`.

        The key's file is for its owner only. Raises ConfigError, also if there is one already.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        until = min(now + timedelta(days=days), self.certificate.not_valid_after_utc)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._signed(
            _builder(subject, self.certificate.subject, key.public_key(), now, until),
            ExtendedKeyUsageOID.SERVER_AUTH,
            ExtendedKeyUsageOID.CLIENT_AUTH,
        )
        try:
            directory.mkdir(parents=True, exist_ok=True)
            _write_new(directory / MEMBER_KEY_FILE, _key_pem(key), mode=0o600)
            _write_new(directory / CERTIFICATE_FILE, _pem(certificate), mode=0o644)
            _write_new(directory / AUTHORITY_FILE, _pem(self.certificate), mode=0o644)
        except FileExistsError as error:
            raise ConfigError(f"{error.filename!r} exists already; choose another --out, or remove it") from error
        except OSError as error:
            raise ConfigError(f"cannot write a certificate to {str(directory)!r}: {error.strerror}") from error
        return certificate

    def _signed(self, builder: x509.CertificateBuilder, *purposes: x509.ObjectIdentifier) -> x509.Certificate:
        """Sign a certificate that signs no others."""
        return (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
            .sign(self.key, hashes.SHA256())
        )


@dataclass(frozen=True, slots=True)
class Leaf:
    """A host's certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def context(self) -> ssl.SSLContext:
        """Return a server's context with this leaf: TLS 1.2 or later, HTTP/1.1 by ALPN, session tickets."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        # ssl reads files only, and this key is not for the disk.
        with os.fdopen(os.memfd_create("leaf"), "wb") as file:
            file.write(_pem(self.certificate) + _key_pem(self.key))
            file.flush()
            context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
        return context


class LeafContexts:
    """Servers' TLS contexts by host, made on demand. Belongs to one thread."""

    def __init__(self, authority: CertificateAuthority, *, max_leaves: int = MAX_LEAVES) -> None:
        self._authority = authority
        self._max_leaves = max_leaves
        self._contexts: OrderedDict[str, tuple[ssl.SSLContext, datetime]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._contexts)

    def get(self, host: str, *, now: datetime) -> ssl.SSLContext:
        """Return the context for a host name or IP address; hosts that share a leaf share the context."""
        name = certificate_name(host)
        context, renewal = self._contexts.get(name, (None, now))
        if context is None or renewal <= now:
            leaf = self._authority.leaf(name, now=now)
            context = leaf.context()
            renewal = now + (leaf.certificate.not_valid_after_utc - now) / 2
        self._contexts[name] = (context, renewal)
        self._contexts.move_to_end(name)
        if len(self._contexts) > self._max_leaves:
            self._contexts.popitem(last=False)
        return context


def certificate_name(host: str) -> str:
    """Return the name of the leaf for `host`: an IP address, the host itself, or the wildcard of its level.

    A wildcard (`*.s3.amazonaws.com` for every bucket there) needs a parent of three labels or more, so that it stays
    within what one organisation has registered, `co.uk` and the like included.
    """
    host = host.lower().rstrip(".")
    try:
        return str(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        labels = host.split(".")
        return ".".join(("*", *labels[1:])) if len(labels) >= _WILDCARD_LABELS else host


def fingerprint(certificate: x509.Certificate) -> str:
    """Return a certificate's SHA-256 fingerprint, as `openssl x509 -fingerprint -sha256` prints it."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now.astimezone(UTC) - _SKEW)
        .not_valid_after(until.astimezone(UTC))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read {str(path)!r}: {error.strerror}; make an authority with: "
            f"damselfly ca init --dir {path.parent}"
        ) from error


def _write_new(path: Path, data: bytes, *, mode: int) -> None:
    """Write a file that must not exist yet."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
