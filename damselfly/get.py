"""`damselfly get`: one object through the local peer into a file, or all objects under a prefix into a directory."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console
from rich.filesize import decimal

from damselfly.progress import Sources, Whence, api_session, say, show
from damselfly.recursive import Tree
from damselfly.transfer import GetSettings, Transfer
from p2p.errors import DamselflyError
from p2p.linkfile import Linked
from p2p.tasks import TaskScope

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

_TITLE_LENGTH = 40

_LINKED = {
    Linked.REFLINK: "a reflink of the peer's file",
    Linked.HARD_LINK: "a hard link of the peer's file, read-only",
}


def run_get(settings: GetSettings, *, jobs: int | None = None) -> int:
    """Fetch an object, or with `jobs` a tree with so many files at once; show progress, return the exit status."""
    console = Console(stderr=True)
    try:
        return asyncio.run(get(settings, console) if jobs is None else get_tree(settings, console, jobs=jobs))
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on from here")
        return EXIT_INTERRUPTED


class _OneFile:
    """A transfer as the display wants it."""

    def __init__(self, transfer: Transfer, sources: Sources) -> None:
        self._transfer = transfer
        self._sources = sources
        self.title = transfer.task.canonical.rpartition("/")[2][:_TITLE_LENGTH]

    @property
    def done(self) -> int:
        return self._transfer.done

    @property
    def length(self) -> int | None:
        return self._transfer.length

    @property
    def whence(self) -> Whence:
        return self._sources.whence

    async def poll(self) -> None:
        await self._sources.poll()


async def get(settings: GetSettings, console: Console) -> int:
    """Fetch an object and return the exit status: 0 once the file is whole, verified and in its place."""
    failure: DamselflyError | None = None
    try:
        transfer = Transfer(settings)
    except DamselflyError as error:
        return _failed(console, settings, error)
    async with api_session() as session, TaskScope() as scope:
        sources = Sources(settings.api, transfer, session)
        await sources.poll()
        scope.spawn(show(console, _OneFile(transfer, sources)), name="progress")
        started = time.monotonic()
        try:
            await asyncio.to_thread(transfer.run)
        except DamselflyError as error:
            failure = error
        finally:
            # Cancelled or not: a thread that still waits for the peer must not keep the process.
            transfer.stop()
        seconds = time.monotonic() - started
        await sources.poll()
    if failure is not None:
        return _failed(console, settings, failure)
    resumed = f", {decimal(transfer.resumed_at)} of it from before" if transfer.resumed_at else ""
    verified = f"; {settings.digest.algorithm} verified" if settings.digest else ""
    rate = f"{decimal(int(transfer.fetched / max(seconds, 1e-6)))}/s"
    shown = f" ({sources.whence})" if sources.whence.told else ""
    linked = f"; {_LINKED[transfer.linked]}" if transfer.linked else ""
    if transfer.copied_because:
        say(console, f"{settings.output} is a copy: {transfer.copied_because}")
    done = decimal(transfer.done)
    say(console, f"{settings.output}: {done} in {seconds:.1f} s, {rate}{resumed}{shown}{verified}{linked}")
    return 0


async def get_tree(settings: GetSettings, console: Console, *, jobs: int) -> int:
    """Fetch all objects under a prefix, `jobs` at once, and return the exit status: 0 once every file is in its place.

    A file that fails is named, and the others are fetched all the same.
    """
    failure: DamselflyError | None = None
    try:
        tree = Tree(settings)
    except DamselflyError as error:
        return _failed(console, settings, error)
    # Threads of its own: asyncio's are as few as the machine's cores, whatever the number of jobs.
    with ThreadPoolExecutor(jobs, thread_name_prefix="get") as threads:
        async with api_session() as session, TaskScope() as scope:
            started = time.monotonic()
            try:
                await asyncio.get_running_loop().run_in_executor(threads, tree.list)
                scope.spawn(show(console, tree), name="progress")
                await tree.fetch(threads, session, jobs=jobs)
            except DamselflyError as error:
                failure = error
            finally:
                tree.stop()
    seconds = time.monotonic() - started
    if failure is not None:
        return _failed(console, settings, failure)
    for path, reason in tree.failures:
        say(console, f"damselfly get: {settings.output / path} was not written: {reason}")
    if tree.copied_because:
        say(console, f"{tree.copied} of the files are copies; {tree.copied_because}")
    rate = f"{decimal(int(tree.fetched / max(seconds, 1e-6)))}/s"
    before = f", {tree.skipped} of them there already" if tree.skipped else ""
    shown = f" ({tree.whence})" if tree.whence.told else ""
    lost = f"; {len(tree.failures)} failed" if tree.failures else ""
    say(
        console,
        f"{settings.output}: {tree.finished} of {tree.files} files{before}, {decimal(tree.done)} in {seconds:.1f} s, "
        f"{rate}{shown}{lost}",
    )
    return EXIT_FAILED if tree.failures else 0


def _failed(console: Console, settings: GetSettings, error: DamselflyError) -> int:
    say(console, f"damselfly get: {settings.output} was not written: {error}")
    return EXIT_FAILED
