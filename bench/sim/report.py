"""The figures of a run, as a table row, as JSON, and as a picture."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.report import ChartsUnavailableError
from bench.sim.record import Record
from bench.sim.scenario import Scenario


@dataclass(frozen=True, slots=True)
class Run:
    """One policy's run of a scenario, and how many real seconds it took."""

    policy: str
    scenario: Scenario
    record: Record
    wall_seconds: float

    @property
    def seconds(self) -> list[float]:
        """When each healthy node's client had the last byte, counted from the last arrival, ascending."""
        record = self.record
        last = max((at for host, at in record.arrived.items() if host not in record.unhealthy), default=0.0)
        return sorted(at - last for host, at in record.completed.items() if host not in record.unhealthy)

    @property
    def own_seconds(self) -> list[float]:
        """How long each healthy node's client waited, counted from its own arrival, ascending."""
        record = self.record
        return sorted(
            at - record.arrived[host] for host, at in record.completed.items() if host not in record.unhealthy
        )

    def figures(self) -> dict[str, Any]:
        """Return what the table shows, and more, by names with units."""
        record, scenario = self.record, self.scenario
        single, least = scenario.single_node_seconds, scenario.t_star_seconds
        seconds, size = self.seconds, scenario.size
        decisions = sorted(record.decisions)
        messages = record.messages_up + record.messages_down
        p99 = percentile(seconds, 0.99)
        figures: dict[str, Any] = {
            "policy": self.policy,
            "p99_over_bound": None if p99 is None else p99 / scenario.bound_seconds,
            "makespan_seconds": seconds[-1] if seconds else None,
            "nodes_completed": len(record.completed),
            "nodes_failed": len(record.failed),
            "nodes_unhealthy": len(record.unhealthy),
            "own_p99_seconds": percentile(self.own_seconds, 0.99),
            "seed_copies": record.seed_bytes / size,
            "origin_copies": record.origin_bytes / size,
            "crossing_copies": record.crossing_bytes / size,
            "pieces_landed": record.landed_pieces,
            "control_messages_per_piece": messages / record.landed_pieces if record.landed_pieces else None,
            "mean_contiguous_share": record.contiguous / record.landed_pieces if record.landed_pieces else None,
            "decision_cpu_seconds": sum(decisions),
            "decision_modelled_seconds": record.modelled_seconds,
            "decision_batches": len(decisions),
            "decision_p50_seconds": percentile(decisions, 0.5),
            "decision_p99_seconds": percentile(decisions, 0.99),
            "most_uploads": record.most_uploads,
            "transfer_failures": dict(sorted(record.refusals.items())),
            "simulated_events": record.events,
            "wall_seconds": self.wall_seconds,
            "fingerprint": record.fingerprint,
        }
        for name, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999), ("makespan", 1.0)):
            value = percentile(seconds, share)
            figures[f"{name}_over_single_node"] = None if value is None else value / single
            figures[f"{name}_over_t_star"] = None if value is None else value / least
        return figures


def percentile(ascending: Sequence[float], share: float) -> float | None:
    """Return the least value that `share` of all do not exceed (nearest rank); None of nothing."""
    return ascending[max(0, ceil(share * len(ascending)) - 1)] if ascending else None


def table(runs: Sequence[Run]) -> Table:
    """Return the figures of runs of one scenario, a row each; it fits into 80 columns."""
    scenario = runs[0].scenario
    uneven = scenario.slow_uplinks > 0
    shown = Table(
        title=f"{scenario.nodes} nodes, {scenario.size / 2**30:.4g} GiB in {scenario.layout.count} pieces, "
        f"{scenario.rate * 8 / 1e9:.4g} Gbit/s, S/u {scenario.single_node_seconds:.3f} s, "
        + (f"bound {scenario.bound_seconds:.3f} s" if uneven else f"T* {scenario.t_star_seconds:.3f} s"),
        box=None,
        collapse_padding=True,
    )
    shown.add_column("policy", no_wrap=True)
    headings = ("p50\n/(S/u)", "p99\n/(S/u)", "p99.9\n/(S/u)", "p99\n/bound" if uneven else "p99\n/T*")
    for heading in (*headings, "seed\ncopies", "origin\ncopies", "messages\na piece", "CPU-s\n/model", "wall\ns"):
        shown.add_column(heading, justify="right")
    for run in runs:
        figures = run.figures()
        last = "p99_over_bound" if uneven else "p99_over_t_star"
        ratios = ("p50_over_single_node", "p99_over_single_node", "p999_over_single_node", last)
        ours = figures["decision_batches"] > 0
        shown.add_row(
            run.policy,
            *("-" if figures[name] is None else f"{figures[name]:.3f}" for name in ratios),
            f"{figures['seed_copies']:.3f}",
            f"{figures['origin_copies']:.3f}" if ours else "-",
            f"{figures['control_messages_per_piece']:.2f}" if ours else "-",
            f"{figures['decision_cpu_seconds']:.3g}/{figures['decision_modelled_seconds']:.3g}" if ours else "-",
            f"{run.wall_seconds:.1f}",
        )
    return shown


def draw(path: Path, runs: Sequence[Run]) -> None:
    """Draw how nodes complete over time, and how busy each uplink is. Raises ChartsUnavailableError."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ChartsUnavailableError("no chart drawn: matplotlib is not installed; pip install 'damselfly[charts]'")
    # Imported here because it is optional, and slow to import. A Figure of its own needs no display and no pyplot.
    from matplotlib.figure import Figure

    scenario = runs[0].scenario
    figure = Figure(figsize=(8, 3.2 + 2.6 * len(runs)), dpi=120, layout="constrained")
    axes = figure.subplots(1 + len(runs), 1, height_ratios=[1.2] + [1.0] * len(runs))
    curve = axes[0]
    for run in runs:
        seconds = run.seconds
        shares = [100 * number / max(1, len(seconds)) for number in range(len(seconds) + 1)]
        curve.step([0.0, *seconds], shares, where="post", label=run.policy)
    curve.axvline(scenario.t_star_seconds, color="#888888", linestyle=":", label="T*")
    curve.set_xlabel("seconds since the last arrival")
    curve.set_ylabel("% of nodes complete")
    curve.legend()
    for run, below in zip(runs, axes[1:], strict=True):
        image = below.imshow(
            _uplinks(run), aspect="auto", origin="lower", vmin=0, vmax=1, cmap="viridis", interpolation="nearest"
        )
        below.set_title(f"uplinks: {run.policy}", fontsize=10)
        below.set_xlabel(f"time, in slices of {run.record.slice_seconds:.3g} s")
        below.set_ylabel("host")
        figure.colorbar(image, ax=below, label="share used")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _uplinks(run: Run) -> list[list[float]]:
    """Return the share of the nominal uplink that each host used in each slice of time."""
    sent = run.record.sent
    hosts = 1 + max(sent, default=0)
    slices = max(1, *map(len, sent.values()), 0)
    full = run.scenario.rate * run.record.slice_seconds
    rows = (sent.get(host, []) for host in range(hosts))
    return [[size / full for size in row] + [0.0] * (slices - len(row)) for row in rows]
