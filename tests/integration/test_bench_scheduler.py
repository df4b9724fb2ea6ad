"""`damselfly bench scheduler`, small: real cores, a real scheduler process, real sessions."""

import json
from pathlib import Path

import pytest

from bench.scheduler_core import load_core, weigh_core
from bench.synthetic import Member, Scene, pieces_of
from p2p.control import Assignment, Following, Hello, Parent, Part
from p2p.pieces import GIB, Span
from peer.download.reports import REPORT_SECONDS
from tests.support.commands import run
from tests.support.pieces import PIECE


def test_a_core_under_load_brings_every_piece_to_every_host() -> None:
    scene = Scene(hosts=8, tasks=2, object_bytes=64 * PIECE)
    sample = load_core(scene, alone=False, seconds=60)
    assert sample.pieces >= scene.pairs * scene.pieces
    assert 0 < sample.reports <= sample.pieces


def test_primed_swarms_trade_what_the_other_half_holds() -> None:
    scene = Scene(hosts=8, tasks=2, object_bytes=64 * PIECE, primed=True)
    sample = load_core(scene, alone=True, seconds=60)
    assert sample.pieces == scene.pairs * scene.pieces / 2


def test_pieces_land_at_the_rate_of_the_link_and_reports_wait_for_company() -> None:
    scene = Scene(hosts=1, tasks=1, object_bytes=64 * PIECE)
    (version,) = scene.versions()
    member = Member(Hello("h", "10.0.0.1:65002"), 1000 * PIECE, late_seconds=0.0)
    member.assigned(Assignment(version, (Part(Span(0, 4), "p"), Part(Span(8, 9), "q"))), now=10.0)
    assert member.next_at() == 10.001 + REPORT_SECONDS
    assert list(member.advance(10.001)) == []
    (report,) = member.advance(10.001 + REPORT_SECONDS)
    assert [(landed.span, landed.parent_id) for landed in report.landed] == [(Span(0, 2), "p"), (Span(8, 9), "q")]
    assert sum(map(pieces_of, member.advance(11.0))) == 2
    assert member.next_at() is None


def test_a_host_that_has_all_it_expects_reports_at_once() -> None:
    scene = Scene(hosts=1, tasks=1, object_bytes=4 * PIECE)
    (version,) = scene.versions()
    member = Member(Hello("h", "10.0.0.1:65002"), 1000 * PIECE, late_seconds=0.5)
    member.expect(version, scene.lacking(0))
    parent = Parent("p", "10.0.0.2:65002", (0,), seed=False)
    member.followed(Following(version, 1, (parent,), (), cold=False, report_seconds=9.0), now=10.0)
    assert member.next_at() == pytest.approx(10.504)
    (report,) = member.advance(10.505)
    assert [landed.span for landed in report.landed] == [Span(0, 4)]
    assert member.content
    assert member.next_at() is None


def test_the_core_is_weighed_without_the_hosts() -> None:
    scene = Scene(hosts=8, tasks=2, object_bytes=64 * PIECE)
    assert weigh_core(scene, seconds=60) > 0


def test_the_command_prints_bars_and_writes_figures(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    arguments = ("--scale", "0.01", "--seconds", "0.5", "--rounds", "1", "--json", str(figures))
    done = run("bench", "scheduler", *arguments)
    assert done.returncode == 0, done.stderr
    output = done.stdout
    assert max(len(line) for line in output.splitlines() if "wrote" not in line) <= 80
    said = " ".join(output.split())  # a figure that nothing gave on a busy machine makes its line two
    assert said.count(": met)") + said.count(": missed)") == 7
    told = json.loads(figures.read_text())
    assert told["bench"] == "scheduler"
    assert [run["name"] for run in told["runs"]] == [
        "core",
        "process",
        "process, parts",
        "core, decisions",
        "process, decisions",
    ]
    assert told["runs"][0]["pieces_per_second"] > 0
    assert told["runs"][0]["scene"]["object_bytes"] == 2 * GIB
