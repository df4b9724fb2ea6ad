"""Ranges, digests and prefetch at the proxy's front, byte by byte."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator

import pytest

from p2p.errors import OriginUnreachableError
from p2p.linkfile import HeldFile
from p2p.ranges import ByteRange
from peer.core.rules import Rule, Rules
from peer.proxy.server import ProxyServer, ProxySettings
from peer.source.client import OriginSettings
from tests.support.pieces import PIECE

from ..source.raw_origin import RawOrigin, raw_origin, serving
from .conftest import CONTENT
from .front import HOST_ID, SIGNED, Front, MemoryTasks

LONG = bytes(range(256)) * (PIECE // 256) + b"the last piece"
RIGHT = f"X-Dragonfly-Digest: sha256:{hashlib.sha256(LONG).hexdigest()}"
WRONG = f"X-Dragonfly-Digest: sha256:{'0' * 64}"


def signed(origin: RawOrigin) -> str:
    return f"{origin.base}/models/m.onnx?{SIGNED}"


class LongFront(Front):
    """A proxy whose downloads give LONG."""

    def __init__(self) -> None:
        super().__init__(MemoryTasks(LONG), ProxySettings(), OriginSettings(stall_seconds=5))


@pytest.fixture
async def long_front() -> AsyncIterator[Front]:
    front = LongFront()
    await front.start()
    yield front
    await front.stop()


@pytest.fixture
async def long_origin() -> AsyncIterator[RawOrigin]:
    async with raw_origin(serving(LONG)) as found:
        yield found


async def test_several_ranges_are_wanted_each_and_sent_as_they_land(front: Front, origin: RawOrigin) -> None:
    front.tasks.landed = 0
    client = await front.connect()
    fields = ("Host: x", "User-Agent: curl/8", "Range: bytes=600-602,0-3")
    await client.send(f"GET {signed(origin)} HTTP/1.1", *fields)
    while len(front.tasks.downloads) < 2:
        front.tasks.opened.clear()
        await front.tasks.opened.wait()
    assert [opening.wanted for opening in front.tasks.openings] == [ByteRange(600, 603), ByteRange(0, 4)]
    front.tasks.downloads[0].land(603)
    head = await client.head()
    kind = re.fullmatch(r"multipart/byteranges; boundary=(\w+)", head.field("Content-Type") or "")
    assert kind is not None
    assert head.field("Content-Range") is None
    first = f"\r\n--{kind[1]}\r\nContent-Type: model/onnx\r\nContent-Range: bytes 600-602/1024\r\n\r\n".encode()
    first += CONTENT[600:603]
    assert await client.reader.readexactly(len(first)) == first
    front.tasks.downloads[1].land(4)
    second = f"\r\n--{kind[1]}\r\nContent-Type: model/onnx\r\nContent-Range: bytes 0-3/1024\r\n\r\n".encode()
    second += CONTENT[:4] + f"\r\n--{kind[1]}--\r\n".encode()
    assert await client.reader.readexactly(len(second)) == second
    assert head.field("Content-Length") == str(len(first) + len(second))
    front.tasks.landed = None
    await client.send(f"GET {signed(origin)} HTTP/1.1", "Host: x", "User-Agent: curl/8", "Range: bytes=-1")
    assert (await client.head()).status == 206, "the connection is in step"


async def test_a_part_that_fails_resets_the_message(front: Front, origin: RawOrigin) -> None:
    front.tasks.landed = 10
    client = await front.connect()
    await client.send(f"GET {signed(origin)} HTTP/1.1", "Host: x", "User-Agent: x", "Range: bytes=0-3,600-602")
    assert (await client.head()).status == 206
    front.tasks.downloads[1].fail(OriginUnreachableError("gone"))
    with pytest.raises(ConnectionResetError):
        await client.reader.read(-1)
    assert not front.tasks.readers


async def test_the_last_piece_waits_for_the_verdict(long_front: Front, long_origin: RawOrigin) -> None:
    client = await long_front.connect()
    await client.send(f"GET {signed(long_origin)} HTTP/1.1", "Host: x", "User-Agent: x", RIGHT)
    assert (await client.head()).field("Content-Length") == str(len(LONG))
    assert await client.reader.readexactly(PIECE) == LONG[:PIECE]
    rest = asyncio.ensure_future(client.reader.read(1))
    # Another exchange from end to end: had the last piece been free to go, it would be here by now.
    other = await long_front.get(signed(long_origin), "Range: bytes=0-0")
    assert (other.status, rest.done()) == (206, False)
    long_front.tasks.may_judge.set()
    assert await rest + await client.reader.readexactly(13) == b"the last piece"


async def test_the_last_piece_of_another_object_never_goes_out(long_front: Front, long_origin: RawOrigin) -> None:
    client = await long_front.connect()
    await client.send(f"GET {signed(long_origin)} HTTP/1.1", "Host: x", "User-Agent: x", WRONG)
    assert (await client.head()).status == 200
    assert await client.reader.readexactly(PIECE) == LONG[:PIECE]
    long_front.tasks.may_judge.set()
    with pytest.raises(ConnectionResetError):
        await client.reader.read(1)


async def test_what_is_all_last_piece_can_be_refused_with_a_status(long_front: Front, long_origin: RawOrigin) -> None:
    long_front.tasks.may_judge.set()
    url = signed(long_origin)
    assert (await long_front.get(url, WRONG, "Range: bytes=-5")).status == 502
    reply = await long_front.get(url, RIGHT, "Range: bytes=-5")
    assert (reply.status, reply.body) == (206, b"piece")
    assert (await long_front.get(url, WRONG, method="HEAD")).status == 200, "there is nothing to verify"


@pytest.mark.parametrize("ruled", [False, True])
@pytest.mark.parametrize(("asked", "chosen"), [((), None), (("X-Dragonfly-Prefetch: TRUE",), True)])
async def test_prefetch_by_rule_and_by_request(
    front: Front, origin: RawOrigin, ruled: bool, asked: tuple[str, ...], chosen: bool | None
) -> None:
    await under(front, Rules([Rule(prefetch=ruled)]))
    await front.get(signed(origin), "Range: bytes=0-9", *asked)
    wanted = ruled if chosen is None else chosen
    assert [opening.version.length for opening in front.tasks.prefetched] == ([1024] if wanted else [])


async def test_a_request_can_decline_what_its_rule_prefetches(front: Front, origin: RawOrigin) -> None:
    await under(front, Rules([Rule(prefetch=True)]))
    await front.get(signed(origin), "Range: bytes=0-9", "X-Dragonfly-Prefetch: false")
    assert not front.tasks.prefetched


async def test_the_whole_needs_no_prefetch(front: Front, origin: RawOrigin) -> None:
    for method, fields in (("GET", ()), ("HEAD", ("Range: bytes=0-9",)), ("GET", ("Range: bytes=9999-",))):
        await front.get(signed(origin), "X-Dragonfly-Prefetch: true", *fields, method=method)
    assert not front.tasks.prefetched


async def under(front: Front, rules: Rules) -> None:
    """Put a proxy with rules in the place of the front's."""
    await front.server.shutdown(0.0)
    front.server = ProxyServer(front.tasks, front._client, host_id=HOST_ID, rules=rules)
    await front.start()


