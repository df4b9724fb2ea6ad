"""Loads a scheduler over gRPC with many hosts' sessions: a process of its own, whose cost is not the scheduler's.

`python -m bench.scheduler_load ADDRESS SCENE SECONDS`: says `{"event": "ready"}` once every host has said what it
wants, and its figures as one line of JSON at the end.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import grpc
import uvloop

from bench.synthetic import Member, Scene, pieces_of, quantile
from p2p.control import Allowance, Assignment, Following, OriginLoad, OriginUse, PeerMessage, Want
from p2p.rpc.channel import open_channel
from p2p.rpc.convert import peer_message_to_proto
from p2p.rpc.frames import scheduler_messages
from p2p.tasks import TaskScope
from p2p.v1.scheduler_pb2 import Heartbeat
from p2p.v1.scheduler_pb2 import PeerMessage as PeerProto
from p2p.v1.scheduler_pb2 import SchedulerMessage as SchedulerProto
from p2p.v1.scheduler_pb2_grpc import SchedulerStub

_HEARTBEAT_SECONDS = 1.0
_SET_UP_SECONDS = 900.0
_QUESTION = OriginUse((OriginLoad("http://origin.invalid:80", 1, serial=1),))


class _Session:
    """One host's stream."""

    def __init__(self, address: str, scene: Scene, number: int) -> None:
        self.lacking = scene.lacking(number)
        self.wants: Iterator[Want] = scene.wants()
        """What the host wants next, where it wants one object after another."""
        self.asked: tuple[str, float] | None = None
        """The version that it wants, and when it said so, as long as nothing was assigned of that."""
        self.call: grpc.aio.StreamStreamCall[PeerProto, SchedulerProto] = SchedulerStub(open_channel(address)).Session()
        self.answered = asyncio.Event()
        """Set once the scheduler has answered the question."""
        self._writing = asyncio.Lock()

    async def say(self, message: PeerMessage | None) -> None:
        """Write a message, or None for a heartbeat; gRPC takes one at a time."""
        proto = PeerProto(heartbeat=Heartbeat()) if message is None else peer_message_to_proto(message)
        async with self._writing:
            await self.call.write(proto)


@dataclass(frozen=True, slots=True)
class LoadFigures:
    """What was said within `seconds`, and how long it took from a report to the next assignment of all.

    Where hosts want one object after another it is the time from a wish to the first assignment that meets it.

    Both quantiles include the way through the sockets, twice, and are None where nothing was assigned.
    """

    seconds: float
    pieces: int
    reports: int
    assignments: int
    p50_seconds: float | None
    p99_seconds: float | None


class _Load:
    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._begun = False
        self._reported_at: float | None = None
        self._pieces = self._reports = self._assignments = 0
        self._latencies: list[float] = []
        self._counting = False

    async def run(self, address: str, seconds: float) -> LoadFigures:
        """Load the scheduler at `address` for `seconds` and return what was done in them."""
        members = self._scene.members()
        async with TaskScope() as scope:
            async with asyncio.timeout(_SET_UP_SECONDS):
                sessions = [await self._join(scope, address, member, number) for number, member in enumerate(members)]
                for number, session in enumerate(sessions):
                    for holdings in self._scene.holdings(number):
                        await session.say(holdings)
                self._begun = True
                for want in () if self._scene.rolling else self._scene.wants():
                    for member, session in zip(members, sessions, strict=True):
                        if not member.hello.seed:
                            await session.say(want)
                for member, session in zip(members, sessions, strict=True):
                    await self._want_more(session, member)
                # Its answer is behind that to everything before: the scheduler has no wishes left to read.
                for session in sessions:
                    await session.say(_QUESTION)
                    await session.answered.wait()
            print(json.dumps({"event": "ready"}), flush=True)
            self._counting = True
            began = time.perf_counter()
            await asyncio.sleep(seconds)
            elapsed = time.perf_counter() - began
            return LoadFigures(
                elapsed,
                self._pieces,
                self._reports,
                self._assignments,
                quantile(self._latencies, 0.5),
                quantile(self._latencies, 0.99),
            )

    async def _join(self, scope: TaskScope, address: str, member: Member, number: int) -> _Session:
        session = _Session(address, self._scene, number)
        await session.say(member.hello)
        await session.call.read()  # the welcome
        wake = asyncio.Event()
        scope.spawn(self._listen(session, member, wake), name=f"hearing for {member.hello.host_id}")
        scope.spawn(self._speak(session, member, wake), name=f"speaking for {member.hello.host_id}")
        return session

    async def _listen(self, session: _Session, member: Member, wake: asyncio.Event) -> None:
        while isinstance(frame := await session.call.read(), SchedulerProto):
            now = time.perf_counter()
            for told in scheduler_messages(frame):
                if isinstance(told, Allowance):
                    session.answered.set()
                if isinstance(told, Assignment | Following):
                    if isinstance(told, Assignment):
                        member.assigned(told, now)
                    else:
                        member.followed(told, now)
                    wake.set()
                    self._assignments += self._counting
                    if self._scene.rolling:
                        self._met(session, told.version.id, now)
                    elif self._reported_at is not None:
                        self._latencies.append(now - self._reported_at)
                        self._reported_at = None
        raise ConnectionError(f"the scheduler ended the session: {await session.call.details()}")

    async def _speak(self, session: _Session, member: Member, wake: asyncio.Event) -> None:
        while True:
            at = time.perf_counter() + _HEARTBEAT_SECONDS
            if (news_at := member.next_at()) is not None:
                at = min(at, news_at)
            wake.clear()
            try:
                async with asyncio.timeout(max(0.0, at - time.perf_counter())):
                    await wake.wait()
            except TimeoutError:
                if at != news_at:
                    await session.say(None)
            for progress in member.advance(time.perf_counter()):
                if self._counting:
                    self._pieces += pieces_of(progress)
                    self._reports += 1
                    self._reported_at = time.perf_counter()
                await session.say(progress)
            await self._want_more(session, member)

    async def _want_more(self, session: _Session, member: Member) -> None:
        """Let a host that has its object want the next one."""
        if not self._scene.rolling or not self._begun or member.hello.seed or not member.content:
            return
        want = next(session.wants, None)
        if want is not None:
            member.expect(want.version, session.lacking)
            session.asked = want.version.id, time.perf_counter()
            await session.say(want)

    def _met(self, session: _Session, version_id: str, now: float) -> None:
        if session.asked is not None and session.asked[0] == version_id:
            if self._counting:
                self._latencies.append(now - session.asked[1])
            session.asked = None


def main() -> None:
    """Run one load, as the module says."""
    address, scene, seconds = sys.argv[1:]
    figures = uvloop.run(_Load(Scene(**json.loads(scene))).run(address, float(seconds)))
    print(json.dumps(asdict(figures)), flush=True)


if __name__ == "__main__":
    main()
