"""The proxy's front: connections in, one exchange a request, and the end of each counted and logged."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from dataclasses import dataclass
from functools import partial

from aiohttp import web

from p2p.errors import DamselflyError, DeniedError
from p2p.telemetry import logger
from p2p.tls import CertificateAuthority
from peer.core.rules import Action, Rules
from peer.proxy import metrics
from peer.proxy.access import Users
from peer.proxy.connect import Connector
from peer.proxy.connection import require_one_meaning
from peer.proxy.contract import Tasks
from peer.proxy.credentials import named_store, require_lendable, wants_listing
from peer.proxy.exchange import Cache, Exchange, Route
from peer.proxy.failures import LoopDetectedError, UnexpectedError, fail
from peer.proxy.forward import Forwarder
from peer.proxy.freshness import Freshness
from peer.proxy.intercept import HttpServer, Interceptor, inside_of, require_authority
from peer.proxy.listing import answer_listing
from peer.proxy.registry import Manifests, mirror_request, wanted_blob, wants_manifest
from peer.proxy.respond import Responder
from peer.proxy.route import names_peer, require_absolute, route, upstream
from peer.source.client import OriginClient
from peer.source.fields import Fields
from peer.source.http import Prober
from peer.source.listing import list_objects
from peer.source.remote import Origins
from peer.source.urls import origin_of

log = logger(__name__)


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """Limits of the proxy, in seconds and bytes.

    A client that takes nothing for `client_stall_seconds`, an origin that is silent for `forward_stall_seconds` in a
    request that is only forwarded, and a tunnel that is silent for `tunnel_idle_seconds` are given up.
    `registry_upstream` (scheme://host[:port]) is asked when a registry client names no registry.
    """

    client_stall_seconds: float = 120.0
    forward_stall_seconds: float = 300.0
    connect_seconds: float = 10.0
    handshake_seconds: float = 10.0
    tunnel_idle_seconds: float = 3600.0
    connect_ports: tuple[range, ...] = (range(443, 444), range(1024, 65536))
    head_seconds: float = 30.0
    keep_alive_seconds: float = 75.0
    line_bytes: int = 64 * 1024
    headers: int = 256
    registry_upstream: str | None = None


class ProxyServer:
    """Serves clients on one listening socket.

    `host_id` (a token, RFC 9110 §5.6.2) names this peer in `Via`, whereby it knows a loop. Made in the running loop.
    Clients that are none of `users` are refused, if there are any.
    `origins` are asked for one byte of what goes through P2P, and for listings (by default by this host alone).
    `authority` signs for hosts whose TLS a rule says to open; ConfigError if such a rule has none.
    """

    def __init__(
        self,
        tasks: Tasks,
        client: OriginClient,
        *,
        host_id: str,
        settings: ProxySettings | None = None,
        rules: Rules | None = None,
        users: Users | None = None,
        authority: CertificateAuthority | None = None,
        origins: Origins | None = None,
    ) -> None:
        self._settings = settings = settings or ProxySettings()
        self._rules = rules or Rules()
        self._users = users or Users()
        self._origins = origins = origins or Origins(
            Prober(client), partial(list_objects, client), None, client.credentials
        )
        self._host_id = host_id
        self._via = f"1.1 {host_id}"
        self._forwarder = Forwarder(
            client,
            via=self._via,
            stall_seconds=settings.forward_stall_seconds,
            upgraded_idle_seconds=settings.tunnel_idle_seconds,
        )
        self._responder = Responder(tasks, Freshness(origins), self._forwarder, via=self._via)
        self._manifests = Manifests(
            client, self._forwarder, via=self._via, stall_seconds=settings.forward_stall_seconds
        )
        self._active: set[Exchange] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False
        self._listener: asyncio.Server | None = None
        self._host = ""
        self._http = HttpServer(
            self._handle,
            access_log=None,
            logger=_parser_logger(),
            auto_decompress=False,
            head_seconds=settings.head_seconds,
            keepalive_timeout=settings.keep_alive_seconds,
            max_line_size=settings.line_bytes,
            max_field_size=settings.line_bytes,
            max_headers=settings.headers,
        )
        require_authority(self._rules, authority)
        self._connector = Connector(
            self._rules,
            Interceptor(authority, self._http, handshake_seconds=settings.handshake_seconds) if authority else None,
            client.resolver,
            ports=settings.connect_ports,
            connect_seconds=settings.connect_seconds,
            idle_seconds=settings.tunnel_idle_seconds,
        )

    async def start(self, listening: socket.socket) -> None:
        """Accept clients on a bound socket, which belongs to this server from now on."""
        self._host = listening.getsockname()[0]
        self._listener = await asyncio.get_running_loop().create_server(self._http, sock=listening)

    async def shutdown(self, grace_seconds: float) -> None:
        """Accept no more, let running responses finish within `grace_seconds`, and reset those that do not."""
        self._stopping = True
        if self._listener is not None:
            self._listener.close()
        busy = {exchange.request.protocol for exchange in self._active}
        for exchange in self._active:
            exchange.keep_alive = False
        for connection in self._http.connections:
            if connection not in busy:
                connection.close()
        try:
            async with asyncio.timeout(grace_seconds):
                await self._idle.wait()
        except TimeoutError:
            log.warning("requests cut off by shutdown", requests=len(self._active), grace_seconds=grace_seconds)
            for exchange in tuple(self._active):
                exchange.reset()
        # Everything has had its time: aiohttp waits twice as long as this for what is left, before it cancels it.
        await self._http.shutdown(timeout=0.1)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        stall_seconds = self._settings.client_stall_seconds
        exchange = Exchange(request, stall_seconds=stall_seconds, inside=inside_of(request))
        exchange.keep_alive = exchange.keep_alive and not self._stopping
        self._active.add(exchange)
        self._idle.clear()
        outcome, failure = "client_gone", ""
        try:
            with metrics.ACTIVE_REQUESTS.track_inprogress():
                outcome, failure = await self._answer(exchange)
        except asyncio.CancelledError:
            # A client that has it all may close before the thread that sends has said so.
            if exchange.is_whole:
                outcome = _outcome(exchange)
            else:
                exchange.reset()
            raise
        finally:
            self._active.discard(exchange)
            if not self._active:
                self._idle.set()
            _account(exchange, outcome, failure)
        return exchange.answered()

    async def _answer(self, exchange: Exchange) -> tuple[str, str]:
        """Answer an exchange, come what may; return how it ended and what the reason was."""
        try:
            try:
                await self._dispatch(exchange)
            except DamselflyError as error:
                await fail(exchange, error, self._signature(exchange))
                return ("reset" if exchange.was_reset else "failed"), str(error)
            except ConnectionError:
                raise
            except Exception:
                log.exception("request failed unexpectedly", route=exchange.route, step=exchange.step)
                await fail(exchange, UnexpectedError("unexpected; see the peer's log"), self._signature(exchange))
                return ("reset" if exchange.was_reset else "failed"), "unexpected"
        except ConnectionError as error:
            if not exchange.is_whole:
                exchange.reset()
                return "client_gone", str(error)
        if exchange.was_reset:
            return "reset", "the origin's refusal, to a client that ignores statuses"
        return _outcome(exchange), ""

    async def _dispatch(self, exchange: Exchange) -> None:
        require_one_meaning(exchange)
        if exchange.inside is not None:
            exchange.inside.require_own(exchange)
        else:
            self._users.require(exchange.fields)
        if exchange.method == "CONNECT":
            exchange.route = Route.CONNECT
            await self._connector.connect(exchange)
            return
        if names_peer(exchange.fields, self._host_id):
            raise LoopDetectedError(f"this request has been through peer {self._host_id!r} before; check for a loop")
        mirrored = mirror_request(exchange, self._settings.registry_upstream)
        require_absolute(exchange.target)
        exchange.rule = rule = self._rules.match(exchange.target)
        if rule.action is Action.DENY:
            raise DeniedError(f"{origin_of(exchange.target)} is denied by the rule {rule.pattern.pattern!r}")
        exchange.url = upstream(exchange.target, rule)
        lists = wants_listing(exchange.fields)
        if named_store(exchange.fields) is not None:
            require_lendable(self._host, len(self._users))
        if lists:
            exchange.route = Route.FORWARD
            await answer_listing(exchange, self._origins, (("Via", self._via),))
            return
        if mirrored is not None and wants_manifest(exchange, mirrored, rule):
            exchange.route = Route.FORWARD
            await self._manifests.answer(exchange, mirrored.digest)
            return
        has_body = exchange.request.body_exists
        wanted = wanted_blob(exchange, mirrored, rule) if mirrored is not None else None
        wanted = wanted or route(exchange.method, exchange.url, exchange.fields, has_body=has_body, rule=rule)
        if wanted is not None:
            exchange.route = Route.P2P
            await self._responder.respond(exchange, wanted)
            return
        exchange.route = Route.FORWARD
        plain = exchange.method in {"GET", "HEAD"} and not exchange.request.body_exists
        await self._forwarder.forward(exchange, follow=plain and exchange.ignores_status)

    def _signature(self, exchange: Exchange) -> Fields:
        """Return the fields that tell a failed client who speaks, and of what."""
        named: Fields = (("X-Dragonfly-Task-ID", exchange.task_id),) if exchange.task_id else ()
        return (("Via", self._via), *named)


def _outcome(exchange: Exchange) -> str:
    return "refused" if (exchange.status or 0) >= 400 else "ok"


def _account(exchange: Exchange, outcome: str, failure: str) -> None:
    """Count and log the end of an exchange; the URL stays out of it but for its host."""
    seconds = time.monotonic() - exchange.started
    metrics.REQUESTS.labels(exchange.route, outcome).inc()
    metrics.BODY_BYTES.labels(exchange.cache or "NONE").inc(exchange.body_bytes)
    if exchange.first_byte_seconds is not None:
        metrics.FIRST_BYTE_SECONDS.labels(exchange.route).observe(exchange.first_byte_seconds)
    # Hits come by the thousand a second, and the metrics count them: the log has a line for each at debug level only.
    say = log.debug if outcome == "ok" and exchange.cache is Cache.HIT_LOCAL else log.info
    say(
        "request finished",
        outcome=outcome,
        route=exchange.route,
        method=exchange.method,
        status=exchange.status,
        origin=_host_of(exchange),
        task=exchange.task_id,
        cache=exchange.cache,
        bytes=exchange.body_bytes,
        seconds=round(seconds, 4),
        step=exchange.step,
        failure=failure,
    )


def _host_of(exchange: Exchange) -> str | None:
    if exchange.route is Route.CONNECT:
        return exchange.target
    return origin_of(exchange.target) if exchange.route is not Route.REJECT else None


class _WithoutRequest(logging.Filter):
    """Strips what aiohttp logs of a request that it cannot parse: the offending line may be a presigned URL."""

    def filter(self, record: logging.LogRecord) -> bool:
        kind = record.exc_info[0] if isinstance(record.exc_info, tuple) else None
        record.msg, record.args = "request not understood (%s)", (kind.__name__ if kind else record.levelname,)
        record.exc_info = record.exc_text = None
        return True


def _parser_logger() -> logging.Logger:
    found = logging.getLogger("peer.proxy.parser")
    if not found.filters:
        found.addFilter(_WithoutRequest())
    return found
