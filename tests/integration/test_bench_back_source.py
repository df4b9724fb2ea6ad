"""`damselfly bench origin` as a command, on an object so small that only its form is tested."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.commands import run


def test_it_prints_every_read_and_writes_its_figures(tmp_path: Path) -> None:
    file = tmp_path / "origin.json"
    done = run(
        "bench", "origin", "--size", "8MiB", "--rounds", "1", "--origin-profile", "unlimited", "--json", str(file)
    )
    assert done.returncode == 0, done.stderr
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if not line.startswith("wrote"))
    figures = json.loads(file.read_text())
    assert (figures["bench"], figures["object_bytes"], figures["rounds"]) == ("origin", 8 * 1024 * 1024, 1)
    assert {"machine", "commit", "command", "ceiling_bytes_per_second"} <= figures.keys()
    rows = {row["name"]: row for row in figures["runs"]}
    for name in ("raw", "one seed", "two seeds"):
        assert rows[name]["origin_copies"] >= 1.0
        assert rows[name]["digest_ok"] is True
        assert f" {name} " in done.stdout


def test_an_object_that_is_too_small_is_refused() -> None:
    done = run("bench", "origin", "--size", "1MiB")
    assert done.returncode == 2
    assert "--size 1MiB: too small" in done.stderr
