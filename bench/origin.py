"""The bench's origin: an object store in one process, with presigned URLs, shaped speed, counters and faults.

`python -m bench.origin --profile gateway` prints one JSON line with its address when it listens. Objects are synthetic
(`bench.content`) and made over HTTP:

    POST   /_bench/objects {"name", "size", "seed": 0, "sha256": false}   -> url, xxh3_128, etag, bytes, sha256
    POST   /_bench/trees   {"name", "count", "size"}                      -> urls of name/0, name/1, …
    POST   /_bench/urls    {"name"}                                       -> another presigned url of the same object
    GET    /_bench/stats                                                  -> the fields of `Stats`
    GET    /_bench/windows                                                -> requests in each 100 ms since the reset
    POST   /_bench/reset                                                  clears counters and faults
    POST   /_bench/faults  the fields of `Fault`                          what happens to requests from now on
    DELETE /_bench/faults                                                 forgets them; stalled responses go on

Making an object again overwrites it: other bytes, another ETag, the same URLs. As with any presigned URL, the signature
covers the request target byte for byte and the method: everything but a GET of exactly that URL is 403. S3's clients
may sign GET and HEAD requests of `/bench/NAME` themselves, with the key of `bench.sigv4`.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Annotated, Any, Literal
from urllib.parse import quote, unquote

import typer
import uvloop
from aiohttp import web

from bench.conditions import asks_one_byte, decide
from bench.content import SyntheticObject
from bench.shaping import PROFILES, Pacer, Profile
from bench.sigv4 import allows, presigned
from bench.traffic import WINDOW_SECONDS, Coverage, Traffic
from p2p.errors import ConfigError

BUCKET = "bench"
_URL_SECONDS = 604800


@dataclass(slots=True)
class Stats:
    """What the origin has done; `requests` and `statuses` leave out the `one_byte_requests`, the peers' checks.

    `repeated_bytes` are those of the `body_bytes` that had been sent before, `stalls` the answers that a fault held up,
    and `peak_requests` the most requests of either kind that were being answered at once since the last reset.
    `first_byte_at` is when the first byte of a longer answer than that to a check left since then: seconds of the
    machine's monotonic clock; 0 before.
    """

    requests: int = 0
    one_byte_requests: int = 0
    connections: int = 0
    body_bytes: int = 0
    repeated_bytes: int = 0
    peak_requests: int = 0
    stalls: int = 0
    first_byte_at: float = 0.0
    statuses: dict[str, int] = field(default_factory=dict)

    def since(self, earlier: Stats) -> Stats:
        """Return what was counted after `earlier`."""
        return Stats(
            requests=self.requests - earlier.requests,
            one_byte_requests=self.one_byte_requests - earlier.one_byte_requests,
            connections=self.connections - earlier.connections,
            body_bytes=self.body_bytes - earlier.body_bytes,
            repeated_bytes=self.repeated_bytes - earlier.repeated_bytes,
            peak_requests=self.peak_requests,
            stalls=self.stalls - earlier.stalls,
            first_byte_at=self.first_byte_at,
            statuses={
                status: more
                for status, count in self.statuses.items()
                if (more := count - earlier.statuses.get(status, 0))
            },
        )


@dataclass(slots=True)
class Fault:
    """What goes wrong with the next `requests` requests that ask for more than `after_bytes` bytes.

    With a `fraction` it is that share of all such requests instead, drawn with `seed`, until the faults are cleared;
    several of these may be set at the same time, and a request suffers at most one.
    `status`: answered with that status and no bytes. `cut`: the connection ends after `after_bytes` bytes of the body.
    `stall`: nothing follows them until the faults are cleared.
    """

    kind: Literal["status", "cut", "stall"]
    requests: int = 1
    after_bytes: int = 0
    status: int = 503
    fraction: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("status", "cut", "stall"):
            raise ValueError(f"no such kind of fault: {self.kind!r}")
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"a fraction of {self.fraction} of all requests")


@dataclass(frozen=True, slots=True)
class _Stored:
    content: SyntheticObject
    last_modified: datetime
    sent: Coverage = field(default_factory=Coverage)


class _Server(web.Server):
    """Forgets a connection's pacer when the connection is gone."""

    def __init__(self, origin: Origin) -> None:
        super().__init__(origin.handle, handler_cancellation=True, access_log=None)
        self._origin = origin

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        self._origin.forget(handler)
        super().connection_lost(handler, exc)


