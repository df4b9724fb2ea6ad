"""Generate p2p/v1 from proto/p2p/v1; with --check, exit 1 and name the committed stubs that are stale."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def generate(target: Path) -> None:
    """Write the stubs of every .proto file below `target`."""
    protos = sorted(str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto").rglob("*.proto"))
    subprocess.run(  # noqa: S603  # fixed arguments
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            "-Iproto",
            f"--python_out={target}",
            f"--grpc_python_out={target}",
            f"--mypy_out=quiet:{target}",
            f"--mypy_grpc_out=quiet,only_async:{target}",
            *protos,
        ],
        cwd=ROOT,
        check=True,
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
    )


def stale() -> list[str]:
    """Return the names of committed stubs that differ from freshly generated ones, or lack a source."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = {path.relative_to(scratch): path.read_bytes() for path in Path(scratch).rglob("*") if path.is_file()}
    committed = {path.relative_to(ROOT): path.read_bytes() for path in (ROOT / "p2p" / "v1").glob("*_pb2*")}
    return sorted(str(name) for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))


def main() -> int:
    """Run the command line; return the exit status."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--check", action="store_true")
    if not arguments.parse_args().check:
        generate(ROOT)
        return 0
    if names := stale():
        print("stale stubs, run python tools/generate_stubs.py:", *names, sep="\n  ", file=sys.stderr)
        return 1
    print("the generated stubs are current")
    return 0


if __name__ == "__main__":
    sys.exit(main())
