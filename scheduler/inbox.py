"""What waits for the owner of the scheduler's state, in the order in which it is to be heard.

Most of what hosts say are reports of pieces that came along the trees: nobody waits for what follows from them, while
whoever asks for a file, or reports a failure, waits for an answer. Such *lazy* reports are heard when nothing else is
left, in batches that are soon over. What one host says is heard in the order in which it said it: where it says
something urgent, its lazy reports go before that.
"""

from __future__ import annotations

import asyncio
from collections import deque

from p2p.control import Progress
from scheduler.core.messages import Event, HostJoined, HostLeft, HostSaid, Progressed

BATCH_EVENTS = 128
"""So many events make a batch at the most: some milliseconds of work, after which answers go out."""

BATCH_LAZY = 32
"""So many lazy reports are in a batch at the most."""


class Batches:
    """Events that wait, and which of them come next."""

    def __init__(self) -> None:
        self._urgent: deque[Event] = deque()
        self._lazy: dict[str, list[Event]] = {}
        """By host, the one whose first report is oldest first."""

    def __len__(self) -> int:
        return len(self._urgent) + len(self._lazy)

    def add(self, event: Event) -> None:
        """Let an event wait."""
        host_id = speaker(event)
        if host_id is not None and is_lazy(event):
            self._lazy.setdefault(host_id, []).append(event)
            return
        if host_id is not None:
            self._urgent += self._lazy.pop(host_id, ())
        self._urgent.append(event)

    def take(self) -> list[Event]:
        """Return the next batch; there is at least one event in it if any waits."""
        urgent, lazy = self._urgent, self._lazy
        batch = [urgent.popleft() for _ in range(min(len(urgent), BATCH_EVENTS))]
        most = min(BATCH_EVENTS, len(batch) + BATCH_LAZY)
        while lazy and len(batch) < most:
            batch += lazy.pop(next(iter(lazy)))
        return batch


class Inbox:
    """The same with bounds: so many `urgent` events and `lazy` reports wait; who has more to say waits for room."""

    def __init__(self, urgent: int, lazy: int) -> None:
        self._batches = Batches()
        self._room = {False: asyncio.Semaphore(urgent), True: asyncio.Semaphore(lazy)}
        self._taken: dict[int, bool] = {}
        """The events, by their `id`, that take room, and whether that is room for lazy reports."""
        self._arrived = asyncio.Event()

    async def put(self, event: Event) -> None:
        """Let an event wait, as soon as there is room for it."""
        await self.room(event)
        self.add(event)

    async def room(self, event: Event) -> None:
        """Wait for room, and take it: `add` or `give_up` must follow."""
        await self._room[is_lazy(event)].acquire()

    def give_up(self, event: Event) -> None:
        """Leave the room to others that was taken for an event."""
        self._room[is_lazy(event)].release()

    def add(self, event: Event) -> None:
        """Let an event wait in the room that was taken for it."""
        self._taken[id(event)] = is_lazy(event)
        self.squeeze(event)

    def squeeze(self, event: Event) -> None:
        """Let an event wait that takes no room."""
        self._batches.add(event)
        self._arrived.set()

    def take(self) -> list[Event]:
        """Return the next batch, which is empty if nothing waits."""
        batch = self._batches.take()
        for event in batch:
            lazy = self._taken.pop(id(event), None)
            if lazy is not None:
                self._room[lazy].release()
        if not self._batches:
            self._arrived.clear()
        return batch

    async def arrival(self) -> None:
        """Wait until something waits."""
        await self._arrived.wait()


def is_lazy(event: Event) -> bool:
    """Tell whether an event is a report that nobody waits for: nothing but pieces from followed parents."""
    return isinstance(event, Progressed) and _is_lazy(event.progress)


def _is_lazy(progress: Progress) -> bool:
    landed = progress.landed
    return bool(landed) and not progress.failed and all(one.proof and not one.digests for one in landed)


def speaker(event: Event) -> str | None:
    """Return the host whose words, coming or going an event is."""
    if isinstance(event, HostJoined):
        return event.hello.host_id
    return event.host_id if isinstance(event, HostSaid | HostLeft) else None
