"""`damselfly bench …`: the command line of the benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bench import back_source, fanout_command, origin, scheduler
from bench.back_source_report import Result as OriginResult
from bench.back_source_report import summarise as summarise_origin
from bench.console import print_bars, shown, told_to_the_user
from bench.dataplane import command as dataplane
from bench.ground import EXTERNAL, ExternalGround, embedded_ground
from bench.hits import Result, measure
from bench.proxy import Result as ProxyResult
from bench.proxy import measure as measure_proxies
from bench.report import Bar, ChartsUnavailableError, bar_chart, write_json
from bench.scheduler_report import summarise as summarise_scheduler
from bench.sim import command as sim
from p2p.config import parse_duration, parse_size
from p2p.errors import ConfigError

app = typer.Typer(
    no_args_is_help=True,
    help="Measure what Damselfly does on this machine, or on your cluster.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("serve-origin")(origin.main)
app.command("sim")(sim.main)
app.command("fanout")(fanout_command.main)
app.command("data-plane")(dataplane.main)

_LABELS = {
    "direct": "Direct",
    "cold": "Cold",
    "remote": "Hit on a\nremote peer",
    "local": "Hit on the\nlocal peer",
}


@app.command()
def hits(
    size: Annotated[str, typer.Option(help="Size of each object, as 1GiB or 500MB.")] = "1GiB",
    objects: Annotated[int, typer.Option(min=1, help="How many fresh objects; the figures are medians.")] = 3,
    origin_profile: Annotated[
        str, typer.Option(help="How fast the embedded origin is: gateway, s3 or unlimited.")
    ] = "gateway",
    url: Annotated[
        str | None, typer.Option(help="Read this URL through --proxy instead of running a cluster and an origin here.")
    ] = None,
    proxy: Annotated[
        list[str] | None,
        typer.Option(help="Proxy of a peer, host:port, for --url; a second one is where the remote hit is read."),
    ] = None,
    json: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("bench-hits.json"),
    chart: Annotated[Path, typer.Option(help="Where the chart goes, without .png and .svg.")] = Path("bench-hits"),
) -> None:
    """Read one object directly, cold, as a remote hit and as a local hit, and compare.

    By default on an origin and a cluster (scheduler, seed, two peers) started for it and removed afterwards.
    """
    with told_to_the_user():
        result = _measure(parse_size(size), objects, origin_profile, url, proxy or [])
    _print(result)
    write_json(json, result.figures())
    try:
        drawn = bar_chart(chart, title=_title(result), unit="seconds", bars=_bars(result))
    except ChartsUnavailableError as error:
        typer.echo(str(error), err=True)
        drawn = ()
    typer.echo(f"wrote {', '.join(str(path) for path in (json, *drawn))}")
    if not result.digest_ok:
        wrong = ", ".join(run.name for run in result.runs if not run.digest_ok)
        typer.echo(f"error: wrong bytes were read: {wrong}", err=True)
        raise typer.Exit(1)


@app.command()
def proxy(
    size: Annotated[str, typer.Option(help="Size of the object, as 64KiB.")] = "64KiB",
    connections: Annotated[int, typer.Option(min=1, help="How many keep-alive connections.")] = 16,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each proxy is loaded in each round.")] = 4.0,
    rounds: Annotated[int, typer.Option(min=1, help="How many rounds; the figures are those of the median.")] = 3,
    authorize_ttl: Annotated[
        str, typer.Option(help="How long the peer's rule remembers the origin's leave; 0s asks at every request.")
    ] = "60s",
    json: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("bench-proxy.json"),
) -> None:
    """Load a peer with requests for one small object that it holds, and nginx and squid with the same ones."""
    with told_to_the_user(), Console(stderr=True).status("starting") as status:
        result = measure_proxies(
            size=parse_size(size),
            connections=connections,
            seconds=seconds,
            rounds=rounds,
            authorize_ttl=parse_duration(authorize_ttl),
            progress=status.update,
        )
    _print_proxies(result)
    write_json(json, result.figures())
    typer.echo(f"wrote {json}")


@app.command("origin")
def back_to_source(
    origin_profile: Annotated[str, typer.Option(help="How fast the origin is: gateway, s3 or unlimited.")] = "s3",
    size: Annotated[str, typer.Option(help="Size of each object, as 2GiB.")] = "2GiB",
    rounds: Annotated[int, typer.Option(min=1, help="How many rounds; the figures are medians.")] = 3,
    json: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("bench-origin.json"),
) -> None:
    """Read fresh objects from one origin: by seeds, also while it fails, by plain connections, curl and s5cmd."""
    with told_to_the_user(), Console(stderr=True).status("starting") as status:
        profile = origin.profile_named(origin_profile).name
        if parse_size(size) < back_source.LEAST_BYTES:
            raise ConfigError(f"--size {size}: too small to time; take {back_source.LEAST_BYTES} bytes or more")
        samples = back_source.measure(profile, size=parse_size(size), rounds=rounds, progress=status.update)
        missing = [name for name in back_source.NAMES if name not in {sample.name for sample in samples}]
        result = summarise_origin(samples, profile=profile, wall_seconds=back_source.WALL_SECONDS, missing=missing)
    _print_origin(result)
    write_json(json, result.figures())
    typer.echo(f"wrote {json}")
    if not result.digest_ok:
        typer.echo("error: a seed holds wrong bytes", err=True)
        raise typer.Exit(1)


@app.command("scheduler")
def one_scheduler(
    scale: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="How large the swarms are, of those that are asked for.")
    ] = 1.0,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each load lasts at the most.")] = 10.0,
    rounds: Annotated[int, typer.Option(min=1, help="How many rounds; the figures are medians.")] = 3,
    json: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("bench-scheduler.json"),
) -> None:
    """Load a scheduler's core, and a scheduler process on one core, with what many hosts say."""
    plan = scheduler.Plan.of(scale=scale, seconds=seconds)
    with told_to_the_user(), Console(stderr=True).status("starting") as status:
        result = summarise_scheduler(plan, scheduler.measure(plan, rounds=rounds, progress=status.update))
    console = Console()
    console.print(result.table())
    print_bars(console, result.bars)
    write_json(json, result.figures())
    typer.echo(f"wrote {json}")


