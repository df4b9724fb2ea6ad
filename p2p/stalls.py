"""Finds what holds up a daemon's event loop: a callback that computes for too long, or one that calls what blocks.

Off unless the environment variable `DAMSELFLY_STALLS` names a file, as it does in the tests: then each stall is a line
of JSON at the end of that file (`Stall`), told once a process and place. Three things look, none of them by the wall
clock, so that neither a busy machine nor a process that was paused is taken for a stall:

- A timer of the kernel that runs with the CPU time of the loop's thread interrupts it every few milliseconds of that,
  so it costs an idle loop nothing. A callback is known by a mark on its outermost frame; when one was seen to use more
  than `CPU_SECONDS`, it is told with its stack.
- A thread looks what system call the loop's thread is in. One that it has slept in, other than waiting for events,
  without being run even once for several looks, is told. Waiting for the interpreter's lock is none: that wakes up
  every five milliseconds.
- Calls that block by their nature are told however short they were: opening files, importing, looking names up, … (see
  `_BLOCKING`, from Python's table of audit events).

Source: timer_create(2) with SIGEV_THREAD_ID; proc(5), /proc/pid/syscall and /proc/pid/schedstat.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

ENVIRONMENT = "DAMSELFLY_STALLS"
"""The variable that names the file which stalls are appended to."""

CPU_SECONDS = 0.05
"""How much CPU time one callback may use on a machine as fast as the one that this was set on, and more on a slower."""

_WORK, _WORK_SECONDS = 20_000, 0.0025
"""How many turns `_slowness` takes, and their CPU time on that machine."""
_SLOWEST = 5.0

_SAMPLE_SECONDS = 0.005
_LATE_SECONDS = 0.01
"""How much later than asked for the kernel may send the timer's signal: it looks once a tick, of which there are at
least a hundred a second."""

_LOOK_SECONDS = 0.02
_LOOKS = 3
_LOOKS_AT_LOCKS = 50
"""How many looks must find the thread in the same sleep: a lock's holder may itself wait for a CPU for a while."""

_WAITING, _LOCKED = (
    ((b"232 ", b"281 ", b"441 "), b"202 ") if os.uname().machine == "x86_64" else ((b"22 ", b"441 "), b"98 ")
)
"""What /proc/pid/syscall begins with in epoll_wait (of x86-64 only), epoll_pwait and epoll_pwait2, and in futex."""

_BLOCKING = frozenset(
    {
        "fcntl.flock", "fcntl.lockf", "glob.glob", "import", "open", "os.link", "os.listdir", "os.mkdir", "os.remove",
        "os.rename", "os.rmdir", "os.scandir", "os.symlink", "os.system", "os.truncate", "shutil.copyfile",
        "shutil.rmtree", "socket.connect", "socket.getaddrinfo", "socket.gethostbyaddr", "socket.gethostbyname",
        "sqlite3.connect", "subprocess.Popen", "time.sleep",
    }
)  # fmt: skip
"""Events of sys.audit. Not socket.getnameinfo: it does not say whether it only formats an address, as it does here."""

_IN_MEMORY = ("/proc/", "/sys/", "/dev/")
"""Where files are that no disk holds."""

_LOOP = asyncio.Runner.run.__code__
"""Whose frame is right outside of every callback's."""


@dataclass(frozen=True, slots=True)
class Stall:
    """What held the loop up. `stack` has a line a frame, the callback's own first, the innermost last."""

    pid: int
    command: str
    what: str
    stack: tuple[str, ...]

    def __str__(self) -> str:
        """Return it for people, over several lines."""
        return "\n".join((f"{self.command} (process {self.pid}): {self.what}", *(f"  {line}" for line in self.stack)))


def watch_if_asked() -> None:
    """Look for stalls of the running loop from now on, if the environment asks for it; call it in the main thread.

    What a daemon does before that, while it starts, nobody waits for. Raises OSError if the file cannot be written or
    the kernel has no such timer.
    """
    if file := os.environ.get(ENVIRONMENT):
        reports = _Reports(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600))
        _watch_cpu(asyncio.get_running_loop(), reports)
        sleeper = _SleepWatch(threading.get_ident(), threading.get_native_id(), reports)
        threading.Thread(target=sleeper.run, name="stalls", daemon=True).start()
        _watch_calls(threading.get_ident(), reports)


class _Reports:
    """Where stalls are told, each once."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._told: set[tuple[str, str, str]] = set()

    def tell(self, kind: str, detail: str, stack: tuple[str, ...]) -> None:
        if (place := (kind, stack[0], stack[-1])) in self._told:
            return
        self._told.add(place)
        stall = Stall(os.getpid(), " ".join(sys.argv[1:]), f"{kind} {detail}".strip(), stack)
        # One write, so that the lines of several daemons do not mix.
        os.write(self._fd, json.dumps(asdict(stall)).encode() + b"\n")


class _Mark:
    """What the callback that runs now is known by; it is no tracing function, but is where one would be."""

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        """Trace nothing, should anybody trace the daemon."""


class _CpuWatch:
    """Adds up the CPU time of the callback that runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop, reports: _Reports) -> None:
        self._loop = loop
        self._reports = reports
        self._mark: _Mark | None = None
        self._begun = 0.0
        self._limit = CPU_SECONDS * min(_SLOWEST, max(1.0, *(_slowness() for _ in range(3))))
        self._last = time.thread_time()

    def sample(self, _number: int, frame: FrameType | None) -> None:
        """Handle the timer's signal, in the loop's thread."""
        now = time.thread_time()
        last, self._last = self._last, now
        callback = _callback(frame)
        if callback is None:
            return
        if self._mark is None or callback.f_trace is not self._mark:
            # A mark on the frame rather than a reference, which would keep the callback's buffers alive. A coroutine's
            # frame outlives its step, but its next step comes after `_ended`, which is in the loop's queue before it.
            callback.f_trace = self._mark = _Mark()
            self._loop.call_soon(self._ended, self._mark)
            # Had the interpreter been between two calls since the signal was due, the last sample would be younger: so
            # all time from then on is of the call that just came back, and of this callback.
            self._begun = min(now, last + _SAMPLE_SECONDS + _LATE_SECONDS)
        if now - self._begun > self._limit:
            detail = f"({(now - self._begun) * 1000:.0f} ms and counting)"
            self._reports.tell("a callback computes for too long", detail, _stack(frame))

    def _ended(self, mark: _Mark) -> None:
        if self._mark is mark:
            self._mark = None


