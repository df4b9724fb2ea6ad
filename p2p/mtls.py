"""TLS between the members of a cluster, each of whom shows a certificate of the cluster's own authority (mTLS).

Whoever has such a certificate is a member: names in it are for people, and are not compared with what was dialled, for
hosts are dialled by addresses that change. The tokens of the cluster secret are asked for all the same.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from p2p.errors import ConfigError

AUTHORITY_FILE = "ca.crt"
CERTIFICATE_FILE = "tls.crt"
KEY_FILE = "tls.key"
"""What a member's directory holds, called as in a TLS Secret of Kubernetes. The key is not encrypted."""

HANDSHAKE_SECONDS = 10.0
"""How long a member may take for a handshake."""

REMEDY = "give every host of the cluster, and the scheduler, --cluster-tls-dir with a certificate of one authority"


@dataclass(frozen=True, slots=True)
class ClusterTls:
    """Contexts of one member: to dial others with, and to be dialled. TLS 1.3; both sides show a certificate."""

    client: ssl.SSLContext
    server: ssl.SSLContext

    @classmethod
    def load(cls, directory: Path) -> ClusterTls:
        """Read ca.crt, tls.crt and tls.key of a directory. Raises ConfigError, which says nothing of the key."""
        return cls(_context(directory, ssl.PROTOCOL_TLS_CLIENT), _context(directory, ssl.PROTOCOL_TLS_SERVER))


def explain(error: ssl.SSLError) -> str:
    """Return what an error of TLS means between two members of a cluster, and what to do."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not one of this cluster ({error.verify_message}); {REMEDY}"
    reason = error.reason or type(error).__name__
    if "ALERT" in reason:
        return f"it does not take this host's certificate ({reason}); {REMEDY}"
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
        return f"it speaks no TLS; {REMEDY}"
    return f"TLS failed ({reason})"


def tls_error(error: BaseException) -> ssl.SSLError | None:
    """Return the error of TLS that an HTTP library's error is about, if it is about one."""
    for each in (getattr(error, "certificate_error", None), getattr(error, "os_error", None), error.__cause__):
        if isinstance(each, ssl.SSLError):
            return each
    return None


def _context(directory: Path, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        for name in (AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE):
            # By itself first: what ssl raises does not say which file is missing.
            (directory / name).open("rb").close()
        context.load_verify_locations(cafile=directory / AUTHORITY_FILE)
        # Without a password to ask the terminal for.
        context.load_cert_chain(directory / CERTIFICATE_FILE, directory / KEY_FILE, password=_no_password)
    except ssl.SSLError as error:
        raise ConfigError(
            f"the certificates in {str(directory)!r} cannot be used ({error.reason or 'no PEM'}): {AUTHORITY_FILE} is "
            f"to hold the cluster's authority, {CERTIFICATE_FILE} a certificate of it and {KEY_FILE} its unencrypted "
            "key; make them with: damselfly ca issue"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"cannot read {error.filename!r}: {error.strerror}; make a host's certificate with: damselfly ca issue"
        ) from None
    return context


def _no_password() -> str:
    return ""
