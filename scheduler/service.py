"""The gRPC service: each host's stream to and from the driver."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc

from p2p.auth import ClusterSecret
from p2p.control import Hello, SchedulerMessage
from p2p.errors import BadRequestError, UnauthorizedError
from p2p.rpc.channel import caller
from p2p.rpc.convert import peer_message_from_proto, schedulers_to_proto
from p2p.rpc.frames import FRAME_MESSAGES, peer_messages, scheduler_frames
from p2p.tasks import TaskScope
from p2p.telemetry import logger
from p2p.v1 import scheduler_pb2 as pb
from p2p.v1.scheduler_pb2_grpc import SchedulerServicer
from scheduler.driver import Driver, Ending, HostSession

log = logger(__name__)

LOST_AFTER_INTERVALS = 3
"""A host that is silent for this many heartbeat intervals is gone."""

_STATUS: Mapping[Ending, grpc.StatusCode] = {
    Ending.SILENT: grpc.StatusCode.DEADLINE_EXCEEDED,
    Ending.REPLACED: grpc.StatusCode.ABORTED,
    Ending.SLOW: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Ending.IMPOSSIBLE: grpc.StatusCode.INVALID_ARGUMENT,
    Ending.STOPPING: grpc.StatusCode.UNAVAILABLE,
}

Context = grpc.aio.ServicerContext[Any, Any]
Requests = AsyncIterator[pb.PeerMessage]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """How often either side says something, and how long the other may be silent. Seconds."""

    interval: float = 2.0

    @property
    def patience(self) -> float:
        """The longest silence."""
        return self.interval * LOST_AFTER_INTERVALS


class Service(SchedulerServicer):
    """Answers `Session`; every stream ends with a status that says why."""

    def __init__(self, driver: Driver, secret: ClusterSecret | None, heartbeat: Heartbeat | None = None) -> None:
        self._driver = driver
        self._secret = secret
        self._heartbeat = heartbeat or Heartbeat()
        self._id = secrets.token_hex(8)

    async def Session(  # type: ignore[override]  # noqa: N802  # grpc's name; the stub knows only async generators
        self, request_iterator: Requests, context: Context
    ) -> None:
        """Serve one host for as long as its stream stands."""
        hello = await self._hello(request_iterator, context)
        session = await self._driver.join(hello)
        log.info("host joined", host=hello.host_id, address=hello.address, seed=hello.seed, software=hello.software)
        why, detail = Ending.CLOSED, "the connection broke"
        try:
            milliseconds = round(self._heartbeat.interval * 1000)
            schedulers = schedulers_to_proto(self._driver.schedulers) if self._driver.schedulers else None
            welcome = pb.Welcome(scheduler_id=self._id, heartbeat_milliseconds=milliseconds, schedulers=schedulers)
            await context.write(pb.SchedulerMessage(welcome=welcome))
            async with TaskScope() as scope:
                scope.spawn(self._listen(session, request_iterator), name=f"listening to {hello.host_id}")
                scope.spawn(self._speak(session, context), name=f"speaking to {hello.host_id}")
                why, detail = await session.ended
        finally:
            self._driver.leave(session, why, detail)
            log.info("host left", host=hello.host_id, why=why.value, detail=detail)
        if why is not Ending.CLOSED:
            await context.abort(_STATUS[why], detail)

    async def _hello(self, requests: Requests, context: Context) -> Hello:
        """Return the first message, which must be a Hello of the host that the token was made for."""
        try:
            async with asyncio.timeout(self._heartbeat.patience):
                message = peer_message_from_proto(await anext(requests))
        except (TimeoutError, StopAsyncIteration):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no Hello came")
        except BadRequestError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if not isinstance(message, Hello):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first message must be Hello")
        if self._secret is not None:
            try:
                proved = caller(self._secret, context.invocation_metadata() or ())
            except UnauthorizedError as error:
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
            if proved != message.host_id:
                detail = f"the token was made for {proved!r}, the host says that it is {message.host_id!r}"
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, detail)
        return message

    async def _listen(self, session: HostSession, requests: Requests) -> None:
        try:
            while True:
                async with asyncio.timeout(self._heartbeat.patience):
                    request = await anext(requests)
                for message in peer_messages(request):
                    if isinstance(message, Hello):
                        session.end(Ending.IMPOSSIBLE, "a second Hello; open another session for another host")
                        return
                    await self._driver.hear(session, message)
        except StopAsyncIteration:
            session.end(Ending.CLOSED, "the host closed the session")
        except TimeoutError:
            session.end(Ending.SILENT, f"nothing was heard for {self._heartbeat.patience:g} seconds")
        except BadRequestError as error:
            session.end(Ending.IMPOSSIBLE, str(error))
        except grpc.aio.InternalError as error:
            session.end(Ending.CLOSED, f"reading failed: {error}")

    async def _speak(self, session: HostSession, context: Context) -> None:
        outbox = session.outbox
        while True:
            said: list[SchedulerMessage] = []
            # All that waits shares a frame.
            with suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat.interval):
                    said.append(await outbox.get())
            while said and len(said) < FRAME_MESSAGES and not outbox.empty():
                said.append(outbox.get_nowait())
            frames: Iterable[pb.SchedulerMessage]
            frames = scheduler_frames(said) if said else (pb.SchedulerMessage(heartbeat=pb.Heartbeat()),)
            try:
                for frame in frames:
                    await context.write(frame)
            except grpc.aio.InternalError as error:
                session.end(Ending.CLOSED, f"writing failed: {error}")
                return
