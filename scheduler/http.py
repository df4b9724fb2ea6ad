"""The scheduler's HTTP endpoints for people and machines.

GET /healthz      the process runs its loop
GET /readyz       sessions are taken (503 while it starts or stops)
GET /metrics      Prometheus
GET /v1/swarms    every host, and how far every version is      (admin: needs the cluster secret, where there is one)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from p2p.auth import ClusterSecret, bearer_token
from p2p.errors import UnauthorizedError
from p2p.telemetry import REGISTRY
from scheduler.driver import Driver

ADMIN_PURPOSE = "admin"


def application(driver: Driver, *, secret: ClusterSecret | None, ready: Callable[[], bool]) -> web.Application:
    """Return the application; `ready` tells whether the scheduler takes sessions."""

    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"healthy": True})

    async def readyz(_: web.Request) -> web.Response:
        return web.json_response({"ready": ready()}, status=200 if ready() else 503)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def swarms(request: web.Request) -> web.Response:
        if secret is not None:
            try:
                secret.verify(bearer_token(request.headers.get("Authorization", "")), ADMIN_PURPOSE, now=time.time())
            except UnauthorizedError as error:
                return web.json_response({"error": str(error)}, status=401)
        return web.json_response(
            {
                "hosts": [asdict(host) for host in driver.hosts()],
                "swarms": [asdict(swarm) for swarm in driver.swarms()],
            }
        )

    app = web.Application()
    app.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/metrics", metrics),
            web.get("/v1/swarms", swarms),
        ]
    )
    return app
