"""Peer to peer by TLS: the same hop, where every host has a certificate of the cluster."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.dataplane.figures import Figure
from bench.dataplane.peers import hops
from bench.dataplane.plan import Plan, Progress, running
from p2p.tls import CertificateAuthority

SECTION = "peer to peer by TLS"
RECEIVE_CPU_SECONDS = 1.3
"""CPU-seconds a GiB to receive, decrypt, verify and write, at the most."""


def measure(plan: Plan, progress: Progress) -> Iterator[Figure]:
    """Let a peer fetch an object from a seed that holds it, as often as there are rounds."""
    with tempfile.TemporaryDirectory(prefix="damselfly-") as name:
        arguments = certificates(Path(name), ("scheduler", "seed-1", "peer-1"))
        with running("unlimited", plan, peers=1, seeds=1, arguments=arguments) as field:
            values = hops(field, plan, progress, SECTION)
    yield Figure(SECTION, "one to another", "bytes_per_second", values["bytes_per_second"])
    what = "receive, decrypt, verify, write"
    yield Figure(SECTION, what, "cpu_seconds_per_gib", values["receive"], most=RECEIVE_CPU_SECONDS)
    yield Figure(SECTION, "encrypt and send", "cpu_seconds_per_gib", values["send"])


def certificates(directory: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Make an authority of a cluster in a directory, and certificates; return the flag for each daemon of `names`."""
    now = datetime.now(UTC)
    authority = CertificateAuthority.create(directory / "ca", name="damselfly bench", now=now)
    for name in names:
        authority.issue(directory / name, name, now=now)
    return {name: ["--cluster-tls-dir", str(directory / name)] for name in names}
