"""What a scheduler is told of landings and failures, and when."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from p2p.control import (
    LAZY_REPORT_SECONDS,
    ORIGIN,
    SMALL_BYTES,
    Failed,
    FailureReason,
    Lagging,
    Landed,
    PeerMessage,
    Progress,
)
from p2p.digests import piece_digest
from p2p.pieces import Span
from p2p.urgency import BRIEF_BYTES
from peer.download import reports
from peer.download.reports import Reports, joined
from peer.store import Store
from tests.support.pieces import PIECE
from tests.unit.store.support import a_task, a_version, content, put

D = [bytes([index]) * 16 for index in range(4)]


def progress(*landed: Landed, failed: tuple[Failed, ...] = ()) -> Progress:
    return Progress("v", landed, failed)


def piece(index: int, parent_id: str, digest: bytes | None = None) -> Landed:
    return Landed(Span(index, index + 1), parent_id, (digest,) if digest else ())


def test_neighbours_from_one_parent_are_joined() -> None:
    assert list(joined([piece(2, "b"), piece(1, ORIGIN, D[1]), piece(0, ORIGIN, D[0]), piece(3, "b")])) == [
        Landed(Span(0, 2), ORIGIN, (D[0], D[1])),
        Landed(Span(2, 4), "b"),
    ]


def test_what_has_a_proof_is_not_joined_to_anything() -> None:
    proven = Landed(Span(1, 2), "b", proof=D[1])
    assert set(joined([piece(0, "b"), proven, piece(2, "b")])) == {piece(0, "b"), proven, piece(2, "b")}


class Timers:
    """Timers that go off when told to."""

    def __init__(self) -> None:
        self.set: list[tuple[float, Call]] = []

    def call_later(self, delay: float, callback: Callable[[], object]) -> Call:
        call = Call(callback)
        self.set.append((delay, call))
        return call

    def pending(self) -> list[float]:
        return sorted(delay for delay, call in self.set if not call.cancelled)

    def fire(self, delay: float) -> None:
        due = [call for each, call in self.set if each == delay and not call.cancelled]
        self.set = [one for one in self.set if one[0] != delay]
        for call in due:
            call.callback()


class Call:
    """One of them."""

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Sent:
    """What was said, and whether it may wait for company."""

    def __init__(self) -> None:
        self.messages: list[PeerMessage] = []
        self.soon: list[bool] = []

    def __call__(self, message: PeerMessage, *, soon: bool = True) -> None:
        self.messages.append(message)
        self.soon.append(soon)


async def test_each_kind_of_news_waits_as_long_as_it_may(tmp_path: Path) -> None:
    store = await Store.open(tmp_path)
    task = a_task()
    sent = Sent()
    with await store.entry(task, a_version(task, 5 * PIECE)) as entry:
        await put(entry, range(5))
        timers = Timers()
        told = Reports(entry, sent, timers)
        assert told.lazy_seconds == LAZY_REPORT_SECONDS
        told.lazy_seconds = lazy_seconds = 2.5
        told.tell(progress(piece(3, "p3")), soon=False)
        told.tell(progress(piece(0, "p0")), soon=False)
        told.tell(progress(piece(4, "p0")), soon=False)
        assert timers.pending() == [lazy_seconds]
        told.tell(progress(piece(1, ORIGIN, D[1])), soon=True)
        told.tell(progress(piece(2, ORIGIN, D[2])), soon=True)
        assert timers.pending() == [reports.ORIGIN_REPORT_SECONDS, lazy_seconds]
        failed = Failed(Span(5, 6), "p5", FailureReason.BUSY)
        told.tell(progress(failed=(failed,)), soon=True)
        assert timers.pending() == [reports.REPORT_SECONDS, lazy_seconds]
        timers.fire(reports.REPORT_SECONDS)
        version_id = entry.version.id
        assert sent.messages == [Progress(version_id, (Landed(Span(1, 3), ORIGIN, (D[1], D[2])),), (failed,))]
        timers.fire(lazy_seconds)
        proof = piece_digest(content(entry, 3)[1] + content(entry, 4)[1])
        first = Landed(Span(0, 1), "p0", proof=piece_digest(content(entry, 0)[1]))
        assert sent.messages[1:] == [Progress(version_id, (first, Landed(Span(3, 5), "p3", proof=proof)))]
        assert timers.pending() == []
        told.flush()
        assert told.sent == len(sent.messages) == 2
        assert sent.soon == [True, True]
    await store.close()


async def test_shreds_wait_until_they_have_grown_together(tmp_path: Path) -> None:
    store = await Store.open(tmp_path)
    task = a_task()
    sent, timers = Sent(), Timers()
    shreds = reports.SHREDS + 2
    with await store.entry(task, a_version(task, 2 * shreds * PIECE)) as entry:
        await put(entry, range(2 * shreds))
        told = Reports(entry, sent, timers)
        told.tell(progress(piece(1, "p0"), *(piece(2 * one, "p0") for one in range(shreds))), soon=False)
        timers.fire(LAZY_REPORT_SECONDS)
        told.tell(Lagging(entry.version.id, (1,)), soon=True)
        told.flush()
        landed = [one.span for said in sent.messages if isinstance(said, Progress) for one in said.landed]
        first = next(said for said in sent.messages if isinstance(said, Progress))
        assert len(first.landed) == reports.SHREDS
        assert Span(0, 3) in [one.span for one in first.landed], "the longest are worth most"
        assert sum(map(len, landed)) == shreds + 1
        assert len(set(landed)) == len(landed)
        assert timers.pending() == []
    await store.close()


async def test_what_the_end_of_a_download_finds_is_sent_at_once(tmp_path: Path) -> None:
    store = await Store.open(tmp_path)
    task = a_task()
    sent = Sent()
    with await store.entry(task, a_version(task, 2 * PIECE)) as entry:
        await put(entry, [0])
        told = Reports(entry, sent, Timers())
        told.tell(progress(piece(0, "p0"), piece(1, "p0")), soon=False)
        told.tell(progress(piece(1, ORIGIN, D[1])), soon=True)
        told.flush()
        (message,) = sent.messages
        assert isinstance(message, Progress)
        assert [one.span for one in message.landed] == [Span(1, 2), Span(0, 1)], "what is not held is not reported"
        assert sent.soon == [True]
    await store.close()


@pytest.mark.parametrize(
    ("length", "landed", "followed", "hurries"),
    [
        (SMALL_BYTES, piece(0, "p0"), False, False),
        (SMALL_BYTES, piece(0, ORIGIN, D[0]), False, True),
        (SMALL_BYTES + 1, piece(0, "p0"), False, True),
        (SMALL_BYTES + 1, piece(0, "p0"), True, False),
        (BRIEF_BYTES + 1, piece(0, "p0"), True, True),
    ],
    ids=["small from a host", "small from the origin", "from an assigned parent", "brief, followed", "followed"],
)
async def test_who_may_wait_for_company(
    tmp_path: Path, length: int, landed: Landed, *, followed: bool, hurries: bool
) -> None:
    store = await Store.open(tmp_path)
    task = a_task()
    sent = Sent()
    with await store.entry(task, a_version(task, length)) as entry:
        await put(entry, [0])
        told = Reports(entry, sent, Timers())
        told.tell(progress(landed), soon=not followed)
        told.flush()
        assert sent.soon == [hurries]
    await store.close()


async def test_a_failure_of_a_small_version_is_in_a_hurry(tmp_path: Path) -> None:
    store = await Store.open(tmp_path)
    task = a_task()
    sent = Sent()
    with await store.entry(task, a_version(task, 1)) as entry:
        timers = Timers()
        told = Reports(entry, sent, timers)
        told.tell(progress(failed=(Failed(Span(0, 1), "p0", FailureReason.BUSY),)), soon=True)
        timers.fire(reports.REPORT_SECONDS)
        assert sent.soon == [True]
    await store.close()