async def test_who_asks_for_the_file_gets_its_name_once_all_of_it_is_here(front: Front, origin: RawOrigin) -> None:
    front.tasks.landed = 0
    client = await front.connect()
    asking = ("Host: x", "User-Agent: curl/8", "X-Damselfly-Link: 1")
    await client.send(f"GET {signed(origin)} HTTP/1.1", *asking)
    while not front.tasks.downloads:
        front.tasks.opened.clear()
        await front.tasks.opened.wait()
    (download,) = front.tasks.downloads
    download.land(1000)
    download.land(len(CONTENT))
    head = await client.head()
    assert head.status == 204
    assert HeldFile.parse(head.field("X-Damselfly-File") or "") == HeldFile.of(download.path, download.fd)
    assert (head.field("Content-Length"), head.field("ETag")) == (None, '"v1"')
    front.tasks.landed = None
    # A range of it is bytes all the same, and the connection is in step.
    await client.send(f"GET {signed(origin)} HTTP/1.1", *asking, "Range: bytes=-1")
    assert (await client.head()).status == 206
    assert await client.reader.readexactly(1) == CONTENT[-1:]
    await client.send(f"GET {signed(origin)} HTTP/1.1", "Host: x", "User-Agent: x", "X-Damselfly-Link: yes")
    assert (await client.head()).status == 400
