"""Looks for secrets in everything that the suite's daemons leave behind.

Each time a cluster or a daemon of a test ends, its log, its metrics and its data directory are read, and so is what
each `damselfly` command said and each error that a client of a test was answered with. Two things must not be there:
a secret that a test registered by `secret`, plain or percent-encoded, and whatever has the shape of a signature or of
an Authorization field's value (`SHAPES`). Whatever was found fails the run in its end (`_watch_for_secrets`).

Read are whole files: logs, SQLite indexes with their write-ahead logs, notes. Of payload files (`data/??/*` in a data
directory: the bytes of objects, as many GiB as there are) only the names are; `cluster-secret` and what tests write
themselves as configuration are not read. Neither are the logs of the stores beside the daemons (radosgw, Azurite).
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from bench.cluster import DAMSELFLY, Daemon, LocalCluster

SHAPES = {
    "a query's signature of S3 or GCS": rb"(?i:x-(?:amz|goog)-signature)(?:=|%3D)[0-9a-fA-F]{16,}",
    "a session token": rb"(?i:x-amz-security-token)(?:=|%3D)[\w%+/=.-]{16,}",
    "a shared access signature": rb"(?:[?&]|%26|%3F)sig(?:=|%3D)[\w%+/=-]{16,}",
    "a bearer token": rb"\bBearer [\w.~+/=-]{12,}",
    "basic credentials": rb"\bBasic (?=[a-z+/]*[A-Z0-9])[A-Za-z0-9+/]{8,}",
    "a signed Authorization of S3 or GCS": rb"\b(?:AWS4|GOOG4)-[A-Z0-9-]+ Credential=.{9,400}?Signature=[0-9a-f]{16,}",
    "a signed Authorization of Azure": rb"\bSharedKey(?:Lite)? \w+:[A-Za-z0-9+/]{20,}",
    "a token of the cluster": rb"\bDamselfly [\w.=-]{20,}",
    "a private key": rb"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----",
}
"""What has the shape of a secret, by what it is called in a finding."""

SHORTEST_SECRET = 8
"""Shorter values (moto's "test") stand in every log by chance; no server that checks anything takes them."""

_PAGES = {"scheduler": ("/metrics", "/healthz", "/readyz", "/v1/swarms")}
_PEER_PAGES = ("/metrics", "/healthz", "/readyz")
_ANSWER_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Finding:
    """A place where something must not be; it says which secret it is and never the secret."""

    what: str
    where: str
    test: str


class Watch:
    """What was looked at, by kind, and what was found."""

    def __init__(self) -> None:
        self.looked: Counter[str] = Counter()
        self.findings: list[Finding] = []
        self._secrets: dict[str, str] = {}
        self._shapes = {name: re.compile(shape) for name, shape in SHAPES.items()}

    def secret(self, name: str, value: str) -> None:
        """From now on, `value` must not be found anywhere."""
        if len(value) >= SHORTEST_SECRET:
            self._secrets[value] = name

    def text(self, kind: str, where: str, data: bytes) -> None:
        """Look at some bytes of a kind ("log", "metrics", …) that come from `where`."""
        self.looked[kind] += 1
        test = os.environ.get("PYTEST_CURRENT_TEST", "").partition(" ")[0]
        names = [name for name, shape in self._shapes.items() if shape.search(data)]
        for value, name in self._secrets.items():
            if any(form.encode() in data for form in {value, quote(value, safe="")}):
                names.append(name)
        self.findings += [Finding(name, where, test) for name in names]

    def directory(self, directory: Path) -> None:
        """Look at a daemon's data or state directory: all names, and all files but payload."""
        for file in sorted(directory.rglob("*")):
            relative = file.relative_to(directory)
            self.text("name", str(file), str(relative).encode())
            if file.is_file() and not is_payload(relative):
                self.text(_kind(file), str(file), file.read_bytes())

    def log(self, file: Path) -> None:
        """Look at a daemon's log."""
        if file.exists():
            self.text("log", str(file), file.read_bytes())

    def pages(self, role: str, address: str) -> None:
        """Look at what a running daemon tells at `address` ("host:port"); one that does not answer is let be."""
        for page in _PAGES.get(role, _PEER_PAGES):
            connection = http.client.HTTPConnection(address, timeout=_ANSWER_SECONDS)
            with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("GET", page)
                body = connection.getresponse().read()
                self.text("metrics" if page == "/metrics" else "page", f"{role} {page}", body)

    def stopping(self, daemon: Daemon) -> None:
        """Look at what a daemon of a cluster tells, right before it is stopped."""
        if "http" in daemon.addresses:
            self.pages(daemon.role, daemon.addresses["http"])

    def stopped(self, cluster: LocalCluster) -> None:
        """Look at what the daemons of a cluster leave behind; stand-ins of other programs are their tests' own."""
        if cluster.program != DAMSELFLY:
            return
        self.secret("the cluster's secret", cluster.secret_file.read_text().strip())
        for daemon in cluster.daemons.values():
            self.log(daemon.log)
            self.directory(daemon.directory)

    def report(self) -> str:
        """Return a line for each distinct finding."""
        lines = Counter(f"{found.what} in {found.where} ({found.test})" for found in self.findings)
        return "\n".join(sorted(lines))


WATCH = Watch()
"""The suite's own: everything in tests/support that starts a daemon or makes a secret tells it."""


def secret(name: str, value: str) -> str:
    """Register a secret of a test, and return it."""
    WATCH.secret(name, value)
    return value


@contextlib.contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Let `watch` see every LocalCluster that ends while the context lasts."""
    LocalCluster.watchers.append(watch)
    try:
        yield
    finally:
        LocalCluster.watchers.remove(watch)


def is_payload(relative: Path) -> bool:
    """Tell whether a file, named relative to a data directory, holds bytes of an object."""
    parts: Sequence[str] = relative.parts
    return len(parts) == 3 and parts[0] == "data" and len(parts[1]) == 2


def _kind(file: Path) -> str:
    if file.name.endswith("-wal"):
        return "write-ahead log"
    return "index" if ".sqlite" in file.name else "note"
