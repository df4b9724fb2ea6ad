"""Many small files read one after the other by every node, in virtual time: what each costs in frames, and how long.

The cores, the reports and the outbox are those that ship. Links are simpler than in the other simulation: an uplink
sends one file after another, since there is little else to such files than their latency. Clients ask for the next file
when the last one has landed; what the proxy and the origin take to say which version it is is not part of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from bench.sim.clock import Clock
from bench.sim.host import digest_of
from bench.sim.report import percentile
from bench.sim.reports import SimulatedEntry, VirtualTimers
from bench.sim.scenario import Scenario
from p2p.control import SMALL_BYTES, Assignment, FailureReason, Hello, PeerMessage, SchedulerMessage, Source
from p2p.errors import ConfigError
from p2p.pieces import Bitmap
from p2p.stores import Store
from p2p.versions import ValidatorKind, Version
from peer.core.download import DownloadCore
from peer.core.messages import (
    Assigned,
    Disinterest,
    Event,
    Interest,
    PieceLanded,
    StartTransfer,
    Tell,
    TransferEnded,
)
from peer.core.outbox import Outbox
from peer.download.reports import Reports
from peer.upload.server import SMALL_A_SLOT
from scheduler.core.messages import Command, JournalRead, ReadJournal, Send, Tick, event_of
from scheduler.core.messages import Event as SchedulerEvent
from scheduler.core.model import Limits
from scheduler.core.state import SchedulerCore

_READER = 1
_SOURCE = Source("http://origin.invalid/repository", store=Store.HTTP)
_DIGESTS = (digest_of(0),)


@dataclass(slots=True)
class FilesRecord:
    """What a run leaves behind; frames and messages are those of the nodes, without the seeds'."""

    nodes: int
    files: int
    waits: list[float] = field(default_factory=list)
    """Seconds from a wish to its file, ascending at the end."""
    frames_up: int = 0
    messages_up: int = 0
    frames_down: int = 0
    seed_frames: int = 0
    """Of the seeds, in both directions."""
    origin_fetches: int = 0
    busy: int = 0
    """Requests that a host with too many under way refused."""
    sent: dict[str, int] = field(default_factory=dict)
    """How many files each host has sent to others."""

    def figures(self) -> dict[str, float]:
        """Return the figures by names with units."""
        reads = self.nodes * self.files
        return {
            "nodes": self.nodes,
            "files": self.files,
            "control_frames_per_file_per_node": (self.frames_up + self.frames_down) / reads,
            "control_messages_up_per_file_per_node": self.messages_up / reads,
            "seed_control_frames_per_file": self.seed_frames / self.files,
            "origin_copies": self.origin_fetches / self.files,
            "most_sent_share": max(self.sent.values(), default=0) / reads,
            "busy_refusals": self.busy,
            "p50_seconds": percentile(self.waits, 0.5) or 0.0,
            "p99_seconds": percentile(self.waits, 0.99) or 0.0,
            "longest_seconds": percentile(self.waits, 1.0) or 0.0,
        }


class SimulatedFiles:
    """One run: every node reads `files` files of the scenario's size, all in the same order."""

    def __init__(self, scenario: Scenario, files: int) -> None:
        if not 0 < scenario.size <= SMALL_BYTES:
            raise ConfigError(f"--size {scenario.size}: many files are of 1 to {SMALL_BYTES} bytes each")
        self.scenario = scenario
        self.clock = Clock()
        self.random = Random(scenario.seed)  # noqa: S311  # a run must repeat
        self.record = FilesRecord(scenario.nodes, files)
        self.versions = [
            Version(f"{number:064x}", scenario.size, ValidatorKind.ETAG, '"simulated"') for number in range(files)
        ]
        self.hosts: dict[str, _FilesHost] = {}
        self.scheduler = _FilesScheduler(self)

    def run(self) -> FilesRecord:
        """Let it happen, until every node has read all."""
        scenario = self.scenario
        names = [f"seed-{number}" for number in range(scenario.seeds)]
        names += [f"node-{number}" for number in range(scenario.nodes)]
        for name in names:
            host = self.hosts[name] = _FilesHost(self, name, seed=name.startswith("seed"))
            self.scheduler.hear(name, [host.hello])
        times = iter(scenario.arrival_times(self.random))
        for host in self.hosts.values():
            if not host.seed:
                self.clock.at(next(times), host.read_next)
        reads = scenario.nodes * len(self.versions)
        while len(self.record.waits) < reads and self.clock.step():
            pass
        self.record.waits.sort()
        return self.record

    def delay(self) -> float:
        """Return half a round trip with its jitter, in seconds."""
        return self.scenario.rtt / 2 * (1 + self.scenario.jitter * self.random.random())


