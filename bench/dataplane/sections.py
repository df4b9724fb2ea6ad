"""The sections of the data-plane benchmark, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.dataplane import cold, eviction, local, members, memory, origins, peers, small, workers
from bench.dataplane.figures import Figure, Result
from bench.dataplane.plan import Plan, Progress
from bench.rivals import NGINX_FILES


@dataclass(frozen=True, slots=True)
class Section:
    """What measures, and what says why it cannot on this machine, None if it can."""

    measure: Callable[[Plan, Progress], Iterator[Figure]]
    unavailable: Callable[[], str | None] = lambda: None


SECTIONS: Mapping[str, Section] = {
    "local": Section(local.measure, local.unavailable),
    "workers": Section(workers.measure, local.unavailable),
    "peers": Section(peers.measure),
    "members": Section(members.measure),
    "origins": Section(origins.measure, origins.unavailable),
    "cold": Section(cold.measure),
    "small": Section(small.measure),
    "memory": Section(memory.measure),
    "eviction": Section(eviction.measure),
}


def measure(plan: Plan, names: Sequence[str], progress: Progress) -> Result:
    """Run the sections of these names. Raises DamselflyError kinds."""
    found: list[Figure] = []
    missing: list[str] = []
    if "local" in names and NGINX_FILES.find() is None:
        missing.append("local: nothing to compare with, for nginx is not installed")
    for name in names:
        reason = SECTIONS[name].unavailable()
        if reason is None:
            found += SECTIONS[name].measure(plan, progress)
        else:
            missing.append(f"{name}: {reason}")
    return Result(plan.rounds, tuple(found), tuple(missing))
