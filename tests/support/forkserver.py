"""Damselfly's processes for tests, forked from one that has imported everything already.

A `python -m damselfly …` spends a second of CPU time on imports, and the suite starts hundreds of them. While
`forking()` is in effect `subprocess.Popen` asks a server process instead: it forks, the child takes over the pipes, the
environment and the working directory that Popen has prepared, and runs the module as `python -m` does. It is reparented
to the test's process, so that all else about Popen (waiting, killing, exit codes) is the operating system's, as ever.

Popen itself does it where a fork could not stand in: for other programs, and where the environment differs in what an
interpreter reads before it imports.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MODULES = ("damselfly", "bench.origin")
"""What runs in a forked process."""

_IMPORTED = ("damselfly.cli", "damselfly.get", "damselfly.recursive", "peer.main", "scheduler.main", "bench.origin")
_READ_BEFORE_IMPORTS = ("PYTHON", "SSL_", "OPENSSL_", "GRPC_", "LD_", "MALLOC_")
_PR_SET_CHILD_SUBREAPER = 36
_REQUEST_BYTES = 1 << 20
_STREAMS = 3

_Popen = subprocess.Popen


@contextlib.contextmanager
def forking() -> Iterator[None]:
    """Let `subprocess.Popen` fork Damselfly's processes instead of starting an interpreter for each.

    The server starts with the first of them, and ends with this process.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot become the parent of orphaned children")
    _ForkingPopen.server = _Server()
    subprocess.Popen = _ForkingPopen  # type: ignore[misc]
    try:
        yield
    finally:
        subprocess.Popen = _Popen  # type: ignore[misc]
        _ForkingPopen.server.close()


class _ForkingPopen(subprocess.Popen[Any]):
    """A Popen whose child may be forked elsewhere."""

    server: _Server

    def _execute_child(  # the one method of Popen that starts the child
        self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any, cwd: Any, env: Any, *rest: Any
    ) -> None:
        # After startupinfo, creationflags and shell come three pairs of pipe ends, and what to change for the child.
        shell, ends, (_, *ids, _, new_session, group) = rest[2], rest[3:9], rest[9:]
        environment = dict(os.environ if env is None else env)
        usual = not (executable or preexec_fn or pass_fds or shell or new_session) and set(ids) == {None} and group <= 0
        if not (usual and _stands_in(args, environment)):
            return super()._execute_child(  # type: ignore[misc,no-any-return]
                args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest
            )
        request = {
            "argv": list(args),
            "cwd": os.path.abspath(cwd or "."),  # noqa: PTH100  # as it is, with its links
            "environment": environment,
            "group": group == 0,
        }
        inherited = (ends[0], ends[3], ends[5])
        self.pid = self.server.fork(request, [end if end >= 0 else number for number, end in enumerate(inherited)])
        self._child_created = True
        self._close_pipe_fds(*ends)  # type: ignore[attr-defined]
        return None


def _stands_in(args: object, environment: Mapping[str, str]) -> bool:
    if not (isinstance(args, list | tuple) and len(args) >= 3 and all(isinstance(word, str) for word in args)):
        return False
    return args[0] == sys.executable and args[1] == "-m" and args[2] in MODULES and _early(environment) == _EARLY


def _early(variables: Mapping[str, str]) -> dict[str, str]:
    """Return what an interpreter reads before it imports anything."""
    return {name: value for name, value in variables.items() if name.startswith(_READ_BEFORE_IMPORTS)}


_EARLY = _early(os.environ)


class _Server:
    """The process that forks, seen from the tests' process."""

    def __init__(self) -> None:
        self._connection: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def fork(self, request: dict[str, Any], streams: list[int]) -> int:
        """Start a child with `streams` as its standard streams, and return its process id."""
        connection = self._connection or self._start()
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", streams).tobytes())
        connection.sendmsg([json.dumps(request).encode()], [rights])
        answer = connection.recv(64)
        if not answer:
            raise ChildProcessError("the process that forks Damselfly's has ended")
        return int(answer)

    def close(self) -> None:
        """End the server."""
        if self._connection is not None and self._process is not None:
            self._connection.close()
            self._process.wait()

    def _start(self) -> socket.socket:
        # Packets: a request is whole, and comes with its descriptors.
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _REQUEST_BYTES)
        with theirs:
            # The group keeps Ctrl-C at the terminal for the tests, which end what they started.
            self._process = _Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
        return self._connection


def _serve(connection: socket.socket) -> dict[str, Any] | None:
    """Fork for each request; return the request in the child that is to run it, and None once all is over."""
    while True:
        packet, rights, _, _ = connection.recvmsg(_REQUEST_BYTES, socket.CMSG_SPACE(_STREAMS * 4))
        if not packet:
            return None
        streams = array.array("i")
        for _, _, data in rights:
            streams.frombytes(data)
        threads = len(list(Path("/proc/self/task").iterdir()))
        assert threads == 1, f"{threads} threads: what is imported must start none, for a fork copies only one"
        read, write = os.pipe()
        if (between := os.fork()) == 0:
            if child := os.fork():
                # Its parent gone, the child is handed to the nearest process that takes orphans: the tests'.
                os.write(write, str(child).encode())
                os._exit(0)
            connection.close()
            os.close(read)
            os.close(write)
            for stream, descriptor in enumerate(streams):
                os.dup2(descriptor, stream)
                os.close(descriptor)
            request: dict[str, Any] = json.loads(packet)
            return request
        os.close(write)
        for descriptor in streams:
            os.close(descriptor)
        os.waitpid(between, 0)
        connection.send(os.read(read, 64))
        os.close(read)


def _run(request: dict[str, Any]) -> None:
    """Become the process that `request` asks for."""
    if request["group"]:
        os.setpgid(0, 0)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    module, *arguments = request["argv"][2:]
    if module in _IMPORTED:  # for what it imports: itself it is run as `__main__`
        del sys.modules[module]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def main() -> None:
    """Serve the descriptor named in the arguments."""
    for name in _IMPORTED:
        importlib.import_module(name)
    # Otherwise the first full collection of each child touches, and so copies, all that it shares with the others.
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        request = _serve(connection)
    if request is not None:
        _run(request)


if __name__ == "__main__":
    main()
