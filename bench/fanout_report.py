"""The figures of `damselfly bench fanout`: a table, how they stand against what was asked for, JSON, and a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.bars import Bar
from bench.fanout import ALL, NAMES, PARENT, RESTART, SEED, SINGLE, THE_SEED, Sample
from bench.sim.record import Record
from bench.sim.report import Run, draw, percentile
from bench.sim.scenario import Scenario

LIMIT, ACCIDENT_LIMIT, COPIES_LIMIT = 1.20, 1.60, 1.02
SINGLE_LIMIT = 1.5
"""A single node that took longer is no measure for the others: this machine had other things to do."""


@dataclass(frozen=True, slots=True)
class Result:
    """The runs of one benchmark. `namespaces` tells whether each node had a link of its own."""

    samples: tuple[Sample, ...]
    nodes: int
    object_bytes: int
    rate: float
    namespaces: bool

    @property
    def scenario(self) -> Scenario:
        """The same as the simulation would call it."""
        return Scenario(nodes=self.nodes, size=self.object_bytes, rate=self.rate)

    @property
    def single_seconds(self) -> float | None:
        """How long one node alone took, None if that was not run or failed."""
        return next(
            (max(each.completed.values()) for each in self.samples if each.name == SINGLE and _whole(each)), None
        )

    @property
    def wrong(self) -> list[str]:
        """The runs in which somebody read wrong bytes."""
        return [sample.name for sample in self.samples if sample.wrong]

    @property
    def failed(self) -> list[str]:
        """The runs in which somebody who was not killed did not get everything."""
        return [sample.name for sample in self.samples if sample.failed]

    def over_single(self, name: str) -> float | None:
        """Return the last node's time in a run over that of one node alone; None where either is not known."""
        sample = next((each for each in self.samples if each.name == name), None)
        single = self.single_seconds
        if sample is None or single is None or not _whole(sample) or not _happened(sample):
            return None
        return max(sample.completed.values()) / single

    @property
    def bars(self) -> tuple[Bar, ...]:
        """What was asked for, of the runs that were made."""
        made = {sample.name: sample for sample in self.samples}
        bars = []
        if SINGLE in made:
            alone = self.single_seconds
            over = None if alone is None else alone / self.scenario.single_node_seconds
            bars.append(Bar("single: over S/u, as a measure for the others", over, most=SINGLE_LIMIT))
        bars += [
            Bar(
                f"{name}: last node over one alone",
                self.over_single(name),
                most=LIMIT if name == ALL else ACCIDENT_LIMIT,
            )
            for name in (ALL, PARENT, SEED, RESTART)
            if name in made
        ]
        if ALL in made:
            bars.append(Bar("all: origin copies", made[ALL].origin_bytes / self.object_bytes, most=COPIES_LIMIT))
        unread = sum(len(sample.failed) + len(sample.wrong) for sample in self.samples)
        return (*bars, Bar("reads that failed or gave wrong bytes", float(unread), most=0))

    def figures(self) -> dict[str, Any]:
        """Return the result as plain values, ready for JSON."""
        return {
            "bench": "fanout",
            "nodes": self.nodes,
            "object_bytes": self.object_bytes,
            "piece_bytes": self.scenario.layout.piece_length,
            "rate_bytes_per_second": self.rate,
            "links": "namespaces" if self.namespaces else "upload limit of the peers",
            "single_node_seconds": self.single_seconds,
            "t_star_seconds": self.scenario.t_star_seconds,
            "runs": [self._run(sample) for sample in self.samples],
            "bars": [{**asdict(bar), "met": bar.met} for bar in self.bars],
        }

    def _run(self, sample: Sample) -> dict[str, Any]:
        seconds = sorted(sample.completed.values())
        single, least = self.single_seconds, self.scenario.t_star_seconds
        p99 = percentile(seconds, 0.99)
        landed = (len(seconds) + 1) * sample.object_bytes
        return {
            "name": sample.name,
            "nodes_completed": len(seconds),
            "nodes_killed": list(sample.lost),
            "nodes_failed": dict(sample.failed),
            "nodes_wrong": list(sample.wrong),
            "first_seconds": seconds[0] if seconds else None,
            "median_seconds": statistics.median(seconds) if seconds else None,
            "last_seconds": seconds[-1] if seconds else None,
            "last_over_single_node": self.over_single(sample.name),
            "p99_over_single_node": p99 / single if p99 is not None and single else None,
            "p99_over_t_star": p99 / least if p99 is not None else None,
            "origin_copies": sample.origin_bytes / sample.object_bytes,
            "seed_copies": sample.seed_bytes / sample.object_bytes,
            "scheduler_events": sample.scheduler_events,
            "scheduler_events_per_piece": self._events(sample),
            "accident_seconds": sample.accident_seconds,
            "cpu_idle_share": sample.cpu_idle_share,
            "daemons_cpu_seconds": sample.daemons_cpu_seconds,
            "client_cpu_seconds": sample.client_cpu_seconds,
            "machine_cpu_seconds": sample.machine_cpu_seconds,
            "cpu_seconds_per_gib": sample.daemons_cpu_seconds * 2**30 / landed if landed else None,
            "completed_seconds": dict(sample.completed),
        }

    def _events(self, sample: Sample) -> float | None:
        """Return the scheduler's events over the pieces that landed anywhere, the seed included."""
        hosts = len(sample.completed) + 1
        return None if sample.scheduler_events is None else sample.scheduler_events / hosts / self.scenario.layout.count

    def table(self) -> Table:
        """Return a row for each run; it fits into 80 columns."""
        scenario = self.scenario
        table = Table(
            title=f"{self.nodes} nodes, {self.object_bytes / 2**20:.4g} MiB in {scenario.layout.count} pieces, "
            f"{self.rate * 8 / 1e6:.4g} Mbit/s, S/u {scenario.single_node_seconds:.2f} s, "
            f"T* {scenario.t_star_seconds:.2f} s",
            box=None,
            collapse_padding=True,
        )
        table.add_column("run", no_wrap=True)
        headings = ("first\ns", "median\ns", "last\ns", "last/\nsingle", "origin\ncopies", "seed\ncopies")
        for heading in (*headings, "events\na piece", "CPU\nidle"):
            table.add_column(heading, justify="right")
        table.add_column("bytes")
        for sample in self.samples:
            row = self._run(sample)
            table.add_row(
                sample.name,
                *(_shown(row[key], 2) for key in ("first_seconds", "median_seconds", "last_seconds")),
                *(_shown(row[key], 3) for key in ("last_over_single_node", "origin_copies", "seed_copies")),
                _shown(row["scheduler_events_per_piece"], 2),
                f"{sample.cpu_idle_share:.0%}",
                "WRONG" if sample.wrong else "missing" if sample.failed else "right",
            )
        return table

    def draw(self, path: Path) -> None:
        """Draw when nodes completed, and how busy each uplink was. Raises ChartsUnavailableError."""
        draw(path, [self._drawn(sample) for sample in self.samples])

    def _drawn(self, sample: Sample) -> Run:
        """Return a run as the simulation records it: host 0 is the seed, host n peer-n."""
        hosts = {THE_SEED: 0} | {f"peer-{number}": number for number in range(1, self.nodes + 1)}
        record = Record(
            arrived={hosts[name]: 0.0 for name in (*sample.completed, *sample.failed, *sample.lost)},
            completed={hosts[name]: at for name, at in sample.completed.items()},
            failed={hosts[name]: why for name, why in sample.failed.items()},
            unhealthy={hosts[name] for name in sample.lost},
            slice_seconds=sample.slice_seconds,
        )
        for (name, number), count in sample.sent.items():
            if name in hosts:
                record.send(hosts[name], count, number)
        return Run(sample.name, self.scenario, record, sample.wall_seconds)


def summarise(samples: Sequence[Sample], *, nodes: int, object_bytes: int, rate: float, namespaces: bool) -> Result:
    """Return the result of these runs, in the order of NAMES."""
    ordered = sorted(samples, key=lambda sample: NAMES.index(sample.name))
    return Result(tuple(ordered), nodes, object_bytes, rate, namespaces)


def _whole(sample: Sample) -> bool:
    return bool(sample.completed) and not sample.failed and not sample.wrong


def _happened(sample: Sample) -> bool:
    return sample.name in (SINGLE, ALL) or sample.accident_seconds is not None


def _shown(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
