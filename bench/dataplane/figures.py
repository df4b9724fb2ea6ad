"""What the data-plane benchmark found: medians of rounds with their spread, beside nginx's, and bounds. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from bench import report
from bench.bars import Bar
from p2p.pieces import GIB, MIB

SHOWN = {
    "bytes_per_second": ("GB/s", 1e-9, 2),
    "cpu_seconds_per_gib": ("CPU-s/GiB", 1.0, 3),
    "requests_per_cpu_second": ("requests/CPU-s", 1.0, 0),
    "requests_per_second": ("requests/s", 1.0, 0),
    "versions_per_second": ("versions/s", 1.0, 0),
    "seconds": ("ms", 1e3, 1),
    "rss_anon_bytes": ("MiB", 1 / MIB, 1),
    "ratio": ("times", 1.0, 2),
}
"""How each unit is shown: its name, a factor, and decimals."""

_CHARTED = "cpu_seconds_per_gib"


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that was measured in each round: `values` in `unit`, one of SHOWN.

    `beside` are nginx's in the same rounds. The bounds are those of the ratio to nginx's where there are any, and
    otherwise of the value; with neither, the figure is for information.
    """

    section: str
    name: str
    unit: str
    values: tuple[float, ...]
    beside: tuple[float, ...] = ()
    least: float | None = None
    most: float | None = None
    versus: bool = False
    """Whether the bounds are those of the ratio to nginx's, also where nginx is not installed."""

    @property
    def median(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.values)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Each round's value over nginx's."""
        return tuple(own / other for own, other in zip(self.values, self.beside, strict=False) if other)

    @property
    def bar(self) -> Bar | None:
        """What was asked for; its value is None where nginx is to be compared with and is not installed."""
        if self.least is None and self.most is None:
            return None
        name = f"{self.section}: {self.name}, {SHOWN[self.unit][0]}"
        if self.versus:
            value = statistics.median(self.ratios) if self.ratios else None
            return Bar(f"{name} over nginx's", value, self.least, self.most)
        return Bar(name, self.median * SHOWN[self.unit][1], self.least, self.most)

    def figures(self) -> dict[str, Any]:
        """Return everything for the JSON file."""
        bar = self.bar
        return {
            "section": self.section,
            "name": self.name,
            "unit": self.unit,
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "values": list(self.values),
            "nginx": statistics.median(self.beside) if self.beside else None,
            "nginx_values": list(self.beside),
            "ratio_to_nginx": statistics.median(self.ratios) if self.ratios else None,
            "least": self.least,
            "most": self.most,
            "met": None if bar is None else bar.met,
        }

    def cells(self) -> tuple[str, ...]:
        """Return the row of the table: unit, median, spread, nginx's, the ratio, the bound, and whether it is met."""
        unit, factor, decimals = SHOWN[self.unit]

        def shown(value: float) -> str:
            return f"{value * factor:,.{decimals}f}"

        bar = self.bar
        return (
            unit,
            shown(self.median),
            f"{shown(min(self.values))}-{shown(max(self.values))}",
            shown(statistics.median(self.beside)) if self.beside else "",
            f"{statistics.median(self.ratios):.2f}" if self.ratios else "",
            "" if bar is None else f"{'≥' if bar.least is not None else '≤'} {bar.least or bar.most:.4g}",
            "" if bar is None else "met" if bar.met else "not measured" if bar.value is None else "missed",
        )


HEADINGS = ("unit", "median", "min-max", "nginx", "ratio", "bound", "")


@dataclass(frozen=True, slots=True)
class Result:
    """All figures, in the order in which they were measured, and what they were measured beside."""

    rounds: int
    figures_found: tuple[Figure, ...]
    missing: tuple[str, ...]
    """What could not be measured, and why."""

    @property
    def bars(self) -> tuple[Bar, ...]:
        """What was asked for."""
        return tuple(figure.bar for figure in self.figures_found if figure.bar is not None)

    def figures(self) -> dict[str, Any]:
        """Return everything for the JSON file."""
        return {
            "bench": "data-plane",
            "rounds": self.rounds,
            "figures": [figure.figures() for figure in self.figures_found],
            "missing": list(self.missing),
        }

    def table(self) -> Table:
        """Return the table for the terminal, a block a section."""
        table = Table(title=f"Data plane (median of {self.rounds})", box=None, collapse_padding=True)
        table.add_column("")
        for heading in HEADINGS:
            table.add_column(heading, justify="right", no_wrap=True)
        section = ""
        for figure in self.figures_found:
            if figure.section != section:
                section = figure.section
                table.add_row(f"[bold]{section}[/bold]")
            table.add_row(f"  {figure.name}", *figure.cells())
        return table

    def charted(self) -> list[report.Bar]:
        """Return the bars of the chart: the CPU time of every path, and nginx's beside it."""
        bars: list[report.Bar] = []
        for figure in self.figures_found:
            if figure.unit != _CHARTED:
                continue
            label = f"{figure.section}\n{figure.name}".replace(", ", "\n")
            bars.append(report.Bar(label, figure.median, f"{figure.median:.2f}"))
            if figure.beside:
                beside = statistics.median(figure.beside)
                bars.append(report.Bar("nginx", beside, f"{beside:.2f}"))
        return bars


def per_gib(cpu_seconds: float, size: int) -> float:
    """Return CPU-seconds a GiB for what moved `size` bytes."""
    return cpu_seconds * GIB / size


def by_name(rounds: Sequence[dict[str, float]]) -> dict[str, tuple[float, ...]]:
    """Turn one dictionary a round into the values of each key."""
    return {name: tuple(each[name] for each in rounds) for name in rounds[0]}
