"""The command line of `damselfly bench fanout`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench.console import print_bars, told_to_the_user
from bench.fanout import ALL, LEAST_BYTES, NAMES, SINGLE, measure
from bench.fanout_network import unavailable
from bench.fanout_report import summarise
from bench.origin import profile_named
from bench.report import ChartsUnavailableError, write_json
from bench.sim.scenario import parse_rate
from p2p.config import nearest, parse_size
from p2p.errors import ConfigError


def main(
    nodes: Annotated[int, typer.Option(min=1, max=250, help="How many nodes read the object.")] = 16,
    rate: Annotated[str, typer.Option(help="Of every node's uplink and downlink, as 200mbit.")] = "200mbit",
    size: Annotated[str, typer.Option(help="Size of each object, as 256MiB.")] = "256MiB",
    runs: Annotated[str, typer.Option(help=f"Which, with commas: {', '.join(NAMES)}.")] = ",".join(NAMES),
    origin_profile: Annotated[str, typer.Option(help="How fast the origin is: gateway, s3 or unlimited.")] = "s3",
    json: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("bench-fanout.json"),
    plot: Annotated[Path | None, typer.Option(help="Where a picture goes, as fanout.png.")] = None,
) -> None:
    """Let many nodes read one object at once, with real daemons behind limited links, also while some are killed."""
    console = Console()
    with told_to_the_user(), Console(stderr=True).status("starting") as status:
        names = parse_runs(runs)
        bytes_per_second, object_bytes = parse_rate(rate), parse_size(size)
        profile = profile_named(origin_profile).name
        if object_bytes < LEAST_BYTES:
            raise ConfigError(f"--size {size}: too small to time; take {LEAST_BYTES} bytes or more")
        reason = unavailable()
        if reason is not None:
            console.print(
                f"No network namespaces ({reason}): all run on loopback, and the peers' upload limit is the link. "
                "Downlinks have no limit."
            )
        samples = measure(
            names,
            profile=profile,
            nodes=nodes,
            size=object_bytes,
            rate=bytes_per_second,
            namespaces=reason is None,
            progress=status.update,
        )
        result = summarise(
            samples, nodes=nodes, object_bytes=object_bytes, rate=bytes_per_second, namespaces=reason is None
        )
    console.print(result.table())
    if reason is None:
        console.print("Each node is a network namespace behind a veth pair, limited both ways by tbf, heads included.")
    print_bars(console, result.bars)
    for sample in result.samples:
        console.print(
            f"{sample.name}: CPUs {sample.cpu_idle_share:.0%} idle; {sample.machine_cpu_seconds:.1f} CPU-s, of which "
            f"daemons and origin {sample.daemons_cpu_seconds:.1f}, clients {sample.client_cpu_seconds:.1f}."
        )
        if sample.accident_seconds is not None:
            console.print(f"{sample.name}: {sample.accident_seconds:.2f} s after the start.")
        elif sample.name not in (SINGLE, ALL):
            console.print(f"{sample.name}: all were done before it could happen.")
        for node, why in sample.failed.items():
            console.print(f"{sample.name}: {node}: {why}")
    write_json(json, result.figures())
    written = [json]
    if plot is not None:
        try:
            result.draw(plot)
            written.append(plot)
        except ChartsUnavailableError as error:
            typer.echo(str(error), err=True)
    typer.echo(f"wrote {', '.join(str(path) for path in written)}")
    for problem, wrong in (("wrong bytes were read", result.wrong), ("not every node got the object", result.failed)):
        if wrong:
            typer.echo(f"error: {problem}: {', '.join(wrong)}", err=True)
    if result.wrong or result.failed:
        raise typer.Exit(1)


def parse_runs(text: str) -> tuple[str, ...]:
    """Return the names of the runs that a list with commas has. Raises ConfigError for one that is not known."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in NAMES:
            near = nearest(name, NAMES)
            hint = f"did you mean {near!r}?" if near else f"known are {', '.join(NAMES)}"
            raise ConfigError(f"--runs: {name!r} is not a run; {hint}")
    if not names:
        raise ConfigError(f"--runs names none; known are {', '.join(NAMES)}")
    return names
