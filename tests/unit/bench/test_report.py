import importlib.util
import json
from pathlib import Path

import pytest

from bench.report import Bar, ChartsUnavailableError, bar_chart, command, write_json

BARS = [Bar("Direct", 2.1, "2.10 s"), Bar("Hit on the\nlocal peer", 0.2, "0.20 s")]


def test_a_report_says_where_it_comes_from(tmp_path: Path) -> None:
    path = tmp_path / "new" / "figures.json"
    write_json(path, {"object_bytes": 5})
    document = json.loads(path.read_text())
    assert document["object_bytes"] == 5
    assert document["machine"]["cpus"] >= 1
    assert document["machine"]["memory_bytes"] > 2**20
    assert {"commit", "command"} <= set(document)


def test_a_command_is_shown_without_the_queries_of_its_urls() -> None:
    words = ["/usr/bin/damselfly", "bench", "--url", "https://h/b/k?X-Amz-Signature=abc", "--proxy", "h:1"]
    assert command(words) == "damselfly bench --url 'https://h/b/k?…' --proxy h:1"
    assert "abc" not in command(["damselfly", "--url=https://h/b/k?X-Amz-Signature=abc"])


def test_charts_are_drawn_in_both_forms(tmp_path: Path) -> None:
    paths = bar_chart(tmp_path / "hits.of.today", title="Reading", unit="seconds", bars=BARS)
    assert [path.name for path in paths] == ["hits.of.today.png", "hits.of.today.svg"]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert "<svg" in paths[1].read_text()


def test_without_the_library_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ChartsUnavailableError, match=r"damselfly\[charts\]"):
        bar_chart(tmp_path / "hits", title="Reading", unit="seconds", bars=BARS)
