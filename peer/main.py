"""The peer daemon: composes store, downloads, proxy, piece server and links, and runs them until told to stop."""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import secrets
import socket
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version as package_version
from pathlib import Path

from aiohttp import web

from p2p.auth import ClusterSecret, is_loopback, require_secret
from p2p.config import Address, Capacity
from p2p.control import Allowance, Hello, SchedulerMessage, Schedulers, Seeds
from p2p.daemon import StopSignals, announce_ready, bound, listen, run_daemon
from p2p.dns import DnsName
from p2p.errors import ConfigError, StoreError
from p2p.mtls import ClusterTls
from p2p.senders import default_workers, set_workers
from p2p.tasks import TaskScope
from p2p.telemetry import logger
from p2p.tls import CertificateAuthority
from peer.download.transfer import Transfers, TransferSettings
from peer.fetches import Fetches
from peer.hostapi import HostApi
from peer.http import application
from peer.link import Link
from peer.links import Links
from peer.proxy.credentials import require_guarded
from peer.proxy.intercept import require_authority
from peer.proxy.server import ProxyServer
from peer.settings import Configuration, load_configuration
from peer.source.checksums import ChecksumProber
from peer.source.client import OriginClient, OriginSettings
from peer.source.credentials import Credentials
from peer.source.governor import Governor
from peer.source.guard import Resolver
from peer.source.http import Prober
from peer.source.listing import list_objects
from peer.source.remote import Origins, SeedClient
from peer.store import Store, Upkeep
from peer.store.space import capacity_in
from peer.tasks import TaskManager
from peer.upload.server import PieceServer

log = logger(__name__)

_API_STOP_SECONDS = 2.0
"""How long a request to the HTTP endpoints may take to end when the peer stops."""

_FIRST_SESSION_SECONDS = 2.0
"""How long a starting peer waits for its schedulers before it takes clients without them."""

_SYNC_SECONDS = 10.0
"""How long data may take to be forced to the disk when the peer stops, unless it is told twice."""


_KEPT_FILES = 16_384
"""How many files of versions that nobody reads just now stay open, if that is half of what may be open or less: to open
one costs as much as the rest of a hit on a small file."""


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """Everything a peer daemon can be told; each default runs as it is. Sizes in bytes, times in seconds."""

    data_dir: Path
    schedulers: tuple[Address | DnsName, ...] = (Address("127.0.0.1", 8002),)
    seed: bool = False
    proxy: Address = Address("127.0.0.1", 65001)
    pieces: Address = Address("127.0.0.1", 65002)
    http: Address = Address("127.0.0.1", 65003)
    advertise: str | None = None
    host_id: str | None = None
    cluster_secret_file: Path | None = None
    cluster_tls_dir: Path | None = None
    config_file: Path | None = None
    origin_ca_file: Path | None = None
    ca_dir: Path | None = None
    registry_upstream: str | None = None
    cloud_credentials: Path | None = None
    capacity: Capacity | None = None
    upload_slots: int = 16
    workers: int | None = None
    drain_seconds: float = 30.0
    log_level: str = "info"
    labels: dict[str, str] = field(default_factory=dict)


def run(settings: PeerSettings) -> int:
    """Run a peer until SIGTERM or SIGINT; return the exit status."""
    daemon = "seed" if settings.seed else "peer"
    set_workers(settings.workers or default_workers())
    return run_daemon("peer", lambda: _serve(settings), log_level=settings.log_level, daemon=daemon)


async def _serve(settings: PeerSettings) -> None:
    secret = ClusterSecret.load(settings.cluster_secret_file) if settings.cluster_secret_file else None
    require_secret(secret, settings.proxy.host, settings.pieces.host, settings.http.host)
    configuration = load_configuration(settings.config_file) if settings.config_file else Configuration()
    require_guarded(configuration.rules, settings.proxy.host, len(configuration.users))
    if not is_loopback(settings.proxy.host) and not configuration.users:
        log.warning(
            "the proxy is open to whoever reaches it; name who may use it in [proxy.users] of --config",
            listen=str(settings.proxy),
        )
    stopping = StopSignals()
    sockets = {
        "proxy": listen(settings.proxy, "--proxy-listen"),
        "pieces": listen(settings.pieces, "--piece-listen"),
        "http": listen(settings.http, "--http-listen"),
    }
    dropped: list[TaskManager] = []
    store = await Store.open(
        settings.data_dir,
        capacity=await asyncio.to_thread(capacity_in, settings.data_dir, settings.capacity),
        high=configuration.store.high,
        low=configuration.store.low,
        idle_entries=_files_to_keep_open(),
        on_dropped=lambda version_id: dropped[0].dropped(version_id) if dropped else None,
        on_damaged=lambda version_id, spans: dropped[0].damaged(version_id, spans) if dropped else None,
    )
    try:
        host_id = settings.host_id or _host_id(settings.data_dir)
        await _run(settings, configuration, secret, store, host_id, sockets, dropped, stopping)
    finally:
        await store.close(sync_seconds=0.0 if stopping.hurry.is_set() else _SYNC_SECONDS)


