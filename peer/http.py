"""The peer's HTTP endpoints for people and machines: health, metrics, and what this host has.

GET    /healthz              the process runs its loop
GET    /readyz               requests are taken; says which schedulers can be reached (a peer works without)
GET    /metrics              Prometheus
GET    /v1/tasks/{task_id}   what this host has of a task: versions, pieces, bytes by source
DELETE /v1/tasks/{task_id}   remove it from this host          (admin: needs the cluster secret, where there is one)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from p2p.auth import ClusterSecret, bearer_token
from p2p.errors import UnauthorizedError
from p2p.telemetry import REGISTRY
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

    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"healthy": True})

    async def readyz(_: web.Request) -> web.Response:
        stats = store.stats()
        state = {
            "ready": ready(),
            "schedulers": {address: "connected" if up else "unreachable" for address, up in schedulers().items()},
            "store": asdict(stats),
        }
        return web.json_response(state, status=200 if ready() else 503)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})

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
        if secret is not None:
            try:
                secret.verify(bearer_token(request.headers.get("Authorization", "")), "admin", now=time.time())
            except UnauthorizedError as error:
                return web.json_response({"error": str(error)}, status=401)
        removed = await tasks.remove(request.match_info["task_id"])
        return web.json_response({"removed": list(removed)})

    app = web.Application()
    app.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/metrics", metrics),
            web.get("/v1/tasks/{task_id:[0-9a-f]{64}}", show),
            web.delete("/v1/tasks/{task_id:[0-9a-f]{64}}", remove),
        ]
    )
    return app
