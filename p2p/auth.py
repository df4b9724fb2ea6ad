"""The cluster secret: who belongs to the cluster, proved by short-lived HMAC tokens.

One file holds the secret on every host (made by `damselfly up`, a Kubernetes Secret elsewhere). A token is
`purpose.subject.expiry.mac`: the purpose says what it opens ("rpc", "admin", "piece"), the subject for whom (a host id,
or a version id for pieces), the expiry in whole seconds of Unix time, and the MAC (HMAC-SHA256) proves knowledge of the
secret. Tokens are compared in constant time. A daemon without a secret accepts everyone, and listens on loopback only.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import tempfile
from pathlib import Path

from p2p.errors import ConfigError, UnauthorizedError

TOKEN_SECONDS = 300
"""How long a token opens its door; clocks in one cluster must agree to within this."""

_MINIMUM_BYTES = 16

_HEAD = re.compile(r"(?P<purpose>[^.]*)\.(?P<subject>.*)\.(?P<expiry>[0-9]{1,15})", re.DOTALL)
_SCHEME = "Damselfly"


class ClusterSecret:
    """A shared secret that signs and verifies tokens; its repr shows nothing."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        if len(key) < _MINIMUM_BYTES:
            raise ConfigError(f"the cluster secret has {len(key)} bytes; at least {_MINIMUM_BYTES} are needed")
        self._key = hashlib.sha256(b"damselfly cluster secret\0" + key).digest()

    @classmethod
    def load(cls, path: Path) -> ClusterSecret:
        """Read the secret from a file; surrounding white space does not count. Raises ConfigError."""
        remedy = f"make one with: head -c 32 /dev/urandom | base64 > {path}"
        try:
            return cls(path.read_bytes().strip())
        except OSError as error:
            raise ConfigError(f"cannot read the cluster secret {str(path)!r}: {error.strerror}; {remedy}") from error
        except ConfigError as error:
            raise ConfigError(f"{error} ({str(path)!r}); {remedy}") from None

    @classmethod
    def load_or_create(cls, path: Path) -> ClusterSecret:
        """Read the secret from a file, which is made (mode 0600, random content) if it does not exist."""
        try:
            if path.exists():
                return cls.load(path)
            # Written aside and linked into place, so that of several daemons that start at once none reads half a
            # secret, and all read the same one.
            descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(base64.b64encode(secrets.token_bytes(32)) + b"\n")
                    file.flush()
                    os.fsync(file.fileno())
                with contextlib.suppress(FileExistsError):
                    os.link(draft, path)
            finally:
                Path(draft).unlink()
        except OSError as error:
            raise ConfigError(f"cannot create the cluster secret {str(path)!r}: {error.strerror}") from error
        return cls.load(path)

    def sign(self, purpose: str, subject: str, *, now: float) -> str:
        """Return a token that opens `purpose` for `subject` until `now` (Unix seconds) plus TOKEN_SECONDS.

        A purpose has no dot in it (ValueError); a subject, which may be a host's full name, may have some.
        """
        if "." in purpose:
            raise ValueError(f"the purpose {purpose!r} has a dot in it")
        head = f"{purpose}.{subject}.{int(now) + TOKEN_SECONDS}"
        return f"{head}.{self._mac(head)}"

    def verify(self, token: str, purpose: str, *, now: float, subject: str | None = None) -> str:
        """Return the subject that the token was signed for; raise UnauthorizedError unless it is sound.

        Where `subject` is given the token must name it.
        """
        head, _, mac = token.rpartition(".")
        genuine = hmac.compare_digest(_encoded(mac), _encoded(self._mac(head)))
        match = _HEAD.fullmatch(head)
        if not genuine or match is None or match["purpose"] != purpose:
            raise UnauthorizedError(f"not a token for {purpose!r} of this cluster; compare --cluster-secret-file")
        if not now <= int(match["expiry"]) <= now + 2 * TOKEN_SECONDS:
            raise UnauthorizedError("the token has expired; compare the clocks of the two hosts")
        if subject is not None and match["subject"] != subject:
            raise UnauthorizedError("the token was made for something else")
        return match["subject"]

    def _mac(self, head: str) -> str:
        return hmac.new(self._key, _encoded(head), hashlib.sha256).hexdigest()

    def __repr__(self) -> str:
        return "ClusterSecret(…)"


def authorization(token: str) -> str:
    """Return the value of the `Authorization` field that carries `token` to a piece server or an admin API."""
    return f"{_SCHEME} {token}"


def bearer_token(header: str) -> str:
    """Return the token of an `Authorization` field; raise UnauthorizedError if it carries none of ours."""
    scheme, _, token = header.strip().partition(" ")
    if scheme.lower() != _SCHEME.lower() or not token:
        raise UnauthorizedError("no cluster token was given; the cluster secret is needed (--cluster-secret-file)")
    return token.strip()


def is_loopback(host: str) -> bool:
    """Tell whether a listener on `host` can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def require_secret(secret: ClusterSecret | None, *hosts: str) -> None:
    """Raise ConfigError if a listener would be open to other machines without a cluster secret."""
    for host in hosts:
        if secret is None and not is_loopback(host):
            raise ConfigError(
                f"listening on {host or 'every interface'} needs --cluster-secret-file: without it anyone who reaches "
                "that address could read the cache; give the file, or listen on 127.0.0.1"
            )


def _encoded(text: str) -> bytes:
    # Whatever a stranger sends must be comparable, halves of surrogate pairs included.
    return text.encode("utf-8", "surrogatepass")