def _print_proxies(result: ProxyResult) -> None:
    table = Table(
        title=f"Local hits of {result.object_bytes / 1024:g} KiB, {result.connections} keep-alive connections",
        box=None,
        collapse_padding=True,
    )
    table.add_column("proxy")
    for heading in ("requests/s\na core", "requests/s", "p50\nms", "p99\nms", "CPU-s", "asked\norigin"):
        table.add_column(heading, justify="right")
    for cost in result.costs:
        table.add_row(
            f"{cost.name} {cost.version}",
            f"{cost.requests_per_cpu_second:,.0f}",
            f"{cost.requests_per_second:,.0f}",
            f"{cost.p50_seconds * 1e3:.2f}",
            f"{cost.p99_seconds * 1e3:.2f}",
            f"{cost.cpu_seconds:.2f}",
            str(cost.origin_requests),
        )
    for name in result.missing:
        table.add_row(name, "not installed")
    Console().print(table)


def _print_origin(result: OriginResult) -> None:
    console = Console()
    table = Table(
        title=f"Going to the origin for {shown(result.object_bytes)}, profile {result.profile} "
        f"({'median of ' if result.rounds > 1 else ''}{result.rounds})",
        box=None,
        collapse_padding=True,
    )
    table.add_column("read by", no_wrap=True)
    for heading in (
        "seconds",
        "min-max",
        "GB/s",
        "of\nceiling",
        "copies",
        "requests\n+ checks",
        "503s",
        "stalls\n/hedges",
        "CPU-s\n/GiB",
    ):
        table.add_column(heading, justify="right")
    for run in result.runs:
        times = ("failed", "-", "-", "-", "-")
        if run.seconds is not None and run.bytes_per_second and run.ceiling_ratio and run.origin_copies:
            times = (
                f"{run.seconds:.2f}",
                f"{run.seconds_min:.1f}-{run.seconds_max:.1f}",
                f"{run.bytes_per_second / 1e9:.2f}",
                f"{run.ceiling_ratio:.2f}",
                f"{run.origin_copies:.3f}",
            )
        table.add_row(
            run.name,
            *times,
            f"{run.origin_requests} + {run.origin_one_byte_requests}",
            str(run.refused_requests),
            f"{run.stalled_requests} / {'-' if run.hedged_requests is None else run.hedged_requests}",
            "-" if run.cpu_seconds_per_gib is None else f"{run.cpu_seconds_per_gib:.2f}",
        )
    for name in result.missing:
        table.add_row(name, "not installed")
    console.print(table)
    console.print(
        f"Ceiling: {result.ceiling_bytes_per_second / 1e9:.2f} GB/s, of the profile and this machine together."
    )
    print_bars(console, result.bars)
    busiest = {run.name: run.busiest_second_requests for run in result.runs}
    console.print(
        f"Requests a second while all are refused: {result.wall_requests_per_second:.1f}; "
        f"in the busiest second of a run without faults {busiest.get('one seed', 0)}, with {busiest.get('faults', 0)}."
    )
    for run in result.runs:
        for error in sorted(set(run.errors)):
            console.print(f"{run.name}, {run.errors.count(error)} of {result.rounds}: {error}")


