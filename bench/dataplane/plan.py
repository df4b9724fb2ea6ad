"""How much the data-plane benchmark moves, and how often."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.cluster import DAMSELFLY, LocalCluster
from bench.origin_client import OriginClient, running_origin
from bench.reserve import MemoryReserve
from p2p.errors import DamselflyError
from p2p.pieces import GIB, MIB

Progress = Callable[[str], None]

WRITTEN_A_SECOND = 1e9
"""Bytes that one host may write in a second."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Rounds, and how much of what is asked for: `scale` 1, or a part of it."""

    rounds: int = 5
    scale: float = 1.0
    program: Sequence[str] = DAMSELFLY

    @property
    def large(self) -> int:
        """Bytes of a large object: 1 GiB."""
        return max(4 * MIB, int(GIB * self.scale))

    @property
    def medium(self) -> int:
        """Bytes of an object of medium size: 64 MiB."""
        return max(MIB, int(64 * MIB * self.scale))

    @property
    def huge(self) -> int:
        """Bytes of the object that many read at once: 20 GiB."""
        return int(20 * GIB * self.scale)

    @property
    def files(self) -> int:
        """How many small files there are."""
        return max(100, int(10_000 * self.scale))

    @property
    def versions(self) -> int:
        """How many versions are evicted."""
        return max(100, int(100_000 * self.scale))

    @property
    def readers(self) -> int:
        """How many read the huge object at once."""
        return max(4, int(200 * self.scale))

    @property
    def seconds(self) -> float:
        """How long a load of small requests lasts."""
        return max(0.2, 2 * self.scale)


@dataclass(frozen=True, slots=True)
class Field:
    """An origin, a cluster, and memory for what it writes."""

    origin: OriginClient
    cluster: LocalCluster
    reserve: MemoryReserve

    @contextmanager
    def writing(self, size: int) -> Iterator[None]:
        """Have `size` bytes of memory ready for the page cache; given back while the context lasts."""
        self.reserve.fill(size)
        with self.reserve.releasing(size, 2 * WRITTEN_A_SECOND):
            yield


@contextmanager
def running(
    profile: str,
    plan: Plan,
    *,
    peers: int,
    seeds: int,
    config: Mapping[str, str] | None = None,
    arguments: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[Field]:
    """Run a cluster and an origin of that profile; an error takes the ends of their logs along as notes.

    `config` has the text of a daemon's configuration file, by its name, and `arguments` flags by name.
    """
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="damselfly-")))
        flags = {name: list(words) for name, words in (arguments or {}).items()}
        for name, text in (config or {}).items():
            file = directory / f"{name}.toml"
            file.write_text(text)
            flags.setdefault(name, []).extend(("--config", str(file)))
        cluster = stack.enter_context(
            LocalCluster(peers=peers, seeds=seeds, directory=directory, program=plan.program, arguments=flags)
        )
        origin = stack.enter_context(running_origin(profile, directory))
        reserve = stack.enter_context(MemoryReserve())
        try:
            yield Field(origin, cluster, reserve)
        except DamselflyError as error:
            for child in (*(daemon.child for daemon in cluster.daemons.values()), origin.child):
                error.add_note(f"the log of {child.name} ends with:\n{child.tail()}")
            raise
