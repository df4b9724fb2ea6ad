"""What the origin benchmark makes of its samples."""

from __future__ import annotations

from bench.back_source import Sample
from bench.back_source_report import busiest_second, summarise
from bench.bars import Bar
from bench.origin import Stats

SIZE = 1_000_000_000


def sample(name: str, seconds: float, *, error: str | None = None, sent: int = SIZE, **fields: object) -> Sample:
    stats = Stats(requests=60, one_byte_requests=1, body_bytes=sent, statuses={"206": 54, "503": 6}, stalls=1)
    return Sample(name, seconds, SIZE, stats, error=error, **fields)  # type: ignore[arg-type]


def test_medians_and_bars() -> None:
    result = summarise(
        [
            *(sample("raw", seconds) for seconds in (1.25, 1.0, 2.0)),
            *(sample("one seed", seconds, seed_cpu_seconds=0.5) for seconds in (1.25, 1.6, 1.0)),
            sample("two seeds", 1.0, seed_origin_bytes=(SIZE * 6 // 10, SIZE * 4 // 10)),
            sample("faults", 1.5, sent=SIZE + SIZE // 50),
            sample("wall", 9.0, wall_requests=8),
            sample("wall", 9.0, wall_requests=12, error="gave up"),
        ],
        profile="s3",
        wall_seconds=2.0,
        missing=["s5cmd"],
    )
    runs = {run.name: run for run in result.runs}
    assert (result.rounds, result.ceiling_bytes_per_second, result.missing) == (3, 0.8e9, ("s5cmd",))
    seed = runs["one seed"]
    assert (seed.seconds, seed.seconds_min, seed.seconds_max, seed.ceiling_ratio) == (1.25, 1.0, 1.6, 1.0)
    assert (seed.refused_requests, seed.stalled_requests) == (6, 1)
    assert (runs["wall"].seconds, runs["wall"].errors) == (9.0, ("gave up",))
    assert result.wall_requests_per_second == 5.0
    assert [(round(bar.value or -1, 3), bar.met) for bar in result.bars] == [
        (1.0, True),
        (0.2, False),
        (1.2, True),
        (1.02, False),
    ]
    figures = result.figures()
    assert figures["bench"] == "origin"
    assert isinstance(figures["bars"], list)


def test_a_read_that_failed_every_time_has_no_time_and_meets_nothing() -> None:
    result = summarise([sample("raw", 1.0), sample("one seed", 3.0, error="gave up")], profile="s3", wall_seconds=2.0)
    assert result.runs[1].seconds is None
    assert not any(bar.met for bar in result.bars)
    assert not Bar("nothing", None, most=1.0).met


def test_the_busiest_second_is_found_wherever_it_begins() -> None:
    assert busiest_second(()) == 0
    assert busiest_second([0] * 5 + [3] * 10 + [1] * 10) == 30
