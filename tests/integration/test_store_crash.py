"""Real processes on real data directories: kill -9 at any moment, a lost page cache, two daemons at once.

Run as a program this file is the process that gets killed: `test_store_crash.py DIRECTORY SEED LINES` writes, commits
and removes, says on its standard output what it has committed, and kills itself with line LINES, so that nothing that
should have happened before it can happen after it; 0 is never. Without a seed it fills the store and waits.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from p2p.errors import StoreError
from p2p.identity import Task
from p2p.pieces import PieceLayout, Span
from p2p.versions import Version
from peer.store import Entry, Store
from tests.support.pieces import PIECE
from tests.unit.store.support import a_task, a_version, assert_sound, put

ROOT = Path(__file__).parents[2]
TASKS = [a_task("a"), a_task("b")]
VERSIONS = [a_version(TASKS[0], 1000), a_version(TASKS[0], 5 * PIECE + 1, "2"), a_version(TASKS[1], 3 * PIECE)]
ROUNDS = 20


class Report:
    """What the child says; its last line is its death."""

    def __init__(self, lines: int) -> None:
        self.left = lines

    def say(self, *words: object) -> None:
        os.write(1, (" ".join(map(str, words)) + "\n").encode())
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def task_of(version: Version) -> Task:
    [task] = [task for task in TASKS if task.id == version.task_id]
    return task


async def fill(directory: Path) -> None:
    """Commit everything, then wait to be killed."""
    store = await Store.open(directory)
    for version in VERSIONS:
        with await store.entry(task_of(version), version) as entry:
            await put(entry, range(entry.layout.count))
    Report(0).say("filled")
    await asyncio.Event().wait()


async def land(entry: Entry, number: int, index: int, report: Report) -> None:
    await put(entry, [index])
    report.say("committed", number, index)


async def live(directory: Path, seed: int, report: Report) -> None:
    """Use a store until killed: `began` and `removed` enclose a removal, `committed` follows a commit."""
    chance = random.Random(seed)
    report.say("opening")
    store = await Store.open(directory)
    while True:
        if chance.random() < 0.1:
            number = chance.randrange(len(TASKS))
            report.say("began", number)
            await store.remove(TASKS[number].id)
            report.say("removed", number)
            continue
        number = chance.randrange(len(VERSIONS))
        version = VERSIONS[number]
        with await store.entry(task_of(version), version) as entry:
            indices = range(entry.layout.count)
            some = chance.sample(indices, chance.randint(1, len(indices)))
            await asyncio.gather(*(land(entry, number, index, report) for index in some))


@contextmanager
def child(directory: Path, *seed_and_lines: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, __file__, str(directory), *map(str, seed_and_lines)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def follow(held: set[tuple[int, int]], words: list[str]) -> None:
    """Bring up to date what must be held, by a line of the child's report."""
    match words:
        case ["committed", number, index]:
            held.add((int(number), int(index)))
        case ["began" | "removed", task]:
            # From its beginning on a removal may have happened; what is committed after its end must be there again.
            gone = TASKS[int(task)].id
            held -= {(number, index) for number, index in held if VERSIONS[number].task_id == gone}


async def test_kill_loses_no_committed_piece_and_serves_no_other(tmp_path: Path) -> None:
    held: set[tuple[int, int]] = set()
    chance = random.Random(7)
    reported = 0
    for number in range(ROUNDS):
        lines = chance.choice([1, 2, 3, chance.randint(4, 30), chance.randint(30, 120)])
        from_inside = number % 2 == 0
        with child(tmp_path, number, lines if from_inside else 0) as process:
            assert process.stdout is not None
            for _ in range(lines):
                follow(held, process.stdout.readline().decode().split())
            if not from_inside:
                process.kill()
            for line in process.stdout:
                follow(held, line.decode().split())
            assert process.wait() == -signal.SIGKILL
        reported += lines
        store = await Store.open(tmp_path)
        landed = set()
        for position, version in enumerate(VERSIONS):
            entry = await store.find(version.id)
            if entry is not None:
                with entry:
                    assert_sound(entry)
                    assert not entry.suspect
                    assert not await entry.verify(Span(0, entry.layout.count))
                    landed |= {(position, index) for index in entry.landed}
        assert landed >= held, f"lost in round {number}: {sorted(held - landed)}"
        sizes = [PieceLayout.of(VERSIONS[position].length).size(index) for position, index in landed]
        assert (store.stats().pieces, store.stats().bytes) == (len(sizes), sum(sizes))
        await store.close(sync_seconds=-1)  # forces nothing to the disk: the next child finds an unclean directory
        held = landed
    assert reported > 10 * ROUNDS


async def test_pages_lost_with_the_operating_system_are_found_before_they_are_served(tmp_path: Path) -> None:
    task, version = TASKS[1], VERSIONS[2]
    with child(tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"filled\n"
    lose_pages(tmp_path, version, Span(1, 2))
    (tmp_path / "boot-id").write_text("the boot before\n")
    store = await Store.open(tmp_path)
    try:
        assert [holding async for holding in store.holdings()] == []
        with await store.entry(task, version) as entry:
            assert not entry.landed
            await entry.ensure_verified(Span(0, 3))
            assert list(entry.landed) == [0, 2]
            assert_sound(entry)
            await put(entry, [1])
            assert_sound(entry)
            assert entry.landed.full
    finally:
        await store.close()


def lose_pages(directory: Path, version: Version, span: Span) -> None:
    """Put zeros where the bytes of pieces were: what a file shows whose pages never reached the disk."""
    with (directory / "data" / version.id[:2] / version.id).open("r+b") as file:
        file.seek(span.start * PIECE)
        file.write(bytes(len(span) * PIECE))


async def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    with child(tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"filled\n"
        with pytest.raises(StoreError, match=rf"{tmp_path}.*in use by process {process.pid}\b"):
            await Store.open(tmp_path)
    await (await Store.open(tmp_path)).close()


if __name__ == "__main__":
    where = Path(sys.argv[1])
    asyncio.run(live(where, int(sys.argv[2]), Report(int(sys.argv[3]))) if len(sys.argv) > 2 else fill(where))
