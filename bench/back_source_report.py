"""What the origin benchmark found: medians, and how they stand against what was asked for. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from bench.back_source import Sample
from bench.bars import Bar
from bench.shaping import PROFILES
from bench.traffic import WINDOW_SECONDS

GIB = 1024**3
SEED, SEEDS, FAULTS, WALL, RAW = "one seed", "two seeds", "faults", "wall", "raw"


@dataclass(frozen=True, slots=True)
class Run:
    """One way of reading: medians over the rounds, of those that did not fail.

    `ceiling_ratio` is its rate over the ceiling, and `origin_copies` the bytes that the origin sent over the object's
    in the worst round; both, and the times, are None where every round failed.
    """

    name: str
    seconds: float | None
    seconds_min: float | None
    seconds_max: float | None
    bytes_per_second: float | None
    ceiling_ratio: float | None
    origin_copies: float | None
    repeated_bytes: int
    origin_requests: int
    origin_one_byte_requests: int
    peak_requests: int
    busiest_second_requests: int
    refused_requests: int
    stalled_requests: int
    hedged_requests: int | None
    cpu_seconds_per_gib: float | None
    digest_ok: bool
    errors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """The figures of one benchmark; rates in bytes or requests a second."""

    profile: str
    object_bytes: int
    rounds: int
    machine_bytes_per_second: float
    ceiling_bytes_per_second: float
    runs: tuple[Run, ...]
    bars: tuple[Bar, ...]
    wall_requests_per_second: float
    missing: tuple[str, ...]

    @property
    def digest_ok(self) -> bool:
        """Whether everything that seeds got was right."""
        return all(run.digest_ok for run in self.runs)

    def figures(self) -> dict[str, object]:
        """Return the result as plain values, ready for JSON."""
        bars = [{**asdict(bar), "met": bar.met} for bar in self.bars]
        return {"bench": "origin", **asdict(self), "bars": bars}


def summarise(samples: Sequence[Sample], *, profile: str, wall_seconds: float, missing: Iterable[str] = ()) -> Result:
    """Return the medians of the samples, run by run in the order in which they first appear; "raw" must be there."""
    by_name: dict[str, list[Sample]] = {}
    for sample in samples:
        by_name.setdefault(sample.name, []).append(sample)
    raw = statistics.median(sample.object_bytes / sample.seconds for sample in by_name[RAW])
    ceiling = min(raw, PROFILES[profile].total_rate)
    runs = {name: _run(name, group, ceiling) for name, group in by_name.items()}
    wall = [sample.wall_requests for sample in by_name.get(WALL, ()) if sample.wall_requests is not None]
    return Result(
        profile=profile,
        object_bytes=samples[0].object_bytes,
        rounds=len(by_name[RAW]),
        machine_bytes_per_second=raw,
        ceiling_bytes_per_second=ceiling,
        runs=tuple(runs.values()),
        bars=_bars(runs, by_name),
        wall_requests_per_second=statistics.median(wall) / wall_seconds if wall else 0.0,
        missing=tuple(missing),
    )


def _run(name: str, samples: Sequence[Sample], ceiling: float) -> Run:
    whole = [sample for sample in samples if sample.error is None]
    size = samples[0].object_bytes
    seconds = statistics.median(sample.seconds for sample in whole) if whole else None
    cpu = [sample.seed_cpu_seconds for sample in whole if sample.seed_cpu_seconds is not None]
    return Run(
        name=name,
        seconds=seconds,
        seconds_min=min((sample.seconds for sample in whole), default=None),
        seconds_max=max((sample.seconds for sample in whole), default=None),
        bytes_per_second=size / seconds if seconds else None,
        ceiling_ratio=size / seconds / ceiling if seconds else None,
        # The worst round: "in every run".
        origin_copies=max((sample.stats.body_bytes / size for sample in whole), default=None),
        repeated_bytes=max(sample.stats.repeated_bytes for sample in samples),
        origin_requests=_median(sample.stats.requests for sample in samples),
        origin_one_byte_requests=_median(sample.stats.one_byte_requests for sample in samples),
        peak_requests=max(sample.stats.peak_requests for sample in samples),
        busiest_second_requests=max(busiest_second(sample.windows) for sample in samples),
        refused_requests=_median(sample.stats.statuses.get("503", 0) for sample in samples),
        stalled_requests=_median(sample.stats.stalls for sample in samples),
        hedged_requests=_median(sample.hedges or 0 for sample in samples) if samples[0].hedges is not None else None,
        cpu_seconds_per_gib=statistics.median(cpu) * GIB / size if cpu else None,
        digest_ok=all(sample.digest_ok for sample in samples),
        errors=tuple(sample.error for sample in samples if sample.error is not None),
    )


def _bars(runs: dict[str, Run], by_name: dict[str, list[Sample]]) -> tuple[Bar, ...]:
    seed, faults = runs.get(SEED), runs.get(FAULTS)
    bars: list[Bar] = []
    if seed is not None:
        bars.append(Bar("one seed: share of the ceiling", seed.ceiling_ratio, least=0.90))
    if SEEDS in by_name:
        halves = [_off_half(sample) for sample in by_name[SEEDS] if sample.error is None]
        bars.append(Bar("two seeds: off half the bytes each", max(halves, default=None), most=0.05))
    if seed is not None and faults is not None:
        slower = faults.seconds / seed.seconds if faults.seconds and seed.seconds else None
        bars.append(Bar("10% 503s and 2% stalls: time over one seed's", slower, most=1.3))
    seeds = [run for run in runs.values() if run.name in (SEED, SEEDS, FAULTS, WALL)]
    if seeds:
        copies = [run.origin_copies for run in seeds if run.origin_copies is not None]
        bars.append(Bar("origin bytes over the object's, worst run", max(copies, default=None), most=1.01))
    return tuple(bars)


def _off_half(sample: Sample) -> float:
    """Return how far the seeds' shares of what came from the origin are from equal ones, as a part of such a share."""
    total = sum(sample.seed_origin_bytes)
    fair = total / len(sample.seed_origin_bytes)
    return max(abs(own - fair) for own in sample.seed_origin_bytes) / fair if total else 1.0


def busiest_second(windows: Sequence[int]) -> int:
    """Return the most requests that came within one second, by windows of WINDOW_SECONDS."""
    width = round(1 / WINDOW_SECONDS)
    return max((sum(windows[at : at + width]) for at in range(len(windows))), default=0)


def _median(counts: Iterable[int]) -> int:
    return statistics.median_low(sorted(counts))