class Origin:
    """Objects, counters, faults and pacing of one origin; `serve` puts it on a socket."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.stats = Stats()
        self._traffic = Traffic(time.monotonic())
        self._objects: dict[str, _Stored] = {}
        self._total = Pacer(profile.total_rate)
        self._pacers: dict[object, Pacer] = {}
        self._fault: Fault | None = None
        self._lasting: list[tuple[Fault, random.Random]] = []
        self._released = asyncio.Event()
        self._issued = 0

    def create(self, name: str, size: int, *, seed: int = 0) -> SyntheticObject:
        """Make an object of `size` bytes, or overwrite it with other bytes and another ETag."""
        if size < 0:
            raise ValueError(f"an object cannot have {size} bytes")
        old = self._objects.get(name)
        content = SyntheticObject(name, size, seed, old.content.generation + 1 if old else 0)
        self._objects[name] = _Stored(content, datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=1))
        return content

    def presign(self, name: str, host: str) -> str:
        """Return a URL of the object on `host` ("name:port"), different from all that were returned before."""
        issued = datetime.now(UTC) - timedelta(seconds=self._issued)
        self._issued += 1
        return f"http://{host}" + presigned(f"/{BUCKET}/{quote(name)}", host, at=issued, seconds=_URL_SECONDS)

    def set_fault(self, fault: Fault | None) -> None:
        """Let `fault` happen from now on, in the place of a counted one before it; None: none, and what stalls goes on.

        A counted one lets what stalls go on as well.
        """
        if fault is not None and fault.fraction:
            self._lasting.append((fault, random.Random(fault.seed)))  # noqa: S311  # the same faults in each run
            return
        self._fault = fault
        if fault is None:
            self._lasting.clear()
        self._released.set()
        self._released = asyncio.Event()

    def reset(self) -> None:
        """Forget all counts and faults."""
        self.stats = Stats()
        self._traffic = Traffic(time.monotonic())
        for stored in self._objects.values():
            stored.sent.clear()
        self.set_fault(None)

    def forget(self, connection: object) -> None:
        """Drop what is kept for a connection that is gone."""
        self._pacers.pop(connection, None)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        if request.raw_path.startswith("/_bench/"):
            return await self._administer(request)
        if request.protocol not in self._pacers:
            self._pacers[request.protocol] = Pacer(self.profile.connection_rate)
            self.stats.connections += 1
        with self._traffic.request(time.monotonic()):
            response = await self._answer(request)
        if not asks_one_byte(request.headers):
            status = str(response.status)
            self.stats.statuses[status] = self.stats.statuses.get(status, 0) + 1
        return response

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        one_byte = asks_one_byte(request.headers)
        self.stats.one_byte_requests += one_byte
        self.stats.requests += not one_byte
        if self.profile.first_byte_seconds:
            await asyncio.sleep(self.profile.first_byte_seconds)
        if request.method not in ("GET", "HEAD") or not allows(request.method, request.raw_path, request.headers):
            return _error(403, "SignatureDoesNotMatch")
        stored = self._objects.get(unquote(request.raw_path.partition("?")[0].removeprefix(f"/{BUCKET}/")))
        if stored is None:
            return _error(404, "NoSuchKey")
        content = stored.content
        answer = decide(request.headers, length=content.length, etag=content.etag, last_modified=stored.last_modified)
        fault = self._take_fault(answer.stop - answer.start)
        if fault is not None and fault.kind == "status":
            return _error(fault.status, "InjectedFault")
        headers = {
            "ETag": content.etag,
            "Last-Modified": format_datetime(stored.last_modified, usegmt=True),
            "Accept-Ranges": "bytes",
            "Content-Type": "binary/octet-stream",
        }
        if answer.status == 304:
            return web.Response(status=304, headers=headers)
        if answer.status == 412:
            return _error(412, "PreconditionFailed")
        if answer.status == 416:
            return _error(416, "InvalidRange", {"Content-Range": f"bytes */{content.length}"})
        if answer.status == 206:
            headers["Content-Range"] = f"bytes {answer.start}-{answer.stop - 1}/{content.length}"
        response = web.StreamResponse(status=answer.status, headers=headers)
        response.content_length = answer.stop - answer.start
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        if fault is None:
            await self._send(request, response, stored, answer.start, answer.stop)
            return response
        middle = answer.start + fault.after_bytes
        await self._send(request, response, stored, answer.start, middle)
        if fault.kind == "cut":
            if request.transport is not None:
                request.transport.close()
            return response
        self.stats.stalls += 1
        # Bound to the connection: the handler is cancelled when its client goes away.
        await self._released.wait()
        await self._send(request, response, stored, middle, answer.stop)
        return response

    async def _send(
        self, request: web.BaseRequest, response: web.StreamResponse, stored: _Stored, start: int, stop: int
    ) -> None:
        own = self._pacers[request.protocol]
        chunk = min(own.chunk_bytes, self._total.chunk_bytes)
        sent = start
        try:
            for view in stored.content.slices(start, stop, chunk):
                # One after the other: a reservation of the shared rate that waited for the connection's own would hold
                # up everyone else.
                await _until(own.reserve(len(view), time.monotonic()))
                await _until(self._total.reserve(len(view), time.monotonic()))
                # Counted when it is handed over: whoever has read the last byte finds it counted.
                sent += len(view)
                self.stats.body_bytes += len(view)
                if stop - start > 1:
                    self.stats.first_byte_at = self.stats.first_byte_at or time.monotonic()
                await response.write(view)
        finally:
            self.stats.repeated_bytes += stored.sent.add(start, sent)

    def _take_fault(self, length: int) -> Fault | None:
        # Every lasting fault draws for every request, so that what one of them hits does not depend on the others.
        hit = [fault for fault, draw in self._lasting if length > fault.after_bytes and draw.random() < fault.fraction]
        if hit:
            return hit[0]
        fault = self._fault
        if fault is None or length <= fault.after_bytes:
            return None
        fault.requests -= 1
        if fault.requests <= 0:
            self._fault = None
        return fault

    async def _administer(self, request: web.BaseRequest) -> web.StreamResponse:
        action = (request.method, request.raw_path.removeprefix("/_bench/"))
        try:
            if action == ("GET", "stats"):
                return web.json_response({**asdict(self.stats), "peak_requests": self._traffic.peak})
            if action == ("GET", "windows"):
                windows = self._traffic.windows()
                return web.json_response({"window_seconds": WINDOW_SECONDS, "requests": windows})
            if action == ("POST", "reset"):
                self.reset()
                return web.json_response({})
            if action == ("DELETE", "faults"):
                self.set_fault(None)
                return web.json_response({})
            body: dict[str, Any] = await request.json() if request.method == "POST" else {}
            if action == ("POST", "faults"):
                self.set_fault(Fault(**body))
                return web.json_response({})
            if action == ("POST", "urls") and body["name"] in self._objects:
                return web.json_response({"url": self.presign(body["name"], request.host)})
            if action == ("POST", "trees"):
                return web.json_response({"urls": self._tree(request.host, **body)})
            if action == ("POST", "objects"):
                return web.json_response(await self._create(request.host, **body))
        except (ValueError, TypeError, KeyError) as error:
            return web.json_response({"error": repr(error)}, status=400)
        return web.json_response({"error": f"no {request.method} {request.raw_path}"}, status=404)

    def _tree(self, host: str, name: str, count: int, size: int) -> list[str]:
        names = [f"{name}/{number}" for number in range(count)]
        for each in names:
            self.create(each, size)
        return [self.presign(each, host) for each in names]

    async def _create(self, host: str, name: str, size: int, seed: int = 0, sha256: bool = False) -> dict[str, Any]:
        content = self.create(name, size, seed=seed)
        return {
            "url": self.presign(name, host),
            "etag": content.etag,
            "bytes": content.length,
            "xxh3_128": await asyncio.to_thread(content.xxh3_128),
            "sha256": await asyncio.to_thread(content.sha256) if sha256 else None,
        }


@asynccontextmanager
async def serve(origin: Origin, *, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Listen while the context lasts; gives the address that was bound ("host:port"). Raises ConfigError if taken."""
    runner = web.ServerRunner(_Server(origin), shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from error
        yield f"{host}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def profile_named(name: str) -> Profile:
    """Return the profile called `name`; raises ConfigError."""
    if name not in PROFILES:
        raise ConfigError(f"origin profile {name!r} is not one of {', '.join(PROFILES)}")
    return PROFILES[name]


async def _until(moment: float) -> None:
    # A timer of uvloop is good to a millisecond; the pacer's times are absolute, so that does not add up.
    delay = moment - time.monotonic()
    if delay > 0:
        await asyncio.sleep(delay)


def _error(status: int, code: str, headers: dict[str, str] | None = None) -> web.Response:
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code></Error>\n'
    return web.Response(status=status, text=text, content_type="application/xml", headers=headers)


async def _run(profile: Profile, host: str, port: int) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with serve(Origin(profile), host=host, port=port) as address:
        sys.stdout.write(json.dumps({"event": "ready", "http": address, "profile": profile.name}) + "\n")
        sys.stdout.flush()
        await stopped.wait()


def main(
    profile: Annotated[str, typer.Option(help="How fast: gateway, s3 or unlimited.")] = "gateway",
    port: Annotated[int, typer.Option(help="Where to listen; 0 takes any free port.")] = 0,
    host: Annotated[str, typer.Option(help="Which address to listen on; there is no access control.")] = "127.0.0.1",
) -> None:
    """Run a synthetic object store with presigned URLs, and print its address as one JSON line."""
    try:
        uvloop.run(_run(profile_named(profile), host, port))
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    typer.run(main)
