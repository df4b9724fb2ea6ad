"""Who goes first where something is scarce: the urgent before others, the brief before the large, then tasks in turn.

A priority is a number from 0 to 7, as in `X-Dragonfly-Priority`: the higher, the more urgent. Whoever asks for a few
megabytes is brief. What is scarce keeps a part for the brief, which large ones never take: those may hold on to theirs
for long, and a brief one is over soon. Pure.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from p2p.pieces import MIB

LOWEST_PRIORITY, HIGHEST_PRIORITY = 0, 7

DEFAULT_PRIORITY = 6
"""The priority of who names none; Dragonfly's clients have the same."""

BRIEF_BYTES = 4 * MIB
"""Whoever asks for no more than this, or for one piece of whatever length, is brief."""

PATIENT_TURN = 4
"""Every so many-th turn goes to whoever has waited longest, urgent or not: so everybody gets on."""

_KEPT_PART = 16
_EXTRA_PART = 8
_FEWEST_TO_KEEP_OF = 3


@dataclass(frozen=True, slots=True, order=True)
class Urgency:
    """How urgent something is; the greater goes first."""

    priority: int = DEFAULT_PRIORITY
    brief: bool = False


ORDINARY = Urgency()


def kept_for_brief(count: int) -> int:
    """Return how many of `count` places are for the brief alone: a sixteenth, and one at least of three or more."""
    return max(1, count // _KEPT_PART) if count >= _FEWEST_TO_KEEP_OF else 0


def extra_for_brief(count: int) -> int:
    """Return how many places on top of `count` there are for the brief: an eighth, one at least, and none on top of 0.

    For what is not used up by one more at a time, so that large ones need not do without.
    """
    return max(1, count // _EXTRA_PART) if count else 0


class Turns:
    """Those who wait for a place, each with a ticket, and whose turn it is.

    The most urgent go first; among equals tasks take turns, and in a task those who came first go first. Every
    PATIENT_TURN-th turn goes to whoever came first of all.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[Urgency, str]] = {}
        self._tasks: dict[Urgency, OrderedDict[str, OrderedDict[int, None]]] = {}
        self._taken = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, ticket: object) -> bool:
        return ticket in self._waiting

    def any_brief(self) -> bool:
        """Tell whether anybody brief waits."""
        return any(urgency.brief for urgency in self._tasks)

    def add(self, ticket: int, urgency: Urgency, task: str) -> None:
        """Let somebody wait behind those who are alike; a ticket waits once."""
        self._waiting[ticket] = urgency, task
        self._tasks.setdefault(urgency, OrderedDict()).setdefault(task, OrderedDict())[ticket] = None

    def remove(self, ticket: int) -> None:
        """Let somebody wait no longer. Raises KeyError if nobody has that ticket."""
        urgency, task = self._waiting.pop(ticket)
        tasks = self._tasks[urgency]
        del tasks[task][ticket]
        if not tasks[task]:
            del tasks[task]
            if not tasks:
                del self._tasks[urgency]

    def take(self, *, brief_only: bool = False) -> int | None:
        """Remove and return the ticket of whoever is next, or next among the brief; None if there is nobody."""
        urgencies = [urgency for urgency in self._tasks if urgency.brief or not brief_only]
        if not urgencies:
            return None
        self._taken += 1
        if self._taken % PATIENT_TURN == 0 and not brief_only:
            ticket = next(iter(self._waiting))
        else:
            tasks = self._tasks[max(urgencies)]
            ticket = next(iter(next(iter(tasks.values()))))
        urgency, task = self._waiting[ticket]
        self.remove(ticket)
        if task in (tasks := self._tasks.get(urgency, OrderedDict())):
            tasks.move_to_end(task)
        return ticket
