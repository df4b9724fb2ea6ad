"""`damselfly bench sim`: spread a file over a simulated fleet, and compare."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench.report import ChartsUnavailableError, write_json
from bench.sim.files import FilesRecord, SimulatedFiles
from bench.sim.policies import RarestFirst, Tree
from bench.sim.record import Record
from bench.sim.report import Run, draw, table
from bench.sim.scenario import Arrivals, CostModel, Scenario, Sharing, parse_rate
from bench.sim.swarm import SimulatedSwarm, SimulationError
from p2p.config import parse_duration, parse_size
from p2p.errors import ConfigError

OURS = "damselfly"
_POLICIES: dict[str, Callable[[Scenario], Record]] = {
    OURS: lambda scenario: SimulatedSwarm(scenario).run(),
    "tree": lambda scenario: Tree(scenario).run(),
    "rarest-first": lambda scenario: RarestFirst(scenario).run(),
}


def main(
    nodes: Annotated[int, typer.Option(min=1, help="How many nodes read the file.")] = 64,
    size: Annotated[str, typer.Option(help="Size of the file, as 10GiB.")] = "1GiB",
    files: Annotated[
        int, typer.Option(min=0, help="Let each node read so many small files of that size, one after the other.")
    ] = 0,
    rate: Annotated[str, typer.Option(help="Of every uplink and downlink, as 10gbit (bits a second).")] = "10gbit",
    rtt: Annotated[str, typer.Option(help="Round trip between any two hosts, as 1ms.")] = "1ms",
    seeds: Annotated[int, typer.Option(min=1, help="Seed peers, with the same links as a node.")] = 1,
    warm: Annotated[bool, typer.Option(help="Let the seeds hold the file at the start.")] = False,
    arrivals: Annotated[Arrivals, typer.Option(help="How the nodes come.")] = Arrivals.BURST,
    arrival_time: Annotated[str, typer.Option(help="Within which time they come.")] = "500ms",
    origin_rate: Annotated[str, typer.Option(help="What the origin sends to all together.")] = "100gbit",
    origin_connection_rate: Annotated[str, typer.Option(help="What it sends over one connection.")] = "100gbit",
    stragglers: Annotated[float, typer.Option(help="Share of nodes with a tenth of the rate, as 0.01.")] = 0.0,
    slow_uplinks: Annotated[float, typer.Option(help="Share of nodes with a slower uplink, as 0.5.")] = 0.0,
    slow_uplink_rate: Annotated[str, typer.Option(help="Of these uplinks.")] = "2.5gbit",
    churn: Annotated[float, typer.Option(help="Share of nodes that die a minute; others come instead.")] = 0.0,
    loss: Annotated[float, typer.Option(help="Share of control messages that are lost.")] = 0.0,
    byzantine: Annotated[float, typer.Option(help="Share of nodes that send corrupt pieces.")] = 0.0,
    restart: Annotated[
        str | None, typer.Option(help="When the scheduler is killed; it is back a second later.")
    ] = None,
    zones: Annotated[int, typer.Option(min=1, help="Hosts are spread over so many zones.")] = 1,
    zone_rate: Annotated[str, typer.Option(help="From each zone to each other.")] = "1gbit",
    stripes: Annotated[
        int, typer.Option(min=0, help="Along so many trees pieces spread; 0: the scheduler assigns each.")
    ] = 4,
    sharing: Annotated[
        Sharing, typer.Option(help="How flows share a link; evenly wastes some and is faster to compute.")
    ] = Sharing.FAIR,
    scheduler_cost: Annotated[
        float, typer.Option(min=0.0, help="How many times the modelled cost the scheduler takes; 0: none.")
    ] = 1.0,
    policy: Annotated[
        list[str] | None, typer.Option(help=f"Which to run, again and again: {', '.join(_POLICIES)}. Default: all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of all randomness: equal ones give equal runs.")] = 1,
    json: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("bench-sim.json"),
    plot: Annotated[Path | None, typer.Option(help="Where a picture goes, as sim.png.")] = None,
) -> None:
    """Spread a file over simulated nodes with the cores that ship, and with other policies, in virtual time."""
    try:
        scenario = Scenario(
            nodes=nodes,
            size=parse_size(size),
            rate=parse_rate(rate),
            rtt=parse_duration(rtt),
            seeds=seeds,
            warm=warm,
            arrivals=arrivals,
            arrival_seconds=parse_duration(arrival_time),
            origin_rate=parse_rate(origin_rate),
            origin_connection_rate=parse_rate(origin_connection_rate),
            stragglers=stragglers,
            slow_uplinks=slow_uplinks,
            slow_uplink_rate=parse_rate(slow_uplink_rate),
            churn=churn,
            loss=loss,
            byzantine=byzantine,
            restart_at=None if restart is None else parse_duration(restart),
            zones=zones,
            zone_rate=parse_rate(zone_rate),
            stripes=stripes,
            sharing=sharing,
            cost=CostModel().scaled(scheduler_cost),
            seed=seed,
        )
        if files:
            _show_files(SimulatedFiles(scenario, files).run(), scenario, json)
            return
        runs = [_timed(name, scenario) for name in _chosen(policy)]
    except (ConfigError, SimulationError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None
    console = Console()
    console.print(table(runs))
    if zones > 1:
        for run in runs:
            console.print(
                f"{run.policy}: {run.record.crossing_bytes / scenario.size:.2f} copies crossed between zones."
            )
    figures = {
        "scenario": asdict(scenario) | {"piece_bytes": scenario.layout.piece_length, "pieces": scenario.layout.count},
        "single_node_seconds": scenario.single_node_seconds,
        "t_star_seconds": scenario.t_star_seconds,
        "bound_seconds": scenario.bound_seconds,
        "runs": [run.figures() for run in runs],
    }
    write_json(json, figures)
    written = [json]
    if plot is not None:
        try:
            draw(plot, runs)
            written.append(plot)
        except ChartsUnavailableError as error:
            typer.echo(str(error), err=True)
    typer.echo(f"wrote {', '.join(str(path) for path in written)}")
    for run in runs:
        for number, reason in run.record.failed.items():
            typer.echo(f"error: {run.policy}, seed {seed}: node {number} failed: {reason}", err=True)
    if any(run.record.failed for run in runs):
        raise typer.Exit(1)


def _show_files(record: FilesRecord, scenario: Scenario, json: Path) -> None:
    """Print and write what many small files cost."""
    figures = record.figures()
    typer.echo(f"{record.nodes} nodes, {record.files} files of {scenario.size} bytes each, one after the other")
    for name, value in figures.items():
        typer.echo(f"  {name}: {value:.6g}")
    write_json(json, {"scenario": asdict(scenario), "files": figures})
    typer.echo(f"wrote {json}")


def _chosen(names: list[str] | None) -> list[str]:
    for name in names or ():
        if name not in _POLICIES:
            raise ConfigError(f"--policy {name}: there are {', '.join(_POLICIES)}")
    return names or list(_POLICIES)


def _timed(name: str, scenario: Scenario) -> Run:
    with Console(stderr=True).status(f"simulating {name}, {scenario.nodes} nodes"):
        began = time.perf_counter()
        record = _POLICIES[name](scenario)
    return Run(name, scenario, record, time.perf_counter() - began)
