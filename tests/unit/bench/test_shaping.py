import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.shaping import PROFILES, Pacer, Profile

WINDOW = 0.2
TOLERANCE = 0.03

Sent = list[tuple[float, int, int]]  # when, by whom, how many bytes


def send_for(
    profile: Profile,
    *,
    seconds: float,
    senders: int,
    late: Callable[[float], float],
    idle: Sequence[tuple[float, float]] = (),
) -> Sent:
    """Let senders send all they can, as the origin does, on a clock that `late` turns wished moments into real ones."""
    total = Pacer(profile.total_rate)
    own = [Pacer(profile.connection_rate) for _ in range(senders)]
    size = min(total.chunk_bytes, own[0].chunk_bytes)
    sent: Sent = []
    # (moment, order, sender, step): a sender passes its own pacer, then the shared one, then sends.
    due = [(0.0, number, number, "own") for number in range(senders)]
    order = senders
    while due:
        now, _, sender, step = heapq.heappop(due)
        if now >= seconds:
            continue
        wished, following = now, "own"
        if step == "own":
            pause = next((stop for start, stop in idle if start <= now < stop), None)
            if pause is not None:
                wished = pause
            else:
                wished, following = own[sender].reserve(size, now), "total"
        elif step == "total":
            wished, following = total.reserve(size, now), "send"
        else:
            sent.append((now, sender, size))
        order += 1
        heapq.heappush(due, (late(wished) if wished > now else now, order, sender, following))
    return sent


def exact(moment: float) -> float:
    return moment


def millisecond_timer(moment: float) -> float:
    return math.ceil(moment * 1000) / 1000


def exceeds(sent: Sent, rate: float) -> bool:
    """Tell whether any window of at least WINDOW seconds shows more than TOLERANCE above `rate`."""
    allowed = rate * (1 + TOLERANCE)
    # balance[i] = bytes before event i, less what was allowed until then: it must not rise from any event to one that
    # is at least WINDOW later.
    before = 0.0
    oldest = 0
    lowest = math.inf
    window: deque[tuple[float, int]] = deque()
    balances: list[tuple[float, float]] = []
    within = 0
    for moment, _, size in sent:
        balances.append((moment, before - allowed * moment))
        before += size
        while moment - balances[oldest][0] >= WINDOW:
            lowest = min(lowest, balances[oldest][1])
            oldest += 1
        window.append((moment, size))
        within += size
        while moment - window[0][0] > WINDOW:
            within -= window.popleft()[1]
        if within > allowed * WINDOW + 1 or before - allowed * moment > lowest + 1:
            return True
    return False


def falls_short(sent: Sent, rate: float) -> bool:
    """Tell whether a window of WINDOW seconds between the first byte and the last shows less than TOLERANCE below."""
    later = 0
    within = 0
    for start, _, size in sent:
        while later < len(sent) and sent[later][0] < start + WINDOW:
            within += sent[later][2]
            later += 1
        if later == len(sent):
            return False
        if within < rate * WINDOW * (1 - TOLERANCE):
            return True
        within -= size
    return False


@pytest.mark.parametrize("senders", [1, 3])
def test_gateway_rate_holds_in_every_window(senders: int) -> None:
    sent = send_for(PROFILES["gateway"], seconds=1.0, senders=senders, late=exact)
    assert not exceeds(sent, 500e6)
    assert not falls_short(sent, 500e6)


def test_s3_rate_a_connection_holds_in_every_window() -> None:
    sent = send_for(PROFILES["s3"], seconds=1.0, senders=1, late=exact)
    assert not exceeds(sent, 90e6)
    assert not falls_short(sent, 90e6)


def test_s3_connections_add_up_to_the_shared_rate_and_no_further() -> None:
    few = send_for(PROFILES["s3"], seconds=0.5, senders=5, late=exact)
    assert sum(size for _, _, size in few) == pytest.approx(5 * 90e6 * 0.5, rel=TOLERANCE)
    many = send_for(PROFILES["s3"], seconds=0.5, senders=16, late=exact)
    assert sum(size for _, _, size in many) == pytest.approx(1e9 * 0.5, rel=TOLERANCE)


@settings(max_examples=30)
@given(
    profile=st.sampled_from([PROFILES["gateway"], PROFILES["s3"]]),
    senders=st.integers(1, 14),
    idle=st.lists(st.tuples(st.floats(0, 0.7), st.floats(0, 0.7)), max_size=2),
)
def test_never_faster_than_the_rate_with_timers_of_a_millisecond(
    profile: Profile, senders: int, idle: list[tuple[float, float]]
) -> None:
    pauses = [(min(pair), max(pair)) for pair in idle]
    sent = send_for(profile, seconds=0.7, senders=senders, late=millisecond_timer, idle=pauses)
    assert not exceeds(sent, profile.total_rate)


@given(rate=st.floats(2e7, 1e10), steps=st.lists(st.tuples(st.floats(0, 0.02), st.integers(1, 40)), max_size=60))
def test_grants_never_exceed_the_rate_whenever_they_are_asked_for(rate: float, steps: list[tuple[float, int]]) -> None:
    pacer = Pacer(rate)
    now = 0.0
    granted: Sent = []
    for pause, chunks in steps:
        now += pause
        for _ in range(chunks):
            now = pacer.reserve(pacer.chunk_bytes, now)
            granted.append((now, 0, pacer.chunk_bytes))
    assert not exceeds(granted, rate)


@settings(max_examples=30)
@given(profile=st.sampled_from([PROFILES["gateway"], PROFILES["s3"]]), seed=st.integers(0, 2**32))
def test_late_timers_do_not_add_up(profile: Profile, seed: int) -> None:
    random = Random(seed)
    sent = send_for(
        profile, seconds=1.0, senders=1, late=lambda moment: millisecond_timer(moment) + random.uniform(0, 0.0025)
    )
    rate = min(profile.total_rate, profile.connection_rate)
    assert sum(size for _, _, size in sent) == pytest.approx(rate, rel=TOLERANCE)


@settings(max_examples=30)
@given(senders=st.integers(2, 8), seed=st.integers(0, 2**32))
def test_senders_share_evenly(senders: int, seed: int) -> None:
    random = Random(seed)
    sent = send_for(
        PROFILES["gateway"], seconds=0.3, senders=senders, late=lambda moment: moment + random.uniform(0, 0.0005)
    )
    counts = [sum(size for _, sender, size in sent if sender == number) for number in range(senders)]
    assert max(counts) - min(counts) <= 0.03 * sum(counts) / senders + 2 * sent[0][2]


def test_idleness_earns_nothing() -> None:
    pacer = Pacer(1e6)
    for _ in range(100):
        last = pacer.reserve(pacer.chunk_bytes, 0.0)
    assert pacer.reserve(pacer.chunk_bytes, last + 10.0) == last + 10.0
    times = [pacer.reserve(pacer.chunk_bytes, last + 10.0) for _ in range(20)]
    assert times[-1] - times[0] >= 19 * pacer.chunk_bytes / 1e6 * (1 - TOLERANCE)


def test_unlimited_grants_at_once() -> None:
    pacer = Pacer(math.inf)
    assert [pacer.reserve(pacer.chunk_bytes, float(now)) for now in range(5)] == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan])
def test_a_rate_is_positive(rate: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        Pacer(rate)
