"""The parents that one version's download follows: their watches, and what each piece's digest is said to be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client import Counter

from p2p.control import KnownDigests
from p2p.errors import CorruptPieceError, DamselflyError, ParentMissingError
from p2p.pieces import Span
from p2p.tasks import TaskScope
from p2p.telemetry import REGISTRY, logger
from peer.core.messages import ParentHas, ParentLost, Watch
from peer.download.announcements import DigestTable
from peer.download.contract import TransferPool
from peer.download.reports import failure_reason
from peer.store import Entry

log = logger(__name__)

_LOST = Counter("damselfly_followed_parents_lost", "Followed parents that were lost", ["reason"], registry=REGISTRY)


@dataclass(slots=True)
class Watched:
    """A parent that is followed, and the digests it announced."""

    task: asyncio.Task[None]
    address: str
    digests: DigestTable


class FollowedParents:
    """Carries out what the core wants watched; belongs to the event loop.

    `token` signs a request to another host, `tell` takes what parents announce and which of them are lost.
    """

    def __init__(
        self,
        entry: Entry,
        transfers: TransferPool,
        scope: TaskScope,
        *,
        token: Callable[[], str | None],
        tell: Callable[[ParentHas | ParentLost], None],
    ) -> None:
        self._entry = entry
        self._transfers = transfers
        self._scope = scope
        self._token = token
        self._tell = tell
        self._watched: dict[str, Watched] = {}
        self._known = DigestTable(entry.layout.count)

    def learn(self, digests: Iterable[KnownDigests]) -> None:
        """Take the scheduler's word on the digests of pieces."""
        for known in digests:
            for index, digest in zip(known.span, known.digests, strict=True):
                self._known[index] = digest

    def digests(self, span: Span, parent_id: str) -> tuple[bytes, ...]:
        """Return what the pieces of a followed parent must have: the scheduler's word counts more than the parent's.

        Raises CorruptPieceError where they differ, ParentMissingError where neither has said anything.
        """
        watched = self._watched.get(parent_id)
        digests = []
        for index in span:
            known, announced = self._known.get(index), watched.digests.get(index) if watched else None
            if known and announced and known != announced:
                raise CorruptPieceError(
                    f"parent {parent_id} announces another digest of piece {index} than the true one"
                )
            digest = known or announced
            if digest is None:
                raise ParentMissingError(f"parent {parent_id} has not announced piece {index}")
            digests.append(digest)
        return tuple(digests)

    def watch(self, command: Watch) -> None:
        """Follow a parent, instead of following it in other stripes if that is so."""
        before = self._watched.pop(command.parent_id, None)
        if before is not None:
            before.task.cancel()
        same = before is not None and before.address == command.address
        digests = before.digests if before is not None and same else DigestTable(self._entry.layout.count)
        name = f"following {command.parent_id} for {self._entry.version.id}"
        task = self._scope.spawn(self._follow(command, digests), name=name)
        self._watched[command.parent_id] = Watched(task, command.address, digests)

    async def _follow(self, command: Watch, digests: DigestTable) -> None:
        parent_id, ours = command.parent_id, asyncio.current_task()

        def on_pieces(spans: tuple[Span, ...]) -> None:
            if (watched := self._watched.get(parent_id)) is not None and watched.task is ours:
                self._tell(ParentHas(parent_id, spans))

        try:
            error = await self._transfers.follow(
                self._entry,
                address=command.address,
                stripes=command.stripes,
                of=command.of,
                token=self._token(),
                digests=digests,
                on_pieces=on_pieces,
            )
        except Exception as failure:  # a defect costs this parent, not the daemon with all its clients
            log.exception("defect in following a parent", version=self._entry.version.id, parent=parent_id)
            error = DamselflyError(f"internal error: {type(failure).__name__}")
        reason = failure_reason(error)
        del self._watched[parent_id]
        _LOST.labels(reason.name.lower()).inc()
        log.info("parent lost", version=self._entry.version.id, parent=parent_id, error=str(error))
        self._tell(ParentLost(parent_id, reason, str(error)))

    def unwatch(self, parent_id: str) -> None:
        """Follow a parent no longer."""
        if (watched := self._watched.pop(parent_id, None)) is not None:
            watched.task.cancel()

    def end(self) -> list[asyncio.Task[None]]:
        """Follow nobody any more; return the tasks that are about to end."""
        tasks = [watched.task for watched in self._watched.values()]
        self._watched.clear()
        for task in tasks:
            task.cancel()
        return tasks
