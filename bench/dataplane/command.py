"""The command line of `damselfly bench data-plane`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench.console import told_to_the_user
from bench.dataplane.plan import Plan
from bench.dataplane.sections import SECTIONS, measure
from bench.report import ChartsUnavailableError, bar_chart, write_json
from p2p.config import nearest
from p2p.errors import ConfigError


def main(
    sections: Annotated[str, typer.Option(help=f"Which, with commas: {', '.join(SECTIONS)}.")] = ",".join(SECTIONS),
    rounds: Annotated[int, typer.Option(min=1, help="How many rounds; the figures are medians.")] = 5,
    scale: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="How much is moved and counted, of what is asked for.")
    ] = 1.0,
    json: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("bench-data-plane.json"),
    chart: Annotated[Path, typer.Option(help="Where the chart goes, without .png and .svg.")] = Path(
        "bench-data-plane"
    ),
) -> None:
    """Measure what a node's data path costs: hits, pieces, origins, small files, memory; nginx and curl beside it."""
    with told_to_the_user(), Console(stderr=True).status("starting") as status:
        result = measure(Plan(rounds, scale), parse_sections(sections), status.update)
    console = Console()
    console.print(result.table())
    for reason in result.missing:
        console.print(f"not measured: {reason}")
    write_json(json, result.figures())
    written = [json]
    try:
        title = f"What a node's data path costs\n(median of {rounds})"
        written += bar_chart(chart, title=title, unit="CPU-seconds a GiB", bars=result.charted())
    except ChartsUnavailableError as error:
        typer.echo(str(error), err=True)
    typer.echo(f"wrote {', '.join(str(path) for path in written)}")


def parse_sections(text: str) -> tuple[str, ...]:
    """Return the names of the sections that a list with commas has. Raises ConfigError for one that is not known."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in SECTIONS:
            near = nearest(name, tuple(SECTIONS))
            hint = f"did you mean {near!r}?" if near else f"known are {', '.join(SECTIONS)}"
            raise ConfigError(f"--sections: {name!r} is not a section; {hint}")
    if not names:
        raise ConfigError(f"--sections names none; known are {', '.join(SECTIONS)}")
    return names
