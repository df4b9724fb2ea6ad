"""From an origin: what a host spends to receive, verify and write by HTTP and by HTTPS, from nginx."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from bench.dataplane.figures import Figure, by_name, per_gib
from bench.dataplane.local import serve_files
from bench.dataplane.peers import fetch_whole
from bench.dataplane.plan import Field, Plan, Progress, running
from bench.rivals import NGINX_FILES, NGINX_TLS_FILES
from p2p.tls import CA_FILE, CertificateAuthority

SECTION = "from an origin"
HTTPS_CPU_SECONDS = 1.3
"""CPU-seconds a GiB to receive, decrypt, verify and write, at the most."""
_THROUGH_P2P = (("X-Dragonfly-Use-P2P", "true"),)


def unavailable() -> str | None:
    """Say what this section needs and does not find; None if there is nothing."""
    return None if NGINX_FILES.find() else "nginx is not installed"


def measure(plan: Plan, progress: Progress) -> Iterator[Figure]:
    """Let a host fetch an object from nginx by either way, in turn."""
    with tempfile.TemporaryDirectory(prefix="damselfly-") as name, ExitStack() as stack:
        directory = Path(name)
        urls = stack.enter_context(servers(directory, plan.large))
        trust = {"seed": ["--origin-ca-file", str(directory / "ca" / CA_FILE)]}
        field = stack.enter_context(running("unlimited", plan, peers=0, seeds=1, arguments=trust))
        rounds: list[dict[str, float]] = []
        for number in range(plan.rounds + 1):
            progress(f"{SECTION}, round {number}" if number else f"{SECTION}, warm-up")
            rounds.append({})
            for scheme, url in urls.items():
                rounds[-1] |= from_origin(field, scheme, url, plan.large)
    values = by_name(rounds[1:])
    for scheme, most in (("HTTP", None), ("HTTPS", HTTPS_CPU_SECONDS)):
        yield Figure(SECTION, scheme, "bytes_per_second", values[f"{scheme} bytes_per_second"])
        yield Figure(SECTION, scheme, "cpu_seconds_per_gib", values[f"{scheme} cpu_seconds_per_gib"], most=most)


def from_origin(field: Field, scheme: str, url: str, size: int) -> dict[str, float]:
    """Have seed-1 fetch an object of `size` bytes, and forget it; return its rate and CPU time a GiB."""
    seed = field.cluster["seed-1"]
    with field.writing(size):
        spent = seed.child.cpu_seconds()
        seconds, task_id = fetch_whole(url, seed, headers=_THROUGH_P2P)
        spent = seed.child.cpu_seconds() - spent
    field.cluster.delete_task(task_id)
    return {f"{scheme} bytes_per_second": size / seconds, f"{scheme} cpu_seconds_per_gib": per_gib(spent, size)}


@contextmanager
def servers(directory: Path, size: int) -> Iterator[dict[str, str]]:
    """Serve a file of `size` bytes with nginx; gives its URLs by scheme.

    The authority of the one over HTTPS is in `ca` of the directory. Raises ChildError.
    """
    now = datetime.now(UTC)
    leaf = CertificateAuthority.create(directory / "ca", name="damselfly bench", now=now).leaf("127.0.0.1", now=now)
    key = leaf.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    plain, secured = directory / "plain", directory / "secured"
    serve_files(plain, {"": size})
    secured.mkdir()
    (secured / "files").symlink_to(plain / "files")
    (secured / "leaf.pem").write_bytes(leaf.certificate.public_bytes(Encoding.PEM) + key)
    with NGINX_FILES.running(plain) as http, NGINX_TLS_FILES.running(secured) as https:
        yield {"HTTP": f"http://{http.address}/{size}", "HTTPS": f"https://{https.address}/{size}"}
