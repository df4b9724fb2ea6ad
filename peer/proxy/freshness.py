"""Asking the origin on behalf of clients: every request once, unless a rule lets what it said lately answer.

Requests with equal credentials share a question. To share is to be asked *for*: a request never takes the answer to a
question that was on its way before it came, since that answer may be older than the request. Who comes meanwhile waits,
and the next question is asked for all of them at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from p2p.control import Source
from p2p.digests import ExpectedDigest
from p2p.errors import DamselflyError, OriginStalledError, OriginUnreachableError
from p2p.expiry import expires_at
from p2p.fields import values
from p2p.hostapi import Keepable, Probe, Refused
from p2p.telemetry import logger
from p2p.versions import passthrough_headers
from peer.core.freshness import Ledger, Word
from peer.proxy import metrics
from peer.proxy.route import Wanted

log = logger(__name__)

_FAILING = frozenset({500, 502, 503, 504})
"""Refusals that `stale_if_error` covers (RFC 5861 §4)."""

_GONE = frozenset({404, 410})


class Prober(Protocol):
    """Asks origins for one byte; `peer.source.remote.Origins` does."""

    async def probe(self, source: Source, task_id: str, content: ExpectedDigest | None = None) -> Probe:
        """Return what the origin's answer means for a task."""


class Standing(StrEnum):
    """How an answer came about: asked for this request, for several at once, remembered, or in spite of a failure."""

    ASKED = "asked"
    SHARED = "shared"
    REMEMBERED = "remembered"
    STALE = "stale"


@dataclass(frozen=True, slots=True)
class Judged:
    """What the origin says, or said `age` seconds ago."""

    probe: Probe
    standing: Standing
    age: float = 0.0


@dataclass(frozen=True, slots=True)
class _Answer:
    probe: Probe
    asked_at: float


_Outcome = _Answer | DamselflyError
_Turn = asyncio.Future["_Outcome | list[_Turn]"]
"""Comes true with a question's outcome, or with those for whom its holder is to ask the next one."""


class Freshness:
    """Judges what clients want. Belongs to one event loop; `clock` is monotonic, `wall` tells URLs' ends."""

    def __init__(
        self,
        prober: Prober,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._prober = prober
        self._clock = clock
        self._wall = wall
        self._ledger = Ledger()
        self._waiting: dict[tuple[str, bytes], list[_Turn]] = {}
        # Credentials are kept as digests under a key that dies with the process: they cannot be guessed from memory.
        self._key = secrets.token_bytes(32)

    async def judge(self, wanted: Wanted, *, anew: bool = False) -> Judged:
        """Return what the origin says to this caller about what it wants; with `anew` nothing is remembered.

        Raises what `Prober.probe` does, unless the rule has that covered.
        """
        credential = self._credential(wanted)
        if not anew:
            word = self._ledger.remembered(wanted.task.id, credential, wanted.rule, now=self._clock())
            if word is not None:
                return self._recalled(wanted, word, Standing.REMEMBERED)
        try:
            judged = await self._ask(wanted, credential)
        except (OriginUnreachableError, OriginStalledError) as error:
            covered = self._covered(wanted, credential, str(error))
            if covered is None:
                raise
            return covered
        if isinstance(judged.probe, Refused) and judged.probe.status in _FAILING:
            return self._covered(wanted, credential, f"the origin answers {judged.probe.status}") or judged
        metrics.FRESHNESS.labels(judged.standing).inc()
        return judged

    def changed(self, wanted: Wanted) -> None:
        """Take down that the origin has another version of the task than it said."""
        self._ledger.changed(wanted.task.id)

    def _credential(self, wanted: Wanted) -> bytes:
        """Return what stands for the right to read that a caller shows: its URL and all its headers, by value.

        What is asked with the fleet's credentials has none of its caller's: all who may use this proxy share its leave.
        The digest that a request names is part of it, for it makes another question of the same URL.
        """
        url = wanted.source.url.encode("utf-8", "surrogateescape")
        digest = hashlib.blake2b(url, key=self._key, digest_size=32)
        digest.update(f"\0{wanted.content or ''}\0{wanted.source.store or ''}".encode())
        for name, value in wanted.source.headers:
            # Neither a NUL nor a line break can be part of a field.
            digest.update(f"\0{name.lower()}\n{value}".encode("utf-8", "surrogateescape"))
        return digest.digest()

    def _recalled(self, wanted: Wanted, word: Word, standing: Standing) -> Judged:
        metrics.FRESHNESS.labels(standing).inc()
        return Judged(Keepable(word.version, word.headers, wanted.source), standing, self._clock() - word.asked_at)

    def _covered(self, wanted: Wanted, credential: bytes, failure: str) -> Judged | None:
        word = self._ledger.covering(wanted.task.id, credential, wanted.rule, now=self._clock())
        if word is None:
            return None
        log.warning("serving what may be stale", task=wanted.task.id, version=word.version.id, failure=failure)
        return self._recalled(wanted, word, Standing.STALE)

    async def _ask(self, wanted: Wanted, credential: bytes) -> Judged:
        key = (wanted.task.id, credential)
        companions: list[_Turn] = []
        if key in self._waiting:
            outcome = await self._wait(key)
            if isinstance(outcome, DamselflyError):
                raise outcome.with_traceback(None)
            if isinstance(outcome, _Answer):
                return Judged(outcome.probe, Standing.SHARED)
            companions = outcome
        else:
            self._waiting[key] = []
        said: _Outcome | None = None
        try:
            asked_at = self._clock()
            said = _Answer(await self._prober.probe(wanted.source, wanted.task.id, wanted.content), asked_at)
        except DamselflyError as error:
            said = error
            raise
        finally:
            # Without an outcome (the client is gone) someone else asks for those who were waiting for it.
            self._hand_over(key, companions, said)
        self._take_down(wanted, credential, said)
        return Judged(said.probe, Standing.ASKED)

    async def _wait(self, key: tuple[str, bytes]) -> _Outcome | list[_Turn]:
        turn: _Turn = asyncio.get_running_loop().create_future()
        self._waiting[key].append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and isinstance(companions := turn.result(), list):
                # It was this one's turn to ask, and this one's client is gone.
                self._hand_over(key, companions, None)
            raise

    def _hand_over(self, key: tuple[str, bytes], companions: list[_Turn], said: _Outcome | None) -> None:
        """Give the outcome to those it was asked for, and let the first of those who came since ask for the others."""
        waiting = self._waiting.pop(key)
        if said is None:
            waiting = companions + waiting
        else:
            for turn in companions:
                if not turn.done():
                    turn.set_result(said)
        waiting = [turn for turn in waiting if not turn.done()]
        if waiting:
            self._waiting[key] = []
            waiting[0].set_result(waiting[1:])

    def _take_down(self, wanted: Wanted, credential: bytes, answer: _Answer) -> None:
        probe = answer.probe
        if isinstance(probe, Keepable):
            ends_at = expires_at(wanted.source.url)
            remaining = float("inf") if ends_at is None else ends_at - self._wall()
            dates = tuple(("Date", value) for value in values(probe.headers, "date"))
            word = Word(probe.version, (*passthrough_headers(probe.headers), *dates), answer.asked_at)
            self._ledger.said(word, credential, ends_at=self._clock() + remaining)
        elif isinstance(probe, Refused) and probe.status not in _FAILING:
            self._ledger.refused(wanted.task.id, credential)
            if probe.status in _GONE:
                self._ledger.changed(wanted.task.id)
        elif not isinstance(probe, Refused):
            # It may not be kept any more: what was said before is void.
            self._ledger.changed(wanted.task.id)
