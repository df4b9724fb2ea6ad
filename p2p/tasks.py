"""The only place that spawns asyncio tasks.

A `TaskScope` owns every task it starts: leaving it cancels and awaits them all, so none outlives its owner. A task
that fails is a defect of the service, not of one download (those handle their own errors): the scope cancels its
siblings and raises, and the process ends with the story instead of limping on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


class TaskScope:
    """An `asyncio.TaskGroup` whose remaining tasks are cancelled, not awaited, when the body is left."""

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await self._group.__aexit__(kind, error, trace)

    def spawn(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Start `work` as a task of this scope and return it; `name` appears in tracebacks and stories."""
        task = self._group.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
