"""The HTTP endpoints that every daemon has for people and machines, and the one way into those that are the operator's.

GET /healthz   the process runs its loop
GET /readyz    whether it takes work, and what it says of itself; 503 if not
GET /metrics   Prometheus
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from p2p.auth import ClusterSecret, bearer_token
from p2p.errors import UnauthorizedError
from p2p.telemetry import REGISTRY

ADMIN_PURPOSE = "admin"
"""What a cluster token must be signed for to open an admin endpoint."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def daemon_application(
    *, ready: Callable[[], bool], state: Callable[[], Mapping[str, object]] = dict
) -> web.Application:
    """Return an application with the common endpoints; `state` is what /readyz adds to `ready`."""

    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"healthy": True})

    async def readyz(_: web.Request) -> web.Response:
        return web.json_response({"ready": ready(), **state()}, status=200 if ready() else 503)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    return app


def admin_only(secret: ClusterSecret | None, handler: Handler) -> Handler:
    """Return a handler that answers 401 to whoever lacks the cluster secret, where there is one."""

    async def guarded(request: web.Request) -> web.StreamResponse:
        if secret is not None:
            try:
                secret.verify(bearer_token(request.headers.get("Authorization", "")), ADMIN_PURPOSE, now=time.time())
            except UnauthorizedError as error:
                return web.json_response({"error": str(error)}, status=401)
        return await handler(request)

    return guarded
