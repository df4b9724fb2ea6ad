"""What the cluster's members ask of this host besides pieces, on the piece port (`p2p.hostapi`, `p2p.fetches`).

It answers whoever proves to know the cluster secret with a token for this purpose; a cluster without one listens on
loopback only. What is asked of origins on behalf of others is asked by this host itself and never handed on.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Protocol

from aiohttp import web

from p2p.auth import ClusterSecret, bearer_token
from p2p.control import Source
from p2p.errors import (
    BadRequestError,
    DamselflyError,
    DeniedError,
    OriginError,
    StoppingError,
    StoreFullError,
    UnauthorizedError,
)
from p2p.fetches import fetch_from_json, row_to_json
from p2p.hostapi import (
    HOST_PURPOSE,
    JSON_BYTES,
    Listed,
    Probe,
    error_to_json,
    listed_to_json,
    probe_to_json,
    source_from_json,
    store_from_json,
)
from p2p.stores import Store as StoreKind
from p2p.telemetry import logger
from peer.fetches import Fetches
from peer.store import Store

log = logger(__name__)

_CHUNK_BYTES = 64 * 1024

_STATUS: tuple[tuple[type[DamselflyError], int], ...] = (
    (BadRequestError, 400),
    (UnauthorizedError, 401),
    (DeniedError, 403),
    (OriginError, 502),
    (StoppingError, 503),
    (StoreFullError, 507),
)

Answer = Callable[[web.BaseRequest, str], Awaitable[web.StreamResponse]]


class Prober(Protocol):
    """Asks origins for one byte; `peer.source.http.Prober` does."""

    async def probe(self, source: Source, task_id: str) -> Probe:
        """Return what the origin's answer means for a task."""


class Lister(Protocol):
    """Lists what is under a prefix, by this host's own credentials."""

    def __call__(self, url: str, store: StoreKind) -> AsyncGenerator[Listed, None]:
        """Yield every object under the prefix that a plain URL names."""


class Remover(Protocol):
    """Removes content; `peer.tasks.TaskManager` does."""

    async def remove(self, task_id: str) -> tuple[str, ...]:
        """Remove every version of a task and return their ids."""


class HostApi:
    """Answers the requests of other members. `clock` gives Unix seconds, for the tokens' expiry."""

    def __init__(
        self,
        *,
        prober: Prober,
        lister: Lister,
        fetches: Fetches,
        tasks: Remover,
        store: Store,
        secret: ClusterSecret | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._prober = prober
        self._lister = lister
        self._fetches = fetches
        self._tasks = tasks
        self._store = store
        self._secret = secret
        self._clock = clock
        self._routes: tuple[tuple[str, re.Pattern[str], Answer], ...] = tuple(
            (method, re.compile(path), answer)
            for method, path, answer in (
                ("POST", r"/v1/(probe)", self._probe),
                ("POST", r"/v1/(list)", self._list),
                ("GET", r"/v1/(fetches)", self._states),
                ("POST", r"/v1/(fetches)", self._begin),
                ("DELETE", r"/v1/fetches/([0-9a-f]{32})", self._cancel),
                ("GET", r"/v1/(held)", self._held),
                ("DELETE", r"/v1/held/([0-9a-f]{64})", self._remove),
                ("PUT", r"/v1/pins/([0-9a-f]{64})", self._pin),
                ("DELETE", r"/v1/pins/([0-9a-f]{64})", self._unpin),
            )
        )

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse | None:
        """Answer a request, or return None if it is not for this API."""
        for method, path, answer in self._routes:
            match = path.fullmatch(request.path)
            if match is not None and method == request.method:
                try:
                    self._authorize(request)
                    return await answer(request, match[1])
                except DamselflyError as error:
                    return _refusal(error)
        return None

    def _authorize(self, request: web.BaseRequest) -> None:
        if self._secret is not None:
            token = bearer_token(request.headers.get("Authorization", ""))
            self._secret.verify(token, HOST_PURPOSE, now=self._clock())

    async def _probe(self, request: web.BaseRequest, _: str) -> web.StreamResponse:
        asked = await _body(request)
        task_id = asked.get("task_id")
        if not isinstance(task_id, str):
            raise BadRequestError("task_id is missing, or not a string")
        return web.json_response(
            probe_to_json(await self._prober.probe(source_from_json(asked.get("source")), task_id))
        )

    async def _list(self, request: web.BaseRequest, _: str) -> web.StreamResponse:
        """Send a listing as pages come; what fails before the first entry is a status, later it is the last line."""
        asked = await _body(request)
        url = asked.get("url")
        if not isinstance(url, str):
            raise BadRequestError("url is missing, or not a string")
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        async with aclosing(self._lister(url, store_from_json(asked.get("store")))) as entries:
            lines = bytearray()
            try:
                async for entry in entries:
                    lines += _line(listed_to_json(entry))
                    if not response.prepared:
                        await response.prepare(request)
                    if len(lines) >= _CHUNK_BYTES:
                        await response.write(bytes(lines))
                        lines.clear()
            except DamselflyError as error:
                if not response.prepared:
                    raise
                lines += _line(error_to_json(error))
            if not response.prepared:
                await response.prepare(request)
            await response.write(bytes(lines))
        await response.write_eof()
        return response

    async def _states(self, request: web.BaseRequest, _: str) -> web.StreamResponse:
        return web.json_response({"fetches": [row_to_json(row) for row in self._fetches.states()]})

    async def _begin(self, request: web.BaseRequest, _: str) -> web.StreamResponse:
        order = fetch_from_json(await _body(request))
        self._fetches.begin(order)
        return web.json_response({"version_id": order.version.id}, status=202)

    async def _cancel(self, request: web.BaseRequest, version_id: str) -> web.StreamResponse:
        return web.json_response({"cancelled": self._fetches.cancel(version_id)})

    async def _held(self, request: web.BaseRequest, _: str) -> web.StreamResponse:
        rows = await self._store.held(request.query.get("task_id"))
        return web.json_response({"held": [row_to_json(row) for row in rows]})

    async def _remove(self, request: web.BaseRequest, task_id: str) -> web.StreamResponse:
        for row in self._fetches.states():
            if row.task_id == task_id:
                self._fetches.cancel(row.version_id)
        return web.json_response({"removed": list(await self._tasks.remove(task_id))})

    async def _pin(self, request: web.BaseRequest, task_id: str) -> web.StreamResponse:
        return web.json_response({"versions": await self._store.pin(task_id)})

    async def _unpin(self, request: web.BaseRequest, task_id: str) -> web.StreamResponse:
        return web.json_response({"versions": await self._store.unpin(task_id)})


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


async def _body(request: web.BaseRequest) -> dict[str, object]:
    if (request.content_length or 0) > JSON_BYTES:
        raise BadRequestError(f"the request is longer than {JSON_BYTES} bytes")
    try:
        value = json.loads(await request.read())
    except ValueError:
        value = None
    except web.HTTPRequestEntityTooLarge:
        raise BadRequestError("the request is too long") from None
    if not isinstance(value, dict):
        raise BadRequestError("the request is not a JSON object")
    return value


def _refusal(error: DamselflyError) -> web.Response:
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    log.info("refused another host", status=status, error=str(error))
    return web.json_response(error_to_json(error), status=status)
