"""The peer daemon: composes store, downloads, proxy, piece server and links, and runs them until told to stop."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import sys
from dataclasses import dataclass, field
from importlib.metadata import version as package_version
from pathlib import Path

import uvloop
from aiohttp import web

from p2p.auth import ClusterSecret, require_secret
from p2p.config import Address
from p2p.control import Hello
from p2p.errors import ConfigError, DamselflyError, StoreError
from p2p.tasks import TaskScope
from p2p.telemetry import configure_logging, logger
from peer.download.transfer import Transfers
from peer.http import application
from peer.link import Link, Links
from peer.proxy.server import ProxyServer
from peer.source.client import OriginClient
from peer.store import Store
from peer.tasks import TaskManager
from peer.upload.server import PieceServer

log = logger(__name__)

EXIT_CONFIG = 2
"""Exit status for settings that cannot work: the message on standard error says which and what to do."""


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """Everything a peer daemon can be told; each default runs as it is. Sizes in bytes, times in seconds."""

    data_dir: Path
    schedulers: tuple[Address, ...] = (Address("127.0.0.1", 8002),)
    seed: bool = False
    proxy: Address = Address("127.0.0.1", 65001)
    pieces: Address = Address("127.0.0.1", 65002)
    http: Address = Address("127.0.0.1", 65003)
    advertise: str | None = None
    host_id: str | None = None
    cluster_secret_file: Path | None = None
    capacity: int | None = None
    upload_slots: int = 16
    drain_seconds: float = 30.0
    log_level: str = "info"
    labels: dict[str, str] = field(default_factory=dict)


def run(settings: PeerSettings) -> int:
    """Run a peer until SIGTERM or SIGINT; return the exit status."""
    try:
        configure_logging(level=settings.log_level, daemon="seed" if settings.seed else "peer")
        uvloop.run(_serve(settings))
    except (ConfigError, StoreError) as error:
        print(f"damselfly peer: {error}", file=sys.stderr)
        return EXIT_CONFIG
    return 0


async def _serve(settings: PeerSettings) -> None:
    secret = ClusterSecret.load(settings.cluster_secret_file) if settings.cluster_secret_file else None
    require_secret(secret, settings.pieces.host, settings.http.host)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    sockets = {
        "proxy": listen(settings.proxy, "--proxy-listen"),
        "pieces": listen(settings.pieces, "--piece-listen"),
        "http": listen(settings.http, "--http-listen"),
    }
    dropped: list[TaskManager] = []
    store = await Store.open(
        settings.data_dir,
        capacity=settings.capacity,
        on_dropped=lambda version_id: dropped[0].dropped(version_id) if dropped else None,
    )
    try:
        host_id = settings.host_id or _host_id(settings.data_dir)
        await _run(settings, secret, store, host_id, sockets, dropped, stopping)
    finally:
        await store.close()


async def _run(
    settings: PeerSettings,
    secret: ClusterSecret | None,
    store: Store,
    host_id: str,
    sockets: dict[str, socket.socket],
    managers: list[TaskManager],
    stopping: asyncio.Event,
) -> None:
    hello = Hello(
        host_id=host_id,
        address=str(_advertised(settings, sockets["pieces"])),
        seed=settings.seed,
        upload_slots=settings.upload_slots,
        labels=settings.labels,
        software=f"damselfly/{package_version('damselfly')}",
    )
    transfers = Transfers()
    client = OriginClient()
    try:
        async with TaskScope() as scope:
            links = Links(
                [
                    Link(
                        str(address),
                        hello,
                        secret,
                        holdings=store.holdings,
                        on_change=lambda: tasks.scheduler_changed(),
                        on_assignment=lambda assignment: tasks.assigned(assignment),
                    )
                    for address in settings.schedulers
                ]
            )
            tasks = TaskManager(store, transfers, links, scope, secret=secret, seed=settings.seed)
            managers.append(tasks)
            proxy = ProxyServer(tasks, client, host_id=host_id)
            pieces = PieceServer(store, secret=secret, slots=settings.upload_slots)
            api = web.AppRunner(
                application(
                    tasks,
                    store,
                    schedulers=links.status,
                    secret=secret,
                    ready=lambda: not stopping.is_set(),
                ),
                access_log=None,
            )
            await api.setup()
            await web.SockSite(api, sockets["http"]).start()
            await pieces.start(sockets["pieces"])
            await proxy.start(sockets["proxy"])
            scope.spawn(tasks.run(), name="duties")
            scope.spawn(links.run(), name="links")
            log.info("ready", host=host_id, **{name: _bound(sock) for name, sock in sockets.items()})
            await stopping.wait()
            log.info("stopping", drain_seconds=settings.drain_seconds)
            await proxy.shutdown(settings.drain_seconds)
            await tasks.stop()
            await pieces.shutdown(settings.drain_seconds)
            await api.cleanup()
    finally:
        await transfers.close()
        await client.close()


def listen(address: Address, flag: str) -> socket.socket:
    """Bind a listening socket; raise ConfigError naming the flag if the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address.host, address.port))
        sock.listen(1024)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"cannot listen on {address}: {os.strerror(error.errno or 0)}; free the port or choose another with {flag}"
        ) from error
    return sock


def _bound(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return str(Address(host, port))


def _advertised(settings: PeerSettings, pieces: socket.socket) -> Address:
    host, port = pieces.getsockname()[:2]
    if settings.advertise:
        return Address(settings.advertise, port)
    if host in ("0.0.0.0", "::"):  # noqa: S104  # compared, not bound
        raise ConfigError(
            f"--piece-listen {host}:{port} tells other hosts nothing to dial; name this host with --advertise"
        )
    return Address(host, port)


def _host_id(data_dir: Path) -> str:
    """Return the id that this data directory keeps for its host, made at its first start."""
    path = data_dir / "host-id"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        host_id = f"{socket.gethostname()}-{secrets.token_hex(4)}"
        path.write_text(host_id + "\n")
        return host_id
    except OSError as error:
        raise DamselflyError(f"cannot read {str(path)!r}: {error.strerror}") from error
