"""Compares versions with their stores' checksums, and drops what is not what the store holds.

A CRC is put together from those of the pieces, on every host, before the last piece of a whole object goes out. One
that takes a pass over all bytes in order is compared by one host of the cluster, which the version's scheduler elects,
and by this one where there is no scheduler.

A scheduler hears of wrong bytes first, and has everybody drop them at its word (`Condemned`); this host does so too, so
that what it holds, and what it is thought to hold, never part. Without its word it drops them by itself.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from prometheus_client import Counter

from p2p.checksums import Checksum, Crc, Strikes
from p2p.control import PeerMessage, Verdict, Want
from p2p.errors import ChecksumMismatchError, DamselflyError, DigestMismatchError
from p2p.tasks import TaskScope
from p2p.telemetry import REGISTRY, logger
from p2p.versions import Version
from peer.download.landing import PieceChecksums
from peer.store import Entry
from peer.verify import ObjectDigests, WholeReader

log = logger(__name__)

CONDEMN_SECONDS = 2.0
"""How long this host waits for the scheduler's word on wrong bytes before it drops them by itself."""

REMEMBERED_CHECKSUMS = 4096

_MISMATCHES = Counter(
    "damselfly_checksum_mismatches_total",
    "Versions whose bytes did not have their store's checksum, and were dropped here",
    ["kind"],
    registry=REGISTRY,
)


Work = asyncio.Task[DamselflyError | None]


class Schedulers(Protocol):
    """The links to the schedulers."""

    def of(self, version_id: str) -> str | None:
        """Return which of the reachable schedulers is the version's, or None if none can be reached."""

    def send(self, version_id: str, message: PeerMessage) -> None:
        """Send a message to the version's scheduler, or drop it if there is none."""


@dataclass(slots=True)
class _Word:
    """What a store says of a version. `sound`: what is held has it; `offered`: the scheduler knows we can look."""

    checksum: Checksum
    pieces: PieceChecksums | None
    sound: bool = False
    offered: bool = False
    claims: list[WholeReader] = field(default_factory=list)
    work: Work | None = None


