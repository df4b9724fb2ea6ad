"""How a benchmark tells what it found: JSON with its circumstances, and bar charts."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2p.errors import DamselflyError


class ChartsUnavailableError(DamselflyError):
    """The library that draws charts is not installed."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: `value` in the chart's unit, `text` above it."""

    label: str
    value: float
    text: str


def write_json(path: Path, figures: Mapping[str, Any]) -> None:
    """Write the figures and the circumstances (machine, commit, command) as one JSON document."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {**figures, "machine": machine(), "commit": commit(), "command": command(sys.argv)}
    path.write_text(json.dumps(document, indent=2) + "\n")


def machine() -> dict[str, Any]:
    """Return what of this machine bears on the figures."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "cpu_model": models[0].partition(":")[2].strip() if models else platform.machine(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def commit() -> str | None:
    """Return the commit of the checkout this code runs from, with "-dirty" if it was changed; None without one."""
    here = Path(__file__)
    # An installed copy may well lie inside somebody else's checkout: only one that tracks this file counts.
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    return _git(here.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def command(argv: Sequence[str]) -> str:
    """Return a command line fit for a report: the queries of URLs, which may hold signatures, are left out."""
    shown = [f"{word.partition('?')[0]}?…" if "://" in word and "?" in word else word for word in argv]
    return shlex.join([Path(shown[0]).name, *shown[1:]])


def bar_chart(stem: Path, *, title: str, unit: str, bars: Sequence[Bar]) -> tuple[Path, ...]:
    """Draw bars to `stem`.png and `stem`.svg and return those paths. Raises ChartsUnavailableError."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ChartsUnavailableError("no chart drawn: matplotlib is not installed; pip install 'damselfly[charts]'")
    # Imported here because it is optional, and slow to import. A Figure of its own needs no display and no pyplot.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.2 + 1.7 * len(bars), 4.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    colours = ("#8a939e", "#e0a13a", "#3f8fc0", "#2f9e6e", "#7a6bb0")
    drawn = axes.bar(
        [bar.label for bar in bars],
        [bar.value for bar in bars],
        width=0.62,
        color=[colours[number % len(colours)] for number in range(len(bars))],
        zorder=2,
    )
    axes.bar_label(drawn, labels=[bar.text for bar in bars], padding=4, fontsize=11, fontweight="bold")
    axes.set_title(title, fontsize=12, pad=14)
    axes.set_ylabel(unit)
    axes.margins(y=0.14)
    axes.grid(axis="y", color="#dddddd", zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="both", length=0)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = tuple(stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg"))
    for path in paths:
        figure.savefig(path)
    return paths


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603  # fixed arguments
            ["git", "-C", str(directory), *arguments],  # noqa: S607  # whichever git the user has
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
