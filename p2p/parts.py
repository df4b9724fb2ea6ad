"""The parts of an object that was uploaded in parts, as lengths in order: what a composite checksum is made over."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby, repeat
from typing import Self

from p2p.errors import BadRequestError

MAX_PARTS = 10_000
"""How many parts S3 allows ("Amazon S3 multipart upload limits")."""

_RUN = re.compile(r"([1-9][0-9]{0,14})(?:x([1-9][0-9]{0,4}))?")


@dataclass(frozen=True, slots=True)
class Parts:
    """The lengths, in bytes, as runs of equal ones: ((length, count), …)."""

    runs: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, lengths: Iterable[int]) -> Self:
        """Return the parts of these lengths. Raises BadRequestError for none, for too many, and for an empty one."""
        runs = tuple((length, sum(1 for _ in same)) for length, same in groupby(lengths))
        if not runs or any(length < 1 for length, _ in runs):
            raise BadRequestError("parts must be some, and none of them empty")
        found = cls(runs)
        if found.count > MAX_PARTS:
            raise BadRequestError(f"there are {found.count} parts; an object has {MAX_PARTS} at most")
        return found

    @classmethod
    def equal(cls, length: int, count: int, whole: int) -> Self | None:
        """Return `count` parts of `length` bytes, the last one maybe shorter, of `whole` bytes; None if none fit."""
        last = whole - length * (count - 1)
        if not (1 <= count <= MAX_PARTS and 1 <= last <= length):
            return None
        return cls.of(chain(repeat(length, count - 1), (last,)))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` gives: "8388608x3,17" is three parts and a shorter one. Raises BadRequestError."""
        runs = []
        for run in text.split(","):
            match = _RUN.fullmatch(run)
            if match is None:
                raise BadRequestError(f"parts {text[:100]!r} are not lengths like 8388608x3,17")
            runs.append(repeat(int(match[1]), int(match[2] or 1)))
        return cls.of(chain.from_iterable(runs))

    @property
    def count(self) -> int:
        """How many they are."""
        return sum(count for _, count in self.runs)

    @property
    def total(self) -> int:
        """How many bytes they have."""
        return sum(length * count for length, count in self.runs)

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(repeat(length, count) for length, count in self.runs)

    def __str__(self) -> str:
        return ",".join(f"{length}x{count}" if count > 1 else str(length) for length, count in self.runs)
