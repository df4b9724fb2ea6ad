"""What a preheat is: the order, the hosts that it means, and how far each of them is with each object."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from p2p.checksums import Checksum
from p2p.control import Source
from p2p.errors import BadRequestError
from p2p.fetches import FetchState, State
from p2p.hostapi import Fields
from p2p.identity import Task
from p2p.versions import Version
from scheduler.fleet import Member, in_order


@dataclass(frozen=True, slots=True)
class Order:
    """What a job is to do; `to` is "seeds", "all", "label=value" or a number of hosts.

    `recursive` takes every URL for a prefix; a native name that ends with a slash is one anyway.
    """

    urls: tuple[str, ...] = field(repr=False)
    recursive: bool = False
    to: str = "all"
    pin: bool = False
    headers: Fields = field(default=(), repr=False)
    filters: tuple[str, ...] = ()
    tag: str = ""
    application: str = ""


Known = Mapping[str, tuple[Version, Checksum | None]]
"""Versions that need not be asked for any more, and what their stores say of all their bytes, by task id."""


@dataclass(slots=True)
class Cell:
    """How far one host is with one object."""

    state: State = State.PENDING
    pieces: int = 0
    pieces_held: int = 0
    bytes_held: int = 0
    error: str = ""

    def take(self, row: FetchState) -> None:
        """Note what the host says."""
        self.state, self.error = row.state, row.error
        self.pieces, self.pieces_held, self.bytes_held = row.pieces, row.pieces_held, row.bytes_held

    def end(self, state: State, error: str = "") -> None:
        """Note that nothing more comes of it."""
        if not self.state.over:
            self.state, self.error = state, error


@dataclass(slots=True, eq=False)
class Item:
    """One object of a job; `error` where it could not even be asked for."""

    task: Task
    source: Source = field(repr=False)
    prefix: bool = False
    version: Version | None = None
    checksum: Checksum | None = None
    error: str = ""
    hosts: dict[str, Cell] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Job:
    """One preheat, under way or over."""

    id: str
    order: Order
    targets: tuple[Member, ...]
    items: list[Item] = field(default_factory=list)
    over: bool = False
    cancelled: bool = False
    known: Known = field(default_factory=dict)
    running: asyncio.Task[None] | None = None

    @property
    def state(self) -> State:
        """How far the job is as a whole."""
        if self.cancelled:
            return State.CANCELLED
        if not self.over:
            return State.RUNNING
        failed = any(item.error or any(cell.error for cell in item.hosts.values()) for item in self.items)
        return State.FAILED if failed else State.DONE

    def summary(self) -> dict[str, Any]:
        """Return the job in a line, as JSON values."""
        return {
            "id": self.id,
            "state": self.state.value,
            "to": self.order.to,
            "hosts": [member.host_id for member in self.targets],
            "objects": len(self.items),
        }

    def detail(self) -> dict[str, Any]:
        """Return all of it as JSON values: objects by their canonical names, and how far each host is."""
        return {**self.summary(), "items": [_item_json(item) for item in self.items]}

    def under_way(self) -> list[tuple[str, str]]:
        """Return the fetches that are not over yet: (version id, host id)."""
        if self.over or self.cancelled:
            return []
        return [
            (item.version.id, host_id)
            for item in self.items
            if item.version is not None
            for host_id, cell in item.hosts.items()
            if not cell.state.over
        ]


def _item_json(item: Item) -> dict[str, Any]:
    return {
        "task_id": item.task.id,
        "object": item.task.canonical,
        "version_id": item.version.id if item.version else None,
        "length": item.version.length if item.version else None,
        "error": item.error,
        "hosts": [
            {
                "host_id": host_id,
                "state": cell.state.value,
                "pieces": cell.pieces,
                "pieces_held": cell.pieces_held,
                "bytes_held": cell.bytes_held,
                "error": cell.error,
            }
            for host_id, cell in item.hosts.items()
        ],
    }


def chosen(members: Sequence[Member], to: str, *, key: str) -> tuple[Member, ...]:
    """Return the hosts that `to` means, as in Order; a number picks peers first, by rendezvous hashing of `key`.

    Raises BadRequestError for what means nothing, or nobody.
    """
    name, equals, value = to.partition("=")
    if to == "all":
        found = list(members)
    elif to == "seeds":
        found = [member for member in members if member.seed]
    elif equals and name:
        found = [member for member in members if member.labels.get(name) == value]
    elif to.isascii() and to.isdigit() and 0 < int(to) <= 10**6:
        ranked = sorted(in_order(members, key), key=lambda member: member.seed)
        found = ranked[: int(to)]
        if len(found) < int(to):
            raise BadRequestError(f"{to} hosts are asked for, and {len(found)} are connected to this scheduler")
    else:
        raise BadRequestError(f"{to!r} names no hosts; write seeds, all, label=value or a number")
    if not found:
        raise BadRequestError(f"no host that is connected to this scheduler is meant by {to!r}")
    return tuple(found)
