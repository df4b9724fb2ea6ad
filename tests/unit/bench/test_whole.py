from pathlib import Path

import pytest

from bench.whole import RUNS, described, replaced
from p2p.errors import ConfigError

PAGE = Path(__file__).parents[3] / "docs" / "benchmarks.md"


def test_a_block_takes_the_place_of_the_last_one() -> None:
    page = "before\n<!-- begin a -->\nold\n<!-- end a -->\n<!-- begin b -->\n<!-- end b -->\nafter\n"
    once = replaced(replaced(page, "a", r"new \1"), "b", "more")
    assert once == "before\n<!-- begin a -->\nnew \\1\n<!-- end a -->\n<!-- begin b -->\nmore\n<!-- end b -->\nafter\n"
    assert replaced(once, "a", r"new \1") == once


@pytest.mark.parametrize("page", ["", "<!-- begin a -->\n", "<!-- begin a -->\n<!-- end a -->\n" * 2])
def test_a_page_without_the_one_place_is_refused(page: str) -> None:
    with pytest.raises(ConfigError, match="begin a"):
        replaced(page, "a", "block")


def test_a_block_says_when_where_and_how() -> None:
    block = described(("hits", "--objects", "5"), "\n  table  \nrow\nwrote a, b\n", seconds=12.4, of="abc")
    head, _, rest = block.partition("\n")
    assert head.startswith("`damselfly bench hits --objects 5`, 20")
    assert head.endswith("commit abc, 12 s:")
    assert rest == "\n```text\n  table\nrow\n```"


def test_the_page_has_a_place_for_each_run() -> None:
    page = PAGE.read_text()
    for name in RUNS:
        assert "block" in replaced(page, name, "block")
