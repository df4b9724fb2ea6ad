"""The peer's HTTP endpoints for people and machines: health, metrics, and what this host has.

GET    /healthz              the process runs its loop
GET    /readyz               requests are taken; says which schedulers can be reached (a peer works without)
GET    /metrics              Prometheus
GET    /v1/tasks/{task_id}   what this host has of a task: versions, pieces, bytes by source
DELETE /v1/tasks/{task_id}   remove it from this host          (admin: needs the cluster secret, where there is one)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict

from aiohttp import web

from p2p.auth import ClusterSecret
from p2p.endpoints import admin_only, daemon_application
from peer.store import Store
from peer.tasks import TaskManager


def application(
    tasks: TaskManager,
    store: Store,
    *,
    schedulers: Callable[[], Mapping[str, bool]],
    secret: ClusterSecret | None,
    ready: Callable[[], bool],
) -> web.Application:
    """Return the application; `ready` tells whether the peer takes requests (false while it drains)."""

    def state() -> dict[str, object]:
        return {
            "schedulers": {address: "connected" if up else "unreachable" for address, up in schedulers().items()},
            "store": asdict(store.stats()),
        }

    async def show(request: web.Request) -> web.Response:
        task_id = request.match_info["task_id"]
        versions = await tasks.status(task_id)
        if not versions:
            return web.json_response({"error": f"this host has nothing of task {task_id}"}, status=404)
        by_source = {
            "origin": sum(row.bytes_from_origin for row in versions),
            "parents": sum(row.bytes_from_parents for row in versions),
        }
        body = {"task_id": task_id, "bytes_by_source": by_source, "versions": [asdict(row) for row in versions]}
        return web.json_response(body)

    async def remove(request: web.Request) -> web.Response:
        removed = await tasks.remove(request.match_info["task_id"])
        return web.json_response({"removed": list(removed)})

    app = daemon_application(ready=ready, state=state)
    app.add_routes(
        [
            web.get("/v1/tasks/{task_id:[0-9a-f]{64}}", show),
            web.delete("/v1/tasks/{task_id:[0-9a-f]{64}}", admin_only(secret, remove)),
        ]
    )
    return app
