"""All objects under a prefix into a directory, keeping the tree: the many files of `damselfly get --recursive`.

Each file is fetched as a single one is (`damselfly.transfer`). A note in the directory has a line for each that is in
its place: what it is a copy of, its ETag, length and time. A file that still fits its line, and whose line still fits
the listing, is not fetched again.
"""

from __future__ import annotations

import asyncio
import fcntl
import http.client
import json
import os
import socket
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import urlsplit

import aiohttp

from damselfly.progress import Sources, Whence
from damselfly.transfer import GetError, GetSettings, Transfer, dial, explanation, located
from p2p.errors import BadRequestError, DamselflyError
from p2p.hostapi import JSON_BYTES, Listed, entry_from_json
from p2p.native import Location, bucket_of
from p2p.tasks import TaskScope
from peer.source.listing import relative_path

NOTE = ".damselfly-tree"


@dataclass(frozen=True, slots=True)
class _File:
    path: PurePosixPath
    listed: Listed


class Tree:
    """One recursive download; its counters may be read meanwhile. Raises BadRequestError for a name of no prefix.

    `done`, `length`, `title` and `whence` are what the display wants; bytes. `failures` are paths with their errors.
    `copied` files were to be links and are not, `copied_because` says why the last of them is not.
    """

    def __init__(self, settings: GetSettings) -> None:
        location = located(settings.url, os.environ)
        if location is None:
            raise BadRequestError(
                "only native names can be listed, for example s3://bucket/prefix/ or s3://http://host:9000/bucket/prefix/"
            )
        if settings.digest is not None:
            raise BadRequestError("--digest is for one object, and --recursive fetches many")
        # "models/a" is the directory, and not whatever else begins so.
        slash = "" if location.url.endswith("/") else "/"
        self._location = Location(location.url + slash, location.store)
        self._settings = settings
        self._prefix = bucket_of(self._location.url, location.store).key
        self._todo: list[_File] = []
        self._running: dict[Transfer, Sources] = {}
        self._finished = Whence()
        self._fetched = 0
        self._resumed = 0
        self._sock: socket.socket | None = None
        self._stopped = False
        self.failures: list[tuple[str, DamselflyError]] = []
        self.files = 0
        self.finished = 0
        self.skipped = 0
        self.copied = 0
        self.copied_because = ""
        self.length: int | None = None
        self._skipped_bytes = 0

    @property
    def title(self) -> str:
        """How many files are in their places."""
        return f"{self.finished} of {self.files} files"

    @property
    def fetched(self) -> int:
        """Bytes that came in this run."""
        return self._fetched + sum(transfer.fetched for transfer in self._running)

    @property
    def done(self) -> int:
        """Bytes of all files that are here, those of earlier runs included."""
        running = sum(transfer.resumed_at for transfer in self._running)
        return self.fetched + self._resumed + running + self._skipped_bytes

    @property
    def whence(self) -> Whence:
        """Where the bytes of this run came from, as of the last poll."""
        return sum((sources.whence for sources in self._running.values()), self._finished)

    async def poll(self) -> None:
        """Ask where the bytes of the files that are under way come from."""
        for sources in tuple(self._running.values()):
            await sources.poll()

    def stop(self) -> None:
        """Make all transfers end soon."""
        self._stopped = True
        if self._sock is not None:
            with suppress(OSError):  # it may have ended by itself
                self._sock.shutdown(socket.SHUT_RDWR)
        for transfer in tuple(self._running):
            transfer.stop()

    def list(self) -> None:
        """Learn what is under the prefix, through the peer. Raises GetError, and what the peer tells of."""
        length = 0
        for listed in self._listed():
            self.files += 1
            length += listed.length
            try:
                self._todo.append(_File(self._place(listed.key), listed))
            except BadRequestError as error:
                self.failures.append((listed.key, error))
        if not self.files:
            raise GetError("there is no object under that prefix")
        self.length = length

    async def fetch(self, threads: Executor, session: aiohttp.ClientSession, *, jobs: int) -> None:
        """Fetch what is not there yet, `jobs` files at once, in the order of the listing. Raises GetError."""
        output = self._settings.output
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise GetError(f"cannot make the directory: {error.strerror} ({str(output)!r})") from None
        with _Note.open(output) as note:
            queue = iter(self._todo)

            async def work() -> None:
                for file in queue:
                    if self._stopped:
                        return
                    await self._fetch(file, note, threads, session)

            async with TaskScope() as scope:
                await asyncio.gather(*(scope.spawn(work(), name=f"file {n}") for n in range(jobs)))

    async def _fetch(self, file: _File, note: _Note, threads: Executor, session: aiohttp.ClientSession) -> None:
        target = self._settings.output / file.path
        try:
            url = file.listed.url
            transfer = Transfer(replace(self._settings, url=url, output=target, store=self._location.store))
            if note.fits(file, transfer.task.id, target):
                self.finished += 1
                self.skipped += 1
                self._skipped_bytes += file.listed.length
                return
            sources = self._running[transfer] = Sources(self._settings.api, transfer, session)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                await sources.poll()
                await asyncio.get_running_loop().run_in_executor(threads, transfer.run)
                await sources.poll()
                note.add(file, transfer, target)
                if transfer.copied_because:
                    self.copied += 1
                    self.copied_because = transfer.copied_because
            finally:
                transfer.stop()
                del self._running[transfer]
                self._finished += sources.whence
                self._fetched += transfer.fetched
                self._resumed += transfer.resumed_at
        except OSError as error:
            self.failures.append((str(file.path), GetError(f"{error.strerror} ({str(error.filename or target)!r})")))
        except DamselflyError as error:
            self.failures.append((str(file.path), error))
        else:
            self.finished += 1

    def _place(self, key: str) -> PurePosixPath:
        """Return where the object of a key goes within the directory."""
        path = relative_path(self._prefix, key)
        if path.parts[0] == NOTE:
            raise BadRequestError(f"{NOTE!r} is the name of this command's own note")
        return path

    def _listed(self) -> Iterator[Listed]:
        settings = self._settings
        connection = http.client.HTTPConnection(
            settings.proxy.host, settings.proxy.port, timeout=settings.stall_seconds
        )
        url = self._location.url
        own = {
            "Host": urlsplit(url).netloc,
            "User-Agent": "damselfly-get",
            "X-Damselfly-Store": self._location.store.value,
            "X-Damselfly-List": "1",
        }
        self._sock = dial(connection, settings.proxy)
        if self._stopped:
            self.stop()
        try:
            connection.putrequest("GET", url, skip_host=True, skip_accept_encoding=True)
            for name, value in (*own.items(), *settings.headers):
                connection.putheader(name, value)
            connection.endheaders()
            response = connection.getresponse()
            if response.status != 200:
                raise GetError(f"{response.status} {response.reason}{explanation(response)}")
            while line := response.readline(JSON_BYTES + 1):
                entry = entry_from_json(json.loads(line))
                if isinstance(entry, DamselflyError):
                    raise entry
                yield entry
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise GetError(f"the listing broke off ({type(error).__name__})") from None
        finally:
            self._sock = None
            connection.close()


