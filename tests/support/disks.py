"""Disks of a kind that the machine does not have."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(directory: Path, options: str) -> Iterator[None]:
    """Mount a tmpfs with `options` at a directory; skips the test without root."""
    mount = ["mount", "-t", "tmpfs", "-o", options, "damselfly-test", str(directory)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs takes root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)
