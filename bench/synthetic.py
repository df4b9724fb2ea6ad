"""Hosts that say to a scheduler what real peers say, without moving a byte.

What a host is assigned lands at the rate of its link: so many transfers at once share it, a piece of each in turn
(`peer.core.transfers`), and reports wait for company and name spans (`peer.download.reports`). What followed parents
bring is taken to be there as fast as the link carries it. Time is an argument.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from random import Random

from p2p.control import (
    ORIGIN,
    Assignment,
    Following,
    Hello,
    Holding,
    Holdings,
    Landed,
    Progress,
    Source,
    Want,
)
from p2p.digests import piece_digest
from p2p.pieces import Bitmap, PieceLayout, Span, spans_of
from p2p.versions import ValidatorKind, Version
from peer.core.transfers import PARENT_TRANSFERS
from peer.download.reports import ORIGIN_REPORT_SECONDS, REPORT_SECONDS
from peer.link import HOLDINGS_PER_MESSAGE

_UPLOAD_SLOTS = 16
_RUN_PIECES = 16

_ARRIVAL_SECONDS = 0.5
"""Hosts come to an object within this time of each other, as a job's do, so their lazy reports are not in step."""


@dataclass(frozen=True, slots=True)
class Scene:
    """`hosts` want `tasks` objects of `object_bytes`; one more, a seed, goes to the origin.

    Where they are `primed`, every host holds every other run of pieces of each object already, half of the hosts the
    even runs and half the odd ones: swarms in the middle of their work.
    """

    hosts: int
    tasks: int
    object_bytes: int
    link_bytes_per_second: float = 1.25e9
    """What a host's downloads share; 10 Gbit/s."""
    primed: bool = False
    rolling: bool = False
    """Whether a host wants the objects one after another, each when it has the one before, and not all at once."""

    @property
    def pieces(self) -> int:
        """The pieces of one object."""
        return PieceLayout.of(self.object_bytes).count

    @property
    def pairs(self) -> int:
        """How many hosts have something to do with how many tasks, one by one."""
        return self.hosts * self.tasks

    def versions(self) -> list[Version]:
        """Return the objects' versions."""
        return [
            Version(hashlib.sha256(b"%d" % number).hexdigest(), self.object_bytes, ValidatorKind.ETAG, f'"{number}"')
            for number in range(self.tasks)
        ]

    def members(self) -> list[Member]:
        """Return the seed, if one is needed, and the hosts."""
        names = [f"host-{number}" for number in range(self.hosts)]
        hellos = [_hello(name, number, seed=False) for number, name in enumerate(names, 1)]
        if not self.primed:
            hellos.insert(0, _hello("seed", 0, seed=True))
        random = Random(0)  # noqa: S311  # the same arrivals in every run
        return [Member(hello, self.link_bytes_per_second, random.uniform(0, _ARRIVAL_SECONDS)) for hello in hellos]

    def holdings(self, number: int) -> Iterator[Holdings]:
        """Yield what the host of that number announces when it joins, in messages as real peers make them."""
        if not self.primed:
            yield Holdings(())
            return
        held = self._held(number)
        digests = tuple(map(digest_of, held))
        versions = iter(self.versions())
        while batch := tuple(islice(versions, HOLDINGS_PER_MESSAGE)):
            yield Holdings(tuple(Holding(version, held, digests) for version in batch))

    def lacking(self, number: int) -> tuple[Span, ...]:
        """Return what the host of that number lacks of each object before it has asked for anything."""
        everything = Bitmap(self.pieces, PieceLayout.of(self.object_bytes).everything())
        return (everything - self._held(number) if self.primed else everything).spans()

    def _held(self, number: int) -> Bitmap:
        starts = range(number % 2 * _RUN_PIECES, self.pieces, 2 * _RUN_PIECES)
        return Bitmap(self.pieces, (Span(start, min(start + _RUN_PIECES, self.pieces)) for start in starts))

    def wants(self) -> Iterator[Want]:
        """Yield what every host but the seed wants: all of everything."""
        everything = PieceLayout.of(self.object_bytes).everything()
        source = Source("http://origin.invalid/bucket/object?signature=none")
        for version in self.versions():
            yield Want(version, everything, source)


@dataclass(slots=True)
class _Transfer:
    """Pieces `index` to `stop` - 1, which land one after another."""

    version_id: str
    parent_id: str
    piece_bytes: int
    index: int
    stop: int
    wait: float
    """How long a report of what has landed waits for company."""
    followed: bool = False

    @property
    def report_key(self) -> tuple[str, bool]:
        return self.version_id, self.followed


@dataclass(slots=True)
class _Report:
    """What landed of one version since the last report, by parent; it leaves at `due`."""

    due: float
    landed: dict[str, list[int]] = field(default_factory=dict)


