"""A network of namespaces on one machine: each node behind a link of its own, whose both directions are shaped.

One namespace is the switch (a bridge), one (`control`) has a link without a limit, for the scheduler and the origin,
and each node has one. A veth pair leads from a node to the bridge; a token bucket (tc's tbf) at the node's end limits
what it sends, one at the bridge's end what it gets. Addresses are private ones and exist in these namespaces alone.

The namespaces' names say which process made them, so that what a killed one left behind is known and removed. Needs
root, `ip` and `tc` (iproute2).
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from p2p.errors import ConfigError, DamselflyError

CONTROL = "control"
"""The name of the place without a limit."""
_SWITCH = "switch"
_PRIVATE = ipaddress.ip_network("10.213.0.0/16")
_PREFIX = "damselfly"
_NAMED = Path("/run/netns")
_DEVICE = "up0"
_PORT = "port"
_CLONE_NEWNET = 0x40000000
_BURST_SECONDS = 0.010
_LEAST_BURST_BYTES = 64 * 1024
"""As large as the packets that the kernel hands to a link; with less it would have to cut each of them."""
_QUEUE_SECONDS = 0.100
_CONGESTION_CONTROL = "reno"
"""The one that every kernel lets a namespace have; over a link like these the default, cubic, is no faster than it
(RFC 9438, section 4.3). Figures must not depend on what else this machine has: a new flow of BBR stays slow for seconds
when its acknowledgements wait in a full queue."""
_CONGESTION_SETTING = Path("/proc/sys/net/ipv4/tcp_congestion_control")
_COMMAND_SECONDS = 30.0


class NetworkError(DamselflyError):
    """A namespace, a link or its shaping could not be made."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A token bucket: bytes a second, how many may leave at once, and how many may wait."""

    rate: float
    burst_bytes: int
    queue_bytes: int

    @classmethod
    def of(cls, rate: float) -> Shape:
        """Return one that lets TCP use the rate, less the packets' heads: 10 ms of burst, 100 ms of queue."""
        burst = max(_LEAST_BURST_BYTES, round(rate * _BURST_SECONDS))
        return cls(rate, burst, burst + round(rate * _QUEUE_SECONDS))

    def words(self) -> list[str]:
        """Return it as tc's arguments."""
        bits, burst, limit = round(self.rate * 8), self.burst_bytes, self.queue_bytes
        return ["tbf", "rate", f"{bits}bit", "burst", f"{burst}b", "limit", f"{limit}b"]


@dataclass(frozen=True, slots=True)
class Plan:
    """Who has which address, and the name of the bridge's end of whose link; `control` comes first."""

    places: Mapping[str, str]

    @classmethod
    def of(cls, nodes: Sequence[str]) -> Plan:
        """Return the plan of a network with these nodes, one address each. Raises ConfigError for too many."""
        names = [CONTROL, *nodes]
        if len(set(names)) < len(names):
            raise ValueError(f"names are given twice: {names}")
        if len(names) > _PRIVATE.num_addresses - 2:
            raise ConfigError(f"{len(nodes)} nodes: {_PRIVATE} has no addresses for so many")
        return cls({name: str(_PRIVATE[number]) for number, name in enumerate(names, start=1)})

    def port(self, name: str) -> str:
        """Return the device of the bridge that the place's link ends at."""
        return f"{_PORT}{list(self.places).index(name)}"

    def switch_lines(self, prefix: str) -> list[str]:
        """Return what `ip -batch` is to do in the switch's namespace; the others' exist."""
        lines = ["link add name br0 type bridge", "link set br0 up"]
        for name in self.places:
            port = self.port(name)
            peer = f"peer name {_DEVICE} netns {prefix}-{name}"
            lines += [f"link add name {port} type veth {peer}", f"link set {port} master br0 up"]
        return lines

    def place_lines(self, name: str) -> list[str]:
        """Return what `ip -batch` is to do in the namespace of one place."""
        address = f"{self.places[name]}/{_PRIVATE.prefixlen}"
        return ["link set lo up", f"addr add {address} dev {_DEVICE}", f"link set {_DEVICE} up"]


def unavailable() -> str | None:
    """Return why this process cannot make such a network, None if it can: it makes a small one."""
    missing = [program for program in ("ip", "tc") if shutil.which(program) is None]
    if missing:
        return f"{' and '.join(missing)} (iproute2) not found"
    if os.geteuid() != 0:
        return "not root"
    try:
        # Root in a container may not, and a kernel may lack veth, bridges or tbf.
        with Network(["probe"], 1e6):
            return None
    except (NetworkError, OSError) as error:
        return str(error)


