"""Asking origins with the fleet's credentials: by this host where it has some, else by way of a seed (`p2p.hostapi`).

The seeds are asked in an order that every host computes alike from what is asked for (rendezvous hashing), so that the
questions about one object meet at one seed; the next one is asked where one does not answer.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Protocol, TypeVar

import aiohttp

from p2p.auth import ClusterSecret, authorization
from p2p.control import SeedHost, Seeds, Source
from p2p.digests import ExpectedDigest
from p2p.errors import BadRequestError, CredentialsError, DamselflyError, OriginError, StoppingError, UnauthorizedError
from p2p.hostapi import (
    HOST_PURPOSE,
    JSON_BYTES,
    PROBE_SECONDS,
    Listed,
    Probe,
    entry_from_json,
    error_from_json,
    probe_from_json,
    source_to_json,
)
from p2p.identity import redact
from p2p.mtls import ClusterTls, explain, tls_error
from p2p.rendezvous import weight
from p2p.stores import Store
from p2p.telemetry import logger

log = logger(__name__)

_CONNECT_SECONDS = 2.0
_STALL_SECONDS = 60.0
"""How long a seed may be silent within a listing; the store may take its time for a page."""


T = TypeVar("T")


class UnansweredError(OriginError):
    """A seed gave no answer that can be understood; another one may."""


_SILENT = (UnansweredError, TimeoutError, aiohttp.ClientError, OSError, ValueError)


class Signs(Protocol):
    """Credentials of this host; `peer.source.credentials.Credentials` are some."""

    async def look(self) -> None:
        """Take up credentials that have changed."""

    def covers(self, store: Store, url: str) -> bool:
        """Tell whether this host can sign requests for `url` in a store's dialect, as of the last look."""


class Prober(Protocol):
    """Asks origins for one byte; `peer.source.http.Prober` does."""

    async def probe(self, source: Source, task_id: str, content: ExpectedDigest | None = None) -> Probe:
        """Return what the origin's answer means for a task."""


class Lister(Protocol):
    """Lists what is under a prefix, by this host's own credentials."""

    def __call__(self, url: str, store: Store) -> AsyncGenerator[Listed, None]:
        """Yield every object under the prefix that a plain URL names."""


