"""Local hits: a client on this host reads, with curl, what the peer holds; nginx serves the same bytes beside it."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.content import SyntheticObject
from bench.dataplane.figures import Figure, by_name, per_gib
from bench.dataplane.plan import Plan, Progress, running
from bench.process import Child
from bench.rivals import NGINX_FILES
from p2p.errors import DamselflyError

SECTION = "local hit"
_CONNECTIONS = (1, 8)
_CURL_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Server:
    """What is read from: the process that answers, its proxy's address if it is one, and the objects' URLs."""

    child: Child
    proxy: str | None
    urls: dict[str, str]


def unavailable() -> str | None:
    """Say what this section needs and does not find; None if there is nothing."""
    return None if shutil.which("curl") else "curl is not installed"


def measure(plan: Plan, progress: Progress) -> Iterator[Figure]:
    """Read a large and a medium object again and again over one and over eight connections."""
    sizes = {"1 GiB": plan.large, "64 MiB": plan.medium}
    with ExitStack() as stack:
        # A plain server asks nobody whether its file may be read; nor does a peer that remembers the origin's leave.
        config = {"peer-1": "[[rules]]\nmatch = '.'\nauthorize_ttl = '10m'\n"}
        field = stack.enter_context(running("unlimited", plan, peers=1, seeds=0, config=config))
        cluster = field.cluster
        peer = cluster["peer-1"]
        urls = {name: field.origin.create(f"models/{size}/1/model.bin", size).url for name, size in sizes.items()}
        servers = {"ours": Server(peer.child, peer.addresses["proxy"], urls)}
        if NGINX_FILES.find() is not None:
            directory = cluster.directory / "nginx"
            rival = stack.enter_context(NGINX_FILES.running(serve_files(directory, sizes)))
            servers["nginx"] = Server(
                rival.child, None, {name: f"http://{rival.address}/{size}" for name, size in sizes.items()}
            )
        for name, size in sizes.items():
            for server in servers.values():
                # The first read brings the object here, and into the page cache.
                with field.writing(size):
                    _read(server, name, size, connections=1, times=1)
        field.origin.reset()
        for name, size in sizes.items():
            for connections in _CONNECTIONS:
                times = max(1, plan.large * 2 // size // (1 if connections == 1 else 4))
                rounds: list[dict[str, float]] = []
                for number in range(1, plan.rounds + 1):
                    progress(f"{SECTION}, {name}, connections: {connections}, round {number}")
                    rounds.append({})
                    for whose, server in servers.items():
                        rounds[-1] |= read_round(server, whose, name, size, connections, times)
                yield from _figures(name, connections, by_name(rounds))
        if field.origin.stats().body_bytes > sum(sizes.values()) // 2:
            raise DamselflyError("the peer asked the origin for what it was to have: these were no local hits")


def serve_files(directory: Path, sizes: dict[str, int]) -> Path:
    """Write an object of each size, named by it, to what nginx serves of the directory, and return the directory."""
    files = directory / "files"
    files.mkdir(parents=True)
    for size in sizes.values():
        with (files / str(size)).open("wb") as file:
            for part in SyntheticObject(str(size), size).slices(0, size):
                file.write(part)
    return directory


def read_round(server: Server, whose: str, name: str, size: int, connections: int, times: int) -> dict[str, float]:
    """Read the object of that name `times` times over each connection; return the rate and the server's CPU time a GiB.

    Raises DamselflyError where a curl fails, or reads anything but `size` bytes each time.
    """
    spent = server.child.cpu_seconds()
    seconds = _read(server, name, size, connections=connections, times=times)
    spent = server.child.cpu_seconds() - spent
    moved = size * connections * times
    return {f"{whose} bytes_per_second": moved / seconds, f"{whose} cpu_seconds_per_gib": per_gib(spent, moved)}


def _read(server: Server, name: str, size: int, *, connections: int, times: int) -> float:
    """Read an object `times` times with each of as many curls as `connections`; return the seconds all took."""
    command = curl(server.urls[name], proxy=server.proxy, times=times)
    began = time.perf_counter()
    running = [
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: S603
        for _ in range(connections)
    ]
    try:
        said = [each.communicate(timeout=_CURL_SECONDS) for each in running]
    finally:
        for each in running:
            if each.poll() is None:
                each.kill()
                each.communicate()
    seconds = time.perf_counter() - began
    for each, (output, complaint) in zip(running, said, strict=True):
        if each.returncode != 0:
            raise DamselflyError(f"curl ended with status {each.returncode}: {complaint.strip()[:300]}")
        if [int(line) for line in output.split()] != [size] * times:
            raise DamselflyError(f"curl did not read {times} times {size} bytes, but {output.split()}")
    return seconds


def curl(url: str, *, proxy: str | None, times: int) -> Sequence[str]:
    """Return the command that reads a URL into nothing `times` times over one connection, and says how many bytes."""
    found = shutil.which("curl")
    if found is None:
        raise DamselflyError("curl is not installed")
    way = ("--proxy", f"http://{proxy}", "--noproxy", "") if proxy else ("--noproxy", "*")
    words = (found, "--disable", "--silent", "--show-error", "--fail", *way, "--write-out", "%{size_download}\\n")
    return (*words, *(("--output", "/dev/null", url) * times))


def _figures(name: str, connections: int, values: dict[str, tuple[float, ...]]) -> Iterator[Figure]:
    over = f"{name}, {connections} connection{'s' if connections > 1 else ''}"
    for unit, least, most in (("bytes_per_second", 1.0, None), ("cpu_seconds_per_gib", None, 1.0)):
        yield Figure(
            SECTION, over, unit, values[f"ours {unit}"], values.get(f"nginx {unit}", ()), least, most, versus=True
        )
