"""The download's state machine under every order of events that its driver and a scheduler can produce."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from p2p.control import ORIGIN, Assignment, FailureReason, Lagging, Part, Progress, Source, Unwant, Want
from p2p.pieces import MIB, Bitmap, PieceLayout, Span, spans_of
from p2p.versions import ValidatorKind, Version
from peer.core.download import PATIENCE_SECONDS, DownloadCore
from peer.core.messages import (
    AbortTransfer,
    Assigned,
    Disinterest,
    Event,
    GiveUp,
    Interest,
    PieceLanded,
    SchedulerDown,
    SchedulerUp,
    StartTransfer,
    Stop,
    Tell,
    Tick,
    TransferEnded,
)

PIECES = 24
VERSION = Version("0" * 64, PIECES * 4 * MIB - 7, ValidatorKind.ETAG, '"a"')
SOURCES = [Source(f"http://origin/{name}") for name in "abc"]
LENT = Source("http://origin/lent")


class DownloadMachine(RuleBasedStateMachine):
    """Plays driver and scheduler: honest about what transfers do, free in when and whether."""

    @initialize(scheduler=st.booleans(), seed=st.booleans(), held=st.sets(st.integers(0, PIECES - 1), max_size=6))
    def begin(self, scheduler: bool, seed: bool, held: set[int]) -> None:
        layout = PieceLayout.of(VERSION.length)
        landed = Bitmap(PIECES, spans_of(sorted(held)))
        self.core = DownloadCore(VERSION, layout, landed, scheduler=scheduler, seed=seed)
        self.now = 0.0
        self.next_reader = 1
        self.readers: dict[int, Bitmap] = {}
        self.running: dict[int, StartTransfer] = {}
        self.left: dict[int, set[int]] = {}
        self.asked = Bitmap(PIECES)
        self.scheduler = scheduler

    def feed(self, event: Event) -> None:
        self.now += 0.01
        for command in self.core.apply(event, now=self.now):
            match command:
                case StartTransfer():
                    assert command.transfer not in self.running
                    busy = {index for left in self.left.values() for index in left}
                    assert busy.isdisjoint(command.span), "two transfers would write one piece"
                    assert not any(index in self.core.landed for index in command.span), "a landed piece is fetched"
                    if command.source is None:
                        assert len(command.digests) == len(command.span), "a parent's piece cannot be checked"
                    self.running[command.transfer] = command
                    self.left[command.transfer] = set(command.span)
                case AbortTransfer(transfer):
                    assert transfer in self.running
                case Tell(message):
                    assert self.scheduler, "told a scheduler that is away"
                    self.heard(message)
                case GiveUp():
                    self.readers.clear()

    def heard(self, message: Want | Unwant | Progress | Lagging) -> None:
        match message:
            case Want():
                for span in message.spans:
                    self.asked.add(span)
            case Unwant():
                self.asked.clear()
            case Progress():
                for landed in message.landed:
                    self.asked.discard(landed.span)
                    assert bool(landed.digests) == (landed.parent_id == ORIGIN)

    @rule(pieces=st.sets(st.integers(0, PIECES - 1), min_size=1), source=st.sampled_from(SOURCES))
    def reader_comes(self, pieces: set[int], source: Source) -> None:
        spans = spans_of(sorted(index for index in pieces if index not in self.core.landed))
        if spans:
            self.readers[self.next_reader] = Bitmap(PIECES, spans)
            self.feed(Interest(self.next_reader, spans, source))
            self.next_reader += 1

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def reader_leaves(self, data: st.DataObject) -> None:
        reader = data.draw(st.sampled_from(sorted(self.readers)))
        del self.readers[reader]
        self.feed(Disinterest(reader))

    @precondition(lambda self: self.scheduler)
    @rule(
        start=st.integers(0, PIECES - 1),
        count=st.integers(1, 8),
        parent=st.sampled_from(["p1", "p2", ORIGIN]),
        lend=st.booleans(),
    )
    def scheduler_assigns(self, start: int, count: int, parent: str, lend: bool) -> None:
        span = Span(start, min(PIECES, start + count))
        digests = () if parent == ORIGIN else tuple(bytes(16) for _ in span)
        self.feed(Assigned(Assignment(VERSION, (Part(span, parent, "127.0.0.1:1", digests),), LENT if lend else None)))

    @rule()
    def scheduler_comes_or_goes(self) -> None:
        self.asked.clear()
        self.scheduler = not self.scheduler
        self.feed(SchedulerUp() if self.scheduler else SchedulerDown())

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def piece_lands(self, data: st.DataObject) -> None:
        transfer = data.draw(st.sampled_from(sorted(self.running)))
        left = self.left[transfer]
        if left:
            index = min(left)
            left.discard(index)
            self.feed(PieceLanded(transfer, index, bytes(16)))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), reason=st.none() | st.sampled_from(FailureReason))
    def transfer_ends(self, data: st.DataObject, reason: FailureReason | None) -> None:
        transfer = data.draw(st.sampled_from(sorted(self.running)))
        del self.running[transfer], self.left[transfer]
        self.feed(TransferEnded(transfer, reason))

    @rule()
    def time_passes(self) -> None:
        self.now += PATIENCE_SECONDS
        self.feed(Tick())

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "core"):
            return
        self.core.check_invariants()
        wanted = Bitmap(PIECES)
        for bitmap in self.readers.values():
            wanted |= bitmap
        wanted -= self.core.landed
        assert self.core.wanted == wanted
        # Nothing is forgotten: a wanted piece flies, or waits for its turn, or the scheduler knows that it is wanted,
        # or time will take the download to the origin.
        if wanted and not self.running:
            assert self.core.next_deadline() is not None or self.core.alone
        if self.scheduler and not self.core.alone:
            flying = {index for left in self.left.values() for index in left}
            assert all(index in self.asked or index in flying for index in wanted), "wanted, and nobody knows"

    def teardown(self) -> None:
        """However it got here: left alone with a sound origin, every reader gets its pieces."""
        if not hasattr(self, "core"):
            return
        if self.scheduler:
            self.scheduler_comes_or_goes()
        self.time_passes()
        while self.running:
            transfer = min(self.running)
            for index in sorted(self.left[transfer]):
                self.left[transfer].discard(index)
                self.feed(PieceLanded(transfer, index, bytes(16)))
            del self.running[transfer], self.left[transfer]
            self.feed(TransferEnded(transfer))
        assert not self.core.wanted
        assert self.core.idle
        self.feed(Stop())
        assert self.core.idle


TestDownloadMachine = DownloadMachine.TestCase
TestDownloadMachine.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
