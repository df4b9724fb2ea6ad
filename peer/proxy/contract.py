"""What the proxy needs of the peer's downloads; `peer.tasks.TaskManager` provides it."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

from p2p.checksums import Checksum
from p2p.control import Source
from p2p.digests import ExpectedDigest
from p2p.identity import Task
from p2p.ranges import ByteRange
from p2p.urgency import DEFAULT_PRIORITY
from p2p.versions import Version


class Landing(Protocol):
    """The file that a version's pieces land in."""

    @property
    def fd(self) -> int:
        """The descriptor to send from."""

    @property
    def path(self) -> Path:
        """Where the file is."""


class Reader(Protocol):
    """A claim on a range of one version's bytes; leaving it lets go of the interest in its pieces."""

    @property
    def entry(self) -> Landing:
        """Where the bytes land."""

    @property
    def origin_of_bytes(self) -> Literal["local", "remote", "origin"]:
        """Where the bytes come from; certain once `ready` has returned."""

    async def ready(self, offset: int) -> int:
        """Wait for the byte at `offset` and return where contiguous bytes end. Raises what ended the download."""

    async def __aenter__(self) -> Self:
        """Enter the claim."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the claim up."""


class Verification(Protocol):
    """A claim on the verdict over all bytes of a version; leaving it lets go of the interest in them."""

    async def verdict(self) -> None:
        """Return once the object is known to be the expected one.

        Raises DigestMismatchError, and what ended the download.
        """

    async def __aenter__(self) -> Self:
        """Enter the claim."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the claim up."""


class Tasks(Protocol):
    """The one door to content on this host."""

    async def open(
        self,
        task: Task,
        version: Version,
        source: Source,
        wanted: ByteRange | None = None,
        *,
        priority: int = DEFAULT_PRIORITY,
    ) -> Reader:
        """Return a reader of `wanted` (all bytes by default; never empty) of `version`."""

    async def verify(
        self,
        task: Task,
        version: Version,
        source: Source,
        expected: ExpectedDigest,
        *,
        priority: int = DEFAULT_PRIORITY,
    ) -> Verification:
        """Begin to verify a version, which must not be empty, as its bytes land."""

    def note(self, version: Version, checksum: Checksum) -> None:
        """Remember what the store says of all bytes of a version."""

    async def check(
        self, task: Task, version: Version, source: Source, *, priority: int = DEFAULT_PRIORITY
    ) -> Verification | None:
        """Begin to compare a version, which must not be empty, with what its store said of it.

        None if it said nothing, or that is settled.

        Raises ChecksumMismatchError while the version is refused for wrong bytes.
        """

    def prefetch(self, task: Task, version: Version, source: Source) -> None:
        """Bring what is missing of a version here, in the background."""
