"""The peer's stream to one scheduler, kept alive for as long as there is such a scheduler.

A session starts with who we are (`Hello`) and what we hold of the versions that are this scheduler's (`Holdings`): what
a scheduler knows is soft, and a restarted one learns it again from its peers.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable

import grpc
from prometheus_client import Counter, Gauge

from p2p.auth import ClusterSecret
from p2p.control import Hello, Holding, Holdings, PeerMessage, SchedulerMessage, Schedulers
from p2p.errors import DamselflyError
from p2p.rpc.channel import open_channel, session_metadata
from p2p.rpc.convert import peer_message_to_proto, schedulers_from_proto
from p2p.rpc.frames import peer_frames, scheduler_messages
from p2p.tasks import TaskScope
from p2p.telemetry import REGISTRY, logger
from p2p.v1.scheduler_pb2 import Heartbeat
from p2p.v1.scheduler_pb2 import PeerMessage as PeerProto
from p2p.v1.scheduler_pb2 import SchedulerMessage as SchedulerProto
from p2p.v1.scheduler_pb2_grpc import SchedulerStub
from peer.core.outbox import Outbox

log = logger(__name__)

CONNECT_SECONDS = 5.0
"""How long a scheduler may take to welcome us."""

LOST_AFTER_INTERVALS = 3
"""A scheduler that is silent for this many heartbeat intervals is gone."""

BACKOFF_SECONDS = (0.1, 1.0)
"""The shortest and the longest wait before the next attempt; jittered, so that a fleet does not knock in step.
Downloads wait for a restarted scheduler (`peer.core.download`) for longer than that, and it for hosts just so."""

HOLDINGS_PER_MESSAGE = 64

_UP = Gauge(
    "damselfly_scheduler_up", "1 while the session with this scheduler stands", ["scheduler"], registry=REGISTRY
)
_LOST = Counter("damselfly_scheduler_sessions_lost_total", "Sessions that ended", ["scheduler"], registry=REGISTRY)
_FRAMES = Counter(
    "damselfly_control_frames_total",
    "Frames to and from schedulers that say something; heartbeats and the opening of a session are not counted",
    ["direction"],
    registry=REGISTRY,
)
_MESSAGES = Counter("damselfly_control_messages_total", "Messages in these frames", ["direction"], registry=REGISTRY)

Session = grpc.aio.StreamStreamCall[PeerProto, SchedulerProto]


class Link:
    """The session with one scheduler; `run` keeps it up, `send` queues messages while it stands."""

    def __init__(
        self,
        address: str,
        hello: Hello,
        secret: ClusterSecret | None,
        *,
        holdings: Callable[[Link], AsyncIterator[Holding]],
        on_change: Callable[[], None],
        on_message: Callable[[SchedulerMessage], None],
    ) -> None:
        """Describe a link; `holdings` are to begin with, `on_change` is called when `connected` or `told` is new."""
        self.address = address
        self.connected = False
        self.told: tuple[str, ...] = ()
        """All schedulers there are, by this one's word; none while it knows of no other, or there is no session."""
        self.name = address
        """What this scheduler is called among them: versions are shared out by these names."""
        self.tried = asyncio.Event()
        """Set once the first session stands and its scheduler has said something, or it could not be had."""
        self._hello = hello
        self._secret = secret
        self._holdings = holdings
        self._on_change = on_change
        self._on_message = on_message
        self._outbox: Outbox[PeerMessage] | None = None
        self._due = asyncio.Event()
        """Set when something in the outbox is to be said, or a heartbeat is."""
        self._wrote = False
        self._heard_at = 0.0
        self._complained = False

    def send(self, message: PeerMessage, *, soon: bool = True) -> None:
        """Queue a message; dropped while there is no session, since the next one starts with all we hold.

        What is not to be said `soon` waits a moment for other messages, and goes with them.
        """
        if self.connected and self._outbox is not None:
            self._outbox.put(message, soon=soon)

    def close(self) -> None:
        """Note that `run` was cancelled, because nobody needs this scheduler any more."""
        self.tried.set()
        if self.connected:
            self.connected, self.told = False, ()
        _UP.labels(self.address)
        _UP.remove(self.address)

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
                if first.welcome.HasField("schedulers"):
                    self._hear(schedulers_from_proto(first.welcome.schedulers))
                outbox = self._connected()
                async with TaskScope() as scope:
                    # Two timers for the session instead of one for each message.
                    self._heard_at = asyncio.get_running_loop().time()
                    scope.spawn(self._beat(heartbeat), name=f"heartbeats to {self.address}")
                    scope.spawn(self._look(heartbeat * LOST_AFTER_INTERVALS), name=f"patience with {self.address}")
                    scope.spawn(self._speak(call, outbox), name=f"speaking to {self.address}")
                    await self._listen(call)
            except BaseExceptionGroup as group:
                # Another of them failed: the session is over for the same reason, whoever saw it first.
                raise group.exceptions[0] from group
            finally:
                call.cancel()

    async def _speak(self, call: Session, outbox: Outbox[PeerMessage]) -> None:
        async for holdings in batches(self._holdings(self)):
            await self._write(call, peer_message_to_proto(holdings))
        while True:
            await self._due.wait()
            self._due.clear()
            said = outbox.take()
            if not said:
                await self._write(call, PeerProto(heartbeat=Heartbeat()))
            _MESSAGES.labels("sent").inc(len(said))
            for frame in peer_frames(said):
                _FRAMES.labels("sent").inc()
                await self._write(call, frame)

    async def _beat(self, interval: float) -> None:
        """See to it that something is said once an interval at least."""
        while True:
            await asyncio.sleep(interval / 2)
            if not self._wrote:
                self._due.set()
            self._wrote = False

    async def _look(self, patience: float) -> None:
        """Raise TimeoutError once nothing has been heard for so long."""
        loop = asyncio.get_running_loop()
        while (left := self._heard_at + patience - loop.time()) > 0:  # noqa: ASYNC110  # each message moves it
            await asyncio.sleep(left)
        raise TimeoutError

    async def _listen(self, call: Session) -> None:
        loop = asyncio.get_running_loop()
        while True:
            messages = scheduler_messages(await self._read(call))
            self._heard_at = loop.time()
            if messages:
                _FRAMES.labels("received").inc()
                _MESSAGES.labels("received").inc(len(messages))
            for message in messages:
                if isinstance(message, Schedulers):
                    self._hear(message)
                    self._on_change()
                else:
                    self._on_message(message)
            # Not with the welcome: before it is known which seeds there are, a client's first request could go astray.
            self.tried.set()

    def _hear(self, schedulers: Schedulers) -> None:
        self.told, self.name = schedulers.addresses, schedulers.own

    async def _write(self, call: Session, message: PeerProto) -> None:
        self._wrote = True
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

    def _connected(self) -> Outbox[PeerMessage]:
        self.connected = True
        self._complained = False
        # An event of its own: a timer of the session before must not make this one speak.
        due = self._due = asyncio.Event()
        outbox = self._outbox = Outbox[PeerMessage](asyncio.get_running_loop(), due.set)
        _UP.labels(self.address).set(1)
        log.info("scheduler connected", scheduler=self.address)
        self._on_change()
        return outbox

    def _disconnected(self) -> None:
        if self.connected:
            self.connected, self.told = False, ()
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


async def batches(holdings: AsyncIterator[Holding]) -> AsyncIterator[Holdings]:
    """Yield holdings in messages; the last one may be empty."""
    batch: list[Holding] = []
    async for holding in holdings:
        batch.append(holding)
        if len(batch) == HOLDINGS_PER_MESSAGE:
            yield Holdings(tuple(batch), last=False)
            batch = []
    yield Holdings(tuple(batch))
