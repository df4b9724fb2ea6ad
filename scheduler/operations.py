"""What operators do with the fleet's content, over HTTP (JSON; needs the cluster secret, where there is one).

POST   /v1/preheats        {urls, recursive, to, pin, headers, filters, tag, application} -> 201 and the job
GET    /v1/preheats        all jobs, a line each; GET /v1/preheats/{id}: one, by object and host
DELETE /v1/preheats/{id}   cancels a job: running fetches stop, what landed stays (202: another scheduler will)
GET    /v1/tasks           what the fleet holds, by version; ?prefix= of the object's canonical name or the task's id
GET    /v1/tasks/{id}      who holds what of a task
DELETE /v1/tasks/{id}      removes it from every host
PUT    /v1/pins/{id}       keeps it from eviction wherever it is; DELETE lets go of it

`unreachable` has, by host id, why a host gave no answer. URLs and headers of a preheat are shown nowhere.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from aiohttp import web

from p2p.auth import ClusterSecret
from p2p.endpoints import admin_only
from p2p.errors import BadRequestError, DamselflyError, StoppingError
from p2p.fetches import HeldVersion, row_to_json
from p2p.hostapi import Fields
from scheduler.fleet import Fleet, Member, ask_all
from scheduler.jobs import Order
from scheduler.preheat import Preheats

_TASK = "{task_id:[0-9a-f]{64}}"
_JOB = "{job_id:[0-9a-f]+}"

_FIELDS = frozenset({"urls", "recursive", "to", "pin", "headers", "filters", "tag", "application"})

T = TypeVar("T")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Elsewhere(Protocol):
    """What other schedulers do, or did; `scheduler.board.Board` is it."""

    def summaries(self) -> list[dict[str, Any]]:
        """Return their jobs, a line each."""

    async def detail(self, job_id: str) -> dict[str, Any] | None:
        """Return how far one of their jobs is, or None if there is none."""

    async def cancel(self, job_id: str) -> None:
        """Have one of their jobs ended."""

    def pin(self, task_id: str, pinned: bool) -> None:
        """Remember for hosts that are away that a task is to be kept, or no more."""


def routes(
    fleet: Fleet, preheats: Preheats, *, secret: ClusterSecret | None, elsewhere: Elsewhere | None = None
) -> list[web.RouteDef]:
    """Return the routes of these endpoints."""

    async def begin(request: web.Request) -> web.Response:
        return web.json_response(preheats.begin(await _order(request)).detail(), status=201)

    async def jobs(_: web.Request) -> web.Response:
        others = elsewhere.summaries() if elsewhere else []
        return web.json_response({"preheats": [*others, *(job.summary() for job in preheats.jobs())]})

    async def job(request: web.Request) -> web.Response:
        job_id = request.match_info["job_id"]
        if (known := preheats.job(job_id)) is not None:
            return web.json_response(known.detail())
        return web.json_response(await others(job_id))

    async def cancel(request: web.Request) -> web.Response:
        job_id = request.match_info["job_id"]
        if (known := preheats.job(job_id)) is not None:
            await preheats.cancel(known)
            return web.json_response(known.detail())
        detail = await others(job_id)
        if elsewhere is not None:
            await elsewhere.cancel(job_id)
        return web.json_response(detail, status=202)

    async def others(job_id: str) -> dict[str, Any]:
        detail = await elsewhere.detail(job_id) if elsewhere else None
        if detail is None:
            text = json.dumps({"error": f"no preheat {job_id} is known; jobs do not outlive the only scheduler"})
            raise web.HTTPNotFound(text=text, content_type="application/json")
        return detail

    async def tasks(request: web.Request) -> web.Response:
        prefix = request.query.get("prefix", "")
        held, unreachable = await ask_all(fleet.members(), fleet.held)
        return web.json_response({"versions": _by_version(held, prefix), "unreachable": unreachable})

    async def task(request: web.Request) -> web.Response:
        task_id = request.match_info["task_id"]
        held, unreachable = await ask_all(fleet.members(), lambda host: fleet.held(host, task_id))
        rows = [{"host_id": host_id, **row_to_json(row)} for host_id, found in held.items() for row in found]
        return web.json_response({"task_id": task_id, "hosts": rows, "unreachable": unreachable})

    async def remove(request: web.Request) -> web.Response:
        return await everywhere(request, fleet.remove)

    async def pin(request: web.Request) -> web.Response:
        pinned = request.method == "PUT"
        if elsewhere is not None:
            elsewhere.pin(request.match_info["task_id"], pinned)
        return await everywhere(request, lambda host, task_id: fleet.pin(host, task_id, pinned))

    async def everywhere(request: web.Request, act: Callable[[Member, str], Awaitable[int]]) -> web.Response:
        task_id = request.match_info["task_id"]
        counts, unreachable = await ask_all(fleet.members(), lambda host: act(host, task_id))
        return web.json_response({"task_id": task_id, "versions": counts, "unreachable": unreachable})

    def guarded(handler: Handler) -> Handler:
        return admin_only(secret, _telling(handler))

    return [
        web.post("/v1/preheats", guarded(begin)),
        web.get("/v1/preheats", guarded(jobs)),
        web.get(f"/v1/preheats/{_JOB}", guarded(job)),
        web.delete(f"/v1/preheats/{_JOB}", guarded(cancel)),
        web.get("/v1/tasks", guarded(tasks)),
        web.get(f"/v1/tasks/{_TASK}", guarded(task)),
        web.delete(f"/v1/tasks/{_TASK}", guarded(remove)),
        web.put(f"/v1/pins/{_TASK}", guarded(pin)),
        web.delete(f"/v1/pins/{_TASK}", guarded(pin)),
    ]


def _telling(handler: Handler) -> Handler:
    """Answer the errors of a handler with a status and their text."""

    async def telling(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except DamselflyError as error:
            status = 400 if isinstance(error, BadRequestError) else 503 if isinstance(error, StoppingError) else 502
            return web.json_response({"error": str(error)}, status=status)

    return telling


async def _order(request: web.Request) -> Order:
    try:
        body: Any = await request.json()
    except ValueError:
        body = None
    except web.HTTPRequestEntityTooLarge:
        raise BadRequestError("the request is longer than 1 MiB; split the preheat, or name a prefix") from None
    urls = body.get("urls") if isinstance(body, dict) else None
    if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
        raise BadRequestError("the request is no JSON object with a list of strings 'urls'")
    if unknown := sorted(body.keys() - _FIELDS):
        raise BadRequestError(f"a preheat has no {unknown[0]!r}")
    return Order(
        urls=tuple(urls),
        recursive=_typed(body, "recursive", False),
        to=_typed(body, "to", "all"),
        pin=_typed(body, "pin", False),
        headers=_headers(_typed(body, "headers", [])),
        filters=tuple(map(str, _typed(body, "filters", []))),
        tag=_typed(body, "tag", ""),
        application=_typed(body, "application", ""),
    )


def _typed(body: Mapping[str, Any], name: str, default: T) -> T:
    value = body.get(name, default)
    if not isinstance(value, type(default)):
        raise BadRequestError(f"{name!r} of a preheat is not of the type {type(default).__name__}")
    return value


def _headers(pairs: list[Any]) -> Fields:
    fields = []
    for pair in pairs:
        match pair:
            case [str(name), str(value)]:
                fields.append((name, value))
            case _:
                raise BadRequestError("'headers' of a preheat is not a list of pairs of strings")
    return tuple(fields)


def _by_version(held: Mapping[str, Sequence[HeldVersion]], prefix: str) -> list[dict[str, Any]]:
    """Return a row a version, the names in order: how many hosts have all or some of it; the oldest copy's age."""
    copies: dict[str, list[HeldVersion]] = {}
    for rows in held.values():
        for row in rows:
            # A prefix may be a plain URL, of which nothing tells in which store's dialect its objects were asked for.
            if any(text.startswith(prefix) for text in (row.object, row.object.partition("+")[2], row.task_id)):
                copies.setdefault(row.version_id, []).append(row)
    found = [
        {
            "task_id": rows[0].task_id,
            "object": rows[0].object,
            "version_id": version_id,
            "length": rows[0].length,
            "complete": sum(row.pieces_held == row.pieces for row in rows),
            "partial": sum(row.pieces_held < row.pieces for row in rows),
            "pinned": sum(row.pinned for row in rows),
            "age_seconds": max(row.age_seconds for row in rows),
            "used_seconds": min(row.used_seconds for row in rows),
        }
        for version_id, rows in copies.items()
    ]
    return sorted(found, key=lambda row: (row["object"], row["version_id"]))
