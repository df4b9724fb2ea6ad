"""A whole cluster on this machine: a scheduler, seed peers and peers, each a process of its own.

`damselfly up`, the bench and the integration tests run on it. Ports are free ones unless asked otherwise, directories
are fresh, and leaving the context stops everything in the reverse of the order in which it was started. All calls
block; from asyncio use `asyncio.to_thread`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Literal, Protocol, Self

from bench.process import Child, ChildError
from p2p.auth import ClusterSecret, authorization
from p2p.errors import ConfigError

DAMSELFLY = (sys.executable, "-m", "damselfly")
SCHEDULER = "scheduler"
_STOP_SECONDS = 15.0
_FREE = "127.0.0.1:0"
_DEFAULT_PORTS = {
    "scheduler": {"grpc": "127.0.0.1:8002", "http": "127.0.0.1:8000"},
    "peer-1": {"proxy": "127.0.0.1:65001", "pieces": "127.0.0.1:65002", "http": "127.0.0.1:65003"},
}
_LISTEN_FLAGS = {
    "scheduler": {"grpc": "--grpc-listen", "http": "--http-listen"},
    "seed": {"proxy": "--proxy-listen", "pieces": "--piece-listen", "http": "--http-listen"},
    "peer": {"proxy": "--proxy-listen", "pieces": "--piece-listen", "http": "--http-listen"},
}

Role = Literal["scheduler", "seed", "peer"]


@dataclass(frozen=True, slots=True)
class Daemon:
    """One member of the cluster. `addresses` ("host:port") has grpc and http, or proxy, pieces and http."""

    name: str
    role: Role
    child: Child
    addresses: Mapping[str, str]
    directory: Path

    @property
    def pid(self) -> int:
        """The process id."""
        return self.child.pid

    @property
    def log(self) -> Path:
        """The file that holds everything the daemon wrote to standard output and standard error."""
        return self.child.log


class Watcher(Protocol):
    """Looks at clusters as they end."""

    def stopping(self, daemon: Daemon) -> None:
        """Hear of a daemon that runs and is about to be stopped."""

    def stopped(self, cluster: LocalCluster) -> None:
        """Hear of a cluster whose daemons have all ended, and whose directory is still there."""


class Placement(Protocol):
    """Where a cluster's daemons run, if that is not simply here."""

    def command(self, name: str) -> Sequence[str]:
        """Return the words before the command of the daemon called `name`."""

    def addresses(self, name: str) -> Mapping[str, str]:
        """Return what it listens on ("host:port"), by kind."""

    def inside(self, name: str) -> AbstractContextManager[None]:
        """Return what this thread enters to make connections to the daemon."""


