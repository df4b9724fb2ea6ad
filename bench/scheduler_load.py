"""Loads a scheduler over gRPC with many hosts' sessions: a process of its own, whose cost is not the scheduler's.

`python -m bench.scheduler_load ADDRESS SCENE SECONDS`: says `{"event": "ready"}` once every host has said what it
wants, and its figures as one line of JSON at the end.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass

import grpc
import uvloop

from bench.synthetic import Member, Scene, pieces_of, quantile
from p2p.control import Assignment, PeerMessage
from p2p.rpc.channel import open_channel
from p2p.rpc.convert import peer_message_to_proto, scheduler_message_from_proto
from p2p.tasks import TaskScope
from p2p.v1.scheduler_pb2 import Heartbeat
from p2p.v1.scheduler_pb2 import PeerMessage as PeerProto
from p2p.v1.scheduler_pb2 import SchedulerMessage as SchedulerProto
from p2p.v1.scheduler_pb2_grpc import SchedulerStub

_HEARTBEAT_SECONDS = 1.0
_SET_UP_SECONDS = 300.0

Session = grpc.aio.StreamStreamCall[PeerProto, SchedulerProto]


@dataclass(frozen=True, slots=True)
class LoadFigures:
    """What was said within `seconds`, and how long it took from a report to the next assignment of all.

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
        self._reported_at: float | None = None
        self._pieces = self._reports = self._assignments = 0
        self._latencies: list[float] = []
        self._at_work = asyncio.Event()

    async def run(self, address: str, seconds: float) -> LoadFigures:
        """Load the scheduler at `address` for `seconds` and return what was done in them."""
        members = self._scene.members()
        async with TaskScope() as scope:
            async with asyncio.timeout(_SET_UP_SECONDS):
                calls = [await self._join(scope, address, member) for member in members]
                for number, call in enumerate(calls):
                    for holdings in self._scene.holdings(number):
                        await _say(call, holdings)
                for want in self._scene.wants():
                    for member, call in zip(members, calls, strict=True):
                        if not member.hello.seed:
                            await _say(call, want)
            print(json.dumps({"event": "ready"}), flush=True)
            self._at_work.set()
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

    async def _join(self, scope: TaskScope, address: str, member: Member) -> Session:
        call: Session = SchedulerStub(open_channel(address)).Session()
        await _say(call, member.hello)
        await call.read()  # the welcome
        wake = asyncio.Event()
        scope.spawn(self._listen(call, member, wake), name=f"hearing for {member.hello.host_id}")
        scope.spawn(self._speak(call, member, wake), name=f"speaking for {member.hello.host_id}")
        return call

    async def _listen(self, call: Session, member: Member, wake: asyncio.Event) -> None:
        while isinstance(message := await call.read(), SchedulerProto):
            now = time.perf_counter()
            told = scheduler_message_from_proto(message)
            if isinstance(told, Assignment):
                member.assigned(told, now)
                wake.set()
                if self._at_work.is_set():
                    self._assignments += 1
                if self._reported_at is not None:
                    self._latencies.append(now - self._reported_at)
                    self._reported_at = None
        raise ConnectionError(f"the scheduler ended the session: {await call.details()}")

    async def _speak(self, call: Session, member: Member, wake: asyncio.Event) -> None:
        heartbeat = PeerProto(heartbeat=Heartbeat())
        while True:
            if not self._at_work.is_set() or (at := member.next_at()) is None:
                at = time.perf_counter() + _HEARTBEAT_SECONDS
            wake.clear()
            try:
                async with asyncio.timeout(max(0.0, at - time.perf_counter())):
                    await (wake if self._at_work.is_set() else self._at_work).wait()
            except TimeoutError:
                if not self._at_work.is_set() or member.next_at() is None:
                    await call.write(heartbeat)
            if self._at_work.is_set():
                for progress in member.advance(time.perf_counter()):
                    self._pieces += pieces_of(progress)
                    self._reports += 1
                    self._reported_at = time.perf_counter()
                    await _say(call, progress)


async def _say(call: Session, message: PeerMessage) -> None:
    await call.write(peer_message_to_proto(message))


def main() -> None:
    """Run one load, as the module says."""
    address, scene, seconds = sys.argv[1:]
    figures = uvloop.run(_Load(Scene(**json.loads(scene))).run(address, float(seconds)))
    print(json.dumps(asdict(figures)), flush=True)


if __name__ == "__main__":
    main()
