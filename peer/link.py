"""The peer's streams to the schedulers: one session per scheduler, kept alive for as long as the daemon lives.

A session starts with who we are (`Hello`) and everything we hold (`Holdings`): what a scheduler knows is soft, and a
restarted one learns it again from its peers. A version belongs to one of the reachable schedulers by rendezvous
hashing, so that every peer asks the same one without talking about it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress

import grpc
from prometheus_client import Counter, Gauge

from p2p.auth import ClusterSecret
from p2p.control import Hello, Holding, Holdings, PeerMessage, SchedulerMessage
from p2p.errors import DamselflyError
from p2p.rendezvous import weight
from p2p.rpc.channel import open_channel, session_metadata
from p2p.rpc.convert import peer_message_to_proto, scheduler_message_from_proto
from p2p.tasks import TaskScope
from p2p.telemetry import REGISTRY, logger
from p2p.v1.scheduler_pb2 import Heartbeat
from p2p.v1.scheduler_pb2 import PeerMessage as PeerProto
from p2p.v1.scheduler_pb2 import SchedulerMessage as SchedulerProto
from p2p.v1.scheduler_pb2_grpc import SchedulerStub

log = logger(__name__)

CONNECT_SECONDS = 5.0
"""How long a scheduler may take to welcome us."""

LOST_AFTER_INTERVALS = 3
"""A scheduler that is silent for this many heartbeat intervals is gone."""

BACKOFF_SECONDS = (0.1, 2.0)
"""The shortest and the longest wait before the next attempt; jittered, so that a fleet does not knock in step."""

HOLDINGS_PER_MESSAGE = 64

_UP = Gauge(
    "damselfly_scheduler_up", "1 while the session with this scheduler stands", ["scheduler"], registry=REGISTRY
)
_LOST = Counter("damselfly_scheduler_sessions_lost_total", "Sessions that ended", ["scheduler"], registry=REGISTRY)

Session = grpc.aio.StreamStreamCall[PeerProto, SchedulerProto]


class Link:
    """The session with one scheduler; `run` keeps it up, `send` queues messages while it stands."""

    def __init__(
        self,
        address: str,
        hello: Hello,
        secret: ClusterSecret | None,
        *,
        holdings: Callable[[], AsyncIterator[Holding]],
        on_change: Callable[[], None],
        on_message: Callable[[SchedulerMessage], None],
    ) -> None:
        self.address = address
        self.connected = False
        self.tried = asyncio.Event()
        """Set once the first session stands, or could not be had."""
        self._hello = hello
        self._secret = secret
        self._holdings = holdings
        self._on_change = on_change
        self._on_message = on_message
        self._outbox: asyncio.Queue[PeerMessage] = asyncio.Queue()
        self._complained = False

    def send(self, message: PeerMessage) -> None:
        """Queue a message; dropped while there is no session, since the next one starts with all we hold."""
        if self.connected:
            self._outbox.put_nowait(message)

    async def run(self) -> None:
        """Keep a session up, for ever."""
        shortest, longest = BACKOFF_SECONDS
        wait = shortest
        while True:
            try:
                await self._session()
            except (grpc.aio.AioRpcError, DamselflyError, OSError, TimeoutError) as error:
                self._complain(error)
            except Exception:  # a defect costs this session, not the daemon with all its clients
                log.exception("defect in a scheduler session", scheduler=self.address)
            self.tried.set()
            wait = shortest if self.connected else min(wait * 2, longest)
            self._disconnected()
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311  # jitter, not a secret

    async def _session(self) -> None:
        async with open_channel(self.address) as channel:
            call: Session = SchedulerStub(channel).Session(metadata=session_metadata(self._secret, self._hello.host_id))
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await self._write(call, peer_message_to_proto(self._hello))
                    first = await self._read(call)
                if first.WhichOneof("body") != "welcome":
                    raise DamselflyError(f"the scheduler at {self.address} did not welcome this host")
                heartbeat = first.welcome.heartbeat_milliseconds / 1000
                self._connected()
                async with TaskScope() as scope:
                    scope.spawn(self._speak(call, heartbeat), name=f"speaking to {self.address}")
                    await self._listen(call, heartbeat * LOST_AFTER_INTERVALS)
            except BaseExceptionGroup as group:
                # The speaker failed: the session is over for the same reason, whoever saw it first.
                raise group.exceptions[0] from group
            finally:
                call.cancel()

    async def _speak(self, call: Session, heartbeat: float) -> None:
        batch: list[Holding] = []
        async for holding in self._holdings():
            batch.append(holding)
            if len(batch) == HOLDINGS_PER_MESSAGE:
                await self._write(call, peer_message_to_proto(Holdings(tuple(batch), last=False)))
                batch.clear()
        await self._write(call, peer_message_to_proto(Holdings(tuple(batch))))
        while True:
            try:
                async with asyncio.timeout(heartbeat):
                    message = peer_message_to_proto(await self._outbox.get())
            except TimeoutError:
                message = PeerProto(heartbeat=Heartbeat())
            await self._write(call, message)

    async def _listen(self, call: Session, patience: float) -> None:
        while True:
            async with asyncio.timeout(patience):
                message = scheduler_message_from_proto(await self._read(call))
            if message is not None:
                self._on_message(message)

    async def _write(self, call: Session, message: PeerProto) -> None:
        try:
            await call.write(message)
        except asyncio.InvalidStateError:
            # What gRPC raises when the call has ended and nobody has read its status yet.
            raise DamselflyError(f"the session with the scheduler at {self.address} broke") from None

    async def _read(self, call: Session) -> SchedulerProto:
        message = await call.read()
        if not isinstance(message, SchedulerProto):
            raise DamselflyError(f"the scheduler at {self.address} ended the session: {await call.details()}")
        return message

    def _connected(self) -> None:
        self.connected = True
        self.tried.set()
        self._complained = False
        self._outbox = asyncio.Queue()
        _UP.labels(self.address).set(1)
        log.info("scheduler connected", scheduler=self.address)
        self._on_change()

    def _disconnected(self) -> None:
        if self.connected:
            self.connected = False
            _UP.labels(self.address).set(0)
            _LOST.labels(self.address).inc()
            self._on_change()

    def _complain(self, error: Exception) -> None:
        """Say once, not at every attempt, that a scheduler is away."""
        if not self._complained:
            self._complained = True
            detail = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error) or type(error).__name__
            log.warning(
                "scheduler unreachable",
                scheduler=self.address,
                error=detail,
                consequence="new downloads go straight to the origin until it is back",
            )


class Links:
    """All schedulers of the configuration; a version's messages go to one of those that can be reached."""

    def __init__(self, links: Sequence[Link]) -> None:
        self._links = tuple(links)

    def of(self, version_id: str) -> str | None:
        """Return the address of the version's scheduler among those that can be reached, or None."""
        link = self._link(version_id)
        return link.address if link else None

    def send(self, version_id: str, message: PeerMessage) -> None:
        """Send a message to the version's scheduler, or drop it if none can be reached."""
        if link := self._link(version_id):
            link.send(message)

    def status(self) -> dict[str, bool]:
        """Return which schedulers can be reached."""
        return {link.address: link.connected for link in self._links}

    async def settle(self, seconds: float) -> None:
        """Return once every scheduler has been tried, after `seconds` at the latest."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for link in self._links:
                    await link.tried.wait()

    async def run(self) -> None:
        """Keep every link up, for ever."""
        async with asyncio.TaskGroup() as group:
            for link in self._links:
                group.create_task(link.run(), name=f"link to {link.address}")

    def _link(self, version_id: str) -> Link | None:
        connected = (link for link in self._links if link.connected)
        return max(connected, key=lambda link: weight(link.address, version_id), default=None)