@dataclass(slots=True)
class Member:
    """One host: what it was assigned and has not landed yet, and what it has not reported yet."""

    hello: Hello
    link_bytes_per_second: float
    late_seconds: float
    """How long it takes from its being told whom to follow until they have anything for it."""
    _waiting: deque[_Transfer] = field(default_factory=deque)
    _under_way: deque[_Transfer] = field(default_factory=deque)
    _free_at: float = 0.0
    _reports: dict[tuple[str, bool], _Report] = field(default_factory=dict)
    """By version, and whether those are pieces that followed parents announced."""
    _following: set[str] = field(default_factory=set)
    _missing: dict[str, Bitmap] = field(default_factory=dict)

    @property
    def content(self) -> bool:
        """Whether it has all that it was told to expect."""
        return not self._missing

    def expect(self, version: Version, spans: Iterable[Span]) -> None:
        """Take note of what the host lacks of a version: once it has landed, its reports wait no longer."""
        self._missing[version.id] = Bitmap(PieceLayout.of(version.length).count, spans)

    def assigned(self, assignment: Assignment, now: float) -> None:
        """Begin what a scheduler assigned, at `now` (seconds)."""
        version = assignment.version
        layout, version_id = PieceLayout.of(version.length), version.id
        if not self._under_way:
            self._free_at = max(self._free_at, now)
        for part in assignment.parts:
            wait = ORIGIN_REPORT_SECONDS if part.parent_id == ORIGIN else REPORT_SECONDS
            start, stop = part.span.start, part.span.stop
            self._waiting.append(_Transfer(version_id, part.parent_id, layout.piece_length, start, stop, wait))
        self._fill()

    def followed(self, following: Following, now: float) -> None:
        """Begin what followed parents bring: everything, in order; whom it follows makes no difference here."""
        version, layout = following.version, PieceLayout.of(following.version.length)
        if not following.parents or version.id in self._following:
            return
        self._following.add(version.id)
        if not self._under_way:
            self._free_at = max(self._free_at, now + self.late_seconds)
        parent_id, wait = following.parents[0].parent_id, following.report_seconds
        self._waiting.append(_Transfer(version.id, parent_id, layout.piece_length, 0, layout.count, wait, True))
        self._fill()

    def next_at(self) -> float | None:
        """Return when there may be something to report next; None while nothing is under way."""
        times = [report.due for report in self._reports.values()]
        if self._under_way:
            at = self._lands_at()
            times += [at + transfer.wait for transfer in self._under_way if transfer.report_key not in self._reports]
            if len(self._under_way) == 1:
                last = self._under_way[0]
                times.append(at + (last.stop - last.index - 1) * last.piece_bytes / self.link_bytes_per_second)
        return min(times, default=None)

    def advance(self, now: float) -> Iterator[Progress]:
        """Land what has arrived by `now` and yield the reports that are due."""
        while self._under_way and (at := self._lands_at()) <= now:
            transfer = self._under_way.popleft()
            self._land(transfer, at)
            self._free_at = at
            if transfer.index < transfer.stop:
                self._under_way.append(transfer)
            self._fill()
        for key in [key for key, report in self._reports.items() if report.due <= now]:
            yield Progress(key[0], tuple(_landed(self._reports.pop(key), key[1])))

    def _land(self, transfer: _Transfer, at: float) -> None:
        report = self._reports.get(transfer.report_key)
        if report is None:
            report = self._reports[transfer.report_key] = _Report(at + transfer.wait)
        report.due = min(report.due, at + transfer.wait)
        report.landed.setdefault(transfer.parent_id, []).append(transfer.index)
        missing = self._missing.get(transfer.version_id)
        if missing is not None:
            missing.discard_piece(transfer.index)
            if not missing:
                del self._missing[transfer.version_id]
                for (version_id, _), waiting in self._reports.items():
                    waiting.due = at if version_id == transfer.version_id else waiting.due
        transfer.index += 1

    def _lands_at(self) -> float:
        return self._free_at + self._under_way[0].piece_bytes / self.link_bytes_per_second

    def _fill(self) -> None:
        while self._waiting and len(self._under_way) < PARENT_TRANSFERS:
            self._under_way.append(self._waiting.popleft())


def digest_of(index: int) -> bytes:
    """Return the digest of a piece, the same in every object."""
    return index.to_bytes(16)


def pieces_of(progress: Progress) -> int:
    """Return how many pieces a report says have landed."""
    return sum(len(landed.span) for landed in progress.landed)


def quantile(values: Sequence[float], share: float) -> float | None:
    """Return the value that `share` (0 to 1) of the values lie below; None of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def _landed(report: _Report, followed: bool) -> Iterator[Landed]:
    for parent_id, indices in sorted(report.landed.items()):
        for span in spans_of(sorted(indices)):
            if followed:
                yield Landed(span, parent_id, (), _proof(span))
            else:
                yield Landed(span, parent_id, tuple(map(digest_of, span)) if parent_id == ORIGIN else ())


def _proof(span: Span) -> bytes:
    return piece_digest(b"".join(map(digest_of, span)))


def _hello(name: str, number: int, *, seed: bool) -> Hello:
    address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}:65002"
    return Hello(name, address, seed=seed, upload_slots=_UPLOAD_SLOTS)
