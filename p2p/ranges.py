"""Byte ranges and the HTTP fields that speak of them (RFC 9110 §14)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class ByteRange:
    """A half-open run of bytes: `start`, …, `stop - 1`; empty when both are equal."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise ValueError(f"not a range of bytes: {self.start}..{self.stop}")

    def __len__(self) -> int:
        return self.stop - self.start
