"""The `damselfly` command as a process: run to its end, or watched by the lines it logs."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.process import Child
from tests.support.secrets import WATCH

DAMSELFLY = (sys.executable, "-m", "damselfly")
DEADLINE = 280.0
"""Seconds after which a test fails, before `faulthandler_timeout` ends the run; nothing that works comes near it."""

ANY = "127.0.0.1:0"
NOWHERE = "127.0.0.1:1"
"""An address where nobody listens."""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    done = subprocess.run([*DAMSELFLY, *arguments], capture_output=True, text=True, timeout=DEADLINE, check=False)
    WATCH.text("command", f"output of damselfly {arguments[0]}", f"{done.stdout}\n{done.stderr}".encode())
    return done


def peer_arguments(data_dir: Path, **flags: str) -> list[str]:
    """Return the arguments of a peer on free ports, without a scheduler; `flags` (with _ for -) replace or add some."""
    usual = {
        "data_dir": str(data_dir),
        "scheduler": NOWHERE,
        "proxy_listen": ANY,
        "piece_listen": ANY,
        "http_listen": ANY,
    }
    return [
        "peer",
        *(word for name, value in (usual | flags).items() for word in (f"--{name.replace('_', '-')}", value)),
    ]


class Daemon:
    """A daemon that is ready; `addresses` has what its ready line says."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.child = Child(arguments[0], [*DAMSELFLY, *arguments], log, echo=self._lines.put)
        self.addresses: dict[str, str] = self.child.wait_ready(time.monotonic() + DEADLINE)

    def event(self, name: str) -> dict[str, Any]:
        """Wait for the next log line with this event, and return it."""
        while True:
            line: dict[str, Any] = json.loads(self._lines.get(timeout=DEADLINE))
            if line["event"] == name:
                return line

    def join(self) -> int:
        """Wait for the end, and return the exit code; -9 if it did not come in time."""
        return self.child.join(time.monotonic() + DEADLINE)


@contextlib.contextmanager
def running_daemon(arguments: list[str], log: Path) -> Iterator[Daemon]:
    """Run a daemon; what is left of it in the end is killed. What it leaves behind is looked at for secrets."""
    daemon = Daemon(arguments, log)
    try:
        yield daemon
    finally:
        if daemon.child.is_running():
            WATCH.pages(arguments[0], daemon.addresses["http"])
            daemon.child.kill()
        WATCH.log(log)
        for flag in ("--data-dir", "--state-dir"):
            if flag in arguments:
                WATCH.directory(Path(arguments[arguments.index(flag) + 1]))
