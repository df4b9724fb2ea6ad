"""Small files: many of 4 KiB through the proxy, cold, and as local hits with and without checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle

from bench.cluster import Daemon
from bench.dataplane.figures import Figure, by_name
from bench.dataplane.plan import Field, Plan, Progress, running
from bench.load import Load, LoadError, run_load
from bench.proxy import request_for
from p2p.config import parse_address

SECTION = "files of 4 KiB"
FILE_BYTES = 4096
IN_FLIGHT = 32
COLD_A_SECOND, HITS_A_CPU_SECOND = 300.0, 3000.0
_PROFILE = "gateway"
"""Its first byte takes 5 ms, and its rate does not matter here."""
_STALL_SECONDS = 60.0


def measure(plan: Plan, progress: Progress) -> Iterator[Figure]:
    """Read all files cold at one peer, and again and again as local hits: there, and at one that checks each time."""
    config = {"peer-1": "[[rules]]\nmatch = '.'\nauthorize_ttl = '60s'\n"}
    with running(_PROFILE, plan, peers=2, seeds=1, config=config) as field:
        progress(f"{SECTION}, making them")
        urls = field.origin.create_tree("models/tree/1", plan.files + IN_FLIGHT, FILE_BYTES)
        requests = [request_for(url) for url in urls]
        remembering, checking = field.cluster["peer-1"], field.cluster["peer-2"]
        for peer in (remembering, checking):
            read_once(peer, requests[plan.files :])
        requests = requests[: plan.files]
        colds = []
        for number in range(plan.rounds):
            progress(f"{SECTION}, cold, round {number + 1}")
            loaded = read_once(remembering, requests[number :: plan.rounds])
            colds.append({"cold": loaded.requests / loaded.seconds})
        remembered = []
        # What a round has not come to the next one does; each file was asked for a minute ago at the most.
        turns = cycle(requests)
        for number in range(plan.rounds):
            progress(f"{SECTION}, local hits, round {number + 1}")
            remembered.append(hits(field, remembering, turns, plan.seconds))
        progress(f"{SECTION}, warming the peer that checks")
        some = requests[:: plan.rounds]
        read_once(checking, some)
        checked = []
        turns = cycle(some)
        for number in range(plan.rounds):
            progress(f"{SECTION}, local hits with a check each, round {number + 1}")
            checked.append(hits(field, checking, turns, plan.seconds))
    yield Figure(SECTION, "cold", "requests_per_second", by_name(colds)["cold"], least=COLD_A_SECOND)
    for name, rounds, least in (
        ("hit, ttl 60s", remembered, HITS_A_CPU_SECOND),
        ("hit, a check each", checked, None),
    ):
        values = by_name(rounds)
        yield Figure(SECTION, name, "requests_per_cpu_second", values["a CPU-second"], least=least)
        yield Figure(SECTION, name, "requests_per_second", values["a second"])
        yield Figure(SECTION, f"{name}: checks", "ratio", values["checks"])


def read_once(peer: Daemon, requests: Sequence[bytes]) -> Load:
    """Send each request once, IN_FLIGHT at a time. Raises LoadError and OSError."""
    address = parse_address(peer.addresses["proxy"])
    return run_load(
        (address.host, address.port),
        requests,
        body_bytes=FILE_BYTES,
        connections=IN_FLIGHT,
        stall_seconds=_STALL_SECONDS,
    )


def hits(field: Field, peer: Daemon, turns: Iterator[bytes], seconds: float) -> dict[str, float]:
    """Send the requests, IN_FLIGHT at a time, for `seconds` or until there are no more; return the rates.

    Raises LoadError, also where nothing was answered in that time, and OSError.
    """
    address = parse_address(peer.addresses["proxy"])
    asked, spent = field.origin.stats().one_byte_requests, peer.child.cpu_seconds()
    loaded = run_load(
        (address.host, address.port), turns, body_bytes=FILE_BYTES, connections=IN_FLIGHT, seconds=seconds
    )
    spent = peer.child.cpu_seconds() - spent
    asked = field.origin.stats().one_byte_requests - asked
    if not loaded.requests:
        raise LoadError(f"not one request was answered within {seconds:g} s")
    return {
        "a CPU-second": loaded.requests / spent,
        "a second": loaded.requests / loaded.seconds,
        "checks": asked / loaded.requests,
    }
