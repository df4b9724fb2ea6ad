"""What the benchmarks' commands have in common at the terminal."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer
from rich.console import Console

from bench.bars import Bar
from p2p.errors import ConfigError, DamselflyError


@contextmanager
def told_to_the_user() -> Iterator[None]:
    """End with a line that says why, and a status (2 for a setting that cannot work), and on SIGTERM in good order."""
    # Unwinds the stack, so that the daemons go down with this process.
    previous = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    except (DamselflyError, OSError) as error:
        for line in (f"error: {error}", *getattr(error, "__notes__", ())):
            typer.echo(line, err=True)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None
    finally:
        signal.signal(signal.SIGTERM, previous)


def print_bars(console: Console, bars: Sequence[Bar]) -> None:
    """Print each figure that was asked for, with its bound, and whether it was met."""
    for bar in bars:
        value = "not measured" if bar.value is None else f"{bar.value:.3f}" if bar.value < 100 else f"{bar.value:,.0f}"
        console.print(f"{bar.name}: {value} ({bar.bound}: {'met' if bar.met else 'missed'})")


def shown(size: int) -> str:
    """Return a size in bytes as people read it."""
    return f"{size / 2**30:.3g} GiB" if size >= 2**30 else f"{size / 2**20:.3g} MiB"
