"""What the origin has said lately: about versions (to everyone) and about the right to read (to one credential). Pure.

A *word* is the origin's last word on a task: which version it has, and the fields that describe it. A *leave* says that
the origin has let exactly one credential read a version. Neither holds a secret: a credential comes here as a digest,
and a word's fields are those that belong to the object.

A request may go unasked when both of its questions are answered from memory:

    may this caller read it?   its own credential has a leave, no older than `authorize_ttl` and before the URL's end
    is that the version?       the task's word names the leave's version, and is no older than `revalidate`

A rule that gives only one of the two times means it for both questions. Whoever's word is newest counts: as soon as
anyone is told of another version, every leave for the old one is worth nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from p2p.versions import Version
from peer.core.rules import Rule, StaleIfError

Fields = tuple[tuple[str, str], ...]

_WORDS = 4096
_LEAVES = 16384


@dataclass(frozen=True, slots=True)
class Word:
    """The origin's word on a task; `asked_at` is when it was asked, in seconds of the caller's monotonic clock."""

    version: Version
    headers: Fields = field(repr=False)
    asked_at: float


@dataclass(frozen=True, slots=True)
class _Leave:
    version_id: str
    asked_at: float
    ends_at: float


class Ledger:
    """Words and leaves, the least recently used forgotten first. Times are seconds of one monotonic clock."""

    def __init__(self, *, words: int = _WORDS, leaves: int = _LEAVES) -> None:
        self._most_words = words
        self._most_leaves = leaves
        self._words: OrderedDict[str, Word] = OrderedDict()
        self._leaves: OrderedDict[tuple[str, bytes], _Leave] = OrderedDict()

    def said(self, word: Word, credential: bytes, *, ends_at: float) -> None:
        """Take down that the origin let `credential` read what `word` says, until `ends_at` at the latest."""
        task_id = word.version.task_id
        known = self._words.get(task_id)
        # Answers may overtake each other: what was asked first cannot be the last word.
        if known is None or known.asked_at <= word.asked_at:
            self._words[task_id] = word
        self._leaves[task_id, credential] = _Leave(word.version.id, word.asked_at, ends_at)
        self._words.move_to_end(task_id)
        self._leaves.move_to_end((task_id, credential))
        while len(self._words) > self._most_words:
            self._words.popitem(last=False)
        while len(self._leaves) > self._most_leaves:
            self._leaves.popitem(last=False)

    def refused(self, task_id: str, credential: bytes) -> None:
        """Take down that the origin does not let `credential` read the task's object."""
        self._leaves.pop((task_id, credential), None)

    def changed(self, task_id: str) -> None:
        """Take down that the origin has been seen to have another version than the one it last named."""
        self._words.pop(task_id, None)

    def remembered(self, task_id: str, credential: bytes, rule: Rule, *, now: float) -> Word | None:
        """Return the word that a request may be answered by unasked; None if the origin is to be asked."""
        allowed_for = rule.authorize_ttl or rule.revalidate
        if not allowed_for:
            return None
        leave, word = self._leaves.get((task_id, credential)), self._words.get(task_id)
        if leave is None or word is None or leave.version_id != word.version.id or now >= leave.ends_at:
            return None
        fresh_for = rule.revalidate or rule.authorize_ttl
        if now - leave.asked_at >= allowed_for or now - word.asked_at >= fresh_for:
            return None
        self._words.move_to_end(task_id)
        self._leaves.move_to_end((task_id, credential))
        return word

    def covering(self, task_id: str, credential: bytes, rule: Rule, *, now: float) -> Word | None:
        """Return the word that covers for an origin that cannot be asked, if the rule lets this caller have it."""
        if rule.stale_if_error is StaleIfError.OFF:
            return None
        if rule.stale_if_error is StaleIfError.SAME_CREDENTIAL:
            leave = self._leaves.get((task_id, credential))
            if leave is None or now >= leave.ends_at:
                return None
        return self._words.get(task_id)
