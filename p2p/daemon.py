"""What every daemon's main does alike: listen, be told to stop, and end with a status that says why."""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from p2p.config import Address
from p2p.errors import ConfigError, StoreError
from p2p.stalls import watch_if_asked
from p2p.tasks import TaskScope
from p2p.telemetry import configure_logging, logger

EXIT_CONFIG = 2
"""Exit status for settings that cannot work: one line on standard error says which and what to do."""

_BACKLOG = 1024

_USED_LATER = ("_strptime", "encodings.idna")
"""What the standard library imports when it is first used, which in a daemon is in its loop."""

_LOG = logger(__name__)


def run_daemon(
    command: str, serve: Callable[[], Coroutine[Any, Any, None]], *, log_level: str, daemon: str | None = None
) -> int:
    """Run `damselfly COMMAND` to its end and return the exit status; settings that cannot work are told and are 2.

    `daemon` is what log lines call the process, if not by its command.
    """
    try:
        # Before the loop: every task and callback inherits what is bound here.
        configure_logging(level=log_level, daemon=daemon or command)
        uvloop.run(serve())
    except (ConfigError, StoreError) as error:
        print(f"damselfly {command}: {error}", file=sys.stderr)
        return EXIT_CONFIG
    return 0


def announce_ready(**fields: str) -> None:
    """Say that the daemon serves from now on, and where: `fields` go into the line that whoever started it waits for.

    From here on its loop is watched for stalls, if that was asked for (`p2p.stalls`).
    """
    for module in _USED_LATER:
        importlib.import_module(module)
    # What is there now stays: a full collection need not look at a hundred thousand objects that modules are made of.
    gc.collect()
    gc.freeze()
    watch_if_asked()
    _LOG.info("ready", **fields)


class StopSignals:
    """SIGTERM and SIGINT: the first asks to drain and stop, any further one to stop at once."""

    def __init__(self) -> None:
        """Take over both signals of this process, for as long as the running loop lives."""
        self.told = asyncio.Event()
        self.hurry = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._received)

    def _received(self) -> None:
        (self.hurry if self.told.is_set() else self.told).set()

    async def drain(self, stop: Callable[[float], Coroutine[Any, Any, None]], grace_seconds: float) -> None:
        """Run `stop(grace_seconds)`; on a further signal it is cancelled, and `stop(0.0)` run instead.

        So `stop` must be one that can be begun anew.
        """
        async with TaskScope() as scope:
            draining = scope.spawn(stop(grace_seconds), name="drain")
            hurried = scope.spawn(self.hurry.wait(), name="hurry")
            await asyncio.wait((draining, hurried), return_when=asyncio.FIRST_COMPLETED)
            if draining.done():
                return
        await stop(0.0)


def listen(address: Address, flag: str) -> socket.socket:
    """Bind a listening socket; raise ConfigError naming the flag if the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address.host, address.port))
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        # A name that cannot be looked up has a negative number, which strerror does not know.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror or error)
        raise cannot_listen(address, flag, reason) from error
    return sock


def cannot_listen(address: Address, flag: str, reason: str) -> ConfigError:
    """Return the error for an address that cannot be listened on."""
    return ConfigError(f"cannot listen on {address}: {reason}; free the port or choose another with {flag}")


def bound(sock: socket.socket) -> Address:
    """Return the address that a socket really has."""
    host, port = sock.getsockname()[:2]
    return Address(host, port)