class LocalCluster:
    """Runs `scheduler`, `scheduler-2`, …, `seed-1`, …, `peer-1`, …: a context manager; entering waits for all."""

    watchers: ClassVar[list[Watcher]] = []

    def __init__(
        self,
        *,
        peers: int = 2,
        seeds: int = 1,
        schedulers: int = 1,
        directory: Path | None = None,
        default_ports: bool = False,
        arguments: Mapping[str, Sequence[str]] | None = None,
        program: Sequence[str] = DAMSELFLY,
        placement: Placement | None = None,
        ready_seconds: float = 60.0,
        echo: Callable[[str], None] | None = None,
    ) -> None:
        """Describe the cluster; nothing is started yet.

        `directory` holds the secret, the data and the logs and is kept; without it a temporary one is used. With
        `default_ports` the scheduler and peer-1 listen on the documented ports. `arguments` adds flags by name or by
        role. `program` is the command that the daemons' subcommands are given to. `placement` says where each runs;
        without it, here, on loopback. `echo` gets every log line.
        """
        self._names: dict[str, Role] = {SCHEDULER: "scheduler"}
        self._names |= {f"{SCHEDULER}-{number}": "scheduler" for number in range(2, schedulers + 1)}
        self._names |= {f"seed-{number}": "seed" for number in range(1, seeds + 1)}
        self._names |= {f"peer-{number}": "peer" for number in range(1, peers + 1)}
        self._given_directory = directory
        self._ports: dict[str, Mapping[str, str]] = dict(_DEFAULT_PORTS) if default_ports else {}
        if placement is not None:
            self._ports |= {name: placement.addresses(name) for name in self._names}
        self._placement = placement
        self._arguments = arguments or {}
        self.program = tuple(program)
        self._ready_seconds = ready_seconds
        self._echo = echo
        self._daemons: dict[str, Daemon] = {}
        self._stopping: set[int] = set()
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            if self._given_directory is None:
                self.directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="damselfly-")))
            else:
                self.directory = self._given_directory
                _make(self.directory)
            self.secret_file = self.directory / "cluster-secret"
            self.secret = ClusterSecret.load_or_create(self.secret_file)
            stack.callback(self._stop_all)
            deadline = time.monotonic() + self._ready_seconds
            self._start([name for name, role in self._names.items() if role == "scheduler"], deadline)
            self._start([name for name, role in self._names.items() if role != "scheduler"], deadline)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> Daemon:
        return self._daemons[name]

    @property
    def daemons(self) -> Mapping[str, Daemon]:
        """All daemons by name, in the order in which they were started; also those that were killed."""
        return self._daemons

    def kill(self, name: str) -> None:
        """End one daemon at once (SIGKILL)."""
        child = self._daemons[name].child
        self._stopping.add(child.pid)
        child.kill()

    def stop(self, name: str) -> int:
        """Let one daemon drain and stop (SIGTERM); returns its exit code."""
        self._announce(self._daemons[name])
        child = self._daemons[name].child
        self._stopping.add(child.pid)
        child.terminate()
        return child.join(time.monotonic() + _STOP_SECONDS)

    def restart(self, name: str) -> Daemon:
        """Start a daemon again, with the ports and the directory it had; it is stopped first if it runs."""
        self.stop(name)
        self._start([name], time.monotonic() + self._ready_seconds)
        return self._daemons[name]

    def add_scheduler(self) -> Daemon:
        """Start one more scheduler, which nobody but the other schedulers is told of."""
        name = f"{SCHEDULER}-{1 + sum(role == 'scheduler' for role in self._names.values())}"
        self._names[name] = "scheduler"
        self._start([name], time.monotonic() + self._ready_seconds)
        return self._daemons[name]

    def terminate(self) -> None:
        """Send SIGTERM to every daemon and return: the first lets it drain, a second ends it at once."""
        for daemon in self._daemons.values():
            self._stopping.add(daemon.pid)
            daemon.child.terminate()

    def wait(self) -> str:
        """Block until a daemon ends that nobody stopped, and return its name."""
        return self._ended.get()

    def delete_task(self, task_id: str, *, names: Sequence[str] | None = None) -> None:
        """Let every running peer, or those of these names, forget a task and its bytes.

        Raises ChildError for answers but 200 and 404.
        """
        for daemon in self._daemons.values():
            if daemon.role == "scheduler" or not daemon.child.is_running():
                continue
            if names is not None and daemon.name not in names:
                continue
            token = self.secret.sign("admin", "bench", now=time.time())
            connection = http.client.HTTPConnection(daemon.addresses["http"], timeout=_STOP_SECONDS)
            with contextlib.closing(connection), self._inside(daemon.name):
                connection.request("DELETE", f"/v1/tasks/{task_id}", headers={"Authorization": authorization(token)})
                response = connection.getresponse()
                answer = response.read()
            if response.status not in (200, 404):
                raise ChildError(
                    f"{daemon.name} answered {response.status} to DELETE /v1/tasks/{task_id}: {answer[:200]!r}; "
                    f"see {daemon.log}"
                )

    def _start(self, names: Sequence[str], deadline: float) -> None:
        for name in names:
            # Registered before anyone waits, so that a failure of one stops them all.
            directory = self.directory / name
            _make(directory)
            child = Child(
                name, self._command(name), self.directory / f"{name}.log", echo=self._echo, on_exit=self._note_end
            )
            self._daemons[name] = Daemon(name, self._names[name], child, {}, directory)
        for name in names:
            daemon = self._daemons[name]
            fields = daemon.child.wait_ready(deadline)
            try:
                addresses = {kind: str(fields[kind]) for kind in _LISTEN_FLAGS[daemon.role]}
            except KeyError as error:
                raise ChildError(
                    f"{name} is ready, but did not say its address for {error}: {json.dumps(fields)}"
                ) from None
            self._ports[name] = addresses
            self._daemons[name] = Daemon(name, daemon.role, daemon.child, addresses, daemon.directory)

    def _command(self, name: str) -> list[str]:
        role = self._names[name]
        ports = self._ports.get(name, {})
        before = self._placement.command(name) if self._placement else ()
        command = [*before, *self.program, "scheduler" if role == "scheduler" else "peer"]
        if role == "seed":
            command.append("--seed")
        for kind, flag in _LISTEN_FLAGS[role].items():
            command += [flag, ports.get(kind, _FREE)]
        command += ["--cluster-secret-file", str(self.secret_file)]
        directory = str(self.directory / name)
        if role == "scheduler":
            command += ["--state-dir", directory]
        else:
            # Host ids are given because all these hosts are one machine.
            for daemon in self._daemons.values():
                if daemon.role == "scheduler":
                    command += ["--scheduler", daemon.addresses["grpc"]]
            command += ["--data-dir", directory, "--host-id", name]
        return [*command, *self._arguments.get(role, ()), *(self._arguments.get(name, ()) if name != role else ())]

    def _inside(self, name: str) -> AbstractContextManager[None]:
        return self._placement.inside(name) if self._placement else contextlib.nullcontext()

    def _note_end(self, name: str) -> None:
        daemon = self._daemons.get(name)
        if daemon is not None and daemon.pid not in self._stopping:
            self._ended.put(name)

    def _announce(self, daemon: Daemon) -> None:
        for watcher in self.watchers if daemon.child.is_running() else ():
            watcher.stopping(daemon)

    def _stop_all(self) -> None:
        for daemon in self._daemons.values():
            self._announce(daemon)
        for roles in (("seed", "peer"), ("scheduler",)):
            tier = [daemon.child for daemon in reversed(self._daemons.values()) if daemon.role in roles]
            for child in tier:
                self._stopping.add(child.pid)
                child.terminate()
            deadline = time.monotonic() + _STOP_SECONDS
            for child in tier:
                child.join(deadline)
        for watcher in self.watchers:
            watcher.stopped(self)


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot make the directory {str(directory)!r}: {error.strerror}; name one that this user may write"
        ) from error
