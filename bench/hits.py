"""`damselfly bench hits`: one object, read four ways.

direct (straight from the origin), cold (through a peer's proxy, when nobody has it), remote (through another peer's
proxy, when the first has it) and local (through the first proxy again), by one reader in one run; medians over fresh
objects. It runs on a cluster and an origin of its own, or on the user's.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from bench.bars import Bar
from bench.ground import EXTERNAL, Ground, Target
from bench.origin import Stats
from bench.reader import Reader

GIB = 1024**3
_WARM_UP_BYTES = 8 * 1024 * 1024

_RATIOS: Mapping[str, Mapping[str, float]] = {
    "gateway": {"cold": 1.05, "remote": 0.45, "local": 0.15},
    "s3": {"cold": 0.15},
}
"""Seconds over those of a direct read, at the most, by the origin's profile."""

_CPU_SECONDS_PER_GIB: Mapping[str, Mapping[str, float]] = {"unlimited": {"cold": 2.2, "remote": 1.4, "local": 0.45}}
"""CPU-seconds a GiB of all processes, the reading one included, at the most."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One read of one object. What the ground cannot know is None."""

    name: str
    seconds: float
    first_byte_seconds: float
    object_bytes: int
    digest_ok: bool
    cache: str | None
    origin: Stats | None
    cpu_seconds: Mapping[str, float]
    peak_rss_bytes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Run:
    """One way of reading: medians over the objects, with the fastest and slowest; bytes, seconds and ratios.

    `cpu_seconds` are those of all processes in reach, and `process_cpu_seconds` each one's; `peak_rss_bytes` is the
    highest RssAnon of any daemon.
    """

    name: str
    seconds: float
    seconds_min: float
    seconds_max: float
    first_byte_seconds: float
    bytes_per_second: float
    ratio: float
    digest_ok: bool
    cache: str | None
    origin_bytes: int | None
    origin_requests: int | None
    origin_one_byte_requests: int | None
    cpu_seconds: float
    cpu_seconds_per_gib: float
    process_cpu_seconds: Mapping[str, float]
    peak_rss_bytes: int | None


@dataclass(frozen=True, slots=True)
class Process:
    """What one process cost over all runs; memory is None where it was not measured."""

    name: str
    cpu_seconds: float
    peak_rss_bytes: int | None


@dataclass(frozen=True, slots=True)
class Result:
    """What the benchmark found; `origin_copies` is how often the origin sent each object over all runs."""

    object_bytes: int
    objects: int
    profile: str
    runs: tuple[Run, ...]
    origin_copies: float | None
    processes: tuple[Process, ...]

    @property
    def digest_ok(self) -> bool:
        """Whether every read gave the right bytes."""
        return all(run.digest_ok for run in self.runs)

    @property
    def bars(self) -> tuple[Bar, ...]:
        """What was asked of the origin's profile."""
        ratios, costs = _RATIOS.get(self.profile, {}), _CPU_SECONDS_PER_GIB.get(self.profile, {})
        return tuple(
            Bar(f"{run.name}: {what}", value, most=bounds[run.name])
            for what, bounds, values in (
                ("seconds over direct's", ratios, [run.ratio for run in self.runs]),
                ("CPU-seconds a GiB", costs, [run.cpu_seconds_per_gib for run in self.runs]),
            )
            for run, value in zip(self.runs, values, strict=True)
            if run.name in bounds
        )

    def figures(self) -> dict[str, object]:
        """Return the result as plain values, ready for JSON."""
        bars = [{**asdict(bar), "met": bar.met} for bar in self.bars]
        return {"bench": "hits", **asdict(self), "bars": bars}


def measure(ground: Ground, *, size: int, objects: int, progress: Callable[[str], None] = lambda text: None) -> Result:
    """Read `objects` fresh objects of `size` bytes each way. Raises ReadError and OriginControlError."""
    reader = Reader()
    if ground.profile != EXTERNAL:
        # Imports, threads and connections that a daemon makes once are not what is measured.
        progress("warm-up")
        _round(ground, reader, ground.target(_WARM_UP_BYTES))
    samples: list[Sample] = []
    for number in range(1, objects + 1):
        progress(f"object {number} of {objects}")
        samples += _round(ground, reader, ground.target(size))
    return summarise(samples, profile=ground.profile)


