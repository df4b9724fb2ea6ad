"""The download's state machine under every order of events that its driver and a scheduler can produce."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from p2p.control import (
    ORIGIN,
    Assignment,
    FailureReason,
    Following,
    Lagging,
    Parent,
    Part,
    Progress,
    Source,
    Unwant,
    Want,
)
from p2p.pieces import Bitmap, PieceLayout, Span, spans_of
from p2p.versions import ValidatorKind, Version
from peer.core.download import PATIENCE_SECONDS, DownloadCore
from peer.core.messages import (
    AbortTransfer,
    Assigned,
    Disinterest,
    Event,
    Followed,
    GiveUp,
    Interest,
    ParentHas,
    ParentLost,
    PieceLanded,
    SchedulerDown,
    SchedulerUp,
    StartTransfer,
    Stop,
    Tell,
    Tick,
    TransferEnded,
    Unwatch,
    Watch,
)
from tests.support.pieces import PIECE

PIECES = 24
STRIPES = 4
VERSION = Version("0" * 64, PIECES * PIECE - 7, ValidatorKind.ETAG, '"a"')
SOURCES = [Source(f"http://origin/{name}") for name in "abc"]
LENT = Source("http://origin/lent")


class DownloadMachine(RuleBasedStateMachine):
    """Plays driver and scheduler: honest about what transfers do, free in when and whether."""

    @initialize(
        scheduler=st.booleans(),
        seed=st.booleans(),
        held=st.sets(st.integers(0, PIECES - 1), max_size=6),
        ends_with_parents=st.booleans(),
    )
    def begin(self, scheduler: bool, seed: bool, held: set[int], ends_with_parents: bool) -> None:
        layout = PieceLayout.of(VERSION.length)
        landed = Bitmap(PIECES, spans_of(sorted(held)))
        self.core = DownloadCore(VERSION, layout, landed, scheduler=scheduler, seed=seed)
        self.now = 0.0
        self.next_reader = 1
        self.readers: dict[int, Bitmap] = {}
        self.priorities: dict[int, int] = {}
        self.told_priority: int | None = None
        self.running: dict[int, StartTransfer] = {}
        self.left: dict[int, set[int]] = {}
        self.asked = Bitmap(PIECES)
        self.scheduler = scheduler
        self.ends_with_parents = ends_with_parents
        self.watched: dict[str, Watch] = {}
        self.announced: dict[str, set[int]] = {}
        self.named: dict[str, Parent] = {}

    def feed(self, event: Event) -> None:
        self.now += 0.01
        for command in self.core.apply(event, now=self.now):
            match command:
                case StartTransfer():
                    assert command.transfer not in self.running
                    busy = {index for left in self.left.values() for index in left}
                    assert busy.isdisjoint(command.span), "two transfers would write one piece"
                    assert not any(index in self.core.landed for index in command.span), "a landed piece is fetched"
                    if command.source is None and not command.digests:
                        self.asked_of_followed(command)
                    elif command.source is None:
                        assert len(command.digests) == len(command.span), "a parent's piece cannot be checked"
                    self.running[command.transfer] = command
                    self.left[command.transfer] = set(command.span)
                case AbortTransfer(transfer):
                    assert transfer in self.running
                case Tell(message):
                    assert self.scheduler, "told a scheduler that is away"
                    self.heard(message)
                case Watch(parent_id, _, stripes, of):
                    assert set(stripes) <= set(range(of))
                    assert not self.named[parent_id].seed or stripes == self.named[parent_id].stripes
                    self.watched[parent_id] = command
                    self.announced.setdefault(parent_id, set())
                case Unwatch(parent_id):
                    self.watched.pop(parent_id, None)
                    self.announced.pop(parent_id, None)
                case GiveUp():
                    self.readers.clear()
        if isinstance(event, Tick):
            deadline = self.core.next_deadline()
            assert deadline is None or deadline > self.now, "time passes, and nothing comes of it"

    def asked_of_followed(self, command: StartTransfer) -> None:
        parent = command.parent_id
        assert parent in self.watched, "asked of a parent that is not heard"
        assert self.announced[parent].issuperset(command.span), "asked for what was not announced"
        assert command.address == self.watched[parent].address
        others = [other for other in self.running.values() if other.source is None and not other.digests]
        named = self.named[parent]
        busy = sum(other.parent_id == parent for other in others)
        assert busy < len(named.stripes), "more transfers from a followed parent than stripes"
        if named.seed:
            assert all(index % STRIPES in named.stripes for index in command.span), "a seed is asked for other stripes"

    def heard(self, message: Want | Unwant | Progress | Lagging) -> None:
        match message:
            case Want():
                for span in message.spans:
                    self.asked.add(span)
                self.told_priority = message.priority
            case Unwant():
                self.asked.clear()
                self.told_priority = None
            case Progress():
                for landed in message.landed:
                    self.asked.discard(landed.span)
                    assert bool(landed.digests) == (landed.parent_id == ORIGIN)
            case Lagging():
                assert message.stripes
                assert set(message.stripes) <= set(range(STRIPES))

    @rule(
        pieces=st.sets(st.integers(0, PIECES - 1), min_size=1),
        source=st.sampled_from(SOURCES),
        priority=st.integers(0, 7),
    )
    def reader_comes(self, pieces: set[int], source: Source, priority: int) -> None:
        spans = spans_of(sorted(index for index in pieces if index not in self.core.landed))
        if spans:
            self.readers[self.next_reader] = Bitmap(PIECES, spans)
            self.priorities[self.next_reader] = priority
            self.feed(Interest(self.next_reader, spans, source, priority))
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

    @precondition(lambda self: self.scheduler)
    @rule(parents=st.lists(st.sampled_from(["p1", "p2", "p3", "seed", None]), min_size=STRIPES, max_size=STRIPES))
    def scheduler_names_parents(self, parents: list[str | None]) -> None:
        self.name_parents(parents)

    def name_parents(self, parents: list[str | None]) -> None:
        named = tuple(
            Parent(
                parent_id,
                "127.0.0.1:1",
                tuple(j for j in range(STRIPES) if parents[j] == parent_id),
                parent_id == "seed",
            )
            for parent_id in sorted({parent for parent in parents if parent is not None})
        )
        self.named = {parent.parent_id: parent for parent in named}
        self.feed(Followed(Following(VERSION, STRIPES, named)))
        assert set(self.watched) == ({parent.parent_id for parent in named} if self.core.wanted else set())

    @precondition(lambda self: self.watched)
    @rule(data=st.data(), pieces=st.sets(st.integers(0, PIECES - 1), min_size=1))
    def parent_announces(self, data: st.DataObject, pieces: set[int]) -> None:
        self.announce(data.draw(st.sampled_from(sorted(self.watched))), pieces)

    def announce(self, parent: str, pieces: set[int]) -> None:
        watch = self.watched[parent]
        heard = sorted(index for index in pieces if index % watch.of in watch.stripes)
        if heard:
            self.announced[parent].update(heard)
            self.feed(ParentHas(parent, spans_of(heard)))

    @precondition(lambda self: self.watched)
    @rule(data=st.data(), reason=st.sampled_from([FailureReason.UNREACHABLE, FailureReason.STALLED]))
    def parent_is_lost(self, data: st.DataObject, reason: FailureReason) -> None:
        parent = data.draw(st.sampled_from(sorted(self.watched)))
        del self.watched[parent], self.announced[parent]
        self.feed(ParentLost(parent, reason))

    @rule()
    def scheduler_comes_or_goes(self) -> None:
        self.asked.clear()
        self.told_priority = None
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
    def a_moment_passes(self) -> None:
        self.now += 0.4
        self.feed(Tick())

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
        if wanted:
            most_urgent = max(self.priorities[reader] for reader in self.readers)
            assert self.told_priority in (None, most_urgent), "the scheduler was told another priority"
            assert self.core.urgency.priority >= most_urgent

    def teardown(self) -> None:
        """However it got here: with sound parents to follow, or alone with a sound origin, readers get their pieces."""
        if not hasattr(self, "core"):
            return
        if self.scheduler and self.ends_with_parents:
            self.name_parents([f"sound-{stripe}" for stripe in range(STRIPES)])
            for parent in sorted(self.watched):
                self.announce(parent, set(range(PIECES)))
            self.finish_what_runs()
            assert not self.core.alone
        else:
            if self.scheduler:
                self.scheduler_comes_or_goes()
            for _ in range(2):
                self.time_passes()
                self.finish_what_runs()
        assert not self.core.wanted
        assert self.core.idle
        assert not self.watched, "parents are heard for nothing"
        self.feed(Stop())
        assert self.core.idle

    def finish_what_runs(self) -> None:
        while self.running:
            transfer = min(self.running)
            for index in sorted(self.left[transfer]):
                self.left[transfer].discard(index)
                self.feed(PieceLanded(transfer, index, bytes(16)))
            del self.running[transfer], self.left[transfer]
            self.feed(TransferEnded(transfer))
            self.core.check_invariants()


TestDownloadMachine = DownloadMachine.TestCase
TestDownloadMachine.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)