class Follower:
    """All bytes of a version as they land for others, as a `WholeReader`; takes over a reference to the entry."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry

    async def ready(self, offset: int) -> int:
        """Wait for the byte at `offset` and return where its piece ends. Raises what ends the download meanwhile."""
        layout = self.entry.layout
        index = offset // layout.piece_length
        await self.entry.wait(index)
        return layout.offset(index) + layout.size(index)

    def close(self) -> None:
        """Let go of the entry."""
        self.entry.release()


class Claim:
    """A claim on the verdict over a version; `async with` it. It waits only for what this host itself compares."""

    def __init__(self, integrity: Integrity, word: _Word, reader: WholeReader) -> None:
        self._integrity = integrity
        self._word = word
        self._reader = reader

    async def verdict(self) -> None:
        """Return when this host has nothing against the bytes. Raises ChecksumMismatchError, or what ended the pass."""
        work = self._integrity.work_of(self._word, self._reader.entry)
        if work is not None and (error := await asyncio.shield(work)) is not None:
            raise error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._integrity.leave(self._word, self._reader)
        self._reader.close()


class Integrity:
    """This host's part in keeping wrong bytes out.

    `find` gives a referenced entry of a version that is held. `drop` ends what goes on here with a version, with an
    error, removes it, and tells its scheduler.
    """

    def __init__(
        self,
        scope: TaskScope,
        schedulers: Schedulers,
        *,
        find: Callable[[str], Awaitable[Entry | None]],
        drop: Callable[[str, ChecksumMismatchError], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scope = scope
        self._schedulers = schedulers
        self._find = find
        self._drop = drop
        self._clock = clock
        self._digests = ObjectDigests(scope, disown=self._denounce)
        self._words: OrderedDict[str, _Word] = OrderedDict()
        self._strikes = Strikes()
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._awaited: dict[str, asyncio.Event] = {}

    # What a version's readers and writers need.

    def note(self, version_id: str, checksum: Checksum) -> None:
        """Remember what the store says of a version."""
        known = self._words.get(version_id)
        if known is None or known.checksum != checksum:
            pieces = PieceChecksums(Crc.function(checksum.kind)) if checksum.combinable else None
            self._words[version_id] = _Word(checksum, pieces)
        self._words.move_to_end(version_id)
        if len(self._words) > REMEMBERED_CHECKSUMS:
            self._words.popitem(last=False)

    def needed(self, version_id: str) -> bool:
        """Tell whether a reader of the whole version has a verdict to wait for, or to offer to bring about."""
        word = self._words.get(version_id)
        return word is not None and not word.sound and (word.work is not None or not word.offered)

    def verify(self, reader: WholeReader) -> Claim:
        """Begin to compare a version that is `needed`; the reader, of the whole version, is taken over."""
        version_id = reader.entry.version.id
        word = self._words[version_id]
        word.claims.append(reader)
        self._offer(reader.entry.version, word)
        self.work_of(word, reader.entry)
        return Claim(self, word, reader)

    def begun(self, version_id: str) -> PieceChecksums | None:
        """Return what keeps the checksums of the pieces that a download is about to land, if they are needed."""
        word = self._words.get(version_id)
        if word is None:
            return None
        word.sound = False
        return word.pieces

    def completed(self, entry: Entry) -> None:
        """See to it that a version is compared all of which has landed, whoever asked for it."""
        word = self._words.get(entry.version.id)
        if word is not None and not word.sound:
            self._offer(entry.version, word)
            self.work_of(word, entry)

    async def admitted(self, version_id: str) -> None:
        """Wait until wrong bytes of a version are gone. Raises ChecksumMismatchError while it is refused."""
        while (leaving := self._leaving.get(version_id)) is not None:
            await asyncio.wait([leaving])
        if (reason := self._strikes.refusal(version_id, now=self._clock())) is not None:
            raise ChecksumMismatchError(reason)

    def gone(self, version_id: str) -> None:
        """Forget what was found of bytes that are no longer held."""
        if (word := self._words.get(version_id)) is not None:
            word.sound = word.offered = False
            if word.pieces is not None:
                word.pieces.of.clear()

    # What the scheduler says.

    def elected(self, version_id: str) -> None:
        """Compare a version, if that is still wanted or all of it is held."""
        word = self._words.get(version_id)
        if word is None or word.work is not None:
            return
        if word.claims:
            self._begin(word, word.claims[0].entry)
        else:
            self._scope.spawn(self._begin_held(word, version_id), name=f"look for {version_id}")

    def condemned(self, version_id: str, reason: str) -> None:
        """Drop a version at its scheduler's word."""
        self._leave(version_id, ChecksumMismatchError(reason))

    def scheduler_changed(self) -> None:
        """Offer to a scheduler that may know nothing of it what was offered before."""
        for word in self._words.values():
            word.offered = False
            if word.claims:
                self._offer(word.claims[0].entry.version, word)

    # How versions are compared.

    def work_of(self, word: _Word, entry: Entry) -> Work | None:
        """Return what this host does to compare a version; that begins now if it need not wait for its turn."""
        if entry.retired:
            # Its bytes were removed while they were being read: what others hold now is not what this is about.
            return self._judge(word, entry, pieces={})
        may_begin = word.pieces is not None or self._schedulers.of(entry.version.id) is None
        if word.work is None and not word.sound and may_begin:
            self._begin(word, entry)
        return word.work

    def leave(self, word: _Word, reader: WholeReader) -> None:
        """End a claim; with the last one ends what would have to wait for bytes that may never come."""
        word.claims.remove(reader)
        if word.work is not None and not word.claims and not reader.entry.landed.full:
            word.work.cancel()
            word.work = None

    def _offer(self, version: Version, word: _Word) -> None:
        if word.pieces is None and not word.offered and self._schedulers.of(version.id) is not None:
            word.offered = True
            self._schedulers.send(version.id, Want(version, (), None, str(word.checksum)))

    async def _begin_held(self, word: _Word, version_id: str) -> None:
        try:
            entry = await self._find(version_id)
        except DamselflyError as error:
            log.warning("a version cannot be compared with its checksum", version=version_id, error=str(error))
            return
        if entry is not None:
            with entry:
                if entry.landed.full and word.work is None:
                    self._begin(word, entry)

    def _begin(self, word: _Word, entry: Entry) -> None:
        word.work = work = self._judge(word, entry, pieces=word.pieces.of if word.pieces else {})
        work.add_done_callback(lambda done: self._judged(word, entry.version.id, done))

    def _judge(self, word: _Word, entry: Entry, *, pieces: Mapping[int, int]) -> Work:
        follower = Follower(entry.retain())
        work = self._digests.judge(follower, word.checksum, pieces)
        work.add_done_callback(lambda _: follower.close())
        return work

    def _judged(self, word: _Word, version_id: str, done: Work) -> None:
        if word.work is done:
            word.work = None
        if done.cancelled() or done.exception() is not None or done.result() is not None:
            return
        word.sound = True
        if word.pieces is None or self._strikes.suspects(version_id, now=self._clock()):
            self._strikes.clear(version_id)
            if self._schedulers.of(version_id) is not None:
                self._schedulers.send(version_id, Verdict(version_id, sound=True))

    # How wrong bytes go.

    async def _denounce(self, entry: Entry, error: DigestMismatchError) -> None:
        """See to it that a version's bytes are dropped, here and everywhere."""
        version_id, word = entry.version.id, self._words.get(entry.version.id)
        if entry.retired or version_id in self._leaving:
            return
        _MISMATCHES.labels(word.checksum.name if word else "unknown").inc()
        self._strikes.add(version_id, str(error), now=self._clock())
        if self._schedulers.of(version_id) is not None:
            left = self._awaited[version_id] = asyncio.Event()
            self._schedulers.send(version_id, Verdict(version_id, sound=False, detail=str(error)))
            with suppress(TimeoutError):
                async with asyncio.timeout(CONDEMN_SECONDS):
                    await left.wait()
            del self._awaited[version_id]
        if not entry.retired:
            await asyncio.wait([self._leave(version_id, ChecksumMismatchError(str(error)))])

    def _leave(self, version_id: str, error: ChecksumMismatchError) -> asyncio.Task[None]:
        leaving = self._leaving.get(version_id)
        if leaving is None:
            leaving = self._scope.spawn(self._drop_all(version_id, error), name=f"drop of {version_id}")
            self._leaving[version_id] = leaving
            leaving.add_done_callback(lambda _: self._gone(version_id))
        return leaving

    async def _drop_all(self, version_id: str, error: ChecksumMismatchError) -> None:
        try:
            await self._drop(version_id, error)
        except DamselflyError as failure:
            log.warning("wrong bytes could not be dropped", version=version_id, error=str(failure))

    def _gone(self, version_id: str) -> None:
        del self._leaving[version_id]
        self.gone(version_id)
        if (awaited := self._awaited.get(version_id)) is not None:
            awaited.set()
