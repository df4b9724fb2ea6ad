"""What the daemons of the tests say of stalls of their loops (`p2p.stalls`): each fails the test in which it was."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from p2p.stalls import ENVIRONMENT, Stall


class StallFile:
    """The file that every daemon started from here appends its stalls to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0

    def take(self) -> tuple[Stall, ...]:
        """Return what has been told since the last call."""
        try:
            with self.path.open() as file:
                file.seek(self._read)
                lines = file.readlines()
                self._read = file.tell()
        except FileNotFoundError:
            return ()
        told = [json.loads(line) for line in lines]
        return tuple(Stall(**each | {"stack": tuple(each["stack"])}) for each in told)

    def check(self) -> None:
        """Fail the test that runs if anything has been told since the last look."""
        if stalls := self.take():
            pytest.fail("\n\n".join(("the loop of a daemon was held up:", *map(str, stalls))), pytrace=False)


STALLS = pytest.StashKey[StallFile]()
"""Where a run of pytest keeps its file."""


@contextmanager
def watched(path: Path) -> Iterator[StallFile]:
    """Have every daemon watch its loop that is started while the context lasts, and tell its stalls in `path`."""
    before = os.environ.get(ENVIRONMENT)
    os.environ[ENVIRONMENT] = str(path)
    try:
        yield StallFile(path)
    finally:
        if before is None:
            del os.environ[ENVIRONMENT]
        else:
            os.environ[ENVIRONMENT] = before
