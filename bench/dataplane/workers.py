"""Workers: what a peer with one thread that sends does for eight clients on this host, and one with two."""

from __future__ import annotations

from collections.abc import Iterator

from bench.dataplane.figures import Figure, by_name
from bench.dataplane.local import Server, read_round
from bench.dataplane.plan import Plan, Progress, running

SECTION = "workers"
_CONNECTIONS = 8
_COUNTS = {"peer-1": 1, "peer-2": 2}
_RULES = "[[rules]]\nmatch = '.'\nauthorize_ttl = '10m'\n"


def measure(plan: Plan, progress: Progress) -> Iterator[Figure]:
    """Read an object of medium size again and again from two peers that hold it, in turn."""
    arguments = {name: ["--workers", str(count)] for name, count in _COUNTS.items()}
    config = dict.fromkeys(_COUNTS, _RULES)
    with running("unlimited", plan, peers=len(_COUNTS), seeds=0, config=config, arguments=arguments) as field:
        made = field.origin.create("models/workers/1/model.bin", plan.medium)
        rounds: list[dict[str, float]] = []
        for number in range(plan.rounds + 1):
            progress(f"{SECTION}, round {number}" if number else f"{SECTION}, warm-up")
            rounds.append({})
            for name, count in _COUNTS.items():
                peer = field.cluster[name]
                server = Server(peer.child, peer.addresses["proxy"], {name: made.url})
                times = max(1, plan.large // plan.medium // 4)
                rounds[-1] |= read_round(server, str(count), name, plan.medium, _CONNECTIONS, times)
    values = by_name(rounds[1:])
    for count in _COUNTS.values():
        for unit in ("bytes_per_second", "cpu_seconds_per_gib"):
            yield Figure(SECTION, f"{count} of them", unit, values[f"{count} {unit}"])
