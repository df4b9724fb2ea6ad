"""`damselfly get`: one object through the local peer into a file.

The bytes are written to a hidden file beside the target and renamed at the end, so the target is whole or not there. A
small note beside that file says which version it holds (never its URL); with it an interrupted download resumes.
"""

from __future__ import annotations

import asyncio
import fcntl
import http.client
import json
import os
import re
import socket
import string
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

import aiohttp
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from p2p.config import Address, parse_address
from p2p.digests import ExpectedDigest, Hasher
from p2p.errors import BadRequestError, ConfigError, DamselflyError, DigestMismatchError
from p2p.fields import is_strong_tag
from p2p.identity import Task, identify
from p2p.ranges import ByteRange, parse_content_range
from p2p.tasks import TaskScope

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

_BUFFER_BYTES = 1024 * 1024
_DRAW_SECONDS = 0.2
_POLL_SECONDS = 1.0
_PLAIN_SECONDS = 10.0


class GetError(DamselflyError):
    """The object could not be fetched; the text says why and holds no secret."""


@dataclass(frozen=True, slots=True)
class GetSettings:
    """What to fetch, through which peer, and where to put it.

    `api` is the same peer's HTTP port, where the sources of the bytes are shown; without it that part is missing.
    """

    url: str = field(repr=False)
    output: Path
    proxy: Address = Address("127.0.0.1", 65001)
    api: Address | None = Address("127.0.0.1", 65003)
    digest: ExpectedDigest | None = None
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    filters: tuple[str, ...] = ()
    tag: str = ""
    application: str = ""
    stall_seconds: float = 120.0


def parse_proxy(text: str) -> Address:
    """Read the address of a peer's proxy: "host:port", or as an http:// URL. Raises ConfigError."""
    return parse_address(text.removeprefix("http://").rstrip("/"))


