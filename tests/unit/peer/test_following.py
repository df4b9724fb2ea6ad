"""What the download core does with followed parents: what it asks for, in which order, and what it says of trouble."""

from __future__ import annotations

from p2p.control import FailureReason, Following, Lagging, Parent, Progress, Source
from p2p.pieces import Bitmap, PieceLayout, Span
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
from tests.support.pieces import PIECE

PIECES = 96
VERSION = Version("0" * 64, PIECES * PIECE, ValidatorKind.ETAG, '"a"')
LAYOUT = PieceLayout.of(VERSION.length)
SOURCE = Source("http://origin/a")


def following(*stripes: tuple[int, ...], seeds: int = 0) -> Followed:
    parents = tuple(
        Parent(f"p{number}", f"10.0.0.{number}:1", each, number < seeds) for number, each in enumerate(stripes)
    )
    return Followed(Following(VERSION, 4, parents))


def begun(*stripes: tuple[int, ...], seeds: int = 0) -> DownloadCore:
    core = DownloadCore(VERSION, LAYOUT, Bitmap(PIECES), scheduler=True)
    core.apply(Interest(1, LAYOUT.everything(), SOURCE), now=0.0)
    core.apply(following(*stripes, seeds=seeds), now=0.0)
    return core


def asked(commands: list[Command]) -> list[tuple[str, int]]:
    return [(each.parent_id, each.span.start) for each in commands if isinstance(each, StartTransfer)]


def brought(core: DownloadCore, transfer: int, index: int, now: float) -> list[Command]:
    return core.apply(PieceLanded(transfer, index, bytes(16)), now=now) + core.apply(TransferEnded(transfer), now=now)


def test_as_many_announced_pieces_at_a_time_as_stripes_lowest_first_reported_in_no_hurry() -> None:
    core = begun((0, 1), (2,))
    assert asked(core.apply(ParentHas("p0", (Span(4, 6), Span(8, 9))), now=0.1)) == [("p0", 4), ("p0", 5)]
    assert asked(core.apply(ParentHas("p1", (Span(2, 3), Span(6, 7))), now=0.1)) == [("p1", 2)]
    assert core.apply(ParentHas("p0", (Span(0, 2),)), now=0.1) == []
    commands = brought(core, 1, 4, 0.2)
    assert asked(commands) == [("p0", 0)]
    [told] = [each for each in commands if isinstance(each, Tell)]
    assert isinstance(told.message, Progress)
    assert not told.soon


def test_a_range_goes_before_the_whole() -> None:
    core = begun((0, 1, 2, 3))
    core.apply(Interest(2, (Span(60, 62),), SOURCE), now=0.0)
    assert [index for _, index in asked(core.apply(ParentHas("p0", (Span(0, 70),)), now=0.1))] == [60, 61, 0, 1]


def test_one_followed_in_one_stripe_gives_one_piece_at_a_time_of_other_stripes_too() -> None:
    core = begun((0,), (1,))
    core.apply(ParentLost("p1", FailureReason.UNREACHABLE), now=0.1)
    assert asked(core.apply(ParentHas("p0", (Span(0, 2),)), now=0.2)) == [("p0", 0)]
    assert asked(brought(core, 1, 0, 0.3)) == [("p0", 1)]


def test_a_seed_gives_nothing_but_the_stripes_it_is_followed_in() -> None:
    core = begun((0, 1), (2,), (3,), seeds=1)
    core.apply(ParentHas("p0", (Span(0, PIECES),)), now=0.1)
    commands = core.apply(ParentLost("p1", FailureReason.UNREACHABLE), now=0.2)
    assert [each.parent_id for each in commands if isinstance(each, Watch)] == ["p2"]
    transfers = [(1, 0), (2, 1)]
    for transfer, index in transfers:
        for _, other in asked(brought(core, transfer, index, 0.3)):
            transfers.append((len(transfers) + 1, other))
    assert [index for _, index in transfers] == [index for index in range(PIECES) if index % 4 < 2]
    assert asked(core.apply(ParentHas("p2", (Span(0, 4),)), now=0.4)) == [("p2", 3)]
    assert asked(brought(core, len(transfers) + 1, 3, 0.5)) == [("p2", 2)]
    assert not any(isinstance(each, Watch) and each.parent_id == "p0" for each in core.apply(Tick(), now=6.0))


def test_a_place_that_comes_free_goes_to_a_parent_that_sends_least() -> None:
    core = begun(*[(0, 1, 2, 3)] * 6)
    for number in range(6):
        commands = core.apply(ParentHas(f"p{number}", (Span(0, PIECES),)), now=0.1)
        assert len(asked(commands)) == (4 if number < 4 else 0)
    assert asked(brought(core, 1, 0, 0.2)) == [("p4", 16)]
    assert asked(brought(core, 2, 1, 0.2)) == [("p5", 17)]
    core.check_invariants()


def test_a_lost_parent_is_reported_and_its_stripes_come_from_others_until_it_is_heard_again() -> None:
    core = begun((0, 1), (2, 3))
    core.apply(ParentHas("p0", (Span(0, 2),)), now=0.1)
    commands = core.apply(ParentLost("p0", FailureReason.UNREACHABLE), now=0.2)
    assert [each.transfer for each in commands if isinstance(each, AbortTransfer)] == [1, 2]
    assert Watch("p1", "10.0.0.1:1", (0, 1, 2, 3), 4) in commands
    told = [each.message for each in commands if isinstance(each, Tell)]
    assert Lagging(VERSION.id, (0, 1)) in told
    assert [each.failed[0].span for each in told if isinstance(each, Progress)] == [Span(0, 2)]
    core.apply(TransferEnded(1), now=0.2)
    core.apply(TransferEnded(2), now=0.2)
    assert asked(core.apply(ParentHas("p1", (Span(0, 4),)), now=0.3)) == [("p1", 2), ("p1", 3)]
    assert asked(brought(core, 3, 2, 0.4)) == [("p1", 0)]
    assert Watch("p0", "10.0.0.0:1", (0, 1, 2, 3), 4) in core.apply(Tick(), now=0.2 + REWATCH_SECONDS)
    commands = core.apply(Tick(), now=0.2 + WIDE_SECONDS)
    assert Watch("p1", "10.0.0.1:1", (2, 3), 4) in commands


def test_a_stripe_far_behind_for_long_is_reported_and_heard_of_everywhere() -> None:
    core = begun((0, 1, 2), (3,))
    pieces = asked(core.apply(ParentHas("p0", (Span(0, PIECES),)), now=0.1))
    now = 0.1
    for transfer in range(1, 40):
        now += 0.001
        pieces += asked(brought(core, transfer, pieces[transfer - 1][1], now))
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