class Network:
    """Makes the namespaces of a plan and removes them in the end, with what still runs in them; a context manager."""

    def __init__(self, nodes: Sequence[str], rate: float) -> None:
        """Describe a network whose nodes send and get at most `rate` bytes a second each."""
        self.plan = Plan.of(nodes)
        self.shape = Shape.of(rate)
        self._prefix = _own_prefix()
        self._stack = contextlib.ExitStack()
        self._handles: dict[str, int] = {}

    def __enter__(self) -> Self:
        remove_stale()
        with contextlib.ExitStack() as stack:
            for name in (_SWITCH, *self.plan.places):
                stack.callback(_remove, f"{self._prefix}-{name}")
                _ip("netns", "add", f"{self._prefix}-{name}")
                self._handles[name] = os.open(_NAMED / f"{self._prefix}-{name}", os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, self._handles[name])
            switch = f"{self._prefix}-{_SWITCH}"
            _batch("ip", switch, self.plan.switch_lines(self._prefix))
            shape = " ".join(self.shape.words())
            nodes = [name for name in self.plan.places if name != CONTROL]
            for name in self.plan.places:
                _batch("ip", f"{self._prefix}-{name}", self.plan.place_lines(name))
                self._control_congestion(name)
            for name in nodes:
                _batch("tc", f"{self._prefix}-{name}", [f"qdisc add dev {_DEVICE} root {shape}"])
            _batch("tc", switch, [f"qdisc add dev {self.plan.port(name)} root {shape}" for name in nodes])
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _control_congestion(self, name: str) -> None:
        with self.inside(name):
            try:
                _CONGESTION_SETTING.write_text(_CONGESTION_CONTROL)
            except OSError as error:
                raise NetworkError(
                    f"cannot have TCP use {_CONGESTION_CONTROL} in a namespace: {error.strerror}"
                ) from error

    def command(self, name: str) -> tuple[str, ...]:
        """Return the words that, before a command, run it in a place."""
        return ("ip", "netns", "exec", f"{self._prefix}-{name}")

    @contextlib.contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Have this thread be in a place: sockets that it makes meanwhile stay there. No await and no yield within."""
        own = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(self._handles[name])
            try:
                yield
            finally:
                _enter(own)
        finally:
            os.close(own)

    @contextlib.contextmanager
    def counters(self) -> Iterator[SwitchCounters]:
        """Give the counters of the switch's ports while the context lasts."""
        with self.inside(_SWITCH):
            fd = os.open(f"/proc/self/task/{threading.get_native_id()}/net/dev", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield SwitchCounters(fd, {self.plan.port(name): name for name in self.plan.places})
        finally:
            os.close(fd)


class SwitchCounters:
    """What each place has sent, as the switch saw it."""

    def __init__(self, fd: int, names: Mapping[str, str]) -> None:
        self._fd = fd
        self._names = names

    def sent(self) -> dict[str, int]:
        """Return the bytes, with the heads of packets, that each place has sent so far."""
        chunks, offset = [], 0
        while chunk := os.pread(self._fd, 64 * 1024, offset):
            chunks.append(chunk)
            offset += len(chunk)
        received = received_bytes(b"".join(chunks).decode())
        return {name: received[port] for port, name in self._names.items() if port in received}


def received_bytes(text: str) -> dict[str, int]:
    """Return the bytes that each device has received, from what /proc/net/dev says."""
    rows = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {device.strip(): int(fields.split()[0]) for device, _, fields in rows}


def stale(names: Iterable[str], started: Mapping[int, int]) -> list[str]:
    """Return the namespaces whose maker is gone; `started` has when each process that runs was started, in ticks."""
    found = []
    for name in names:
        words = name.split("-")
        if words[0] == _PREFIX and len(words) >= 4 and words[1].isdecimal() and words[2].isdecimal():
            maker, since = int(words[1]), int(words[2])
            if started.get(maker) != since:
                found.append(name)
    return sorted(found)


def remove_stale() -> list[str]:
    """Remove the namespaces, and end what runs in them, that processes which are gone left behind; return their names.

    Removing the namespaces removes their links.
    """
    started = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                started[int(entry.name)] = _start_ticks(int(entry.name))
    names = stale([path.name for path in _NAMED.iterdir()] if _NAMED.is_dir() else [], started)
    for name in names:
        _remove(name)
    return names


def _own_prefix() -> str:
    return f"{_PREFIX}-{os.getpid()}-{_start_ticks(os.getpid())}"


def _start_ticks(pid: int) -> int:
    """Return when a process was started, in clock ticks since the boot: with its id, it names it for good."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def _remove(name: str) -> None:
    with contextlib.suppress(NetworkError):
        for pid in _ip("netns", "pids", name).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        _ip("netns", "del", name)


def _enter(handle: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(handle, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise NetworkError(f"cannot enter a network namespace: {os.strerror(number)}")


def _ip(*words: str) -> str:
    return _run(["ip", *words])


def _batch(program: str, namespace: str, lines: Sequence[str]) -> None:
    _run([program, "-n", namespace, "-batch", "-"], "\n".join(lines) + "\n")


def _run(command: Sequence[str], text: str = "") -> str:
    try:
        done = subprocess.run(  # noqa: S603  # fixed programs, names of our own
            command, input=text, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NetworkError(f"{command[0]} could not be run: {error}") from error
    if done.returncode != 0:
        raise NetworkError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
