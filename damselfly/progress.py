"""What `damselfly get` shows while it works: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Protocol

import aiohttp
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from damselfly.transfer import Transfer
from p2p.config import Address

_DRAW_SECONDS = 0.2
_POLL_SECONDS = 1.0
_PLAIN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Whence:
    """Bytes by where they came from; the text is empty where nobody told."""

    origin: int = 0
    parents: int = 0
    local: int = 0
    told: bool = False

    def __add__(self, other: Whence) -> Whence:
        return Whence(
            self.origin + other.origin,
            self.parents + other.parents,
            self.local + other.local,
            self.told or other.told,
        )

    def __str__(self) -> str:
        if not self.told:
            return ""
        return f"origin {decimal(self.origin)}, peers {decimal(self.parents)}, local {decimal(self.local)}"


class Sources:
    """Where the peer has one transfer's bytes from, as its HTTP port (`api`) tells; nowhere when it does not."""

    def __init__(self, api: Address | None, transfer: Transfer, session: aiohttp.ClientSession) -> None:
        self._url = f"http://{api}/v1/tasks/{transfer.task.id}" if api else None
        self._transfer = transfer
        self._session = session
        self._before: tuple[int, int] | None = None
        self.whence = Whence()

    async def poll(self) -> None:
        """Ask once. What the peer had fetched before the first call does not count."""
        if self._url is None:
            return
        try:
            async with self._session.get(self._url) as response:
                told = (await response.json())["bytes_by_source"] if response.status == 200 else {}
            now = int(told.get("origin", 0)), int(told.get("parents", 0))
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError, AttributeError):
            return
        if self._before is None:
            self._before = now
        origin, parents = (max(0, count - before) for count, before in zip(now, self._before, strict=True))
        # The peer also counts what it has fetched ahead of what it has sent us.
        local = max(0, self._transfer.fetched - origin - parents)
        self.whence = Whence(origin, parents, local, told=True)


def api_session() -> aiohttp.ClientSession:
    """Return a session for `Sources`, to be closed by `async with`: the display never waits long."""
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0))


class Shown(Protocol):
    """What is under way."""

    @property
    def title(self) -> str:
        """A few words on it, right now."""

    @property
    def done(self) -> int:
        """The bytes that are here."""

    @property
    def length(self) -> int | None:
        """The bytes there are to be; None if that is not known."""

    @property
    def whence(self) -> Whence:
        """Where they came from, as of the last poll."""

    async def poll(self) -> None:
        """Ask where the bytes come from."""


def say(console: Console, text: str) -> None:
    """Print a line as it is."""
    console.print(escape(text), soft_wrap=True, highlight=False)


async def show(console: Console, shown: Shown) -> None:
    """Draw a progress bar on a terminal; elsewhere print a line now and then. Runs until it is cancelled."""
    if not console.is_terminal:
        while True:
            await asyncio.sleep(_PLAIN_SECONDS)
            await shown.poll()
            total = f" of {decimal(shown.length)}" if shown.length is not None else ""
            say(console, f"{shown.title}: {decimal(shown.done)}{total} {shown.whence}".rstrip())
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[sources]}"),
    )
    polled = time.monotonic()
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        bar = progress.add_task("", total=None, sources="")
        while True:
            progress.update(
                bar,
                description=escape(shown.title),
                completed=shown.done,
                total=shown.length,
                sources=str(shown.whence),
                refresh=True,
            )
            await asyncio.sleep(_DRAW_SECONDS)
            if time.monotonic() - polled >= _POLL_SECONDS:
                await shown.poll()
                polled = time.monotonic()
