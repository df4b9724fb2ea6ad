"""The chooser of victims."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from peer.core.evict import Victim, choose

victims_ = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 20)), max_size=30).map(
    lambda pairs: [Victim(str(number), size, float(used)) for number, (size, used) in enumerate(pairs)]
)


@given(victims_, st.integers(-5, 1000))
def test_enough_is_freed_and_nothing_without_need(victims: list[Victim], need: int) -> None:
    sizes = {victim.version_id: victim.size for victim in victims}
    chosen = choose(victims, need)
    freed = sum(sizes[version_id] for version_id in chosen)
    assert len(set(chosen)) == len(chosen)
    assert freed >= min(need, sum(sizes.values()))
    for version_id in chosen:
        assert sizes[version_id] > 0
        assert freed - sizes[version_id] < need


@given(victims_, st.integers(1, 1000))
def test_the_least_recently_used_go_first(victims: list[Victim], need: int) -> None:
    used = {victim.version_id: victim.last_used for victim in victims}
    chosen = choose(victims, need)
    assert [used[version_id] for version_id in chosen] == sorted(used[version_id] for version_id in chosen)
    # Nothing goes that is used more recently than it takes to free enough from the old end.
    total = 0
    for victim in sorted(victims, key=lambda victim: victim.last_used):
        if total >= need:
            assert all(used[version_id] <= victim.last_used for version_id in chosen)
            break
        total += victim.size
