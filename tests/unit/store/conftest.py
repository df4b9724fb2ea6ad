from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from peer.store import Store
from tests.unit.store.support import ticking

Opener = Callable[..., Awaitable[Store]]


@pytest.fixture
async def open_store(tmp_path: Path) -> AsyncIterator[Opener]:
    """Opens stores on one directory, one after the other; what is left open is closed at the end."""
    opened: list[Store] = []

    async def open_it(**options: Any) -> Store:
        store = await Store.open(tmp_path, **({"clock": ticking()} | options))
        opened.append(store)
        return store

    yield open_it
    for store in opened:
        await store.close()


@pytest.fixture
async def store(open_store: Opener) -> Store:
    return await open_store()
