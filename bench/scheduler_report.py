"""What the scheduler's benchmark found: medians of rounds, and how they stand against what was asked for. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from rich.table import Table

from bench.bars import Bar
from bench.scheduler import Plan, Sample, ServiceSample
from bench.scheduler_core import CoreSample
from bench.synthetic import Scene

CORE_PIECES_PER_SECOND = 50_000
SERVICE_PIECES_PER_SECOND = 8_000
DECISION_SECONDS = 0.005
PAIR_BYTES = 2048


@dataclass(frozen=True, slots=True)
class Run:
    """One load: medians over the rounds.

    `pieces_per_second` are pieces landed a CPU-second in the core, and a second through the process. `pair_bytes` is
    the anonymous memory a (host, task), beside the pieces' bitmap: of the core's own objects, and of the whole process
    with its sessions; None where hosts want one object after another.
    """

    name: str
    scene: Scene
    pieces_per_second: float
    pieces_per_cpu_second: float
    pieces_per_report: float
    assignments_per_piece: float
    p50_seconds: float | None
    p99_seconds: float | None
    cpu_seconds: float
    pair_bytes: float | None


@dataclass(frozen=True, slots=True)
class Result:
    """The figures of one benchmark."""

    rounds: int
    runs: tuple[Run, ...]
    bars: tuple[Bar, ...]

    def figures(self) -> dict[str, object]:
        """Return the result as plain values, ready for JSON."""
        return {"bench": "scheduler", **asdict(self), "bars": [{**asdict(bar), "met": bar.met} for bar in self.bars]}

    def table(self) -> Table:
        """Return the runs as a table of no more than 80 columns."""
        table = Table(title=f"One scheduler on one core (median of {self.rounds})", box=None, collapse_padding=True)
        table.add_column("load", no_wrap=True)
        for heading in (
            "hosts x\ntasks",
            "pieces",
            "pieces\n/s",
            "pieces\n/report",
            "p50\nms",
            "p99\nms",
            "CPU-s",
            "B a\npair",
        ):
            table.add_column(heading, justify="right")
        for run in self.runs:
            table.add_row(
                run.name,
                f"{run.scene.hosts}x{run.scene.tasks}",
                str(run.scene.pieces),
                f"{run.pieces_per_second:,.0f}",
                f"{run.pieces_per_report:.2f}",
                _milliseconds(run.p50_seconds),
                _milliseconds(run.p99_seconds),
                f"{run.cpu_seconds:.2f}",
                "-" if run.pair_bytes is None else f"{run.pair_bytes:,.0f}",
            )
        return table


def summarise(plan: Plan, samples: Sequence[Sample]) -> Result:
    """Return the medians of the rounds."""
    runs = (
        _core_run("core", plan.throughput, [(sample.core, sample.core_pair_bytes) for sample in samples]),
        _service_run("process", plan.service, [sample.service for sample in samples]),
        _service_run("process, parts", plan.service_parts, [sample.service_parts for sample in samples]),
        _core_run(
            "core, decisions",
            plan.decisions,
            [(sample.decisions, sample.decisions_pair_bytes) for sample in samples],
        ),
        _service_run("process, decisions", plan.service_decisions, [sample.service_decisions for sample in samples]),
    )
    core, service, service_parts, decisions, service_decisions = runs
    tasks = f"{plan.decisions.tasks} tasks x {plan.decisions.hosts} peers"
    bars = (
        Bar("piece events a second, core", core.pieces_per_second, least=CORE_PIECES_PER_SECOND),
        Bar("piece events a second, process", service.pieces_per_second, least=SERVICE_PIECES_PER_SECOND),
        Bar(
            "piece events a second, process, by parts",
            service_parts.pieces_per_second,
            least=SERVICE_PIECES_PER_SECOND,
        ),
        Bar(f"p99 decision in the core, {tasks}, ms", _bar_ms(decisions), most=DECISION_SECONDS * 1e3),
        Bar(
            "p99 report to assignment through the process, ms", _bar_ms(service_decisions), most=DECISION_SECONDS * 1e3
        ),
        Bar(f"bytes a (peer, task) of {plan.decisions.pieces} pieces", decisions.pair_bytes, most=PAIR_BYTES),
        Bar(f"bytes a (peer, task) of {plan.throughput.pieces} pieces", core.pair_bytes, most=PAIR_BYTES),
    )
    return Result(len(samples), runs, bars)


def _core_run(name: str, scene: Scene, samples: Sequence[tuple[CoreSample, float]]) -> Run:
    loads = [one for one, _ in samples]
    rate = statistics.median(_ratio(one.pieces, one.cpu_seconds) for one in loads)
    return Run(
        name=name,
        scene=scene,
        pieces_per_second=rate,
        pieces_per_cpu_second=rate,
        pieces_per_report=statistics.median(_ratio(one.pieces, one.reports) for one in loads),
        assignments_per_piece=statistics.median(_ratio(one.assignments, one.pieces) for one in loads),
        p50_seconds=_median(one.p50_seconds for one in loads),
        p99_seconds=_median(one.p99_seconds for one in loads),
        cpu_seconds=statistics.median(one.cpu_seconds for one in loads),
        pair_bytes=statistics.median(pair_bytes for _, pair_bytes in samples) - _bitmap_bytes(scene),
    )


def _service_run(name: str, scene: Scene, samples: Sequence[ServiceSample]) -> Run:
    loads = [one.load for one in samples]
    pair_bytes = _median(one.pair_bytes for one in samples)
    return Run(
        name=name,
        scene=scene,
        pieces_per_second=statistics.median(_ratio(load.pieces, load.seconds) for load in loads),
        pieces_per_cpu_second=statistics.median(_ratio(one.load.pieces, one.cpu_seconds) for one in samples),
        pieces_per_report=statistics.median(_ratio(load.pieces, load.reports) for load in loads),
        assignments_per_piece=statistics.median(_ratio(load.assignments, load.pieces) for load in loads),
        p50_seconds=_median(load.p50_seconds for load in loads),
        p99_seconds=_median(load.p99_seconds for load in loads),
        cpu_seconds=statistics.median(one.cpu_seconds for one in samples),
        pair_bytes=None if pair_bytes is None else pair_bytes - _bitmap_bytes(scene),
    )


def _bitmap_bytes(scene: Scene) -> int:
    return -(-scene.pieces // 8)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _median(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None


def _bar_ms(run: Run) -> float | None:
    return None if run.p99_seconds is None else run.p99_seconds * 1e3


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.2f}"
