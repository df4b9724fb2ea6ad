"""Child processes whose readiness is a line of JSON, and what they cost in CPU and memory.

A child says `{"event": "ready", …}` on standard output or standard error once it listens. Both streams go to one log
file by way of a thread, so a full pipe never holds a child up and nothing ever polls for readiness.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from p2p.errors import DamselflyError

_SAMPLE_SECONDS = 0.02
_TAIL_LINES = 15
_DRAIN_SECONDS = 5.0


class ChildError(DamselflyError):
    """A child process did not become ready, or did not stop; the text ends with the last lines of its log."""


class Child:
    """One running child process called `name`."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        log: Path,
        *,
        echo: Callable[[str], None] | None = None,
        on_exit: Callable[[str], None] | None = None,
    ) -> None:
        """Start `argv`; its output is appended to `log` and given to `echo`, line by line, from a thread.

        `on_exit` is called with `name`, from that thread, when the process has ended for whatever reason.
        """
        self.name = name
        self.log = log
        self._echo = echo
        self._on_exit = on_exit
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._ready: Future[dict[str, Any]] = Future()
        self._cpu_seconds = 0.0
        self._process = subprocess.Popen(  # noqa: S603  # the bench starts its own programs
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Ctrl-C at the terminal is for whoever started it, who then ends its children in good order.
            process_group=0,
        )
        self._thread = threading.Thread(target=self._follow, name=f"log of {name}", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def is_running(self) -> bool:
        """Tell whether the process has not ended yet."""
        return self._process.poll() is None

    def wait_ready(self, deadline: float) -> dict[str, Any]:
        """Return the fields of the ready line; raises ChildError if `deadline` (time.monotonic) or its end comes."""
        try:
            return self._ready.result(timeout=max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise ChildError(
                f"{self.name} is not ready in time; its log {self.log} ends with:\n{self.tail()}"
            ) from None

    def terminate(self) -> None:
        """Ask the process to end (SIGTERM); `join` waits for it."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process at once (SIGKILL) and wait for it."""
        self._signal(signal.SIGKILL)
        self.join(time.monotonic() + 10)

    def join(self, deadline: float) -> int:
        """Wait for the end of the process and return its exit code; one that outlives `deadline` is killed."""
        try:
            code = self._process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            code = self._process.wait()
        # Bounded, for a grandchild may hold the pipe open for longer.
        self._thread.join(timeout=_DRAIN_SECONDS)
        return code

    def cpu_seconds(self) -> float:
        """Return the CPU time of all threads so far, user and system, and of the processes that the main one started.

        It is the last known value once the process is gone.
        """
        with contextlib.suppress(OSError):
            workers = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
            self._cpu_seconds = sum(time.clock_gettime(_cpu_clock(pid)) for pid in (self.pid, *map(int, workers)))
        return self._cpu_seconds

    def rss_anon_bytes(self) -> int:
        """Return the anonymous memory in RAM now, which leaves out the page cache; 0 once the process is gone."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * 1024
        return 0

    def tail(self) -> str:
        """Return the last lines of the log."""
        return "".join(tuple(self._tail)) or "(nothing)\n"

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def _follow(self) -> None:
        output = self._process.stdout
        assert output is not None
        with output, self.log.open("a") as file:
            for line in output:
                file.write(line)
                file.flush()
                self._tail.append(line)
                if self._echo is not None:
                    self._echo(line.rstrip("\n"))
                if not self._ready.done():
                    self._look_for_ready(line)
        code = self._process.wait()
        if not self._ready.done():
            self._ready.set_exception(
                ChildError(
                    f"{self.name} ended with code {code} before it was ready; {self.log} ends with:\n{self.tail()}"
                )
            )
        if self._on_exit is not None:
            self._on_exit(self.name)

    def _look_for_ready(self, line: str) -> None:
        try:
            fields = json.loads(line)
        except ValueError:
            return
        if isinstance(fields, dict) and fields.get("event") == "ready":
            self._ready.set_result(fields)


class Meter:
    """Samples the children's anonymous memory from a thread, and sums up their CPU time; a context manager."""

    def __init__(self, children: Mapping[str, Child]) -> None:
        self._children = children
        self._peaks = dict.fromkeys(children, 0)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="meter", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def take_peaks(self) -> dict[str, int]:
        """Return each child's highest RssAnon in bytes since the last call, and start afresh."""
        self._sample()
        with self._lock:
            peaks, self._peaks = self._peaks, dict.fromkeys(self._children, 0)
        return peaks

    def cpu_seconds(self) -> dict[str, float]:
        """Return each child's CPU time so far."""
        return {name: child.cpu_seconds() for name, child in self._children.items()}

    def _run(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        for name, child in self._children.items():
            now = child.rss_anon_bytes()
            with self._lock:
                self._peaks[name] = max(self._peaks[name], now)


def _cpu_clock(pid: int) -> int:
    """Return the clock of a process' CPU time (clock_getcpuclockid): /proc counts the same time in steps of 10 ms."""
    return ~pid << 3 | 2
