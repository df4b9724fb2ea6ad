"""Asks hosts over HTTP: to probe and list, to fetch, and what they hold (`p2p.hostapi`, `p2p.fetches`)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp

from p2p.auth import ClusterSecret, authorization
from p2p.control import Source
from p2p.errors import BadRequestError, DamselflyError
from p2p.fetches import FetchRequest, FetchState, HeldVersion, fetch_state_from_json, fetch_to_json, held_from_json
from p2p.hostapi import (
    HOST_PURPOSE,
    PROBE_SECONDS,
    Listed,
    Probe,
    entry_from_json,
    error_from_json,
    probe_from_json,
    source_to_json,
)
from p2p.mtls import ClusterTls, explain, tls_error
from p2p.rendezvous import weight
from p2p.stores import Store

AT_ONCE = 64
"""How many hosts are asked at the same time."""

_CONNECT_SECONDS = 2.0
_ANSWER_SECONDS = 10.0
_LISTING_STALL_SECONDS = 60.0
_LINE_BYTES = 1024 * 1024

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Member:
    """A host of the fleet: what it is called, what to dial ("host:port"), whether it is a seed, and its labels."""

    host_id: str
    address: str
    seed: bool
    labels: Mapping[str, str]


class HostError(DamselflyError):
    """A host gave no answer that can be used; another one, or another try, may."""


class Fleet:
    """The hosts there are now, and what may be asked of each. Made inside the running loop.

    Every request has a deadline. Each method raises HostError where the host cannot be reached or makes no sense, and
    otherwise what the host itself raised. With `tls` hosts are spoken to by TLS.
    """

    def __init__(
        self,
        members: Callable[[], Sequence[Member]],
        secret: ClusterSecret | None,
        *,
        clock: Callable[[], float] = time.time,
        answer_seconds: float = _ANSWER_SECONDS,
        tls: ClusterTls | None = None,
    ) -> None:
        self.members = members
        self._secret = secret
        self._clock = clock
        self._answer_seconds = answer_seconds
        self._scheme = "http" if tls is None else "https"
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
            connector=aiohttp.TCPConnector(limit=4 * AT_ONCE, ssl=True if tls is None else tls.client),
            read_bufsize=_LINE_BYTES,
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    def askers(self, key: str) -> list[Member]:
        """Return whom to ask about `key`: the seeds if there are any, in an order that spreads keys over them."""
        members = self.members()
        return in_order([member for member in members if member.seed] or members, key)

    async def probe(self, host: Member, source: Source, task_id: str) -> Probe:
        """Return what the origin says to a host."""
        body = {"source": source_to_json(source), "task_id": task_id}
        return probe_from_json(await self._json(host, "POST", "/v1/probe", body, seconds=PROBE_SECONDS))

    async def listing(self, host: Member, url: str, store: Store) -> tuple[Listed, ...]:
        """Return what a host finds under the prefix of a plain URL, all of it."""
        found: list[Listed] = []
        body = {"url": url, "store": store.value}
        async with self._asking(host, "POST", "/v1/list", body, seconds=None) as answer:
            lines = aiter(answer.content)
            while True:
                try:
                    async with asyncio.timeout(_LISTING_STALL_SECONDS):
                        line = await anext(lines)
                except StopAsyncIteration:
                    return tuple(found)
                entry = entry_from_json(json.loads(line))
                if isinstance(entry, DamselflyError):
                    raise entry
                found.append(entry)

    async def fetch(self, host: Member, request: FetchRequest) -> None:
        """Order a host to bring a version to itself."""
        await self._json(host, "POST", "/v1/fetches", fetch_to_json(request))

    async def fetches(self, host: Member) -> dict[str, FetchState]:
        """Return how far a host is with what it was ordered to fetch, by version id."""
        rows = await self._rows(host, "/v1/fetches", "fetches", fetch_state_from_json)
        return {row.version_id: row for row in rows}

    async def cancel(self, host: Member, version_id: str) -> None:
        """End a fetch; what landed stays."""
        await self._json(host, "DELETE", f"/v1/fetches/{version_id}")

    async def held(self, host: Member, task_id: str | None = None) -> tuple[HeldVersion, ...]:
        """Return what a host holds (of a task)."""
        query = "" if task_id is None else f"?task_id={task_id}"
        return await self._rows(host, f"/v1/held{query}", "held", held_from_json)

    async def remove(self, host: Member, task_id: str) -> int:
        """Remove a task from a host; returns how many versions went."""
        return len((await self._json(host, "DELETE", f"/v1/held/{task_id}")).get("removed", ()))

    async def pin(self, host: Member, task_id: str, pinned: bool) -> int:
        """Pin, or unpin, what a host holds of a task; returns how many versions that concerns."""
        answer = await self._json(host, "PUT" if pinned else "DELETE", f"/v1/pins/{task_id}")
        return int(answer.get("versions", 0))

    async def _rows(self, host: Member, path: str, name: str, read: Callable[[object], T]) -> tuple[T, ...]:
        rows = (await self._json(host, "GET", path)).get(name)
        try:
            return tuple(read(row) for row in rows or ())
        except BadRequestError as error:
            raise HostError(f"host {host.host_id} answered {path} with something else: {error}") from None

    async def _json(
        self, host: Member, method: str, path: str, body: object = None, *, seconds: float | None = None
    ) -> dict[str, Any]:
        async with self._asking(host, method, path, body, seconds=seconds or self._answer_seconds) as answer:
            value = json.loads(await answer.read())
            if not isinstance(value, dict):
                raise HostError(f"host {host.host_id} answered {method} {path} with no JSON object")
            return value

    @asynccontextmanager
    async def _asking(
        self, host: Member, method: str, path: str, body: object, *, seconds: float | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {}
        if self._secret is not None:
            token = self._secret.sign(HOST_PURPOSE, "scheduler", now=self._clock())
            headers["Authorization"] = authorization(token)
        try:
            async with (
                asyncio.timeout(seconds),
                self._session.request(
                    method, f"{self._scheme}://{host.address}{path}", json=body, headers=headers, allow_redirects=False
                ) as answer,
            ):
                if answer.status >= 300:
                    value = json.loads(await answer.read())
                    raise error_from_json(value)
                yield answer
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            # No text of theirs: it may quote what was sent.
            why = "did not answer in time" if isinstance(error, TimeoutError) else f"failed: {type(error).__name__}"
            if (about := tls_error(error)) is not None:
                why = f"failed: {explain(about)}"
            raise HostError(f"host {host.host_id} at {host.address}: {method} {path.partition('?')[0]} {why}") from None


def in_order(members: Sequence[Member], key: str) -> list[Member]:
    """Return hosts in the order of rendezvous hashing for `key`."""
    return sorted(members, key=lambda member: weight(member.host_id, key), reverse=True)


async def ask_all(
    members: Sequence[Member], ask: Callable[[Member], Awaitable[T]]
) -> tuple[dict[str, T], dict[str, str]]:
    """Ask every host, AT_ONCE at a time; return the answers, and why there is none, each by host id."""
    turns = asyncio.Semaphore(AT_ONCE)
    answers: dict[str, T] = {}
    failures: dict[str, str] = {}

    async def one(member: Member) -> None:
        async with turns:
            try:
                answers[member.host_id] = await ask(member)
            except DamselflyError as error:
                failures[member.host_id] = str(error)

    async with asyncio.TaskGroup() as group:
        for member in members:
            group.create_task(one(member), name=f"asking {member.host_id}")
    return answers, failures
