"""The scheduler daemon: composes core, journal, driver, gRPC and HTTP, and runs them until told to stop."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from aiohttp import web

from p2p.auth import ClusterSecret, require_secret
from p2p.config import Address
from p2p.daemon import StopSignals, announce_ready, bound, cannot_listen, listen, run_daemon
from p2p.dns import DnsName
from p2p.errors import ConfigError
from p2p.mtls import ClusterTls
from p2p.rpc.channel import open_server
from p2p.tasks import TaskScope
from p2p.telemetry import logger
from p2p.v1.scheduler_pb2_grpc import add_SchedulerServicer_to_server
from scheduler.board import Board
from scheduler.cluster import Cluster
from scheduler.core.state import SchedulerCore
from scheduler.driver import Driver
from scheduler.fleet import Fleet, Member
from scheduler.http import application
from scheduler.journal import Journal
from scheduler.operations import routes
from scheduler.preheat import Preheats
from scheduler.service import Service
from scheduler.settings import Configuration, load_configuration
from scheduler.shared import Shared, SharedJournal

log = logger(__name__)

GRACE_SECONDS = 2.0
"""How long open streams may take to end when the scheduler stops."""


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """Everything a scheduler can be told; each default runs as it is."""

    grpc: Address = Address("127.0.0.1", 8002)
    http: Address = Address("127.0.0.1", 8000)
    advertise: str | None = None
    """What hosts dial to reach this scheduler, where there are several: a name or an address."""
    members: tuple[Address, ...] = ()
    """All schedulers, where Redis does not say which there are."""
    redis: str | None = field(default=None, repr=False)
    """The URL of the Redis server that several schedulers share; it may hold a password."""
    state_dir: Path | None = None
    """Where digests outlive a restart; None: they are kept in memory."""
    cluster_secret_file: Path | None = None
    cluster_tls_dir: Path | None = None
    """Where this scheduler's certificate is, with which it asks hosts that have TLS (`p2p.mtls`)."""
    config_file: Path | None = None
    log_level: str = "info"


def run(settings: SchedulerSettings) -> int:
    """Run a scheduler until SIGTERM or SIGINT; return the exit status."""
    return run_daemon("scheduler", lambda: _serve(settings), log_level=settings.log_level)


async def _serve(settings: SchedulerSettings) -> None:
    secret = ClusterSecret.load(settings.cluster_secret_file) if settings.cluster_secret_file else None
    require_secret(secret, settings.grpc.host, settings.http.host)
    configuration = load_configuration(settings.config_file) if settings.config_file else Configuration()
    tls = ClusterTls.load(settings.cluster_tls_dir) if settings.cluster_tls_dir else None
    stopping = StopSignals()

    server = open_server(secret)
    journal = None
    stack = AsyncExitStack()
    http_socket = listen(settings.http, "--http-listen")
    try:
        grpc_port = _listen_grpc(server, settings.grpc)
        journal = await Journal.open(settings.state_dir)
        shared = await stack.enter_async_context(Shared.connect(settings.redis)) if settings.redis else None
        cluster = Cluster(_own_name(settings, grpc_port), settings.members, shared)
        core = SchedulerCore(random=random.Random(), budgets=configuration.origin_budgets)  # noqa: S311  # breaks ties
        digests = SharedJournal(journal, shared) if shared else journal
        driver = Driver(core, digests, clock=asyncio.get_running_loop().time)
        add_SchedulerServicer_to_server(Service(driver, secret), server)
        async with _fleet(driver, secret, tls) as fleet, TaskScope() as scope:
            scope.spawn(driver.run(), name="scheduler")
            if not cluster.alone:
                await _join(cluster, driver, shared, scope)
            ready = True
            api = application(driver, secret=secret, ready=lambda: ready, state=cluster.state)
            preheats = Preheats(fleet, scope)
            board = Board(shared, cluster.own, preheats, fleet, lambda: cluster.members) if shared else None
            if board is not None:
                scope.spawn(board.run(), name="preheats of all schedulers")
            api.add_routes(routes(fleet, preheats, secret=secret, elsewhere=board))
            async with _http(api, http_socket):
                await server.start()
                announce_ready(grpc=str(Address(settings.grpc.host, grpc_port)), http=str(bound(http_socket)))
                await stopping.told.wait()
                log.info("stopping")
                ready = False
                await cluster.leave()
                driver.end_all("the scheduler is stopping")
                await stopping.drain(server.stop, GRACE_SECONDS)
    finally:
        await server.stop(None)
        http_socket.close()
        await stack.aclose()
        if journal is not None:
            await journal.close()
    log.info("stopped")


async def _join(cluster: Cluster, driver: Driver, shared: Shared | None, scope: TaskScope) -> None:
    """Become one of several schedulers, and keep track of the others."""

    async def changed() -> None:
        await driver.cluster(cluster.own, cluster.members, cluster.parts, cluster.rest)

    if shared is not None:
        scope.spawn(shared.run(), name="redis")
    await cluster.look()
    await changed()
    scope.spawn(cluster.run(changed, lambda: [each.origin for each in driver.origins()]), name="schedulers")


def _own_name(settings: SchedulerSettings, grpc_port: int) -> str:
    host = settings.advertise or settings.grpc.host
    if (settings.redis or settings.members) and host in ("", "0.0.0.0", "::"):  # noqa: S104  # compared, not bound
        raise ConfigError(
            f"--grpc-listen {settings.grpc} tells hosts nothing to dial; name this scheduler with --advertise"
        )
    own = str(Address(host, grpc_port))
    names = [str(member) for member in settings.members]
    if names and own not in names and not any(isinstance(member, DnsName) for member in settings.members):
        raise ConfigError(f"this scheduler is {own}, which is no --member ({', '.join(names)}); see --advertise")
    return own


@asynccontextmanager
async def _fleet(driver: Driver, secret: ClusterSecret | None, tls: ClusterTls | None) -> AsyncIterator[Fleet]:
    def members() -> list[Member]:
        return [Member(hello.host_id, hello.address, hello.seed, hello.labels) for hello in driver.hellos()]

    fleet = Fleet(members, secret, tls=tls)
    try:
        yield fleet
    finally:
        await fleet.close()


def _listen_grpc(server: grpc.aio.Server, address: Address) -> int:
    """Bind the gRPC port and return it; raise ConfigError if the address is taken or not ours."""
    # Tried first with a socket of our own: gRPC would write its reason into a log of its own, in its own format.
    listen(address, "--grpc-listen").close()
    try:
        return server.add_insecure_port(str(Address(address.host or "0.0.0.0", address.port)))  # noqa: S104
    except RuntimeError as error:
        raise cannot_listen(address, "--grpc-listen", "it was taken this very moment") from error


@asynccontextmanager
async def _http(app: web.Application, sock: socket.socket) -> AsyncIterator[None]:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=GRACE_SECONDS)
    await runner.setup()
    try:
        await web.SockSite(runner, sock).start()
        yield
    finally:
        await runner.cleanup()