def parse_header(text: str) -> tuple[str, str]:
    """Read "Name: value", as curl's -H takes it. Raises ConfigError, which does not repeat the value."""
    name, colon, value = text.partition(":")
    if not colon or re.fullmatch(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+", name) is None or re.search(r"[\r\n\0]", value):
        raise ConfigError(f"header {name!r} is not of the form 'Name: value' on one line")
    return name, value.strip()


def run_get(settings: GetSettings) -> int:
    """Fetch an object, show progress on standard error, and return the exit status."""
    console = Console(stderr=True)
    try:
        return asyncio.run(get(settings, console))
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on from here")
        return EXIT_INTERRUPTED


async def get(settings: GetSettings, console: Console) -> int:
    """Fetch an object and return the exit status: 0 once the file is whole, verified and in its place."""
    failure: DamselflyError | None = None
    try:
        transfer = Transfer(settings)
    except DamselflyError as error:
        return _failed(console, settings, error)
    async with _Sources(settings.api, transfer) as sources, TaskScope() as scope:
        await sources.poll()
        scope.spawn(_show(console, transfer, sources), name="progress")
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
    rate = f"{decimal(int(transfer.fetched / max(seconds, 1e-6)))}/s"
    resumed = f", {decimal(transfer.resumed_at)} of it from before" if transfer.resumed_at else ""
    verified = f"; {settings.digest.algorithm} verified" if settings.digest else ""
    shown = f" ({sources.text})" if sources.text else ""
    _say(console, f"{settings.output}: {decimal(transfer.done)} in {seconds:.1f} s, {rate}{resumed}{shown}{verified}")
    return 0


def _failed(console: Console, settings: GetSettings, error: DamselflyError) -> int:
    _say(console, f"damselfly get: {settings.output} was not written: {error}")
    return EXIT_FAILED


def _say(console: Console, text: str) -> None:
    console.print(escape(text), soft_wrap=True, highlight=False)


class Transfer:
    """One download, run in a thread; its counters may be read meanwhile. Raises BadRequestError for a bad URL."""

    def __init__(self, settings: GetSettings) -> None:
        self._settings = settings
        # Escaping what may not stand in a request leaves every URL that was valid as it is.
        self._url = quote(settings.url.partition("#")[0], safe=string.punctuation)
        if not self._url.lower().startswith(("http://", "https://")):
            raise BadRequestError("the URL must begin with http:// or https://")
        self.task: Task = identify(
            self._url, filters=settings.filters, tag=settings.tag, application=settings.application
        )
        self.done = 0
        self.resumed_at = 0
        self.length: int | None = None
        output = settings.output
        self._partial = output.with_name(f".{output.name}.damselfly")
        self._note = output.with_name(f".{output.name}.damselfly.json")
        self._connection = http.client.HTTPConnection(
            settings.proxy.host, settings.proxy.port, timeout=settings.stall_seconds
        )
        # Kept here, because http.client forgets it once the answer's end is the connection's.
        self._sock: socket.socket | None = None
        self._stopped = False

    @property
    def fetched(self) -> int:
        """Bytes that came in this run."""
        return self.done - self.resumed_at

    def stop(self) -> None:
        """Make `run` end soon; from any thread."""
        self._stopped = True
        if self._sock is not None:
            try:
                self._sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # it has ended by itself

    def run(self) -> None:
        """Fetch, verify and put the file in its place. Raises GetError and DigestMismatchError."""
        output = self._settings.output
        if output.is_dir():
            raise GetError(f"{str(output)!r} is a directory; name a file in it")
        try:
            descriptor = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            with os.fdopen(descriptor, "r+b", buffering=0) as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise GetError("another damselfly get is writing it") from None
                try:
                    self._fetch(descriptor)
                except DamselflyError:
                    if not self._note.exists():
                        self._partial.unlink()  # nobody could resume it
                    raise
                os.fsync(descriptor)
                self._partial.replace(output)
            self._note.unlink(missing_ok=True)
            _sync_directory(output.parent)
        except DigestMismatchError:
            self._partial.unlink(missing_ok=True)
            self._note.unlink(missing_ok=True)
            raise
        except OSError as error:
            raise GetError(f"{error.strerror or type(error).__name__} ({str(error.filename or output)!r})") from error
        finally:
            self._connection.close()

    def _fetch(self, descriptor: int) -> None:
        held, etag, length = self._held(descriptor)
        response = self._ask(held, etag)
        start = self._begin(response, held, etag, length)
        os.ftruncate(descriptor, start)
        self.resumed_at = self.done = start
        self._write_note(response)
        expected = self._settings.digest
        hasher = expected.hasher() if expected else None
        if hasher is not None:
            _feed(hasher, descriptor, start)
        self._copy(response, descriptor, hasher)
        if expected is not None and hasher is not None:
            expected.verify(hasher)

    def _held(self, descriptor: int) -> tuple[int, str, int]:
        """Return how many bytes of which version (ETag and length) an earlier run has left; no bytes if unsure."""
        try:
            note = json.loads(self._note.read_bytes())
            task, boot, etag, length = note["task"], note["boot"], note["etag"], note["length"]
        except (OSError, ValueError, KeyError, TypeError):
            return 0, "", 0
        # After a crash of the machine, what was written last may be zeros.
        known = task == self.task.id and boot == _boot_id()
        sound = known and isinstance(etag, str) and is_strong_tag(etag) and isinstance(length, int)
        # At least one byte is asked for, so that a whole file too is confirmed by the origin.
        return (max(0, min(os.fstat(descriptor).st_size, length - 1)), etag, length) if sound else (0, "", 0)

    def _ask(self, held: int, etag: str) -> http.client.HTTPResponse:
        settings, connection = self._settings, self._connection
        given = {name.lower() for name, _ in settings.headers}
        usual = (
            ("Host", urlsplit(self._url).netloc.rpartition("@")[2]),
            ("User-Agent", "damselfly-get"),
            ("Accept", "*/*"),
            ("X-Dragonfly-Use-P2P", "true"),
            ("X-Dragonfly-Filter", "&".join(settings.filters)),
            ("X-Dragonfly-Tag", settings.tag),
            ("X-Dragonfly-Application", settings.application),
        )
        fields = [
            *((name, value) for name, value in usual if name.lower() not in given),
            *settings.headers,
            ("Accept-Encoding", "identity"),
            *((("Range", f"bytes={held}-"), ("If-Range", etag)) if held else ()),
        ]
        try:
            connection.connect()
            self._sock = connection.sock
        except OSError as error:
            raise GetError(
                f"no peer at {settings.proxy} ({error.strerror or 'no answer'}); start one with `damselfly up` or "
                "`damselfly peer`, or name another with --proxy"
            ) from None
        try:
            connection.putrequest("GET", self._url, skip_host=True, skip_accept_encoding=True)
            for name, value in fields:
                if value:
                    connection.putheader(name, value.encode())
            connection.endheaders()
            return connection.getresponse()
        except ValueError:
            raise GetError("a header, tag, application or filter holds a line break") from None
        except TimeoutError:
            raise GetError(f"the peer sent nothing for {settings.stall_seconds:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise GetError(f"the peer broke the connection before it answered ({type(error).__name__})") from None

    def _begin(self, response: http.client.HTTPResponse, held: int, etag: str, length: int) -> int:
        """Return at which byte of the object the answer's body starts; sets `length`. Raises GetError."""
        if response.status == 206 and held:
            content_range = parse_content_range(response.getheader("Content-Range") or "")
            sent = content_range.range
            if sent != ByteRange(held, length) or content_range.length != length or response.getheader("ETag") != etag:
                raise GetError("the peer sent another part than the one that was asked for")
            self.length = length
            return held
        if response.status != 200:
            raise GetError(f"{response.status} {response.reason}{_explanation(response)}")
        declared = response.getheader("Content-Length")
        self.length = int(declared) if declared is not None else None
        return 0

    def _write_note(self, response: http.client.HTTPResponse) -> None:
        etag = response.getheader("ETag") or ""
        if self.length is None or not is_strong_tag(etag):
            self._note.unlink(missing_ok=True)
            return
        note = {"task": self.task.id, "boot": _boot_id(), "etag": etag, "length": self.length}
        self._note.write_text(json.dumps(note) + "\n")

    def _copy(self, response: http.client.HTTPResponse, descriptor: int, hasher: Hasher | None) -> None:
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        while True:
            try:
                count = response.readinto(buffer)
            except TimeoutError:
                raise GetError(f"nothing came for {self._settings.stall_seconds:g} s{self._resumable()}") from None
            except (OSError, http.client.HTTPException):
                raise GetError(f"the transfer broke off{self._resumable()}") from None
            if not count or self._stopped:
                break
            data = buffer[:count]
            if hasher is not None:
                hasher.update(data)
            while data:
                written = os.pwrite(descriptor, data, self.done)
                self.done += written
                data = data[written:]
        if self._stopped or (self.length is not None and self.done != self.length):
            raise GetError(f"the transfer broke off{self._resumable()}")

    def _resumable(self) -> str:
        return f" after {self.done} bytes; the same command goes on from there" if self._note.exists() else ""


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _feed(hasher: Hasher, descriptor: int, count: int) -> None:
    """Hash the first `count` bytes of a file."""
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    offset = 0
    while offset < count:
        read = os.preadv(descriptor, [buffer[: min(len(buffer), count - offset)]], offset)
        if not read:
            raise GetError("the file of the earlier run shrank while it was read")
        hasher.update(buffer[:read])
        offset += read


def _explanation(response: http.client.HTTPResponse) -> str:
    """Return what an error page says in a few words: our own first line, or a store's error code."""
    try:
        page = response.read(4096).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return ""
    if page.startswith("damselfly: "):
        return f" ({page.partition(chr(10))[0].removeprefix('damselfly: ')})"
    code = re.search(r"<Code>(\w+)</Code>", page)
    return f" (the origin says {code[1]})" if code else ""


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Sources:
    """Where the peer has the bytes from, as its HTTP port tells; silent when it does not."""

    def __init__(self, api: Address | None, transfer: Transfer) -> None:
        self._url = f"http://{api}/v1/tasks/{transfer.task.id}" if api else None
        self._transfer = transfer
        self._session: aiohttp.ClientSession | None = None
        self._before: tuple[int, int] | None = None
        self.text = ""

    async def __aenter__(self) -> _Sources:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def poll(self) -> None:
        """Ask once. What the peer had fetched before the first call does not count."""
        if self._url is None or self._session is None:
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
        self.text = f"origin {decimal(origin)}, peers {decimal(parents)}, local {decimal(local)}"


async def _show(console: Console, transfer: Transfer, sources: _Sources) -> None:
    """Draw a progress bar on a terminal; elsewhere print a line now and then. Runs until it is cancelled."""
    if not console.is_terminal:
        while True:
            await asyncio.sleep(_PLAIN_SECONDS)
            await sources.poll()
            total = f" of {decimal(transfer.length)}" if transfer.length is not None else ""
            _say(console, f"{decimal(transfer.done)}{total} {sources.text}".rstrip())
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
        bar = progress.add_task(escape(transfer.task.canonical.rpartition("/")[2][:40]), total=None, sources="")
        while True:
            progress.update(bar, completed=transfer.done, total=transfer.length, sources=sources.text, refresh=True)
            await asyncio.sleep(_DRAW_SECONDS)
            if time.monotonic() - polled >= _POLL_SECONDS:
                await sources.poll()
                polled = time.monotonic()
