import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from bench.cli import app
from bench.dataplane.cold import allowed_seconds
from bench.dataplane.eviction import evict_all
from bench.dataplane.figures import Figure, Result, by_name, per_gib
from bench.dataplane.plan import Plan
from bench.dataplane.sections import Section
from bench.shaping import PROFILES
from p2p.pieces import GIB, MIB, PieceLayout


def beside_nginx(beside: tuple[float, ...]) -> Figure:
    return Figure("local hit", "1 GiB", "bytes_per_second", (2e9, 8e9, 3e9), beside, least=1.0, versus=True)


def test_a_bound_beside_nginx_is_one_of_the_ratio_round_by_round() -> None:
    figure = beside_nginx((4e9, 4e9, 2e9))
    assert figure.ratios == (0.5, 2.0, 1.5)
    assert figure.bar is not None
    assert (figure.bar.value, figure.bar.met) == (1.5, True)
    row = figure.figures()
    assert (row["median"], row["min"], row["max"], row["nginx"], row["met"]) == (3e9, 2e9, 8e9, 4e9, True)
    assert figure.cells() == ("GB/s", "3.00", "2.00-8.00", "4.00", "1.50", "≥ 1", "met")


def test_without_nginx_there_is_nothing_to_compare_with() -> None:
    figure = beside_nginx(())
    assert figure.bar is not None
    assert figure.bar.value is None
    assert figure.cells()[-1] == "not measured"


def test_other_bounds_are_those_of_the_value_as_it_is_shown() -> None:
    late = Figure("cold", "s3", "seconds", (0.1, 0.3), most=150.0)
    assert late.bar is not None
    assert (late.bar.value, late.bar.met) == (200.0, False)
    told = Figure("memory", "more", "rss_anon_bytes", (3.0 * MIB,))
    assert (told.bar, told.figures()["met"], told.cells()[5:]) == (None, None, ("", ""))


def test_a_result_has_a_row_a_figure_and_charts_cpu_time() -> None:
    cost = Figure("local hit", "1 GiB", "cpu_seconds_per_gib", (0.2,), (0.25,), most=1.0, versus=True)
    result = Result(1, (beside_nginx((4e9,)), cost), ("origins: nginx is not installed",))
    assert [bar.value for bar in result.charted()] == [0.2, 0.25]
    assert [bar.met for bar in result.bars] == [False, True]
    assert json.loads(json.dumps(result.figures()))["missing"] == ["origins: nginx is not installed"]
    console = Console(width=110)
    with console.capture() as printed:
        console.print(result.table())
    assert printed.get().count("1 GiB") == 2


def test_rounds_are_turned_into_values() -> None:
    assert by_name([{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 4.0}]) == {"a": (1.0, 3.0), "b": (2.0, 4.0)}
    assert per_gib(1.0, GIB // 2) == 2.0


def test_the_first_byte_may_take_two_pieces_of_one_connection_and_a_little() -> None:
    piece = PieceLayout.of(GIB).piece_length
    assert allowed_seconds(PROFILES["s3"], GIB) == pytest.approx(2 * piece / 90e6 + 0.02)


def test_a_plan_of_a_part_moves_less() -> None:
    whole, part = Plan(), Plan(scale=0.01)
    assert (whole.large, whole.medium, whole.huge, whole.files, whole.readers) == (GIB, 64 * MIB, 20 * GIB, 10_000, 200)
    assert part.large < whole.large
    assert part.readers >= 4


@pytest.mark.parametrize(
    ("sections", "message"), [("locl", "did you mean 'local'"), ("x", "known are local"), (",", "names none")]
)
def test_a_section_that_is_not_known_is_told(sections: str, message: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["data-plane", "--sections", sections, "--json", str(tmp_path / "figures.json")])
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())


def test_the_command_runs_sections_and_writes_figures_and_a_chart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(plan: Plan, progress: Callable[[str], None]) -> Iterator[Figure]:
        yield Figure("one", f"scale {plan.scale:g}", "cpu_seconds_per_gib", (0.5,) * plan.rounds, most=0.7)

    sections = {"one": Section(measured), "other": Section(measured, lambda: "no such program")}
    monkeypatch.setattr("bench.dataplane.command.SECTIONS", sections)
    monkeypatch.setattr("bench.dataplane.sections.SECTIONS", sections)
    figures, chart = tmp_path / "figures.json", tmp_path / "chart"
    arguments = ["--sections", "one,other", "--rounds", "2", "--scale", "0.5"]
    done = CliRunner().invoke(app, ["data-plane", *arguments, "--json", str(figures), "--chart", str(chart)])
    assert done.exit_code == 0, done.output
    assert "not measured: other: no such program" in done.output
    document = json.loads(figures.read_text())
    assert (document["bench"], document["rounds"]) == ("data-plane", 2)
    assert [(row["name"], row["median"], row["met"]) for row in document["figures"]] == [("scale 0.5", 0.5, True)]
    assert chart.with_suffix(".png").stat().st_size


async def test_a_store_is_filled_and_evicted_while_the_loop_is_watched(tmp_path: Path) -> None:
    found = await evict_all(tmp_path, 300)
    assert found.keys() == {"a second", "cpu", "wall"}
    assert min(found.values()) > 0