def _round(ground: Ground, reader: Reader, target: Target) -> list[Sample]:
    ways: list[tuple[str, str | None]] = [("direct", None), ("cold", ground.proxies[0])]
    if len(ground.proxies) > 1:
        ways.append(("remote", ground.proxies[1]))
    ways.append(("local", ground.proxies[0]))
    samples: list[Sample] = []
    expected = target.xxh3_128
    task_id: str | None = None
    ground.take_peaks()
    origin_before, cpu_before = ground.origin_stats(), ground.cpu_seconds()
    for name, proxy in ways:
        # The headers speak to the proxy; a store that signed the request might refuse them.
        with ground.prepared(name):
            reading = reader.read(target.url, proxy=proxy, headers=target.headers if proxy else ())
        cpu_after, peaks, origin_after = ground.cpu_seconds(), ground.take_peaks(), ground.origin_stats()
        expected = expected or reading.xxh3_128
        task_id = reading.task_id or task_id
        samples.append(
            Sample(
                name=name,
                seconds=reading.seconds,
                first_byte_seconds=reading.first_byte_seconds,
                object_bytes=reading.length,
                digest_ok=reading.xxh3_128 == expected,
                cache=reading.cache,
                origin=origin_after.since(origin_before) if origin_after and origin_before else None,
                cpu_seconds={process: cpu_after[process] - cpu_before[process] for process in cpu_after},
                peak_rss_bytes={process: peak for process, peak in peaks.items() if process != "origin"},
            )
        )
        # Where one read's costs end the next one's begin: what goes on behind a finished read is not lost.
        origin_before, cpu_before = origin_after, cpu_after
    if task_id is not None:
        ground.forget(task_id)
    return samples


def summarise(samples: Sequence[Sample], *, profile: str) -> Result:
    """Return the medians of the samples, run by run in the order in which they first appear; the first is "direct"."""
    by_name: dict[str, list[Sample]] = {}
    for sample in samples:
        by_name.setdefault(sample.name, []).append(sample)
    direct = statistics.median(sample.seconds for sample in by_name["direct"])
    objects = len(by_name["direct"])
    object_bytes = samples[0].object_bytes
    sent = [sample.origin.body_bytes for sample in samples if sample.origin is not None]
    names = dict.fromkeys(process for sample in samples for process in sample.cpu_seconds)
    return Result(
        object_bytes=object_bytes,
        objects=objects,
        profile=profile,
        runs=tuple(_run(name, group, direct) for name, group in by_name.items()),
        origin_copies=sum(sent) / (objects * object_bytes) if sent and object_bytes else None,
        processes=tuple(
            Process(
                name,
                sum(sample.cpu_seconds[name] for sample in samples),
                max((sample.peak_rss_bytes[name] for sample in samples if name in sample.peak_rss_bytes), default=None),
            )
            for name in names
        ),
    )


def _run(name: str, samples: Sequence[Sample], direct: float) -> Run:
    seconds = statistics.median(sample.seconds for sample in samples)
    size = samples[0].object_bytes
    origin = [sample.origin for sample in samples if sample.origin is not None]
    cpu = statistics.median(sum(sample.cpu_seconds.values()) for sample in samples)
    return Run(
        name=name,
        seconds=seconds,
        seconds_min=min(sample.seconds for sample in samples),
        seconds_max=max(sample.seconds for sample in samples),
        first_byte_seconds=statistics.median(sample.first_byte_seconds for sample in samples),
        bytes_per_second=size / seconds,
        ratio=seconds / direct,
        digest_ok=all(sample.digest_ok for sample in samples),
        cache=samples[-1].cache,
        origin_bytes=_median(stats.body_bytes for stats in origin),
        origin_requests=_median(stats.requests for stats in origin),
        origin_one_byte_requests=_median(stats.one_byte_requests for stats in origin),
        cpu_seconds=cpu,
        cpu_seconds_per_gib=cpu * GIB / size if size else 0.0,
        process_cpu_seconds={
            process: statistics.median(sample.cpu_seconds[process] for sample in samples)
            for process in samples[0].cpu_seconds
        },
        peak_rss_bytes=max((peak for sample in samples for peak in sample.peak_rss_bytes.values()), default=None),
    )


def _median(counts: Iterable[int]) -> int | None:
    known = sorted(counts)
    return statistics.median_low(known) if known else None
