import sys
import time
from pathlib import Path

import pytest

from bench.process import Child, ChildError, Meter

READY = """
import json, signal, sys
print("a line that is no JSON", flush=True)
print(json.dumps({"event": "starting"}), flush=True)
print(json.dumps({"event": "ready", "http": "127.0.0.1:1"}), file=sys.stderr, flush=True)
signal.sigwait({signal.SIGTERM})
print("bye", flush=True)
sys.exit(7)
"""


def deadline() -> float:
    return time.monotonic() + 30


def test_a_child_is_ready_when_it_says_so_and_its_output_is_kept(tmp_path: Path) -> None:
    ended: list[str] = []
    lines: list[str] = []
    blocked = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
    child = Child(
        "child", [sys.executable, "-c", blocked + READY], tmp_path / "log", echo=lines.append, on_exit=ended.append
    )
    assert child.wait_ready(deadline())["http"] == "127.0.0.1:1"
    assert child.is_running()
    assert child.rss_anon_bytes() > 100_000
    child.terminate()
    assert child.join(deadline()) == 7
    assert not child.is_running()
    assert ended == ["child"]
    assert child.log.read_text().splitlines() == lines
    assert lines[0] == "a line that is no JSON"
    assert lines[-1] == "bye"
    assert child.rss_anon_bytes() == 0


def test_a_child_that_fails_is_reported_with_its_last_words(tmp_path: Path) -> None:
    child = Child("child", [sys.executable, "-c", "raise SystemExit('port 1 is taken')"], tmp_path / "log")
    with pytest.raises(ChildError, match=r"child ended with code 1(.|\n)*port 1 is taken"):
        child.wait_ready(deadline())
    assert child.join(deadline()) == 1


def test_a_child_that_is_not_ready_in_time_is_reported_and_can_be_killed(tmp_path: Path) -> None:
    child = Child("child", [sys.executable, "-c", "import signal; signal.pause()"], tmp_path / "log")
    with pytest.raises(ChildError, match="not ready in time"):
        child.wait_ready(time.monotonic())
    child.kill()
    assert not child.is_running()


def test_one_that_ignores_the_request_to_end_is_killed(tmp_path: Path) -> None:
    stubborn = (
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        'print(\'{"event": "ready"}\', flush=True)\nwhile True: signal.pause()'
    )
    child = Child("child", [sys.executable, "-c", stubborn], tmp_path / "log")
    child.wait_ready(deadline())
    child.terminate()
    assert child.join(time.monotonic()) == -9


def test_the_meter_knows_cpu_time_and_peak_memory(tmp_path: Path) -> None:
    hungry = 'import sys\nb = bytearray(64 << 20)\nprint(\'{"event": "ready"}\', flush=True)\nsys.stdin.read()\n' + (
        "import signal; signal.pause()"
    )
    child = Child("hungry", [sys.executable, "-c", hungry], tmp_path / "log")
    try:
        child.wait_ready(deadline())
        with Meter({"hungry": child}) as meter:
            assert meter.take_peaks()["hungry"] > 64 << 20
            assert meter.cpu_seconds()["hungry"] > 0
    finally:
        child.kill()
    assert child.cpu_seconds() > 0
