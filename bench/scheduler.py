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
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Self

from bench.cluster import DAMSELFLY
from bench.process import Child, ChildError
from bench.scheduler_core import CoreSample, load_core
from bench.scheduler_load import LoadFigures
from bench.synthetic import Scene
from p2p.pieces import GIB, MIB

_READY_SECONDS = 60.0
_SET_UP_SECONDS = 900.0
_STOP_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class ServiceSample:
    """One load of a scheduler process: what the hosts saw, and what the process needed for it."""

    load: LoadFigures
    cpu_seconds: float
    pair_bytes: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and for how long: `seconds` each, at the most."""

    throughput: Scene
    service: Scene
    decisions: Scene
    service_decisions: Scene
    seconds: float

    @classmethod
    def of(cls, *, scale: float = 1.0, seconds: float = 10.0) -> Self:
        """Return what is asked for, or a part (0 to 1) of it.

        Through the process, decisions are timed while hosts report a quarter of the pieces that are asked for a second.
        """
        hosts, tasks = max(8, round(256 * scale)), max(2, round(1000 * scale))
        peers = max(8, round(100 * scale))
        return cls(
            throughput=Scene(hosts, 1, 2 * GIB),
            service=Scene(hosts, 1, 8 * GIB, primed=True),
            decisions=Scene(peers, tasks, 256 * MIB, primed=True),
            service_decisions=Scene(peers, tasks, 256 * MIB, 1e10 / peers, primed=True),
            seconds=seconds,
        )


@dataclass(frozen=True, slots=True)
class Sample:
    """One round."""

    core: CoreSample
    service: ServiceSample
    decisions: CoreSample
    service_decisions: ServiceSample


def measure(plan: Plan, *, rounds: int, progress: Callable[[str], None]) -> list[Sample]:
    """Measure everything `rounds` times. Raises ChildError where a process does not do what it should."""
    samples: list[Sample] = []
    for number in range(1, rounds + 1):
        progress(f"round {number}: core, throughput")
        core = _core(plan.throughput, alone=False, seconds=plan.seconds)
        progress(f"round {number}: core, decisions")
        decisions = _core(plan.decisions, alone=True, seconds=plan.seconds)
        progress(f"round {number}: process, throughput")
        service = _service(plan.service, seconds=plan.seconds)
        progress(f"round {number}: process, decisions")
        samples.append(Sample(core, service, decisions, _service(plan.service_decisions, seconds=plan.seconds)))
    return samples


def _core(scene: Scene, *, alone: bool, seconds: float) -> CoreSample:
    # A process of its own: memory is compared with a fresh one's, and nothing of an earlier run is in the way.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(load_core, scene, alone=alone, seconds=seconds).result()


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
            return ServiceSample(figures, cpu_seconds, (scheduler.rss_anon_bytes() - empty) / scene.pairs)


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
