"""Whole-object digests: computed in order as pieces land, in constant memory, and remembered.

What is remembered is tied to the digests of a version's pieces, and so to the very bytes that were hashed: a version
that was removed and fetched anew is hashed anew unless it has the same pieces.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from types import MappingProxyType, TracebackType
from typing import Protocol, Self
from weakref import WeakValueDictionary

from prometheus_client import Counter

from p2p.checksums import Crc
from p2p.digests import Hasher, piece_digest
from p2p.errors import DamselflyError, DigestMismatchError, StoreError
from p2p.pagecache import in_thread
from p2p.tasks import TaskScope
from p2p.telemetry import REGISTRY, logger
from peer.store import Entry

log = logger(__name__)

REMEMBERED_DIGESTS = 4096

_BATCH_BYTES = 32 * 1024 * 1024
_READ_BYTES = 256 * 1024
_THREADS = 2

_VERDICTS = Counter(
    "damselfly_object_digests_total",
    "Whole objects compared with the digest their user expects, or with their store's checksum: verified, known "
    "(verified before), mismatch, unknown (the store says too little of the checksum)",
    ["verdict"],
    registry=REGISTRY,
)


class WholeReader(Protocol):
    """A claim on all bytes of a version; `peer.tasks.Reader` is it."""

    @property
    def entry(self) -> Entry:
        """Where they land."""

    async def ready(self, offset: int) -> int:
        """Wait for the byte at `offset` and return where contiguous bytes end. Raises what ended the download."""

    def close(self) -> None:
        """Give the claim up."""


class Expected(Protocol):
    """What a whole object is to have: a user's `ExpectedDigest`, or a store's `Checksum`."""

    @property
    def algorithm(self) -> str:
        """What it is computed by."""

    def hasher(self) -> Hasher:
        """Return a hasher to feed the whole object to."""

    def verify(self, hasher: Hasher) -> bool:
        """Return whether it is certain that the object fed to `hasher` is the expected one.

        Raises DigestMismatchError where it is certain that it is not.
        """


@dataclass(slots=True)
class _Known:
    """A digest of certain bytes; `confirmed` when somebody who expected a digest expected this one."""

    hasher: Hasher
    confirmed: bool = False


class Verification:
    """A claim on the verdict over one version's bytes; `async with` it."""

    def __init__(self, reader: WholeReader, work: asyncio.Task[DamselflyError | None]) -> None:
        self._reader = reader
        self._work = work

    async def verdict(self) -> None:
        """Return once the object is known to be the expected one.

        Raises DigestMismatchError, the version being dropped by then, or what ended its download.
        """
        error = await asyncio.shield(self._work)
        if error is not None:
            raise error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._work.cancel()
        self._reader.close()