class _FilesScheduler:
    """The core behind an inbox: what was heard while it was busy is applied together."""

    def __init__(self, files: SimulatedFiles) -> None:
        self._files = files
        self._clock = files.clock
        self._core = SchedulerCore(
            random=Random(files.random.random()),  # noqa: S311  # breaks ties, keeps no secret
            limits=Limits(stripes=files.scenario.stripes, settle=0.0),
        )
        self._inbox: list[SchedulerEvent] = []
        self._busy = False

    def hear(self, host_id: str, messages: list[PeerMessage]) -> None:
        self._inbox += [event_of(host_id, message) for message in messages]
        self._work()

    def _work(self) -> None:
        deadline = self._core.next_deadline()
        due = deadline is not None and deadline <= self._clock.now
        if self._busy or not (self._inbox or due):
            return
        events, self._inbox = self._inbox, []
        commands: list[Command] = []
        for event in events:
            commands += self._core.apply(event, now=self._clock.now)
        if (deadline := self._core.next_deadline()) is not None and deadline <= self._clock.now:
            commands += self._core.apply(Tick(), now=self._clock.now)
        self._busy = True
        sends = [command for command in commands if isinstance(command, Send)]
        spent = (len(events) + len(sends)) * self._files.scenario.cost.message_seconds
        self._clock.after(spent, self._done, sends)
        for command in commands:
            if isinstance(command, ReadJournal):
                self._inbox.append(JournalRead(command.version_id, {}))

    def _done(self, sends: list[Send]) -> None:
        self._busy = False
        frames: dict[str, list[SchedulerMessage]] = {}
        for send in sends:
            frames.setdefault(send.host_id, []).append(send.message)
        for host_id, messages in frames.items():
            self._clock.after(self._files.delay(), self._files.hosts[host_id].hear, messages)
        self._work()
        if not self._busy and (deadline := self._core.next_deadline()) is not None:
            self._clock.at(deadline, self._work)


class _FilesHost:
    """A peer or a seed, with the downloads of the files that it is at."""

    def __init__(self, files: SimulatedFiles, name: str, *, seed: bool) -> None:
        self.seed = seed
        self.held: set[str] = set()
        self.hello = Hello(name, f"{name}:1", seed, files.scenario.upload_slots)
        self._name = name
        self._files = files
        self._clock = files.clock
        self._timers = VirtualTimers(files.clock)
        self._outbox = Outbox[PeerMessage](self._timers, lambda: self._clock.after(0.0, self._speak))
        self._downloads: dict[str, tuple[DownloadCore, Reports]] = {}
        self._next = 0
        self._wished_at = 0.0
        self._sending = 0
        self._free_at = 0.0
        """When the uplink has nothing to send any more."""

    def read_next(self) -> None:
        """Let the client ask for its next file."""
        version = self._files.versions[self._next]
        self._wished_at = self._clock.now
        self._dispatch(version, Interest(_READER, self._files.scenario.layout.everything(), _SOURCE))

    def hear(self, messages: list[SchedulerMessage]) -> None:
        """Take a frame of the scheduler's."""
        record = self._files.record
        if self.seed:
            record.seed_frames += 1
        elif any(isinstance(message, Assignment) for message in messages):
            record.frames_down += 1
        for message in messages:
            if isinstance(message, Assignment) and (self.seed or message.version.id in self._downloads):
                self._dispatch(message.version, Assigned(message))

    def serve(self, child: _FilesHost, version: Version, command: StartTransfer) -> None:
        """Answer a child's request as the piece server does."""
        scenario, record = self._files.scenario, self._files.record
        reason = None if version.id in self.held else FailureReason.MISSING
        if reason is None and self._sending >= SMALL_A_SLOT * scenario.upload_slots:
            reason = FailureReason.BUSY
            record.busy += 1
        at = self._clock.now
        if reason is None:
            self._sending += 1
            at = self._free_at = max(at, self._free_at) + scenario.size / scenario.rate
            self._clock.at(at, self._sent)
            record.sent[self._name] = record.sent.get(self._name, 0) + 1
        self._clock.at(at + self._files.delay() + scenario.landing_seconds, child.ended, version, command, reason)

    def ended(self, version: Version, command: StartTransfer, reason: FailureReason | None) -> None:
        """Take a file, or that it did not come."""
        if reason is None:
            self.held.add(version.id)
            self._dispatch(version, PieceLanded(command.transfer, 0, _DIGESTS[0]))
        self._dispatch(version, TransferEnded(command.transfer, reason))
        if self.seed or version.id not in self.held:
            return
        self._files.record.waits.append(self._clock.now - self._wished_at)
        self._next += 1
        if self._next < len(self._files.versions):
            self.read_next()

    def _sent(self) -> None:
        self._sending -= 1

    def _dispatch(self, version: Version, event: Event) -> None:
        if version.id not in self._downloads:
            core = DownloadCore(version, self._files.scenario.layout, Bitmap(1), scheduler=True, seed=self.seed)
            entry = SimulatedEntry(version, core.landed, _DIGESTS)
            self._downloads[version.id] = core, Reports(entry, self._outbox.put, self._timers)
        core, reports = self._downloads[version.id]
        for command in core.apply(event, now=self._clock.now):
            if isinstance(command, Tell):
                reports.tell(command.message, soon=command.soon)
            elif isinstance(command, StartTransfer):
                self._start(version, command)
        if core.idle:
            core.apply(Disinterest(_READER), now=self._clock.now)
            reports.flush()
            del self._downloads[version.id]

    def _start(self, version: Version, command: StartTransfer) -> None:
        scenario = self._files.scenario
        if command.source is not None:
            self._files.record.origin_fetches += 1
            seconds = scenario.origin_latency + scenario.size / scenario.origin_rate + scenario.landing_seconds
            self._clock.after(seconds, self.ended, version, command, None)
            return
        self._clock.after(self._files.delay(), self._files.hosts[command.parent_id].serve, self, version, command)

    def _speak(self) -> None:
        said = self._outbox.take()
        if not said:
            return
        record = self._files.record
        if self.seed:
            record.seed_frames += 1
        else:
            record.frames_up += 1
            record.messages_up += len(said)
        self._clock.after(self._files.delay(), self._files.scheduler.hear, self._name, said)
