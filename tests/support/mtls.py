"""Authorities of clusters, and certificates of their members."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from p2p.mtls import KEY_FILE
from p2p.tls import CertificateAuthority
from tests.support.secrets import secret


class TestAuthority:
    """An authority of a cluster, below `directory`."""

    __test__ = False

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._authority = CertificateAuthority.create(directory / "ca", name="cluster", now=datetime.now(UTC))

    def member(self, name: str) -> Path:
        """Make a certificate for a member; return its directory. From now on its key must not be found anywhere."""
        directory = self._directory / name
        self._authority.issue(directory, name, now=datetime.now(UTC))
        for line in (directory / KEY_FILE).read_text().splitlines()[1:-1]:
            secret(f"the key of {name}", line)
        return directory
