"""Versions: which bytes a task's object has, as the origin says."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum


class ValidatorKind(StrEnum):
    """What the origin's word for the version is made of."""

    ETAG = "etag"
    LAST_MODIFIED = "last-modified"
    GENERATION = "generation"
    DIGEST = "digest"


@dataclass(frozen=True, slots=True)
class Version:
    """The bytes of one task at one time: a strong validator and the length in bytes.

    `task_id` is 64 hexadecimal digits. Two versions with equal fields have equal bytes.
    """

    task_id: str
    length: int
    kind: ValidatorKind
    validator: str

    @property
    def id(self) -> str:
        """32 hexadecimal digits that every host computes alike from the fields."""
        text = "\0".join((self.task_id, str(self.length), self.kind, self.validator))
        return hashlib.sha256(text.encode()).hexdigest()[:32]
