"""Which schedulers a host talks to, and what each is told when versions move; the sessions themselves are played."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from p2p.config import Address
from p2p.control import Hello, Holding, Holdings, PeerMessage, Schedulers, Unwant
from p2p.dns import DnsName
from p2p.rendezvous import weight
from p2p.tasks import TaskScope
from peer import links as links_module
from peer.link import Link
from peer.links import Links
from tests.unit.scheduler.support import holding_of, version_of

HOLDINGS = tuple(holding_of(version_of(1, name=f"object {number}")) for number in range(40))


class Played(Link):
    """A link whose session is up when the test says so."""

    def __init__(self, address: str, on_change: Callable[[], None]) -> None:
        super().__init__(
            address,
            Hello("host", "host:1"),
            None,
            holdings=lambda _: _nothing(),
            on_change=on_change,
            on_message=lambda _: None,
        )
        self.said: list[PeerMessage] = []
        self.heard = asyncio.Event()

    def send(self, message: PeerMessage, *, soon: bool = True) -> None:
        self.said.append(message)
        self.heard.set()

    async def run(self) -> None:
        await asyncio.Event().wait()

    def up(self, *names: str, own: str = "") -> None:
        if names:
            self._hear(Schedulers(own or self.address, names))
        self._connected()

    def told_of(self, *names: str) -> None:
        self._hear(Schedulers(self.name, names))
        self._on_change()

    def down(self) -> None:
        self._disconnected()

    def holdings(self) -> set[str]:
        messages = [message for message in self.said if isinstance(message, Holdings)]
        return {holding.version.id for message in messages for holding in message.holdings}


async def _nothing() -> AsyncIterator[Holding]:
    return
    yield


class World:
    def __init__(self, *places: Address) -> None:
        self.made: dict[str, Played] = {}
        self.begun = asyncio.Event()
        self.changes = 0
        self.returned: list[Callable[[str], bool]] = []
        self.links = Links(
            places, self._make, holdings=self._holdings, on_change=self._changed, on_returned=self.returned.append
        )

    def _make(self, address: str) -> Link:
        link = self.made[address] = Played(address, self.links.changed)
        asyncio.get_running_loop().call_soon(self.begun.set)
        return link

    def _changed(self) -> None:
        self.changes += 1

    async def _holdings(self) -> AsyncIterator[Holding]:
        for holding in HOLDINGS:
            yield holding


@contextlib.asynccontextmanager
async def a_world(*places: Address) -> AsyncIterator[World]:
    world = World(*places)
    async with asyncio.timeout(10), TaskScope() as scope:
        scope.spawn(world.links.run(), name="links")
        await world.begun.wait()
        yield world


def owner(version_id: str, *names: str) -> str:
    return max(names, key=lambda name: weight(name, version_id))


def ids(name: str, *names: str) -> set[str]:
    """The versions of HOLDINGS that are a scheduler's."""
    return {holding.version.id for holding in HOLDINGS if owner(holding.version.id, *names) == name}


async def test_versions_are_shared_out_among_those_that_can_be_reached() -> None:
    async with a_world(Address("a", 1), Address("b", 1)) as world:
        version_id = HOLDINGS[0].version.id
        assert world.links.of(version_id) is None
        world.made["a:1"].up()
        assert world.links.of(version_id) == "a:1"
        world.made["b:1"].up()
        assert world.links.of(version_id) == owner(version_id, "a:1", "b:1")
        world.made[owner(version_id, "a:1", "b:1")].down()
        assert world.links.of(version_id) != owner(version_id, "a:1", "b:1")
        assert world.changes == 3


async def test_schedulers_that_others_name_get_a_session_and_those_that_nobody_names_lose_it() -> None:
    async with a_world(Address("a", 1)) as world:
        world.made["a:1"].up("a:1", "b:1")
        assert world.links.status() == {"a:1": True, "b:1": False}
        world.made["b:1"].up("a:1", "b:1", "c:1")
        assert set(world.links.status()) == {"a:1", "b:1", "c:1"}
        world.made["b:1"].told_of("a:1", "b:1")
        assert set(world.links.status()) == {"a:1", "b:1"}


async def test_one_scheduler_under_two_names_gets_one_session() -> None:
    async with a_world(Address("localhost", 1), Address("alias", 2)) as world:
        world.made["localhost:1"].up("a:1", "b:1", own="a:1")
        assert set(world.links.status()) == {"localhost:1", "b:1"}, "what is not connected goes by the names told"
        world.made["b:1"].up("a:1", "b:1")
        assert {world.links.of(holding.version.id) for holding in HOLDINGS} == {"a:1", "b:1"}


async def test_the_configured_and_the_last_known_ones_are_tried_when_all_are_gone() -> None:
    async with a_world(Address("localhost", 1)) as world:
        world.made["localhost:1"].up("a:1", "b:1", own="a:1")
        world.made["localhost:1"].down()
        assert set(world.links.status()) == {"localhost:1", "a:1", "b:1"}


async def test_an_heir_is_told_of_what_was_anothers() -> None:
    async with a_world(Address("a", 1), Address("b", 1)) as world:
        for link in world.made.values():
            link.up("a:1", "b:1")
        world.made["b:1"].down()
        await world.made["a:1"].heard.wait()
        assert world.made["a:1"].holdings() == ids("b:1", "a:1", "b:1")


async def test_a_new_session_begins_with_what_is_its_own() -> None:
    async with a_world(Address("a", 1), Address("b", 1)) as world:
        for link in world.made.values():
            link.up("a:1", "b:1")
        found = {holding.version.id async for holding in world.links.owned(world.made["a:1"])}
        assert found == ids("a:1", "a:1", "b:1")


async def test_a_scheduler_that_was_left_is_told_once_it_knows_why() -> None:
    async with a_world(Address("a", 1)) as world:
        world.made["a:1"].up("a:1")
        world.made["a:1"].told_of("a:1", "b:1")
        world.made["b:1"].up("b:1", "a:1")
        theirs, ours = min(ids("b:1", "a:1", "b:1")), min(ids("a:1", "a:1", "b:1"))
        world.links.left("a:1", theirs)
        assert Unwant(theirs) in world.made["a:1"].said
        world.links.left("a:1", ours)
        assert Unwant(ours) not in world.made["a:1"].said, "it plans for the others still"


async def test_who_let_go_for_an_heir_that_nobody_reaches_hears_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links_module, "STAND_IN_SECONDS", 0.0)
    async with a_world(Address("a", 1)) as world:
        world.made["a:1"].up("a:1")
        world.made["a:1"].told_of("a:1", "b:1")
        await world.made["a:1"].heard.wait()
        assert world.made["a:1"].holdings() == ids("b:1", "a:1", "b:1")
        (forgotten,) = world.returned
        assert {holding.version.id for holding in HOLDINGS if forgotten(holding.version.id)} == ids("b:1", "a:1", "b:1")


async def test_a_name_stands_for_all_its_addresses() -> None:
    async with a_world(DnsName("127.0.0.1", 8002)) as world:
        assert set(world.links.status()) == {"127.0.0.1:8002"}


async def test_a_host_waits_also_for_sessions_that_are_yet_to_be_begun() -> None:
    world = World(Address("a", 1))
    settled = asyncio.ensure_future(world.links.settle(3600))
    async with TaskScope() as scope:
        # `settle` is called before `run` has had its first turn.
        running = scope.spawn(world.links.run(), name="links")
        await world.begun.wait()
        assert not settled.done()
        world.made["a:1"].tried.set()
        await settled
        running.cancel()
