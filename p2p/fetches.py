"""What schedulers order hosts to fetch, and what hosts say they hold, as JSON on the host API (`p2p.hostapi`).

POST   /v1/fetches {task, version, source, pin, checksum}   202: the version is brought here in the background
GET    /v1/fetches                                  {"fetches": [FetchState]}, those that ended lately included
DELETE /v1/fetches/{version_id}                     ends one; what landed stays
GET    /v1/held[?task_id=]                          {"held": [HeldVersion]}
DELETE /v1/held/{task_id}                           {"removed": [version_id]}
PUT    /v1/pins/{task_id}, DELETE likewise          {"versions": number}

A row names its object by the canonical form of its task, which holds no secret; an order may hold a caller's signature
and is never logged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from p2p.checksums import Checksum
from p2p.control import Source
from p2p.errors import BadRequestError
from p2p.hostapi import Fields, source_from_json, source_to_json, store_from_json, version_from_json, version_to_json
from p2p.identity import Task, identify
from p2p.native import is_native, parse_native
from p2p.versions import Version


class State(StrEnum):
    """How far a fetch is."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def over(self) -> bool:
        """Whether nothing more comes of it."""
        return self in (State.DONE, State.FAILED, State.CANCELLED)


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """One version that a host is to bring to itself, whole; `pin` it then against eviction.

    `checksum` is the store's word on all its bytes, if it has given one.
    """

    task: Task
    version: Version
    source: Source
    pin: bool = False
    checksum: Checksum | None = None


@dataclass(frozen=True, slots=True)
class FetchState:
    """How far a host is with a version that it was told to fetch; `bytes_held` of `length` bytes."""

    version_id: str
    task_id: str
    object: str
    state: State
    pieces: int
    pieces_held: int
    length: int
    bytes_held: int
    error: str


@dataclass(frozen=True, slots=True)
class HeldVersion:
    """What a host has of one version: ages in seconds, `pinned` against eviction, `in_use` by somebody now."""

    task_id: str
    object: str
    version_id: str
    length: int
    pieces: int
    pieces_held: int
    bytes_held: int
    age_seconds: float
    used_seconds: float
    pinned: bool
    in_use: bool


def asked_for(
    url: str,
    *,
    headers: Fields = (),
    filters: Iterable[str] = (),
    tag: str = "",
    application: str = "",
) -> tuple[Task, Source]:
    """Return the task and the source of what a person named: a native name, or an http(s) URL as it stands.

    What a native name stands for is asked with the fleet's own credentials. Raises BadRequestError.
    """
    if not is_native(url):
        return identify(url, filters=filters, tag=tag, application=application), Source(url, headers)
    place = parse_native(url)
    task = identify(place.url, filters=filters, tag=tag, application=application, store=place.store)
    return task, Source(place.url, headers, place.store)


def fetch_to_json(request: FetchRequest) -> dict[str, object]:
    """Return an order to fetch as JSON values."""
    task = request.task
    return {
        "task": {"id": task.id, "canonical": task.canonical, "store": task.store.value},
        "version": version_to_json(request.version),
        "source": source_to_json(request.source),
        "pin": request.pin,
        "checksum": str(request.checksum) if request.checksum else None,
    }


def fetch_from_json(value: object) -> FetchRequest:
    """Return the order that JSON values hold. Raises BadRequestError, also for a version of another task."""
    match value:
        case {"task": {"id": str(id_), "canonical": str(canonical), "store": store}, "pin": bool(pin), **rest}:
            task = Task(id_, canonical, store_from_json(store))
        case _:
            raise BadRequestError("the order has no task {id, canonical, store}, or no pin (true or false)")
    version = version_from_json(rest.get("version"))
    if version.task_id != task.id:
        raise BadRequestError(f"the version is of task {version.task_id!r}, not of {task.id!r}")
    word = rest.get("checksum")
    checksum = None if word is None else Checksum.parse(str(word))
    return FetchRequest(task, version, source_from_json(rest.get("source")), pin, checksum)


def row_to_json(row: FetchState | HeldVersion) -> dict[str, object]:
    """Return a row of an answer as JSON values."""
    return asdict(row)


def fetch_state_from_json(value: object) -> FetchState:
    """Return the state of a fetch that JSON values hold. Raises BadRequestError."""
    found = _row(FetchState, value)
    try:
        return FetchState(**{**found, "state": State(found["state"])})
    except ValueError:
        raise BadRequestError(f"the state of a fetch is none of {', '.join(State)}") from None


def held_from_json(value: object) -> HeldVersion:
    """Return what a host says it holds. Raises BadRequestError."""
    return HeldVersion(**_row(HeldVersion, value))


_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "str": str,
    "State": str,
    "int": int,
    "float": (int, float),
    "bool": bool,
}


def _row(kind: type[FetchState] | type[HeldVersion], value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRequestError(f"a {kind.__name__} is not a JSON object")
    for field in fields(kind):
        if not isinstance(value.get(field.name), _KINDS[str(field.type)]):
            raise BadRequestError(f"{field.name!r} of a {kind.__name__} is missing, or not of the type {field.type}")
    return {field.name: value[field.name] for field in fields(kind)}
