"""Connections between exchanges: the idle ones that are kept, and over which addresses new ones are spread."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from peer.download.connection import AddressInfo, Connection, Endpoint

DEAD_SECONDS = 30.0
"""For how long an address that could not be connected to is tried last."""


class ConnectionPool:
    """Idle connections, bounded in number and age. Belongs to the event loop."""

    def __init__(self, *, per_endpoint: int, total: int, idle_seconds: float) -> None:
        self._per_endpoint = per_endpoint
        self._total = total
        self._idle_seconds = idle_seconds
        self._idle: list[Connection] = []  # the one that has been idle for longest first
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._idle)

    def __iter__(self) -> Iterator[Connection]:
        return iter(self._idle)

    def take(self, endpoint: Endpoint) -> Connection | None:
        """Return the connection to `endpoint` that was used last, unless the other side has ended it."""
        for connection in reversed(self._idle):
            if connection.endpoint == endpoint:
                self._idle.remove(connection)
                if connection.is_quiet():
                    return connection
                connection.close()
        return None

    def give(self, connection: Connection) -> None:
        """Keep a connection for the next exchange; too many cost the one that has been idle for longest."""
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._idle.append(connection)
        siblings = [other for other in self._idle if other.endpoint == connection.endpoint]
        if len(siblings) > self._per_endpoint:
            self._drop(siblings[0])
        if len(self._idle) > self._total:
            self._drop(self._idle[0])
        if self._timer is None:
            self._timer = loop.call_later(self._idle_seconds, self._sweep, loop)

    def close(self) -> None:
        """Close every idle connection."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._idle:
            self._drop(self._idle[0])

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        while self._idle and self._idle[0].idle_since + self._idle_seconds <= loop.time():
            self._drop(self._idle[0])
        if self._idle:
            self._timer = loop.call_at(self._idle[0].idle_since + self._idle_seconds, self._sweep, loop)

    def _drop(self, connection: Connection) -> None:
        self._idle.remove(connection)
        connection.close()


class Addresses:
    """Spreads connections over all the addresses of a name, and tries those that were found dead last. Pure."""

    def __init__(self) -> None:
        self._dead: dict[Any, float] = {}

    def order(
        self, found: Sequence[AddressInfo], open_connections: Iterable[Connection], *, now: float, avoid: Any = None
    ) -> list[AddressInfo]:
        """Return the addresses in the order in which to try them at `now` (seconds): the least used first.

        `avoid` is the address of a connection that makes no progress: it comes after all that are alive.
        """
        if len(found) < 2:
            return list(found)
        self._dead = {address: until for address, until in self._dead.items() if until > now}
        used = Counter(connection.address for connection in open_connections)
        return sorted(found, key=lambda info: (info[4] in self._dead, info[4] == avoid, used[info[4]]))

    def failed(self, addresses: Iterable[Any], *, now: float) -> None:
        """Note that nobody answered at these addresses."""
        for address in addresses:
            self._dead[address] = now + DEAD_SECONDS
