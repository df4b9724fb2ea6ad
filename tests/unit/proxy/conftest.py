from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import pytest
import uvloop

from peer.proxy.server import ProxySettings
from peer.source.client import OriginSettings

from ..source.raw_origin import RawOrigin, raw_origin, serving
from .front import Front, MemoryTasks

CONTENT = bytes(range(256)) * 4


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run every test here under the daemons' loop and under the standard one."""
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@pytest.fixture
async def origin() -> AsyncIterator[RawOrigin]:
    async with raw_origin(serving(CONTENT, "Content-Type: model/onnx", "Set-Cookie: secret=1")) as found:
        yield found


@pytest.fixture
async def fronts() -> AsyncIterator[Callable[..., Awaitable[Front]]]:
    started: list[Front] = []

    async def start(settings: ProxySettings | None = None, origin: OriginSettings | None = None) -> Front:
        front = Front(MemoryTasks(CONTENT), settings or ProxySettings(), origin or OriginSettings(stall_seconds=5))
        started.append(front)
        await front.start()
        return front

    yield start
    for front in started:
        await front.stop()


@pytest.fixture
async def front(fronts: Callable[..., Awaitable[Front]]) -> Front:
    return await fronts()
