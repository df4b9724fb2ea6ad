"""`make bench`: every benchmark that fits into ten minutes together, and their tables in docs/benchmarks.md.

The page has a pair of markers for each; what is printed goes between them, with the date, the machine and the command.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from bench.cluster import DAMSELFLY
from bench.console import told_to_the_user
from bench.report import commit, machine
from p2p.config import nearest
from p2p.errors import ConfigError, DamselflyError

RUNS: Mapping[str, Sequence[str]] = {
    "hits-gateway": ("hits", "--origin-profile", "gateway", "--objects", "5"),
    "hits-s3": ("hits", "--origin-profile", "s3", "--objects", "3"),
    "hits-unlimited": ("hits", "--origin-profile", "unlimited", "--objects", "5"),
    "data-plane": ("data-plane",),
    "proxy": ("proxy", "--seconds", "2"),
    "origin": ("origin", "--size", "1GiB", "--rounds", "1"),
    "scheduler": ("scheduler", "--scale", "0.25", "--seconds", "3", "--rounds", "1"),
    "sim": ("sim", "--nodes", "32", "--size", "1GiB"),
}
"""What is run, by the name that the page's markers have: the words after `damselfly bench`."""

CHARTED = ("hits", "data-plane")
_MOST_SECONDS = 600.0
_COLUMNS = 110


def main(
    only: Annotated[str, typer.Option(help=f"Which, with commas: {', '.join(RUNS)}.")] = ",".join(RUNS),
    page: Annotated[Path, typer.Option(help="The page whose tables are written.")] = Path("docs/benchmarks.md"),
    results: Annotated[Path, typer.Option(help="The directory for figures (JSON) and charts.")] = Path("build/bench"),
) -> None:
    """Run the benchmarks one after another, and write what they print into the page."""
    began, version = time.monotonic(), _version()
    failed: list[str] = []
    with told_to_the_user():
        for name in _names(only):
            # Looked for first: a run of minutes is not to end at a page that has no place for it.
            replaced(page.read_text(), name, "")
            started = time.monotonic()
            try:
                printed = _run(name, results)
            except DamselflyError as error:
                failed.append(name)
                typer.echo(f"error: {error}", err=True)
                continue
            block = described(RUNS[name], printed, seconds=time.monotonic() - started, of=version)
            page.write_text(replaced(page.read_text(), name, block))
    seconds = time.monotonic() - began
    typer.echo(f"{seconds:.0f} s in all ({'within' if seconds <= _MOST_SECONDS else 'more than'} ten minutes)")
    if failed:
        typer.echo(f"error: these failed: {', '.join(failed)}", err=True)
        raise typer.Exit(1)


def described(words: Sequence[str], printed: str, *, seconds: float, of: str | None) -> str:
    """Return what goes between the markers: when, where, how, of which commit, and the tables as they were printed."""
    here = machine()
    where = (
        f"{datetime.now(UTC):%Y-%m-%d}, {here['cpus']} cores of {here['cpu_model']}, "
        f"{here['memory_bytes'] / 2**30:.0f} GiB, Linux {'.'.join(here['kernel'].split('.')[:2])}, "
        f"Python {here['python']}, commit {of or 'unknown'}, {seconds:.0f} s:"
    )
    kept = (line.rstrip() for line in printed.strip("\n").splitlines() if not line.startswith("wrote "))
    return "\n".join((f"`damselfly bench {' '.join(words)}`, {where}", "", "```text", *kept, "```"))


def replaced(page: str, name: str, block: str) -> str:
    """Return the page with `block` between the markers of that name. Raises ConfigError without just one such pair."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise ConfigError(f"the page has no one pair of markers {begin} and {end}, each on a line of its own")
    return pattern.sub(lambda match: f"{begin}\n{block}\n{end}", page)


def _version() -> str | None:
    """Return the commit in short. It is asked for once, for what is written to the page is no change."""
    whole, dash, changed = (commit() or "").partition("-")
    return f"{whole[:12]}{dash}{changed}" or None


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in RUNS:
            near = nearest(name, tuple(RUNS))
            raise ConfigError(
                f"--only: {name!r} is not known; " + (f"did you mean {near!r}?" if near else f"{', '.join(RUNS)} are")
            )
    return names


def _run(name: str, results: Path) -> str:
    """Run one benchmark, and return what it printed, which is shown as well. Raises DamselflyError."""
    words = RUNS[name]
    results.mkdir(parents=True, exist_ok=True)
    command = [*DAMSELFLY, "bench", *words, "--json", str(results / f"{name}.json")]
    if words[0] in CHARTED:
        command += ["--chart", str(results / name)]
    typer.echo(f"damselfly bench {' '.join(words)}")
    done = subprocess.run(  # noqa: S603  # our own command
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=os.environ | {"COLUMNS": str(_COLUMNS)},
        text=True,
        check=False,
    )
    sys.stdout.write(done.stdout)
    sys.stdout.flush()
    if done.returncode != 0:
        raise DamselflyError(f"damselfly bench {' '.join(words)} ended with status {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    typer.run(main)
