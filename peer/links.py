"""All schedulers, and which of them a version's messages go to.

A version belongs to one of the schedulers that can be reached, by rendezvous hashing, so that every peer asks the same
one without talking about it. Schedulers that know of each other tell their hosts (`Schedulers`); until then, and where
none does, it is those of the configuration. When the schedulers that can be reached are others than before, each one
that is given versions of another is told what is held here of them.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress

from p2p.config import Address
from p2p.control import Holding, PeerMessage, Unwant
from p2p.dns import RESOLVE_SECONDS, DnsName
from p2p.errors import DamselflyError
from p2p.rendezvous import weight
from p2p.tasks import TaskScope
from p2p.telemetry import logger
from peer.link import Link, batches

log = logger(__name__)

STAND_IN_SECONDS = 3.0
"""A scheduler that handed a version over hears of it again if its heir cannot be reached for so long."""


class Links:
    """The links to all schedulers; a version's messages go to one of those that can be reached."""

    def __init__(
        self,
        configured: Sequence[Address],
        make: Callable[[str], Link],
        *,
        holdings: Callable[[], AsyncIterator[Holding]],
        on_change: Callable[[], None],
        on_returned: Callable[[Callable[[str], bool]], None],
    ) -> None:
        """Describe the links.

        `make` returns a link to an address; it is to call `changed`. `on_change` is told that other schedulers can be
        reached than before, `on_returned` of which versions their scheduler knows nothing any more.
        """
        self._configured = {str(place) for place in configured if not isinstance(place, DnsName)}
        self._names = tuple(place for place in configured if isinstance(place, DnsName))
        self._resolved: dict[DnsName, tuple[str, ...]] = {}
        self._asked = asyncio.Event()
        self._make = make
        self._holdings = holdings
        self._on_change = on_change
        self._on_returned = on_returned
        self._links: dict[str, Link] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._scope: TaskScope | None = None
        self._told: frozenset[str] = frozenset()
        self._reached: tuple[str, ...] = ()
        self._met: set[str] = set()

    def of(self, version_id: str) -> str | None:
        """Return the name of the version's scheduler among those that can be reached, or None."""
        return _owner(self._reached, version_id)

    def send(self, version_id: str, message: PeerMessage, *, soon: bool = True) -> None:
        """Send a message to the version's scheduler, or drop it if none can be reached."""
        if link := self._named(self.of(version_id)):
            link.send(message, soon=soon)

    def left(self, name: str, version_id: str) -> None:
        """Have the scheduler that a version had before plan no more of it, unless it does not know that it has lost it.

        One that does not know yet would take the host's pieces for lost, and send others to the origin.
        """
        link = self._named(name)
        if link is not None and (not link.told or _owner(link.told, version_id) != name):
            link.send(Unwant(version_id))

    def status(self) -> dict[str, bool]:
        """Return which schedulers can be reached."""
        return {link.address: link.connected for link in self._links.values()}

    def owned(self, link: Link) -> AsyncIterator[Holding]:
        """Yield what is held of the versions that are a link's."""

        async def owned() -> AsyncIterator[Holding]:
            async for holding in self._holdings():
                if self.of(holding.version.id) == link.name:
                    yield holding

        return owned()

    async def settle(self, seconds: float) -> None:
        """Return once every scheduler has been tried, after `seconds` at the latest."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._asked.wait()
                while waiting := [link for link in self._links.values() if not link.tried.is_set()]:
                    await waiting[0].tried.wait()

    async def run(self) -> None:
        """Keep every link up, for ever."""
        async with TaskScope() as scope:
            self._scope = scope
            self._reconcile()
            if not self._names:
                self._asked.set()
            for name in self._names:
                scope.spawn(self._resolve(name), name=f"addresses of {name}")
            await asyncio.Event().wait()

    def changed(self) -> None:
        """Look at the links again: one of them came, went, or heard of other schedulers."""
        before = self._reached
        self._reconcile()
        self._reached = tuple(sorted({link.name for link in self._links.values() if link.connected}))
        self._met.update(self._reached)
        if self._reached == before:
            return
        self._on_change()
        if self._scope is not None and before and self._reached:
            self._scope.spawn(self._hand_over(before, self._reached), name="handing versions over")

    def _reconcile(self) -> None:
        """Have a link to every scheduler there is, and none twice."""
        if self._scope is None:
            return
        connected = [link for link in self._links.values() if link.connected]
        told = frozenset(name for link in connected for name in link.told)
        wanted: set[str] | frozenset[str]
        if lost := self._told - told if told else frozenset():
            log.info("schedulers left", schedulers=sorted(lost))
            self._met -= lost
        if added := told - self._told:
            log.info("schedulers known", schedulers=sorted(told))
            if self._told:
                self._scope.spawn(self._stand_in(added), name="standing in")
        self._told = told or self._told
        configured = self._configured.union(*self._resolved.values())
        if connected and told:
            reached = {link.name for link in connected}
            wanted = (told - reached) | {link.address for link in connected if link.told or link.address in configured}
        else:
            wanted = configured | {link.address for link in connected} | (set() if connected else set(self._told))
        for address in set(self._links) - wanted:
            self._running.pop(address).cancel()
            self._links.pop(address).close()
        for address in wanted - set(self._links):
            link = self._links[address] = self._make(address)
            self._running[address] = self._scope.spawn(link.run(), name=f"link to {address}")

    async def _hand_over(self, before: Iterable[str], after: Iterable[str]) -> None:
        """Tell the schedulers that have versions of others now what is held of them; those new among them know it."""
        before = tuple(before)
        heirs = {name for name in after if name in before}
        await self._announce(lambda heir, version_id: heir in heirs and _owner(before, version_id) != heir)

    async def _stand_in(self, added: Iterable[str]) -> None:
        """Tell schedulers anew of the versions that they have let go of, if the heirs were never to be reached."""
        await asyncio.sleep(STAND_IN_SECONDS)
        missing = set(added) & self._told - self._met
        if missing:
            log.warning("schedulers unreachable", schedulers=sorted(missing), consequence="others stand in for them")
            self._on_returned(lambda version_id: _owner(self._told, version_id) in missing)
            await self._announce(lambda _, version_id: _owner(self._told, version_id) in missing)

    async def _announce(self, moved: Callable[[str, str], bool]) -> None:
        """Tell each scheduler of its versions for which `moved(its name, version id)` holds."""
        found: defaultdict[str, list[Holding]] = defaultdict(list)
        try:
            async for holding in self._holdings():
                name = self.of(holding.version.id)
                if name is not None and moved(name, holding.version.id):
                    found[name].append(holding)
        except DamselflyError as error:
            log.warning("holdings unreadable", error=str(error))
        for name, holdings in found.items():
            if link := self._named(name):
                async for message in batches(_each(holdings)):
                    link.send(message)

    async def _resolve(self, name: DnsName) -> None:
        while True:
            found = await name.resolve()
            if found is not None and found != self._resolved.get(name):
                self._resolved[name] = found
                self._reconcile()
            elif found is None:
                log.warning("name not resolved", name=str(name))
            self._asked.set()
            await asyncio.sleep(RESOLVE_SECONDS)

    def _named(self, name: str | None) -> Link | None:
        return next((link for link in self._links.values() if link.connected and link.name == name), None)


def _owner(names: Iterable[str], version_id: str) -> str | None:
    return max(names, key=lambda name: weight(name, version_id), default=None)


async def _each(holdings: Iterable[Holding]) -> AsyncIterator[Holding]:
    for holding in holdings:
        yield holding
