"""Whatever comes in, the proxy's front answers what it understands, refuses what it cannot, and keeps its balance."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from peer.proxy.server import ProxySettings
from tests.fuzz.clock import VirtualLoop
from tests.fuzz.field import Field, field
from tests.fuzz.grammar import ORIGIN, SIGNED, Case, bad_chunks, mutations, noise, oddities, pipelines, smuggling


class Ground:
    """A field and the loop that it stands on, for tests that are no coroutines."""

    def __init__(self, loop: VirtualLoop, field: Field) -> None:
        self.loop = loop
        self.field = field

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def check(self, case: Case) -> None:
        self.run(self.field.check(case))


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    loop = VirtualLoop()
    stack = AsyncExitStack()

    async def start() -> Field:
        return await stack.enter_async_context(field(loop))

    found = Ground(loop, loop.run_until_complete(start()))
    yield found
    found.run(found.field.settled())
    loop.run_until_complete(stack.aclose())
    loop.close()


def drawing(examples: int) -> settings:
    return settings(max_examples=examples, suppress_health_check=[HealthCheck.function_scoped_fixture])


@drawing(60)
@given(case=pipelines())
def test_requests_cut_anywhere_each_get_their_own_answer(ground: Ground, case: Case) -> None:
    ground.check(case)


@drawing(120)
@given(case=smuggling())
def test_a_request_that_can_be_read_in_two_ways_is_refused_and_ends_the_connection(ground: Ground, case: Case) -> None:
    ground.check(case)


@drawing(30)
@given(case=bad_chunks())
def test_nothing_behind_unreadable_chunks_is_taken_for_a_request(ground: Ground, case: Case) -> None:
    ground.check(case)


@drawing(150)
@given(case=oddities())
def test_odd_targets_and_fields_break_nothing(ground: Ground, case: Case) -> None:
    ground.check(case)


@drawing(150)
@given(case=mutations())
def test_damaged_requests_break_nothing(ground: Ground, case: Case) -> None:
    ground.check(case)


@drawing(40)
@given(case=noise)
def test_noise_breaks_nothing(ground: Ground, case: Case) -> None:
    ground.check(case)


def test_a_head_that_comes_slowly_is_cut_off_in_time(ground: Ground) -> None:
    async def trickle(octets: bytes, pause_seconds: float) -> tuple[float, bytes]:
        """Send an octet every so often until the connection ends; return when that was, and what was answered."""
        reader, writer = await asyncio.open_connection("127.0.0.1", ground.field.front.port)
        started = ground.loop.time()
        answer = asyncio.ensure_future(reader.read())
        for octet in octets:
            if answer.done():
                break
            writer.write(bytes([octet]))
            await asyncio.wait([answer], timeout=pause_seconds)
        got = await answer
        writer.close()
        return ground.loop.time() - started, got

    limits = ProxySettings()
    head = b"GET http://127.0.0.1/ HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: " + b"z" * 1000
    # No octet is due when the time is up: one on its way then would make the end a reset.
    elapsed, got = ground.run(trickle(head, 4.0))
    assert (round(elapsed), got) == (limits.head_seconds, b"")
    elapsed, got = ground.run(trickle(b"", 0.0))
    assert (round(elapsed), got) == (limits.keep_alive_seconds, b"")


def test_a_kept_connection_that_begins_another_head_slowly_is_cut_off_in_time(ground: Ground) -> None:
    async def visit() -> float:
        name = b"127.0.0.1:%d" % ground.field.origin.port
        reader, writer = await asyncio.open_connection("127.0.0.1", ground.field.front.port)
        writer.write(b"GET http://%b/first HTTP/1.1\r\nHost: %b\r\nUser-Agent: c\r\n\r\nGET " % (name, name))
        await reader.readuntil(b"seen /first with 0")
        await ground.loop.elapse(5.0)
        writer.write(b"http")
        started = ground.loop.time()
        assert await reader.read() == b""
        writer.close()
        return ground.loop.time() - started

    assert round(ground.run(visit())) == ProxySettings().head_seconds


def test_requests_of_every_kind_leave_no_memory_behind(ground: Ground) -> None:
    """The same inputs again and again: after the first rounds nothing grows any more."""
    name = ORIGIN
    inputs = [
        Case((b"GET http://%b/x HTTP/1.1\r\nHost: h\r\nUser-Agent: c\r\n\r\n" % name,)),
        Case((b"GET http://%b/x?%b HTTP/1.1\r\nHost: h\r\nUser-Agent: c\r\n\r\n" % (name, SIGNED),)),
        Case((b"GET http://%b/x HTTP/1.1\r\nHost: h\r\nX: %b\r\n\r\n" % (name, b"v" * 70_000),)),
        Case((b"POST http://%b/x HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\nabc" % name,)),
        Case((b"POST http://%b/x HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nabc" % name,)),
        Case((b"CONNECT %b HTTP/1.1\r\nHost: h\r\n\r\n" % name,)),
        Case((b"\x16\x03\x01\x00",)),
    ]

    def grown() -> int:
        ground.field.number = 0  # the canaries' URLs are the same every time, so that caches fill but once
        for _ in range(5):
            for case in inputs:
                ground.check(case)
        ground.run(ground.field.settled())
        ground.field.forget()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        warm = [grown(), grown()][-1]
        # A kept request is some KiB, a kept connection more; the rest is caches that are not full yet.
        assert grown() - warm < 5 * len(inputs) * 1024
    finally:
        tracemalloc.stop()