class _SleepWatch:
    """Looks whether the loop's thread sleeps where it should not."""

    def __init__(self, ident: int, native_id: int, reports: _Reports) -> None:
        self._ident = ident
        self._reports = reports
        task = Path("/proc/self/task") / str(native_id)
        self._syscall = os.open(task / "syscall", os.O_RDONLY | os.O_CLOEXEC)
        self._runs = os.open(task / "schedstat", os.O_RDONLY | os.O_CLOEXEC)

    def run(self) -> None:
        """Look until the process ends."""
        before, count = b"", 0
        while True:
            time.sleep(_LOOK_SECONDS)
            call = os.pread(self._syscall, 128, 0)
            # "running" also if it waits for a CPU; -1 outside of system calls, as when a page is read in.
            if call.startswith((b"running", b"-1", *_WAITING)):
                before, count = b"", 0
                continue
            now = call + os.pread(self._runs, 128, 0)
            before, count = now, count + 1 if now == before else 0
            if count == (_LOOKS_AT_LOCKS if call.startswith(_LOCKED) else _LOOKS):
                frame = sys._current_frames().get(self._ident)  # noqa: SLF001  # documented, if for few
                # The last look is after the stack was taken: it has been of this very call.
                if _callback(frame) is not None and call + os.pread(self._runs, 128, 0) == now:
                    number = call.split(maxsplit=1)[0].decode()
                    self._reports.tell("a callback blocks", f"in system call {number}", _stack(frame))


def _slowness() -> float:
    """Return how much slower than it might be this machine runs Python now."""
    began = time.thread_time()
    texts: dict[int, str] = {}
    for number in range(_WORK):
        texts[number & 255] = str(number)
    return (time.thread_time() - began) / _WORK_SECONDS


def _watch_cpu(loop: asyncio.AbstractEventLoop, reports: _Reports) -> None:
    # By default this signal is ignored, so that one that comes while the process ends does no harm.
    signal.signal(signal.SIGURG, _CpuWatch(loop, reports).sample)
    signal.siginterrupt(signal.SIGURG, False)
    libc = ctypes.CDLL(None, use_errno=True)
    timer = ctypes.c_void_p()
    event = _SignalEvent(0, signal.SIGURG, _SIGEV_THREAD_ID, threading.get_native_id())
    each = _Time(0, int(_SAMPLE_SECONDS * 1e9))
    if libc.timer_create(time.CLOCK_THREAD_CPUTIME_ID, ctypes.byref(event), ctypes.byref(timer)) or libc.timer_settime(
        timer, 0, ctypes.byref(_TimerTimes(each, each)), None
    ):
        raise OSError(ctypes.get_errno(), "no timer of the CPU time of a thread")


_SIGEV_THREAD_ID = 4


class _SignalEvent(ctypes.Structure):
    """`struct sigevent` of Linux."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("thread", ctypes.c_int),
        ("padding", ctypes.c_int * 11),
    )


class _Time(ctypes.Structure):
    """`struct timespec`."""

    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerTimes(ctypes.Structure):
    """`struct itimerspec`."""

    _fields_ = (("interval", _Time), ("value", _Time))


def _watch_calls(ident: int, reports: _Reports) -> None:
    telling = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal telling
        if event not in _BLOCKING or threading.get_ident() != ident or telling or _is_quick(event, arguments):
            return
        frame = sys._getframe(1)  # noqa: SLF001  # documented, if for few
        if _callback(frame) is None:
            return
        telling = True
        try:
            stack = _stack(frame)
            # What an import does is told as that import.
            if not any(line.startswith("<frozen importlib.") for line in stack):
                subject = arguments[1] if event == "socket.connect" else arguments[0] if arguments else ""
                reports.tell(f"a callback calls what may block: {event}", repr(subject)[:200], stack)
        finally:
            telling = False

    sys.addaudithook(hook)


def _is_quick(event: str, arguments: tuple[Any, ...]) -> bool:
    if event == "open":
        return isinstance(arguments[0], int) or str(arguments[0]).startswith(_IN_MEMORY)
    if event == "socket.connect":
        return bool(arguments[0].gettimeout() == 0.0)
    return False


def _callback(frame: FrameType | None) -> FrameType | None:
    """Return the outermost frame of the callback that `frame` is in; None outside of callbacks."""
    while frame is not None and (outer := frame.f_back) is not None:
        if outer.f_code is _LOOP:
            return frame
        frame = outer
    return None


def _stack(frame: FrameType | None) -> tuple[str, ...]:
    lines: list[str] = []
    while frame is not None and frame.f_code is not _LOOP:
        lines.append(f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}")
        frame = frame.f_back
    return tuple(reversed(lines))
