"""A few disasters of `make torture`, so that the suite knows that it runs."""

from __future__ import annotations

from pathlib import Path

from tests.torture.__main__ import summary
from tests.torture.field import torture


def test_a_few_disasters_leave_nothing_wrong_lost_or_hanging(tmp_path: Path) -> None:
    score = torture(tmp_path, seed=3, seconds=600, rounds=3)
    print(summary(score))
    assert score.flawless, summary(score)
    assert score.done["kills"] == 3
    assert score.done["bytes"] > 0