def _measure(size: int, objects: int, profile: str, url: str | None, proxies: list[str]) -> Result:
    if (url is None) != (not proxies):
        raise ConfigError("--url and --proxy go together: the one says what to read, the other through which peers")
    if len(proxies) > 2:
        raise ConfigError(f"--proxy was given {len(proxies)} times; one or two are of use")
    console = Console(stderr=True)
    with console.status("starting") as status:

        def progress(text: str) -> None:
            status.update(text)

        if url is not None:
            return measure(ExternalGround(url, proxies), size=size, objects=objects, progress=progress)
        if size <= 0:
            raise ConfigError(f"--size {size}: an object to time has at least one byte")
        with embedded_ground(origin.profile_named(profile).name) as ground:
            return measure(ground, size=size, objects=objects, progress=progress)


def _print(result: Result) -> None:
    console = Console()
    # Fits into the 80 columns that a log or a pipe gets.
    table = Table(title=_title(result).replace("\n", " "), box=None, collapse_padding=True)
    table.add_column("read")
    for heading in (
        "seconds",
        "min-max",
        "GB/s",
        "ratio",
        "origin\nMB",
        "requests",
        "checks",
        "CPU-s\n/GiB",
        "RssAnon\nMiB",
    ):
        table.add_column(heading, justify="right")
    table.add_column("bytes")
    for run in result.runs:
        table.add_row(
            run.name,
            f"{run.seconds:.3f}",
            f"{run.seconds_min:.2f}-{run.seconds_max:.2f}",
            f"{run.bytes_per_second / 1e9:.2f}",
            f"{run.ratio:.3f}",
            "-" if run.origin_bytes is None else f"{run.origin_bytes / 1e6:.1f}",
            "-" if run.origin_requests is None else str(run.origin_requests),
            "-" if run.origin_one_byte_requests is None else str(run.origin_one_byte_requests),
            f"{run.cpu_seconds_per_gib:.2f}",
            "-" if run.peak_rss_bytes is None else f"{run.peak_rss_bytes / 2**20:.0f}",
            "right" if run.digest_ok else "WRONG",
        )
    console.print(table)
    if result.origin_copies is not None:
        console.print(f"The origin sent {result.origin_copies:.3f} times the object over all reads of it.")
    memory = [
        f"{process.name} {process.peak_rss_bytes / 2**20:.0f}"
        for process in result.processes
        if process.peak_rss_bytes is not None
    ]
    if memory:
        console.print(f"Peak RssAnon in MiB: {', '.join(memory)}.")
    print_bars(console, result.bars)


def _title(result: Result) -> str:
    where = "own store and cluster" if result.profile == EXTERNAL else f"origin profile {result.profile}"
    return f"Reading {shown(result.object_bytes)}, {where}\n(median of {result.objects})"


def _bars(result: Result) -> list[Bar]:
    return [
        Bar(_LABELS[run.name], run.seconds, f"{run.seconds:.{2 if run.seconds >= 0.1 else 3}f} s")
        for run in result.runs
    ]
