"""The table of README.md says what is tested: everything it names is there."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
TABLE = (HERE / "README.md").read_text()


def test_every_test_and_file_that_the_table_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", TABLE))
    defined = {
        name
        for file in HERE.glob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    assert named <= defined, "rename them in README.md too"
    files = re.findall(r"`(tests/[\w/]+\.py)`", TABLE)
    assert [file for file in files if not (ROOT / file).is_file()] == []


def test_every_row_names_a_test() -> None:
    rows = [line for line in TABLE.splitlines() if line.startswith("| ") and not line.endswith("| tests |")]
    untested = [row for row in rows if "`test_" not in row]
    assert [row.split("|")[1].strip() for row in untested] == []
