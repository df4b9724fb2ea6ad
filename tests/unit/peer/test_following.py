"""What the download core does with followed parents: what it asks for, in which order, and what it says of trouble."""

from __future__ import annotations

from p2p.control import FailureReason, Following, Lagging, Parent, Progress, Source
from p2p.pieces import MIB, Bitmap, PieceLayout, Span
from p2p.versions import ValidatorKind, Version
from peer.core.download import PATIENCE_SECONDS, DownloadCore
from peer.core.following import LAG_SECONDS, REWATCH_SECONDS, WIDE_SECONDS
from peer.core.messages import (
    AbortTransfer,
    Command,
    Followed,
    Interest,
    ParentHas,
    ParentLost,
    PieceLanded,
    SchedulerDown,
    StartTransfer,
    Tell,
    Tick,
    TransferEnded,
    Unwatch,
    Watch,
)

PIECES = 96
VERSION = Version("0" * 64, PIECES * 4 * MIB, ValidatorKind.ETAG, '"a"')
LAYOUT = PieceLayout.of(VERSION.length)
SOURCE = Source("http://origin/a")


def following(*stripes: tuple[int, ...]) -> Followed:
    parents = tuple(Parent(f"p{number}", f"10.0.0.{number}:1", each) for number, each in enumerate(stripes))
    return Followed(Following(VERSION, 4, parents))


def begun(*stripes: tuple[int, ...]) -> DownloadCore:
    core = DownloadCore(VERSION, LAYOUT, Bitmap(PIECES), scheduler=True)
    core.apply(Interest(1, LAYOUT.everything(), SOURCE), now=0.0)
    core.apply(following(*stripes), now=0.0)
    return core


def asked(commands: list[Command]) -> list[tuple[str, int]]:
    return [(each.parent_id, each.span.start) for each in commands if isinstance(each, StartTransfer)]


def brought(core: DownloadCore, transfer: int, index: int, now: float) -> list[Command]:
    return core.apply(PieceLanded(transfer, index, bytes(16)), now=now) + core.apply(TransferEnded(transfer), now=now)


def test_one_announced_piece_at_a_time_lowest_first_reported_in_no_hurry() -> None:
    core = begun((0, 1), (2, 3))
    assert asked(core.apply(ParentHas("p0", (Span(4, 6),)), now=0.1)) == [("p0", 4)]
    assert core.apply(ParentHas("p0", (Span(0, 2),)), now=0.1) == []
    commands = brought(core, 1, 4, 0.2)
    assert asked(commands) == [("p0", 0)]
    [told] = [each for each in commands if isinstance(each, Tell)]
    assert isinstance(told.message, Progress)
    assert not told.soon


def test_a_range_goes_before_the_whole() -> None:
    core = begun((0, 1, 2, 3))
    core.apply(Interest(2, (Span(60, 64),), SOURCE), now=0.0)
    assert asked(core.apply(ParentHas("p0", (Span(0, 70),)), now=0.1)) == [("p0", 60)]


def test_a_lost_parent_is_reported_and_its_stripes_come_from_others_until_it_is_heard_again() -> None:
    core = begun((0, 1), (2, 3))
    core.apply(ParentHas("p0", (Span(0, 2),)), now=0.1)
    commands = core.apply(ParentLost("p0", FailureReason.UNREACHABLE), now=0.2)
    assert AbortTransfer(1) in commands
    assert Watch("p1", "10.0.0.1:1", (0, 1, 2, 3), 4) in commands
    told = [each.message for each in commands if isinstance(each, Tell)]
    assert Lagging(VERSION.id, (0, 1)) in told
    assert [each.failed[0].span for each in told if isinstance(each, Progress)] == [Span(0, 1)]
    core.apply(TransferEnded(1), now=0.2)
    assert asked(core.apply(ParentHas("p1", (Span(0, 3),)), now=0.3)) == [("p1", 2)]
    assert asked(brought(core, 2, 2, 0.4)) == [("p1", 0)]
    assert Watch("p0", "10.0.0.0:1", (0, 1, 2, 3), 4) in core.apply(Tick(), now=0.2 + REWATCH_SECONDS)
    commands = core.apply(Tick(), now=0.2 + WIDE_SECONDS)
    assert Watch("p1", "10.0.0.1:1", (2, 3), 4) in commands


def test_a_stripe_far_behind_for_long_is_reported_and_heard_of_everywhere() -> None:
    core = begun((0, 1, 2), (3,))
    commands = core.apply(ParentHas("p0", (Span(0, PIECES),)), now=0.1)
    now = 0.1
    for transfer in range(1, 40):
        [(_, index)] = asked(commands)
        now += 0.001
        commands = brought(core, transfer, index, now)
    deadline = core.next_deadline()
    assert deadline is not None
    assert deadline <= now + LAG_SECONDS
    commands = core.apply(Tick(), now=deadline)
    assert Tell(Lagging(VERSION.id, (3,))) in commands
    assert Watch("p0", "10.0.0.0:1", (0, 1, 2, 3), 4) in commands


def test_a_replaced_parent_is_heard_no_more_and_what_it_sends_is_stopped() -> None:
    core = begun((0, 1), (2, 3))
    core.apply(ParentHas("p1", (Span(2, 4),)), now=0.1)
    commands = core.apply(following((0, 1, 2, 3)), now=0.2)
    assert Unwatch("p1") in commands
    assert AbortTransfer(1) in commands
    assert core.apply(ParentHas("p1", (Span(6, 8),)), now=0.3) == []


def test_without_a_scheduler_parents_are_followed_on_as_long_as_pieces_land() -> None:
    core = begun((0, 1, 2, 3))
    core.apply(SchedulerDown(), now=0.1)
    core.apply(ParentHas("p0", (Span(0, 1),)), now=10.0)
    brought(core, 1, 0, 10.0)
    assert not core.alone
    assert core.next_deadline() == 10.0 + PATIENCE_SECONDS
    assert asked(core.apply(Tick(), now=10.0 + PATIENCE_SECONDS))[0][0] == ""
    assert asked(core.apply(ParentHas("p0", (Span(0, PIECES),)), now=41.0)) == []
