"""The scheduler's HTTP endpoints for people and machines.

GET /healthz      the process runs its loop
GET /readyz       sessions are taken (503 while it starts or stops); which schedulers there are, and what is degraded
GET /metrics      Prometheus
GET /v1/swarms    every host, and how far every version is      (admin: needs the cluster secret, where there is one)
GET /v1/origins   the origins with a budget: who has which share, and what was done there lately     (admin, likewise)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict

from aiohttp import web

from p2p.auth import ClusterSecret
from p2p.endpoints import admin_only, daemon_application
from scheduler.driver import Driver


def application(
    driver: Driver,
    *,
    secret: ClusterSecret | None,
    ready: Callable[[], bool],
    state: Callable[[], Mapping[str, object]] = dict,
) -> web.Application:
    """Return the application; `ready` tells whether the scheduler takes sessions, `state` what /readyz adds to that."""

    async def swarms(_: web.Request) -> web.Response:
        return web.json_response(
            {
                "hosts": [asdict(host) for host in driver.hosts()],
                "swarms": [asdict(swarm) for swarm in driver.swarms()],
            }
        )

    async def origins(_: web.Request) -> web.Response:
        return web.json_response({"origins": [asdict(origin) for origin in driver.origins()]})

    app = daemon_application(ready=ready, state=state)
    app.add_routes(
        [
            web.get("/v1/swarms", admin_only(secret, swarms)),
            web.get("/v1/origins", admin_only(secret, origins)),
        ]
    )
    return app
