"""A real cluster that is read from without pause while one disaster follows another.

What happens, to whom and in which order follows from the seed alone; when the next disaster comes is a matter of
finished reads, so that another run of a seed meets the daemons in about the same state.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.cluster import LocalCluster
from bench.origin_client import OriginClient, RemoteObject, running_origin
from bench.process import ChildError
from bench.reader import Reader, ReadError
from p2p.identity import identify
from p2p.pieces import MIB, PieceLayout

PEERS = ("peer-1", "peer-2", "peer-3")
SMALL_DISK = "peer-3"
"""Its data directory is on a file system that holds a part of the objects only."""

SMALL_DISK_BYTES = 40 * MIB
OBJECTS = 8
LARGEST = 24 * MIB
READERS = 4
STALL_SECONDS = 60.0
"""A read that gives no byte for so long hangs: the longest pause on purpose is a twentieth of it."""

START_SECONDS = 300.0
"""A daemon that is not ready after so long hangs."""

LONGEST_STOP = 3.0
_DAMAGED = re.compile(r"^damselfly_store_pieces_damaged_total ([0-9.e+]+)$", re.MULTILINE)


@dataclass
class Score:
    """What came of it. The counts of `bad` must all be 0."""

    seed: int
    seconds: float = 0.0
    done: Counter[str] = field(default_factory=Counter)
    bad: dict[str, int] = field(default_factory=lambda: {"wrong bytes": 0, "lost pieces": 0, "hangs": 0})
    stories: list[str] = field(default_factory=list)

    def blame(self, what: str, story: str, count: int = 1) -> None:
        """Count something that must not be, with what is known of it."""
        self.bad[what] += count
        self.stories.append(f"{what}: {story}")

    @property
    def flawless(self) -> bool:
        """Whether nothing of it happened."""
        return not any(self.bad.values())


@contextlib.contextmanager
def small_disk(directory: Path, say: Callable[[str], None]) -> Iterator[tuple[str, ...]]:
    """Put a file system of SMALL_DISK_BYTES under `directory`; yields the flags of a peer that needs another bound."""
    directory.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES}", "damselfly-torture", str(directory)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        say(f"no full disk, since mounting takes root; {SMALL_DISK} has a capacity of {SMALL_DISK_BYTES} bytes instead")
        yield ("--capacity", f"{SMALL_DISK_BYTES // MIB}MiB")
        return
    try:
        yield ()
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


class Field:
    """One cluster, its objects and its readers."""

    def __init__(self, cluster: LocalCluster, origin: OriginClient, dice: random.Random, score: Score) -> None:
        self._cluster = cluster
        self._origin = origin
        self._dice = dice
        self._score = score
        self._proxies = {peer: cluster[peer].addresses["proxy"] for peer in PEERS}
        self._things: list[RemoteObject] = []
        self._made = 0
        self._finished: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._flipped = dict.fromkeys(PEERS, 0)
        self._damaged = dict.fromkeys(PEERS, 0)
        self._readers = [threading.Thread(target=self._read_on, args=(number,)) for number in range(READERS)]

    def run(self, *, seconds: float, rounds: int | None) -> None:
        """Let disasters happen for `seconds`, or until `rounds` daemons were killed; then see whether all is well."""
        started = time.monotonic()
        for _ in range(OBJECTS):
            self._make()
        for reader in self._readers:
            reader.start()
        try:
            while time.monotonic() < started + seconds and (rounds is None or self._score.done["kills"] < rounds):
                self._settle(self._dice.randint(1, 6))
                self._disaster()
                self._score.seconds = time.monotonic() - started
        finally:
            self._stop.set()
            for reader in self._readers:
                reader.join(3 * STALL_SECONDS)
                if reader.is_alive():
                    self._score.blame("hangs", "a reader does not end")
        reader_afterwards = Reader(stall_seconds=STALL_SECONDS)
        for peer in PEERS:
            for thing in self._things:
                self._read(reader_afterwards, peer, thing, afterwards=True)
            self._account(peer)
        self._score.seconds = time.monotonic() - started

    def _make(self) -> None:
        """Make another object, and have the oldest one forgotten when there are too many."""
        size = self._dice.choice([self._dice.randint(1, 100_000), self._dice.randint(1, LARGEST)])
        thing = self._origin.create(f"model-{self._made}", size, seed=self._made)
        self._made += 1
        with self._lock:
            self._things.append(thing)
            if len(self._things) > OBJECTS:
                self._things.pop(0)

    # Reading.

    def _read_on(self, number: int) -> None:
        choice = random.Random(f"{self._score.seed}/{number}")
        reader = Reader(stall_seconds=STALL_SECONDS)
        while not self._stop.is_set():
            with self._lock:
                thing = choice.choice(self._things)
            self._read(reader, choice.choice(PEERS), thing)
            self._finished.put(None)

    def _read(self, reader: Reader, peer: str, thing: RemoteObject, *, afterwards: bool = False) -> None:
        score = self._score
        score.done["reads"] += 1
        try:
            reading = reader.read(thing.url, proxy=self._proxies[peer])
        except ReadError as error:
            score.done["reads cut off"] += 1
            if "nothing arrived" in str(error) or afterwards:
                score.blame("hangs", f"{peer}, afterwards {afterwards}: {error}")
            if "refused" in str(error):
                self._stop.wait(0.05)  # a daemon that starts needs the cores more than who knocks at its door
            return
        score.done["bytes"] += reading.length
        if (reading.length, reading.xxh3_128) != (thing.length, thing.xxh3_128):
            score.blame("wrong bytes", f"{thing.name} of {thing.length} bytes through {peer}: {reading}")

    def _settle(self, reads: int) -> None:
        """Wait until so many more reads have ended."""
        for _ in range(reads):
            try:
                self._finished.get(timeout=3 * STALL_SECONDS)
            except queue.Empty:
                self._score.blame("hangs", "no read has ended for minutes")
                return

    # Disasters.

    def _disaster(self) -> None:
        dice = self._dice
        match dice.choices(["kill", "machine", "stop", "others", "object"], weights=[50, 15, 15, 8, 12])[0]:
            case "kill":
                self._crash(dice.choice(PEERS), flips=dice.choice([0, 0, 1, 3]), machine=False)
            case "machine":
                self._crash(dice.choice(PEERS), flips=dice.choice([0, 2, 8]), machine=True)
            case "stop":
                daemon = self._cluster[dice.choice([*PEERS, "seed-1", "scheduler"])]
                os.kill(daemon.pid, signal.SIGSTOP)
                self._stop.wait(dice.uniform(0.1, LONGEST_STOP))
                os.kill(daemon.pid, signal.SIGCONT)
                self._score.done["stops"] += 1
            case "others":
                name = dice.choice(["seed-1", "scheduler"])
                self._cluster.kill(name)
                self._score.done["kills of the seed or scheduler"] += 1
                self._restart(name)
            case "object":
                self._make()

    def _crash(self, peer: str, *, flips: int, machine: bool) -> None:
        """Kill a peer and start it again; meanwhile bits flip, and perhaps the machine is said to have crashed."""
        self._account(peer)
        before = self._held(peer)
        self._cluster.kill(peer)
        self._score.done["kills"] += 1
        directory = self._cluster[peer].directory
        recorded = recorded_pieces(directory)
        # On the small disk versions come and go; no more than what is recorded may be told there.
        for version_id, pieces in before.items() if peer != SMALL_DISK else ():
            if recorded.get(version_id, (0, 0))[0] < pieces:
                lost = pieces - recorded.get(version_id, (0, 0))[0]
                self._score.blame("lost pieces", f"{lost} of {version_id} at {peer}, killed", lost)
        self._flip(peer, directory, recorded, flips)
        if machine:
            (directory / "boot-id").write_text("the boot before\n")
            self._score.done["machine crashes"] += 1
        self._restart(peer)

    def _flip(self, peer: str, directory: Path, recorded: dict[str, tuple[int, int]], flips: int) -> None:
        chosen = sorted(version_id for version_id, (pieces, _) in recorded.items() if pieces)
        for _ in range(flips if chosen else 0):
            version_id = self._dice.choice(chosen)
            offset = self._dice.randrange(recorded[version_id][1])
            with (directory / "data" / version_id[:2] / version_id).open("r+b") as file:
                file.seek(offset)
                (byte,) = file.read(1)
                file.seek(offset)
                file.write(bytes([byte ^ 1 << self._dice.randrange(8)]))
            self._flipped[peer] += 1
            self._score.done["flipped bits"] += 1

    def _restart(self, name: str) -> None:
        try:
            self._cluster.restart(name)
        except ChildError as error:
            self._score.blame("hangs", f"{name} does not start again: {error}")
            raise

    # Accounts.

    def _held(self, peer: str) -> dict[str, int]:
        """Return what a peer says it holds: pieces by version."""
        held: dict[str, int] = {}
        http = self._cluster[peer].addresses["http"]
        with self._lock:
            tasks = [identify(thing.url).id for thing in self._things]
        for task in tasks:
            with contextlib.suppress(OSError, ValueError):
                with urllib.request.urlopen(f"http://{http}/v1/tasks/{task}", timeout=STALL_SECONDS) as answer:
                    rows = json.load(answer)["versions"]
                held |= {row["version_id"]: row["pieces_held"] for row in rows}
        return held

    def _account(self, peer: str) -> None:
        """See that a peer found no more pieces damaged than bits were flipped; before it goes."""
        http = self._cluster[peer].addresses["http"]
        with urllib.request.urlopen(f"http://{http}/metrics", timeout=STALL_SECONDS) as answer:
            found = _DAMAGED.search(answer.read().decode())
        self._damaged[peer] += int(float(found[1])) if found else 0
        self._score.done["damaged pieces found"] = sum(self._damaged.values())
        if (more := self._damaged[peer] - self._flipped[peer]) > 0:
            self._score.blame("lost pieces", f"{peer} found {more} pieces damaged that nobody damaged", more)
            self._flipped[peer] += more


def recorded_pieces(directory: Path) -> dict[str, tuple[int, int]]:
    """Return for each version in the index of a peer that is dead how many pieces it has, and its length in bytes."""
    with tempfile.TemporaryDirectory() as made:
        for path in directory.glob("index.sqlite*"):
            shutil.copy(path, made)
        with contextlib.closing(sqlite3.connect(Path(made) / "index.sqlite")) as index:
            rows = index.execute("SELECT version_id, pieces, length FROM versions").fetchall()
    assert all(pieces <= PieceLayout.of(length).count for _, pieces, length in rows)
    return {version_id: (pieces, length) for version_id, pieces, length in rows}


def torture(
    directory: Path, *, seed: int, seconds: float, rounds: int | None = None, say: Callable[[str], None] = print
) -> Score:
    """Run everything once and return the score; data and logs are left in `directory`."""
    score = Score(seed)
    home = directory / "cluster"
    with (
        small_disk(home / SMALL_DISK, say) as flags,
        running_origin("unlimited", directory) as origin,
        LocalCluster(
            peers=len(PEERS), seeds=1, directory=home, arguments={SMALL_DISK: flags}, ready_seconds=START_SECONDS
        ) as cluster,
    ):
        Field(cluster, origin, random.Random(seed), score).run(seconds=seconds, rounds=rounds)
    return score