class SeedClient:
    """Has seeds ask origins. Made inside the running loop; `clock` gives Unix seconds, for the tokens' expiry.

    With `tls` seeds are spoken to by TLS.
    """

    def __init__(
        self,
        host_id: str,
        secret: ClusterSecret | None,
        *,
        clock: Callable[[], float] = time.time,
        connect_seconds: float = _CONNECT_SECONDS,
        stall_seconds: float = _STALL_SECONDS,
        probe_seconds: float = PROBE_SECONDS,
        tls: ClusterTls | None = None,
    ) -> None:
        self._host_id = host_id
        self._secret = secret
        self._clock = clock
        self._seeds: tuple[SeedHost, ...] = ()
        self._probe_seconds = probe_seconds
        self._scheme = "http" if tls is None else "https"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=True if tls is None else tls.client),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_seconds, sock_read=stall_seconds),
            read_bufsize=JSON_BYTES,
        )

    def told(self, seeds: Seeds) -> None:
        """Take which seeds there are; this host itself, if it is one of them, is never asked."""
        self._seeds = tuple(seed for seed in seeds.hosts if seed.host_id != self._host_id)

    @property
    def known(self) -> bool:
        """Whether there is a seed to ask."""
        return bool(self._seeds)

    async def probe(self, source: Source, task_id: str) -> Probe:
        """Return what the origin says to a seed about a task. Raises what the seed did, and OriginError."""
        request = {"source": source_to_json(source), "task_id": task_id}
        failure: DamselflyError | None = None
        for seed in self._in_order(task_id):
            try:
                async with asyncio.timeout(self._probe_seconds), self._asking(seed, "/v1/probe", request) as answer:
                    return _understood(probe_from_json, await _whole(answer))
            except _SILENT as error:
                failure = _unanswered(seed, error)
                log.warning("asking another seed", seed=seed.host_id, task=task_id, failure=str(failure))
        raise failure or _no_seed(source.url)

    async def listing(self, url: str, store: Store) -> AsyncGenerator[Listed, None]:
        """Yield what a seed finds under the prefix that a plain URL names.

        Once the first entry is there no other seed is asked. Raises what the seed did, and OriginError.
        """
        request = {"url": url, "store": store.value}
        failure: DamselflyError | None = None
        for seed in self._in_order(url):
            begun = False
            try:
                async with self._asking(seed, "/v1/list", request) as answer:
                    async for line in answer.content:
                        entry = _understood(entry_from_json, line)
                        if isinstance(entry, DamselflyError):
                            raise entry
                        begun = True
                        yield entry
            except _SILENT as error:
                failure = _unanswered(seed, error)
                if begun:
                    raise failure from None
            else:
                return
            log.warning("asking another seed", seed=seed.host_id, failure=str(failure))
        raise failure or _no_seed(url)

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    def _in_order(self, key: str) -> list[SeedHost]:
        return sorted(self._seeds, key=lambda seed: weight(seed.host_id, key), reverse=True)

    @asynccontextmanager
    async def _asking(self, seed: SeedHost, path: str, request: object) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request and give its answer, if it is a 200. Raises what the seed says, and UnansweredError."""
        token = self._secret.sign(HOST_PURPOSE, self._host_id, now=self._clock()) if self._secret else None
        headers = {"Authorization": authorization(token)} if token else {}
        async with self._session.post(
            f"{self._scheme}://{seed.address}{path}", json=request, headers=headers
        ) as answer:
            if answer.status == 200:
                yield answer
                return
            try:
                told = json.loads(await _whole(answer))
            except ValueError:
                raise UnansweredError(f"it answered {answer.status}") from None
            error = error_from_json(told)
            # These are about the seed, and not about what it was asked for.
            raise UnansweredError(str(error)) if isinstance(error, StoppingError | UnauthorizedError) else error


class Origins:
    """What the proxy asks origins: for one byte, or for the names under a prefix.

    Where this host's credentials do not sign for a store, a seed is asked. Without any seed the host asks all the same:
    public objects need no credentials, and an instance's identity is found by asking.
    """

    def __init__(
        self, prober: Prober, lister: Lister, seeds: SeedClient | None = None, signs: Signs | None = None
    ) -> None:
        self._prober = prober
        self._lister = lister
        self._seeds = seeds
        self._signs = signs

    async def probe(self, source: Source, task_id: str, content: ExpectedDigest | None = None) -> Probe:
        """Return what the origin says about a task: to its caller, or to the fleet where the source names a store.

        `content` is the digest that the request names. Raises OriginError kinds and BadRequestError.
        """
        seeds = await self._seeds_for(source)
        if seeds is not None:
            return await seeds.probe(source, task_id)
        try:
            return await self._prober.probe(source, task_id, content)
        except CredentialsError as error:
            raise self._advised(error, source) from None

    async def listing(self, url: str, store: Store) -> AsyncGenerator[Listed, None]:
        """Yield every object under the prefix that a plain URL names. Raises as `probe` does."""
        source = Source(url, (), store)
        seeds = await self._seeds_for(source)
        entries = self._lister(url, store) if seeds is None else seeds.listing(url, store)
        try:
            async with aclosing(entries):
                async for entry in entries:
                    yield entry
        except CredentialsError as error:
            raise self._advised(error, source) from None

    def reaches(self, source: Source) -> bool:
        """Tell whether this host can ask the origin by itself."""
        if source.store in (None, Store.HTTP):
            return True
        return self._signs is not None and self._signs.covers(source.store, source.url)

    async def _seeds_for(self, source: Source) -> SeedClient | None:
        if self._signs is not None and source.store is not None:
            await self._signs.look()
        return None if self._seeds is None or not self._seeds.known or self.reaches(source) else self._seeds

    def _advised(self, error: CredentialsError, source: Source) -> CredentialsError:
        """Return an error with what may help, where this host asked for want of anybody better."""
        if self.reaches(source):
            return error
        return CredentialsError(
            f"{error}; give this peer --cloud-credentials, or start a seed that has them", error.status
        )


def _understood(read: Callable[[object], T], text: bytes) -> T:
    try:
        return read(json.loads(text))
    except BadRequestError as error:
        raise UnansweredError(f"its answer cannot be understood: {error}") from None


async def _whole(answer: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > JSON_BYTES:
            raise UnansweredError(f"it answered more than {JSON_BYTES} bytes")
    return bytes(body)


def _unanswered(seed: SeedHost, error: Exception) -> OriginError:
    if (about := tls_error(error)) is not None:
        reason = explain(about)
    else:
        reason = str(error) if isinstance(error, DamselflyError) else type(error).__name__
    return OriginError(f"seed {seed.host_id} at {seed.address} did not answer: {reason}")


def _no_seed(url: str) -> OriginError:
    return OriginError(
        f"no seed peer can be asked for {redact(url)}: give this peer --cloud-credentials, or start a seed "
        "(damselfly peer --seed)"
    )
