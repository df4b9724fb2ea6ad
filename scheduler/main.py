"""The scheduler daemon: composes core, journal, driver, gRPC and HTTP, and runs them until told to stop."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import uvloop
from aiohttp import web

from p2p.auth import ClusterSecret, require_secret
from p2p.config import Address
from p2p.errors import ConfigError
from p2p.rpc.channel import open_server
from p2p.tasks import TaskScope
from p2p.telemetry import configure_logging, logger
from p2p.v1.scheduler_pb2_grpc import add_SchedulerServicer_to_server
from scheduler.core.state import SchedulerCore
from scheduler.driver import Driver
from scheduler.http import application
from scheduler.journal import Journal
from scheduler.service import Service

log = logger(__name__)

EXIT_CONFIG = 2
"""Exit status for settings that cannot work: the message on standard error says which and what to do."""

GRACE_SECONDS = 2.0
"""How long open streams may take to end when the scheduler stops."""


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """Everything a scheduler can be told; each default runs as it is."""

    grpc: Address = Address("127.0.0.1", 8002)
    http: Address = Address("127.0.0.1", 8000)
    state_dir: Path | None = None
    """Where digests outlive a restart; None: they are kept in memory."""
    cluster_secret_file: Path | None = None
    log_level: str = "info"


def run(settings: SchedulerSettings) -> int:
    """Run a scheduler until SIGTERM or SIGINT; return the exit status."""
    try:
        configure_logging(level=settings.log_level, daemon="scheduler")
        uvloop.run(_serve(settings))
    except ConfigError as error:
        print(f"damselfly scheduler: {error}", file=sys.stderr)
        return EXIT_CONFIG
    return 0


async def _serve(settings: SchedulerSettings) -> None:
    secret = ClusterSecret.load(settings.cluster_secret_file) if settings.cluster_secret_file else None
    require_secret(secret, settings.grpc.host, settings.http.host)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)

    server = open_server(secret)
    journal = None
    http_socket = _listen(settings.http, "--http-listen")
    try:
        grpc_port = _listen_grpc(server, settings.grpc)
        journal = await Journal.open(settings.state_dir)
        driver = Driver(SchedulerCore(random=random.Random()), journal, clock=loop.time)  # noqa: S311  # breaks ties
        add_SchedulerServicer_to_server(Service(driver, secret), server)
        async with TaskScope() as scope:
            scope.spawn(driver.run(), name="scheduler")
            ready = True
            async with _http(application(driver, secret=secret, ready=lambda: ready), http_socket):
                await server.start()
                log.info(
                    "ready",
                    grpc=str(Address(settings.grpc.host, grpc_port)),
                    http=str(Address(settings.http.host, http_socket.getsockname()[1])),
                )
                await stopping.wait()
                log.info("stopping")
                ready = False
                driver.end_all("the scheduler is stopping")
                await server.stop(GRACE_SECONDS)
    finally:
        await server.stop(None)
        http_socket.close()
        if journal is not None:
            await journal.close()
    log.info("stopped")


def _listen_grpc(server: grpc.aio.Server, address: Address) -> int:
    """Bind the gRPC port and return it; raise ConfigError if the address is taken or not ours."""
    # Tried first with a socket of our own: gRPC would write its reason into a log of its own, in its own format.
    _listen(address, "--grpc-listen").close()
    try:
        return server.add_insecure_port(str(Address(address.host or "0.0.0.0", address.port)))  # noqa: S104
    except RuntimeError as error:
        raise _cannot_listen(address, "--grpc-listen", "it was taken this very moment") from error


def _listen(address: Address, flag: str) -> socket.socket:
    """Bind a listening socket; raise ConfigError naming the flag if the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address.host, address.port))
        sock.listen()
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise _cannot_listen(address, flag, reason) from error
    return sock


def _cannot_listen(address: Address, flag: str, reason: str) -> ConfigError:
    return ConfigError(f"cannot listen on {address}: {reason}; free the port or choose another with {flag}")


@asynccontextmanager
async def _http(app: web.Application, sock: socket.socket) -> AsyncIterator[None]:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=GRACE_SECONDS)
    await runner.setup()
    try:
        await web.SockSite(runner, sock).start()
        yield
    finally:
        await runner.cleanup()
