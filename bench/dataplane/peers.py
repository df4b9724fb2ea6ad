"""Peer to peer: a peer receives, verifies and writes what another host sends; no client reads meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from bench.cluster import Daemon
from bench.dataplane.figures import Figure, by_name, per_gib
from bench.dataplane.plan import Field, Plan, Progress, running
from bench.fetching import Fetch, wait_complete
from bench.origin_client import RemoteObject

SECTION = "peer to peer"
_DEADLINE_SECONDS = 300.0
RECEIVE_CPU_SECONDS, SEND_CPU_SECONDS = 0.7, 0.25
"""CPU-seconds a GiB, at the most, to receive, verify and write, and to send."""


def measure(plan: Plan, progress: Progress) -> Iterator[Figure]:
    """Let a peer fetch an object from a seed that holds it, as often as there are rounds."""
    with running("unlimited", plan, peers=1, seeds=1) as field:
        values = hops(field, plan, progress, SECTION)
    yield Figure(SECTION, "one to another", "bytes_per_second", values["bytes_per_second"])
    name = "receive, verify, write"
    yield Figure(SECTION, name, "cpu_seconds_per_gib", values["receive"], most=RECEIVE_CPU_SECONDS)
    yield Figure(SECTION, "send", "cpu_seconds_per_gib", values["send"], most=SEND_CPU_SECONDS)


def hops(field: Field, plan: Plan, progress: Progress, section: str) -> dict[str, tuple[float, ...]]:
    """Let peer-1 fetch what seed-1 holds, once to warm up and then once a round; return what `hop` does, by name."""
    made = field.origin.create("models/peers/1/model.bin", plan.large)
    progress(f"{section}, warm-up")
    with field.writing(plan.large):
        fetch_whole(made.url, field.cluster["seed-1"])
    hop(field, made)
    rounds = []
    for number in range(1, plan.rounds + 1):
        progress(f"{section}, round {number}")
        rounds.append(hop(field, made))
    return by_name(rounds)


def hop(field: Field, made: RemoteObject) -> dict[str, float]:
    """Let peer-1 fetch what seed-1 holds, and forget it; return its rate, and what both spent a GiB."""
    seed, peer = field.cluster["seed-1"], field.cluster["peer-1"]
    with field.writing(made.length):
        sent, received = seed.child.cpu_seconds(), peer.child.cpu_seconds()
        seconds, task_id = fetch_whole(made.url, peer)
        sent, received = seed.child.cpu_seconds() - sent, peer.child.cpu_seconds() - received
    field.cluster.delete_task(task_id, names=("peer-1",))
    return {
        "bytes_per_second": made.length / seconds,
        "receive": per_gib(received, made.length),
        "send": per_gib(sent, made.length),
    }


def fetch_whole(url: str, host: Daemon, *, headers: Sequence[tuple[str, str]] = ()) -> tuple[float, str]:
    """Have a host bring all of a URL's object, with nobody who reads it; return the seconds, and the task's id.

    Raises ReadError.
    """
    began = time.monotonic()
    with Fetch(url, host.addresses["proxy"], host.addresses["http"], headers=headers) as fetch:
        wait_complete([fetch], began + _DEADLINE_SECONDS)
        return time.monotonic() - began, fetch.task_id
