"""What several schedulers share, in Redis: leases, digests, pins and preheat jobs. Nothing ever waits for it for long.

Every call has a deadline, and while Redis is away none is made but the one that looks whether it is back. Writes go
through a bounded queue, in pipelines. What is written holds canonical identities only: no URL of a caller, no
signature, no key.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from prometheus_client import Counter, Gauge

from p2p.errors import ConfigError
from p2p.telemetry import REGISTRY, logger
from scheduler.journal import RETENTION_SECONDS, Journal

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logger(__name__)

PREFIX = "damselfly:"

CALL_SECONDS = 1.0
"""How long Redis may take to answer."""

LOOK_SECONDS = 1.0
"""How often a Redis that is away is looked for."""

QUEUED_WRITES = 50_000
"""Writes that wait for Redis; beyond that the oldest are dropped, and counted."""

_BATCH = 500

_FORGOTTEN = b"forgotten"
"""A field of a version's digests: what other schedulers remember of it from before counts no more."""

_LEASE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return redis.call('ZRANGE', KEYS[1], 0, -1)
"""
"""Takes or renews ARGV[1]'s lease of ARGV[2] milliseconds in KEYS[1], by the server's clock; returns who has one."""

_UP = Gauge("damselfly_scheduler_redis_up", "1 while Redis answers, where there is one", registry=REGISTRY)
_DROPPED = Counter(
    "damselfly_scheduler_redis_dropped_writes_total", "Writes given up because too many waited", registry=REGISTRY
)

T = TypeVar("T")

Write = tuple[str | bytes | int, ...]


class Shared:
    """A Redis server, or what is left of it: `up` says whether it answers. Make it with `connect`."""

    def __init__(self, redis: Redis, place: str) -> None:
        self.place = place
        """Where it is ("host:port"), without a password; for people."""
        self._redis = redis
        self._queue: deque[Write | asyncio.Event] = deque()
        self._queued = asyncio.Event()
        self._back = asyncio.Event()
        self._tried = False

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str) -> AsyncIterator[Shared]:
        """Use the server at `url`, redis:// or rediss://, whether it is there or not.

        Raises ConfigError, which does not repeat the URL, for anything else.
        """
        # Imported here: a scheduler without Redis does not need the library.
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        try:
            place = _place(url)
            redis = Redis.from_url(
                url,
                socket_timeout=CALL_SECONDS,
                socket_connect_timeout=CALL_SECONDS,
                retry=Retry(NoBackoff(), 0),
                decode_responses=False,
                # Else each connection reads the library's version from the disk, in the loop, to tell it.
                driver_info=None,
            )
        except ValueError:
            raise ConfigError(
                "--redis is not redis://[user:password@]host:port[/database], or rediss:// for TLS"
            ) from None
        shared = cls(redis, place)
        try:
            yield shared
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CALL_SECONDS):
                    await redis.aclose()

    @property
    def up(self) -> bool:
        """Whether Redis answered when it was last asked."""
        return self._back.is_set()

    async def call(self, ask: Callable[[Redis], Awaitable[T]], *, look: bool = False) -> T | None:
        """Ask Redis something; None if it does not answer in time, and at once while it is away (but for a `look`)."""
        from redis.exceptions import RedisError

        if not (self.up or look):
            return None
        try:
            async with asyncio.timeout(CALL_SECONDS):
                answer = await ask(self._redis)
        except (RedisError, OSError, TimeoutError) as error:
            self._is_up(False, type(error).__name__)
            return None
        self._is_up(True)
        return answer

    async def ask(self, *command: str | int) -> Any:
        """Return Redis' answer to one command; None as `call` does, and where Redis itself says so."""
        return await self.call(lambda redis: redis.execute_command(*command))  # type: ignore[no-untyped-call]

    async def lease(self, key: str, name: str, seconds: float) -> tuple[str, ...] | None:
        """Take or renew a lease under `key`; return the names of all that have one, in order, or None."""
        arguments = (PREFIX + key, name, str(round(seconds * 1000)))
        found = await self.call(lambda redis: redis.eval(_LEASE, 1, *arguments), look=True)
        return None if found is None else tuple(sorted(each.decode() for each in found))

    async def release(self, key: str, name: str) -> None:
        """Give a lease up."""
        await self.call(lambda redis: redis.zrem(PREFIX + key, name))

    def write(self, *commands: Write) -> None:
        """Have commands carried out soon, in order. They must be such that twice is as good as once."""
        for command in commands:
            if len(self._queue) >= QUEUED_WRITES:
                dropped = self._queue.popleft()
                if isinstance(dropped, asyncio.Event):
                    dropped.set()
                _DROPPED.inc()
            self._queue.append(command)
        self._queued.set()

    async def written(self) -> None:
        """Return when what was written before has been carried out; while Redis is away, or slow, without that."""
        barrier = asyncio.Event()
        self._queue.append(barrier)
        self._queued.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CALL_SECONDS if self.up else 0):
                await barrier.wait()

    async def run(self) -> None:
        """Carry out what is written, and look for a Redis that is away, for ever."""
        while True:
            if not self.up:
                await self.call(lambda redis: redis.get(PREFIX), look=True)
                if not self.up:
                    await asyncio.sleep(LOOK_SECONDS)
                    continue
            if not self._queue:
                self._queued.clear()
                await self._queued.wait()
                continue
            await self._flush()

    async def _flush(self) -> None:
        batch: list[Write] = []
        barriers: list[asyncio.Event] = []
        while self._queue and len(batch) < _BATCH:
            each = self._queue.popleft()
            if isinstance(each, asyncio.Event):
                barriers.append(each)
            else:
                batch.append(each)

        async def carry_out(redis: Redis) -> object:
            async with redis.pipeline(transaction=False) as pipeline:
                for command in batch:
                    pipeline.execute_command(*command)
                return await pipeline.execute()

        if batch and await self.call(carry_out) is None:
            self._queue.extendleft(reversed(batch))
        for barrier in barriers:
            barrier.set()

    def _is_up(self, up: bool, why: str = "") -> None:
        if up == self.up and self._tried:
            return
        self._tried = True
        _UP.set(up)
        if up:
            self._back.set()
            log.info("redis reached", redis=self.place)
        else:
            self._back.clear()
            log.warning(
                "redis away",
                redis=self.place,
                error=why,
                consequence="this scheduler goes on with the last known ones, and with its part of origins' budgets",
            )