async def _run(
    settings: PeerSettings,
    configuration: Configuration,
    secret: ClusterSecret | None,
    store: Store,
    host_id: str,
    sockets: dict[str, socket.socket],
    managers: list[TaskManager],
    stopping: StopSignals,
) -> None:
    hello = Hello(
        host_id=host_id,
        address=str(_advertised(settings, sockets["pieces"])),
        seed=settings.seed,
        upload_slots=settings.upload_slots,
        labels=settings.labels,
        software=f"damselfly/{package_version('damselfly')}",
    )
    origin = OriginSettings(ca_file=settings.origin_ca_file, rules=configuration.rules)
    ca_dir = settings.ca_dir or configuration.ca_dir
    authority = CertificateAuthority.load(ca_dir) if ca_dir else None
    require_authority(configuration.rules, authority)
    tls_dir = settings.cluster_tls_dir or configuration.cluster_tls_dir
    members = ClusterTls.load(tls_dir) if tls_dir else None
    resolver = Resolver(configuration.guard)
    credentials_file = settings.cloud_credentials or configuration.cloud_credentials
    credentials = Credentials.load(credentials_file) if credentials_file else Credentials()
    governor = Governor(ceiling=configuration.ceiling)
    transfers = Transfers(
        TransferSettings(origin=origin), resolver=resolver, signer=credentials, governor=governor, members=members
    )
    client = OriginClient(origin, resolver=resolver, credentials=credentials, governor=governor)
    seeds = SeedClient(host_id, secret, tls=members)

    def heard(message: SchedulerMessage) -> None:
        if isinstance(message, Seeds):
            seeds.told(message)
        elif isinstance(message, Allowance):
            governor.told(message)
        elif not isinstance(message, Schedulers):
            tasks.told(message)

    def changed() -> None:
        governor.scheduler_changed()
        tasks.scheduler_changed()

    try:
        async with TaskScope() as scope:
            links = Links(
                settings.schedulers,
                lambda address: Link(
                    address, hello, secret, holdings=links.owned, on_change=links.changed, on_message=heard
                ),
                holdings=lambda: tasks.holdings(),
                on_change=changed,
                on_returned=lambda forgotten: tasks.scheduler_returned(forgotten),
            )
            tasks = TaskManager(store, transfers, links, scope, secret=secret, seed=settings.seed)
            managers.append(tasks)
            upstream = settings.registry_upstream or configuration.proxy.registry_upstream
            proxy_settings = replace(configuration.proxy, registry_upstream=upstream)
            prober, lister = ChecksumProber(Prober(client), client), partial(list_objects, client)
            proxy = ProxyServer(
                tasks,
                client,
                host_id=host_id,
                settings=proxy_settings,
                rules=configuration.rules,
                users=configuration.users,
                authority=authority,
                origins=Origins(prober, lister, seeds, credentials),
            )
            host_api = HostApi(
                prober=prober,
                lister=lister,
                fetches=Fetches(tasks, store, scope),
                tasks=tasks,
                store=store,
                secret=secret,
            )
            pieces = PieceServer(
                store,
                secret=secret,
                slots=settings.upload_slots,
                rate=configuration.upload_rate,
                api=host_api,
                tls=members,
            )
            api = web.AppRunner(
                application(
                    tasks,
                    store,
                    schedulers=links.status,
                    secret=secret,
                    ready=lambda: not stopping.told.is_set(),
                ),
                access_log=None,
                shutdown_timeout=_API_STOP_SECONDS,
            )
            await api.setup()
            await web.SockSite(api, sockets["http"]).start()
            await pieces.start(sockets["pieces"])
            scope.spawn(tasks.run(), name="duties")
            scope.spawn(links.run(), name="links")
            scope.spawn(governor.run(links), name="origin budgets")
            scope.spawn(Upkeep(store, configuration.store).run(), name="upkeep of the store")
            # A client that comes in the very first moment would be served from the origin, past the fleet.
            await links.settle(_FIRST_SESSION_SECONDS)
            await proxy.start(sockets["proxy"])
            announce_ready(host=host_id, **{name: str(bound(sock)) for name, sock in sockets.items()})
            await stopping.told.wait()
            log.info("stopping", drain_seconds=settings.drain_seconds)

            async def stop(grace_seconds: float) -> None:
                async with asyncio.TaskGroup() as group:
                    group.create_task(proxy.shutdown(grace_seconds), name="drain of the proxy")
                    group.create_task(pieces.shutdown(grace_seconds), name="drain of the piece server")
                await tasks.stop()

            await stopping.drain(stop, settings.drain_seconds)
            await api.cleanup()
    finally:
        await transfers.close()
        await client.close()
        await seeds.close()
    log.info("stopped")


def _files_to_keep_open() -> int:
    """Let this process open as many files as the system allows it, and return how many the store may keep open."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    kept = _KEPT_FILES if most == resource.RLIM_INFINITY else min(_KEPT_FILES, most // 2)
    # The table of descriptors grows now: with other threads there the kernel makes whoever opens a file wait for that.
    os.close(fcntl.fcntl(sys.stderr.fileno(), fcntl.F_DUPFD_CLOEXEC, 2 * kept - 1))
    return kept


def _advertised(settings: PeerSettings, pieces: socket.socket) -> Address:
    address = bound(pieces)
    if settings.advertise:
        return Address(settings.advertise, address.port)
    if address.host in ("0.0.0.0", "::"):  # noqa: S104  # compared, not bound
        raise ConfigError(
            f"--piece-listen {address} tells other hosts nothing to dial; name this host with --advertise"
        )
    return address


def _host_id(data_dir: Path) -> str:
    """Return the id that this data directory keeps for its host, made at its first start."""
    path = data_dir / "host-id"
    try:
        if path.exists():
            return path.read_text().strip()
        host_id = f"{socket.gethostname()}-{secrets.token_hex(4)}"
        path.write_text(host_id + "\n")
    except OSError as error:
        raise StoreError(
            f"cannot keep this host's id in {str(path)!r}: {error.strerror}; make it writable, or give --host-id"
        ) from error
    return host_id
