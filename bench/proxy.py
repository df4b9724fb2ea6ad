"""`damselfly bench proxy`: what a local hit of a small object costs, beside other caching proxies in the same run.

One object, warm everywhere; one load of keep-alive connections for each proxy in turn, from one generator that has a
CPU of its own where there are two. What is compared is requests per CPU-second of the proxy's process ("a core"), which
says what the answer costs whether or not the machine had time to spare.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.cluster import DAMSELFLY, LocalCluster
from bench.load import Load, run_load
from bench.origin_client import OriginClient, running_origin
from bench.process import Child
from bench.rivals import RIVALS, Rival
from p2p.config import parse_address
from p2p.errors import DamselflyError

OURS = "damselfly peer"
LOAD_GENERATOR = "bench.load: one thread, one selector, blocking keep-alive sockets"
_WARM_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Cost:
    """What one proxy took for the load; `origin_requests` are those that it made meanwhile. The median of the rounds.

    `requests_per_cpu_second` is what one core does: requests over the CPU time of the proxy's process.
    """

    name: str
    version: str
    requests_per_cpu_second: float
    requests_per_second: float
    p50_seconds: float
    p99_seconds: float
    cpu_seconds: float
    requests: int
    origin_requests: int


@dataclass(frozen=True, slots=True)
class Result:
    """All costs, ours first, and the names of those that are not installed."""

    object_bytes: int
    connections: int
    seconds: float
    rounds: int
    authorize_ttl_seconds: float
    costs: Sequence[Cost]
    missing: Sequence[str]

    def figures(self) -> dict[str, Any]:
        """Return everything for the JSON file."""
        return {
            "object_bytes": self.object_bytes,
            "connections": self.connections,
            "seconds": self.seconds,
            "rounds": self.rounds,
            "authorize_ttl_seconds": self.authorize_ttl_seconds,
            "load_generator": LOAD_GENERATOR,
            "proxies": [
                {name: getattr(cost, name) for name in Cost.__dataclass_fields__} | {"installed": True}
                for cost in self.costs
            ]
            + [{"name": name, "installed": False} for name in self.missing],
        }


@dataclass(frozen=True, slots=True)
class Contender:
    """A running proxy to be measured, at `address` ("host:port")."""

    name: str
    version: str
    address: str
    child: Child


def measure(
    *,
    size: int,
    connections: int,
    seconds: float,
    rounds: int,
    authorize_ttl: float,
    progress: Callable[[str], None] = lambda text: None,
    program: Sequence[str] = DAMSELFLY,
    rivals: Mapping[str, Rival] = RIVALS,
) -> Result:
    """Start an origin, a peer and every rival that is installed, and give each the same load in every round; blocks.

    `authorize_ttl` in seconds: how long the peer's rule remembers the origin's leave (0: it asks at every request).
    """
    missing = [rival.name for rival in rivals.values() if rival.find() is None]
    with contextlib.ExitStack() as stack:
        generator = stack.enter_context(_cpus_apart())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="damselfly-")))
        directory.chmod(0o755)  # squid gives up root's rights before it looks at its directory
        progress("starting")
        origin = stack.enter_context(running_origin("unlimited", directory))
        contenders = [_peer(stack, directory, authorize_ttl, program)]
        for rival in rivals.values():
            if rival.name not in missing:
                running = stack.enter_context(rival.running(directory))
                contenders.append(Contender(rival.name, running.version, running.address, running.child))
        made = origin.create("models/small/1/model.onnx", size)
        request = request_for(made.url)
        samples: dict[str, list[Cost]] = {contender.name: [] for contender in contenders}
        try:
            with generator():
                for number in range(rounds):
                    for contender in contenders:
                        progress(f"{contender.name}, round {number + 1} of {rounds}")
                        samples[contender.name].append(
                            cost(contender, origin, request, size=size, connections=connections, seconds=seconds)
                        )
        except DamselflyError as error:
            for contender in contenders:
                error.add_note(f"the log of {contender.name} ends with:\n{contender.child.tail()}")
            raise
    costs = [_median(taken) for taken in samples.values()]
    return Result(size, connections, seconds, rounds, authorize_ttl, costs, missing)


def request_for(url: str, headers: Sequence[tuple[str, str]] = ()) -> bytes:
    """Return the request that curl would make for `url` through a proxy, with `headers` besides."""
    lines = [f"GET {url} HTTP/1.1", f"Host: {urlsplit(url).netloc}", "User-Agent: curl/8.9.1", "Accept: */*"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join((*lines, "Proxy-Connection: Keep-Alive", "", "")).encode()


def cost(
    contender: Contender, origin: OriginClient, request: bytes, *, size: int, connections: int, seconds: float
) -> Cost:
    """Warm a proxy up, load it for `seconds`, and return what that took. Raises LoadError, and OSError."""
    address = parse_address(contender.address)

    def load(duration: float) -> Load:
        return run_load(
            (address.host, address.port), repeat(request), body_bytes=size, connections=connections, seconds=duration
        )

    load(_WARM_SECONDS)
    asked, spent = origin.stats().requests, contender.child.cpu_seconds()
    loaded = load(seconds)
    spent = contender.child.cpu_seconds() - spent
    return Cost(
        name=contender.name,
        version=contender.version,
        requests_per_cpu_second=loaded.requests / spent if spent else 0.0,
        requests_per_second=loaded.requests / loaded.seconds,
        p50_seconds=loaded.latency(0.5),
        p99_seconds=loaded.latency(0.99),
        cpu_seconds=spent,
        requests=loaded.requests,
        origin_requests=origin.stats().requests - asked,
    )


def _peer(stack: contextlib.ExitStack, directory: Path, authorize_ttl: float, program: Sequence[str]) -> Contender:
    rules = directory / "peer.toml"
    rules.write_text(f"[[rules]]\nmatch = '.'\nauthorize_ttl = '{authorize_ttl:g}s'\n")
    cluster = stack.enter_context(
        LocalCluster(peers=1, seeds=0, program=program, arguments={"peer": ["--config", str(rules)]})
    )
    peer = cluster["peer-1"]
    return Contender(OURS, "this checkout", peer.addresses["proxy"], peer.child)


def _median(costs: Sequence[Cost]) -> Cost:
    return sorted(costs, key=lambda cost: cost.requests_per_cpu_second)[len(costs) // 2]


@contextlib.contextmanager
def _cpus_apart() -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
    """Keep this process' children off one CPU; the context manager it gives moves the caller to that one.

    On a machine with one CPU there is nothing to keep apart.
    """
    before = os.sched_getaffinity(0)
    own = {max(before)}
    others = before - own or own

    @contextlib.contextmanager
    def there() -> Iterator[None]:
        os.sched_setaffinity(0, own)
        try:
            yield
        finally:
            os.sched_setaffinity(0, others)

    os.sched_setaffinity(0, others)
    try:
        yield there
    finally:
        os.sched_setaffinity(0, before)