class SharedJournal:
    """Digests in Redis, for whichever scheduler a version comes to, and in one's own journal for when it is away."""

    def __init__(self, own: Journal, shared: Shared) -> None:
        self._own = own
        self._shared = shared

    async def read(self, version_id: str) -> dict[int, bytes]:
        """Return what is known of a version, by piece."""
        key = _digests(version_id)
        await self._shared.written()
        own, found = await asyncio.gather(
            self._own.read(version_id), self._shared.call(lambda redis: redis.hgetall(key))
        )
        common = {bytes(piece): bytes(digest) for piece, digest in (found or {}).items()}  # type: ignore[arg-type]
        known = {int(piece): digest for piece, digest in common.items() if piece != _FORGOTTEN}
        return known if _FORGOTTEN in common else {**own, **known}

    def record(self, version_id: str, digests: Mapping[int, bytes]) -> None:
        """Record digests, by piece, soon."""
        self._own.record(version_id, digests)
        fields = [part for piece, digest in digests.items() for part in (piece, digest)]
        key = _digests(version_id)
        self._shared.write(("HSET", key, *fields), ("EXPIRE", key, RETENTION_SECONDS))

    def forget(self, version_id: str) -> None:
        """Strike a version's digests, soon, also from what other schedulers remember."""
        self._own.forget(version_id)
        key = _digests(version_id)
        self._shared.write(("DEL", key), ("HSET", key, _FORGOTTEN, b""), ("EXPIRE", key, RETENTION_SECONDS))


def _place(url: str) -> str:
    """Return where a server is, without its password; raise ValueError for what is no such URL."""
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise ValueError(parts.scheme)
    return f"{parts.hostname}:{parts.port or 6379}"


def _digests(version_id: str) -> str:
    return f"{PREFIX}digests:{version_id}"
