"""What no single module can see: the shape of the tree, of the wheel, and the rules that hold everywhere."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("p2p", "scheduler", "peer", "bench", "damselfly")


def contract(name: str) -> dict[str, Any]:
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found: list[dict[str, Any]] = configuration["tool"]["importlinter"]["contracts"]
    return next(each for each in found if each["id"] == name)


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from (path for path in sorted((ROOT / folder).rglob("*.py")) if "_pb2" not in path.name)


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Yield every call in a module as `path:line: written form`, and the call itself."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node.func)}", node


def test_every_module_of_p2p_is_either_pure_or_forbidden_to_the_pure_ones() -> None:
    modules = {f"p2p.{path.stem}" for path in (ROOT / "p2p").iterdir() if path.suffix == ".py" or path.is_dir()}
    modules -= {"p2p.__init__", "p2p.__pycache__"}
    pure = set(contract("pure-p2p")["source_modules"])
    for name in ("pure-p2p", "pure-cores"):
        impure = {module for module in contract(name)["forbidden_modules"] if module.startswith("p2p.")}
        assert pure | impure == modules, "name the new module in the contracts of pyproject.toml"
        assert not pure & impure


def test_the_cores_are_forbidden_what_the_pure_modules_are_but_the_random_they_are_given() -> None:
    pure, cores = (set(contract(name)["forbidden_modules"]) for name in ("pure-p2p", "pure-cores"))
    assert pure - cores == {"random"}
    assert cores <= pure


def test_every_folder_of_the_packages_is_a_package() -> None:
    folders = {path.parent for path in sources(*PACKAGES)}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_tasks_are_spawned_by_scopes_and_groups_only() -> None:
    spawning = re.compile(r"(asyncio\.(create_task|ensure_future)|.*loop.*\.create_task)$")
    found = [where for path in sources(*PACKAGES) for where, _ in calls(path) if spawning.search(where.split(": ")[1])]
    assert found == [], "spawn with p2p.tasks.TaskScope, so that no task outlives its owner"


def test_tests_do_not_sleep() -> None:
    def sleeps(where: str, call: ast.Call) -> bool:
        yields_only = [ast.unparse(argument) for argument in call.args] == ["0"]
        return where.endswith((" time.sleep", " asyncio.sleep", " sleep")) and not yields_only

    found = [where for path in sources("tests") for where, call in calls(path) if sleeps(where, call)]
    assert found == [], "wait for what is to happen, with a deadline"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> frozenset[str]:
    """Build the wheel from a copy of the sources, without a network; returns the names of its files."""
    copy = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
    built = subprocess.run(
        [sys.executable, "-W", "error", "-c", build, str(copy)], cwd=copy, check=True, capture_output=True, text=True
    )
    with zipfile.ZipFile(copy / built.stdout.splitlines()[-1]) as archive:
        return frozenset(archive.namelist())


def test_the_wheel_ships_every_module_stub_and_type_marker(wheel: frozenset[str]) -> None:
    committed = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".pyi") or path.name == "py.typed"
    }
    shipped = {name for name in wheel if not name.split("/")[0].endswith(".dist-info")}
    assert shipped == committed
    assert {f"{package}/py.typed" for package in PACKAGES} <= shipped
    assert "p2p/v1/scheduler_pb2.pyi" in shipped


def test_the_wheel_makes_the_command(wheel: frozenset[str]) -> None:
    assert any(name.endswith(".dist-info/entry_points.txt") for name in wheel)
