"""What one scheduler on one core can do: `damselfly bench scheduler`."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import ParamSpec, Self, TypeVar

from bench.cluster import DAMSELFLY
from bench.process import Child, ChildError
from bench.scheduler_core import CoreSample, load_core, weigh_core
from bench.scheduler_load import LoadFigures
from bench.synthetic import Scene
from p2p.pieces import GIB, MIB

_P = ParamSpec("_P")
_T = TypeVar("_T")

_READY_SECONDS = 60.0
_WEIGH_SECONDS = 60.0
_SET_UP_SECONDS = 900.0
_STOP_SECONDS = 15.0
_WEIGHED_TASKS = 50
"""So many tasks' memory is weighed, at the most: it is the same for each."""


@dataclass(frozen=True, slots=True)
class ServiceSample:
    """One load of a scheduler process: what the hosts saw, and what the process needed for it."""

    load: LoadFigures
    cpu_seconds: float
    pair_bytes: float | None
    """Of the process, with its sessions; None where hosts want one object after another."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and for how long: `seconds` each, at the most."""

    throughput: Scene
    service: Scene
    service_parts: Scene
    decisions: Scene
    service_decisions: Scene
    seconds: float

    @classmethod
    def of(cls, *, scale: float = 1.0, seconds: float = 10.0) -> Self:
        """Return what is asked for, or a part (0 to 1) of it.

        Through the process, decisions are timed while hosts report a quarter of the pieces that are asked for a second.
        """
        # A host has an object after 1.7 s at best, half of a smaller one after 0.43 s; some begin while others join.
        objects, halves = round(seconds / 1.7) + 8, round(seconds / 0.43) + 3
        hosts, tasks = max(8, round(256 * scale)), max(2, round(1000 * scale))
        peers = max(8, round(100 * scale))
        return cls(
            throughput=Scene(hosts, 1, 2 * GIB),
            service=Scene(hosts, objects, 2 * GIB, rolling=True),
            # By parts the scheduler is the limit. Of larger objects nobody would have one, and want the next, in time.
            service_parts=Scene(hosts, halves, GIB, primed=True, rolling=True),
            decisions=Scene(peers, tasks, 64 * MIB, primed=True),
            service_decisions=Scene(peers, tasks, 64 * MIB, 2.5e9 / peers, primed=True),
            seconds=seconds,
        )


@dataclass(frozen=True, slots=True)
class Sample:
    """One round."""

    core: CoreSample
    core_pair_bytes: float
    service: ServiceSample
    service_parts: ServiceSample
    decisions: CoreSample
    decisions_pair_bytes: float
    service_decisions: ServiceSample


def measure(plan: Plan, *, rounds: int, progress: Callable[[str], None]) -> list[Sample]:
    """Measure everything `rounds` times. Raises ChildError where a process does not do what it should."""
    samples: list[Sample] = []
    for number in range(1, rounds + 1):
        seconds = plan.seconds
        progress(f"round {number}: core, throughput")
        core = _apart(load_core, plan.throughput, alone=False, seconds=seconds)
        progress(f"round {number}: core, decisions")
        decisions = _apart(load_core, plan.decisions, alone=True, seconds=seconds)
        progress(f"round {number}: core, memory")
        core_bytes = _apart(weigh_core, plan.throughput, seconds=_WEIGH_SECONDS)
        fewer = replace(plan.decisions, tasks=min(plan.decisions.tasks, _WEIGHED_TASKS))
        decisions_bytes = _apart(weigh_core, fewer, seconds=_WEIGH_SECONDS)
        progress(f"round {number}: process, throughput")
        service = _service(plan.service, seconds=seconds)
        progress(f"round {number}: process, throughput by parts")
        service_parts = _service(plan.service_parts, seconds=seconds)
        progress(f"round {number}: process, decisions")
        service_decisions = _service(plan.service_decisions, seconds=seconds)
        samples.append(Sample(core, core_bytes, service, service_parts, decisions, decisions_bytes, service_decisions))
    return samples


def _apart(load: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    # A process of its own: nothing of an earlier run is in the way.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(load, *args, **kwargs).result()


def _service(scene: Scene, *, seconds: float) -> ServiceSample:
    cores = sorted(os.sched_getaffinity(0))
    own, others = cores[:1], cores[1:] or cores
    with tempfile.TemporaryDirectory(prefix="damselfly-") as name:
        directory = Path(name)
        arguments = ("scheduler", "--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0")
        with _running("scheduler", (*DAMSELFLY, *arguments), directory, own) as scheduler:
            address = str(scheduler.wait_ready(time.monotonic() + _READY_SECONDS)["grpc"])
            empty = scheduler.rss_anon_bytes()
            command = (sys.executable, "-m", "bench.scheduler_load", address, json.dumps(asdict(scene)), str(seconds))
            with _running("load", command, directory, others) as load:
                load.wait_ready(time.monotonic() + _SET_UP_SECONDS)
                before = scheduler.cpu_seconds()
                code = load.join(time.monotonic() + seconds + _STOP_SECONDS)
                cpu_seconds = scheduler.cpu_seconds() - before
                if code != 0:
                    raise ChildError(f"the load ended with code {code}; its log ends with:\n{load.tail()}")
                figures = LoadFigures(**json.loads(load.tail().splitlines()[-1]))
            grown = scheduler.rss_anon_bytes() - empty
            return ServiceSample(figures, cpu_seconds, None if scene.rolling else grown / scene.pairs)


@contextmanager
def _running(name: str, arguments: Sequence[str], directory: Path, cores: Sequence[int]) -> Iterator[Child]:
    # Every thread of it stays on these cores: gRPC has threads of its own.
    pinned = ("taskset", "--cpu-list", ",".join(map(str, cores)), *arguments)
    child = Child(name, pinned, directory / f"{name}.log")
    try:
        yield child
    finally:
        child.terminate()
        child.join(time.monotonic() + _STOP_SECONDS)
