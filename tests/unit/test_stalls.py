"""The detector of stalls must find each kind, and take nothing else for one: in a process that is a daemon for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from _pytest.outcomes import Failed

from p2p.stalls import Stall
from tests.support.stalls import StallFile, watched

_LONG = "a callback computes for too long"

_DAEMON = '''
import asyncio, os, sys, threading, time
from pathlib import Path

from p2p.daemon import announce_ready, run_daemon
from p2p.stalls import ENVIRONMENT


def burn(seconds):
    """Use up so much CPU time of this thread."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def in_python():
    burn(0.1)


def in_one_call():
    size, took = 1_000_000, 0.0
    while took < 0.1:
        begun = time.thread_time()
        sum(range(size))
        took = time.thread_time() - begun
        size *= 2


async def in_a_task():
    await asyncio.sleep(0)
    burn(0.1)


def until_told_of(place):
    """Block this thread until that was told; the end of the input ends it too."""
    read, write = os.pipe()

    def look():
        while place not in Path(os.environ[ENVIRONMENT]).read_text():
            time.sleep(0.01)
        os.write(write, b"x")

    threading.Thread(target=look, daemon=True).start()
    os.read(read, 1)


def asleep():
    until_told_of("in asleep")


def opening():
    open("daemon.py").close()


def importing():
    import wave


async def small_steps():
    for _ in range(10):
        burn(0.015)
        await asyncio.sleep(0)


async def serve():
    opening()
    burn(0.1)
    announce_ready()
    loop = asyncio.get_running_loop()
    for each in (in_python, in_one_call, asleep, opening, importing):
        loop.call_soon(each)
        await asyncio.sleep(0.01)
    await asyncio.create_task(in_a_task())
    # None of these holds the loop up: other threads, and what is much only if added up.
    await asyncio.gather(asyncio.to_thread(burn, 0.2), asyncio.to_thread(opening), small_steps(), small_steps())
    for _ in range(20):
        loop.call_soon(burn, 0.01)
    await asyncio.sleep(0.01)


sys.exit(run_daemon("test", serve, log_level="warning"))
'''


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stall, ...]:
    """What was told of the process."""
    directory = tmp_path_factory.mktemp("stalls")
    script = directory / "daemon.py"
    script.write_text(_DAEMON)
    with watched(directory / "stalls") as file:
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        subprocess.run([sys.executable, script.name], check=True, cwd=directory, env=environment)
    told = file.take()
    assert file.take() == ()
    return told


def test_only_what_holds_the_loop_up_is_told(told: tuple[Stall, ...]) -> None:
    assert {(stall.stack[0].rpartition(" ")[2], stall.what.partition(" (")[0]) for stall in told} == {
        ("in_python", _LONG),
        ("in_one_call", _LONG),
        ("in_a_task", _LONG),
        ("asleep", "a callback blocks in system call 0"),
        ("opening", "a callback calls what may block: open 'daemon.py'"),
        ("importing", "a callback calls what may block: import 'wave'"),
    }


def test_a_test_fails_for_what_was_told(tmp_path: Path) -> None:
    file = StallFile(tmp_path / "stalls")
    file.check()
    stall = Stall(1, "peer --seed", "a callback blocks", ("a.py:1 in f", "b.py:2 in g"))
    file.path.write_text(json.dumps(asdict(stall)) + "\n")
    with pytest.raises(Failed, match=r"peer --seed \(process 1\): a callback blocks\n  a.py:1 in f\n  b.py:2 in g$"):
        file.check()
    file.check()