class _Note:
    """What is in its place in one directory: a JSON text a line, the last one of a path counts.

    One run has it at a time.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._known: dict[str, object] = {}
        line = "\n"
        for line in file:
            try:
                row = json.loads(line)
                self._known[row.pop("path")] = row
            except (ValueError, TypeError, KeyError, AttributeError):
                continue  # a line that was being written when the machine stopped
        if not line.endswith("\n"):
            file.write("\n")

    @classmethod
    @contextmanager
    def open(cls, directory: Path) -> Iterator[_Note]:
        """Read a directory's note, or begin it. Raises GetError if another run has it."""
        path = directory / NOTE
        try:
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise GetError(f"cannot write {str(path)!r}: {error.strerror}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise GetError("another damselfly get is writing into it") from None
            file.seek(0)
            yield cls(file)

    def fits(self, file: _File, task_id: str, target: Path) -> bool:
        """Tell whether a file is what was put there, and that is what the listing says."""
        etag = file.listed.etag
        try:
            there = target.stat()
        except OSError:
            return False
        known = self._known.get(str(file.path))
        return bool(etag) and file.listed.length == there.st_size and known == _row(task_id, etag, there)

    def add(self, file: _File, transfer: Transfer, target: Path) -> None:
        """Take down that a file is in its place."""
        row = _row(transfer.task.id, transfer.etag, target.stat())
        self._file.write(json.dumps({"path": str(file.path), **row}) + "\n")
        self._file.flush()


def _row(task_id: str, etag: str, there: os.stat_result) -> dict[str, object]:
    # Listings may leave out the quotes that belong to an entity tag.
    return {"task": task_id, "etag": etag.strip('"'), "length": there.st_size, "mtime_ns": there.st_mtime_ns}
