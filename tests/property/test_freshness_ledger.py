"""The ledger of what the origin said, against a model that forgets nothing and reads the rules as they are written."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from p2p.versions import ValidatorKind, Version
from peer.core.freshness import Ledger, Word
from peer.core.rules import Rule, StaleIfError

TASKS = st.sampled_from(["a" * 64, "b" * 64])
CREDENTIALS = st.sampled_from([b"alice", b"bob"])
TAGS = st.sampled_from(['"1"', '"2"'])
TIMES = st.sampled_from([0.0, 5.0, 30.0, float("inf")])
DEFAULT = Rule()


@dataclass(frozen=True)
class Said:
    version: Version
    asked_at: float
    ends_at: float


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.now = 1000.0
        self.words: dict[str, Said] = {}
        self.leaves: dict[tuple[str, bytes], Said] = {}

    @rule(seconds=st.floats(0, 20))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(task=TASKS, credential=CREDENTIALS, tag=TAGS, took=st.floats(0, 10), lasts=st.sampled_from([0.0, 8.0, 1e9]))
    def allowed(self, task: str, credential: bytes, tag: str, took: float, lasts: float) -> None:
        version = Version(task, 7, ValidatorKind.ETAG, tag)
        said = Said(version, self.now - took, self.now + lasts)
        self.ledger.said(Word(version, (("ETag", tag),), said.asked_at), credential, ends_at=said.ends_at)
        if task not in self.words or self.words[task].asked_at <= said.asked_at:
            self.words[task] = said
        self.leaves[task, credential] = said

    @rule(task=TASKS, credential=CREDENTIALS)
    def refused(self, task: str, credential: bytes) -> None:
        self.ledger.refused(task, credential)
        self.leaves.pop((task, credential), None)

    @rule(task=TASKS)
    def changed(self, task: str) -> None:
        self.ledger.changed(task)
        self.words.pop(task, None)

    @rule(task=TASKS, credential=CREDENTIALS, authorize_ttl=TIMES, revalidate=TIMES)
    def ask(self, task: str, credential: bytes, authorize_ttl: float, revalidate: float) -> None:
        asked = Rule(authorize_ttl=authorize_ttl, revalidate=revalidate)
        found = self.ledger.remembered(task, credential, asked, now=self.now)
        word, leave = self.words.get(task), self.leaves.get((task, credential))
        expected = (
            word is not None
            and leave is not None
            and word.version == leave.version
            and self.now < leave.ends_at
            and self.now - leave.asked_at < (authorize_ttl or revalidate)
            and self.now - word.asked_at < (revalidate or authorize_ttl)
        )
        assert (found is not None) == expected
        assert found is None or (word is not None and found.version == word.version)

    @rule(task=TASKS, credential=CREDENTIALS)
    def nothing_is_remembered_by_default(self, task: str, credential: bytes) -> None:
        assert self.ledger.remembered(task, credential, DEFAULT, now=self.now) is None
        assert self.ledger.covering(task, credential, DEFAULT, now=self.now) is None

    @rule(task=TASKS, credential=CREDENTIALS, whom=st.sampled_from([StaleIfError.SAME_CREDENTIAL, StaleIfError.ANY]))
    def cover(self, task: str, credential: bytes, whom: StaleIfError) -> None:
        found = self.ledger.covering(task, credential, Rule(stale_if_error=whom), now=self.now)
        word, leave = self.words.get(task), self.leaves.get((task, credential))
        let_in = whom is StaleIfError.ANY or (leave is not None and self.now < leave.ends_at)
        assert (found is not None) == (word is not None and let_in)


TestLedger = LedgerMachine.TestCase


def test_only_so_much_is_remembered() -> None:
    ledger = Ledger(words=2, leaves=3)
    lasting = Rule(authorize_ttl=60)
    versions = [Version(str(number) * 64, 7, ValidatorKind.ETAG, '"1"') for number in range(4)]
    for version in versions:
        ledger.said(Word(version, (), 0.0), b"alice", ends_at=99.0)
    kept = [ledger.remembered(version.task_id, b"alice", lasting, now=1.0) is not None for version in versions]
    assert kept == [False, False, True, True]
