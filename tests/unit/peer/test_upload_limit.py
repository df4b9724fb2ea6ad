"""The limit on what a host sends: exact to 5 % on a virtual clock, and where it is set."""

from __future__ import annotations

import heapq
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import ConfigError
from peer.settings import load_configuration
from peer.upload.limit import UploadLimit


def sent_in(rate: float, *, seconds: float, children: int, late: float, busy_from: float = 0.0) -> Counter[int]:
    """Let children take all they can, each timer `late` at the most late, and count what each got."""
    limit = UploadLimit(rate)
    sent: Counter[int] = Counter()
    due = [(busy_from, number, False) for number in range(children)]
    turn = 0
    while due:
        now, child, waited = heapq.heappop(due)
        if now >= busy_from + seconds:
            continue
        if waited:
            sent[child] += limit.step
        at = limit.reserve(limit.step, now)
        turn += 1
        heapq.heappush(due, (at + (late * (turn % 7) / 6 if at > now else 0.0), child, True))
    return sent


@given(
    rate=st.floats(min_value=1e6, max_value=5e9),
    children=st.integers(min_value=1, max_value=32),
    late=st.sampled_from([0.0, 0.001, 0.005]),
    busy_from=st.sampled_from([0.0, 1e6]),
)
def test_the_rate_is_exact_to_five_percent(rate: float, children: int, late: float, busy_from: float) -> None:
    seconds = max(1.0, 40 * children * 16 * 1024 / rate)
    sent = sent_in(rate, seconds=seconds, children=children, late=late, busy_from=busy_from)
    assert sent.total() == pytest.approx(rate * seconds, rel=0.05)


def test_children_share_it_evenly() -> None:
    sent = sent_in(25e6, seconds=5.0, children=4, late=0.001)
    assert all(share == pytest.approx(sent.total() / 4, rel=0.02) for share in sent.values())


def test_a_pause_saves_up_no_more_than_a_burst() -> None:
    limit = UploadLimit(1e6)
    limit.reserve(limit.step, 0.0)
    at_once = 0
    while limit.reserve(limit.step, 100.0) <= 100.0:
        at_once += limit.step
    assert at_once <= 0.05 * 1e6


def test_a_rate_is_more_than_nothing() -> None:
    for rate in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="not a rate"):
            UploadLimit(rate)


def test_it_is_set_in_the_configuration_file(tmp_path: Path) -> None:
    file = tmp_path / "peer.toml"
    file.write_text('[upload]\nbytes_per_second = "25MB"\n')
    assert load_configuration(file).upload_rate == 25e6
    file.write_text("")
    assert load_configuration(file).upload_rate is None
    for text, problem in (("bytes_per_second = 0", "at least 1KiB"), ("rate = 5", "not a known key")):
        file.write_text(f"[upload]\n{text}\n")
        with pytest.raises(ConfigError, match=problem):
            load_configuration(file)
