"""Transfers connect to no origin that may not be asked; parents are the cluster's own, and are not judged."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from p2p.control import FailureReason, Source
from p2p.errors import DeniedError
from peer.download.reports import failure_reason
from peer.download.transfer import Transfers
from peer.source.guard import AddressInfo, Guard, Resolver
from tests.unit.download.support import DIGESTS, EVERYTHING, FileTarget, Pieces, serving, sound, status


@pytest.fixture
def target(tmp_path: Path) -> Iterator[FileTarget]:
    target = FileTarget(tmp_path / "data")
    yield target
    target.close()


async def lookup(host: str, port: int) -> Sequence[AddressInfo]:
    """A DNS in which `rebound` is the metadata's address, and `mixed` also the loopback's."""
    addresses = {"rebound": ["169.254.169.254"], "mixed": ["169.254.169.254", "127.0.0.1"]}.get(host, [host])
    return [info for address in addresses for info in socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)]


@asynccontextmanager
async def running(guard: Guard | None = None) -> AsyncIterator[Transfers]:
    transfers = Transfers(resolver=Resolver(guard, lookup=lookup))
    try:
        yield transfers
    finally:
        await transfers.close()


@pytest.mark.parametrize("host", ["rebound", "169.254.169.254", "2852039166", "0xa9fea9fe", "[::ffff:a9fe:a9fe]"])
async def test_metadata_is_denied(target: FileTarget, host: str) -> None:
    async with running() as transfers:
        with pytest.raises(DeniedError, match="metadata address"):
            await transfers.from_origin(target, EVERYTHING, source=Source(f"http://{host}/x"), on_piece=Pieces())


async def test_a_redirect_to_metadata_is_denied(target: FileTarget) -> None:
    async with serving(status(302, "Location: http://rebound/latest/")) as server, running() as transfers:
        with pytest.raises(DeniedError, match="rebound"):
            await transfers.from_origin(
                target, EVERYTHING, source=Source(f"http://{server.address}/x"), on_piece=Pieces()
            )


async def test_the_connection_goes_to_an_address_that_is_allowed(target: FileTarget) -> None:
    async with serving(sound) as server, running() as transfers:
        port = server.address.rpartition(":")[2]
        await transfers.from_origin(target, EVERYTHING, source=Source(f"http://mixed:{port}/x"), on_piece=Pieces())
    assert target.holds(EVERYTHING)


async def test_parents_are_not_judged(target: FileTarget) -> None:
    async with serving(sound) as server, running(Guard(deny=["127.0.0.1"])) as transfers:
        await transfers.from_parent(
            target, EVERYTHING, address=server.address, token=None, digests=DIGESTS, on_piece=Pieces()
        )
    assert target.holds(EVERYTHING)


def test_a_denied_origin_is_not_worth_another_attempt() -> None:
    assert failure_reason(DeniedError("a.example is denied")) is FailureReason.ORIGIN_REFUSED