class ObjectDigests:
    """Verifies versions against digests. `disown` drops what has not the digest that the error tells."""

    def __init__(self, scope: TaskScope, *, disown: Callable[[Entry, DigestMismatchError], Awaitable[None]]) -> None:
        self._scope = scope
        self._disown = disown
        self._known: OrderedDict[tuple[str, bytes], _Known] = OrderedDict()
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    def verify(self, reader: WholeReader, expected: Expected) -> Verification:
        """Begin to verify what `reader`, which is taken over, claims: a whole version, not empty."""
        return Verification(reader, self.judge(reader, expected))

    def judge(
        self, reader: WholeReader, expected: Expected, crcs: Mapping[int, int] = MappingProxyType({})
    ) -> asyncio.Task[DamselflyError | None]:
        """Begin to verify a whole version, not empty; returns the task that ends with what is wrong, or None.

        `crcs` are those of pieces, by index: where a CRC is expected they stand for the pieces' bytes.
        """
        return self._scope.spawn(self._judge(reader, expected, crcs), name=f"digest of {reader.entry.version.id}")

    async def _judge(self, reader: WholeReader, expected: Expected, crcs: Mapping[int, int]) -> DamselflyError | None:
        entry = reader.entry
        try:
            known = self._recall(entry, expected.algorithm)
            verdict = "known" if known is not None and known.confirmed else "verified"
            if known is None:
                known = await self._compute(reader, expected, crcs)
            certain = expected.verify(known.hasher)
        except DigestMismatchError as error:
            _VERDICTS.labels("mismatch").inc()
            # Bytes that are somebody's expected ones stay: then it is this expectation that is wrong.
            drop = known is None or not known.confirmed
            log.warning(
                "object does not have the expected digest",
                task=entry.version.task_id,
                version=entry.version.id,
                object=entry.task.canonical,
                dropped=drop,
                error=str(error),
            )
            if drop:
                # A client that leaves now must not leave the wrong bytes behind.
                dropping = self._scope.spawn(self._drop(entry, error), name=f"drop of {entry.version.id}")
                await asyncio.shield(dropping)
            return error
        except DamselflyError as error:
            return error
        known.confirmed |= certain
        _VERDICTS.labels(verdict if certain else "unknown").inc()
        return None

    async def _drop(self, entry: Entry, mismatch: DigestMismatchError) -> None:
        try:
            await self._disown(entry, mismatch)
        except DamselflyError as error:
            version_id = entry.version.id
            log.warning("a version with a wrong digest could not be dropped", version=version_id, error=str(error))

    async def _compute(self, reader: WholeReader, expected: Expected, crcs: Mapping[int, int]) -> _Known:
        """Hash a version as it lands; who asks for the same meanwhile waits for the result."""
        entry = reader.entry
        key = (entry.version.id, expected.algorithm)
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        async with lock:
            if (known := self._recall(entry, expected.algorithm)) is not None:
                return known
            # In a thread: the first hasher of its kind may import a library.
            hasher = await asyncio.to_thread(expected.hasher)
            buffer = memoryview(bytearray(_READ_BYTES))
            offset = 0
            while offset < entry.layout.length:
                ready = await reader.ready(offset)
                index = offset // entry.layout.piece_length
                if isinstance(hasher, Crc) and index in crcs and offset == entry.layout.offset(index):
                    hasher.append(crcs[index], entry.layout.size(index))
                    offset += entry.layout.size(index)
                    continue
                stop = min(ready, offset + _BATCH_BYTES)
                await in_thread(
                    _pool(), entry.fd, partial(_feed, start=offset, stop=stop, hasher=hasher, buffer=buffer)
                )
                offset = stop
            known = _Known(hasher)
            if (fingerprint := _fingerprint(entry)) is not None:
                self._known[expected.algorithm, fingerprint] = known
                while len(self._known) > REMEMBERED_DIGESTS:
                    self._known.popitem(last=False)
            return known

    def _recall(self, entry: Entry, algorithm: str) -> _Known | None:
        fingerprint = _fingerprint(entry)
        return None if fingerprint is None else self._known.get((algorithm, fingerprint))


def _fingerprint(entry: Entry) -> bytes | None:
    """Return what stands for the very bytes that are held of a version, or None unless all of them are."""
    if not entry.landed.full:
        return None
    digests = b"".join(entry.digest(index) for index in range(entry.layout.count))
    return piece_digest(entry.version.id.encode() + digests)


def _feed(fd: int, start: int, stop: int, hasher: Hasher, buffer: memoryview) -> None:
    """Hash bytes `start` to `stop` of a file; blocks."""
    while start < stop:
        try:
            count = os.preadv(fd, [buffer[: min(len(buffer), stop - start)]], start)
        except OSError as error:
            raise StoreError(f"cannot read from the disk: {error.strerror} (errno {error.errno}); check it") from error
        if count == 0:
            raise StoreError(f"a data file ends at or before byte {start}; is it being truncated?")
        hasher.update(buffer[:count])
        start += count


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="digest")
