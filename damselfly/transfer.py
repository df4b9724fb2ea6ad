"""One object through a peer's proxy into a file, in a thread of its own.

The bytes are written to a hidden file beside the target and renamed at the end, so the target is whole or not there. A
small note beside that file says which version it holds (never its URL); with it an interrupted download resumes.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import os
import re
import socket
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

from p2p.config import Address
from p2p.digests import ExpectedDigest, Hasher
from p2p.errors import BadRequestError, DamselflyError, DigestMismatchError
from p2p.fields import is_strong_tag
from p2p.identity import Task, identify
from p2p.linkfile import ASKED, FILE, HeldFile, Linked, LinkError, link_file
from p2p.native import Location, bucket_of, is_native, native_name, parse_native
from p2p.pagecache import WRITE_BYTES
from p2p.ranges import ByteRange, parse_content_range
from p2p.stores import Store
from p2p.urgency import DEFAULT_PRIORITY

_LONGEST_NAME = 255 - len("..damselfly.json")  # and as many in ".link"

_ENDPOINTS = {
    Store.S3: ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    Store.OSS: ("OSS_ENDPOINT",),
    Store.OBS: ("OBS_ENDPOINT",),
}
"""The variables in which the stores' own tools look for an endpoint, the first that is set counts."""


class GetError(DamselflyError):
    """The object could not be fetched; the text says why and holds no secret."""


@dataclass(frozen=True, slots=True)
class GetSettings:
    """What to fetch, through which peer, and where to put it.

    `url` is an http(s) URL, to be asked as it is, or a native name. With a `store` it is a plain URL that the fleet's
    own credentials are to open, as they do a native name.
    `priority` is from 0 to 7, the most urgent. `api` is the same peer's HTTP port, where the sources of the bytes are
    shown; without it that part is missing.
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
    priority: int = DEFAULT_PRIORITY
    stall_seconds: float = 120.0
    store: Store | None = None
    link: bool = False


def located(url: str, environment: Mapping[str, str]) -> Location | None:
    """Return what a native name stands for, None for any other URL. Raises BadRequestError.

    The endpoint of a name without one is what `environment` says, where it says it.
    """
    if not is_native(url):
        return None
    endpoints = {store: next(filter(None, map(environment.get, names)), "") for store, names in _ENDPOINTS.items()}
    return parse_native(url, endpoints={store: endpoint for store, endpoint in endpoints.items() if endpoint})


def spelt_out(text: str, environment: Mapping[str, str]) -> str:
    """Return a native name with its endpoint in it, as it is understood anywhere; any other text as it is.

    Raises BadRequestError.
    """
    location = located(text, environment)
    return text if location is None else native_name(location.url, location.store)


class Transfer:
    """One download, run in a thread; its counters may be read meanwhile. Raises BadRequestError for a bad URL."""

    def __init__(self, settings: GetSettings) -> None:
        self._settings = settings
        location = located(settings.url, os.environ)
        self._store = settings.store if location is None else location.store
        if self._store is not None and any(name.lower() != "proxy-authorization" for name, _ in settings.headers):
            raise BadRequestError("-H is for http:// and https:// URLs; what has a native name is asked for without")
        if location is not None and not bucket_of(location.url, location.store).key:
            raise BadRequestError(f"{settings.url!r} names no object; --recursive gets all that is in it")
        # Escaping what may not stand in a request leaves every URL that was valid as it is.
        self._url = quote((location.url if location else settings.url).partition("#")[0], safe=string.punctuation)
        if not self._url.lower().startswith(("http://", "https://")):
            raise BadRequestError(
                "the URL must begin with http://, https:// or a store's own scheme, as s3:// or gs://"
            )
        self.task: Task = identify(
            self._url,
            filters=settings.filters,
            tag=settings.tag,
            application=settings.application,
            store=self._store,
        )
        self.done = 0
        self.resumed_at = 0
        self.length: int | None = None
        self.etag = ""
        self.linked: Linked | None = None
        self.copied_because = ""
        output = settings.output
        hidden = f".{_short(output.name)}.damselfly"
        self._partial = output.with_name(hidden)
        self._note = output.with_name(f"{hidden}.json")
        # Never the name of what is written to: a hard link is the peer's own file.
        self._link = output.with_name(f"{hidden}.link")
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
                    if not (self._settings.link and self._fetch_link()):
                        self._fetch(descriptor)
                except DamselflyError:
                    if not self._note.exists():
                        self._partial.unlink()  # nobody could resume it
                    raise
                if self.linked is None:
                    os.fsync(descriptor)
                    self._partial.replace(output)
                else:
                    self._link.replace(output)
                    # Still there where both were names of one file already.
                    self._link.unlink(missing_ok=True)
                    self._partial.unlink()
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

    def _fetch_link(self) -> bool:
        """Have the peer get the whole object and link its file; False, with the reason noted, if that cannot be.

        Raises GetError and DigestMismatchError.
        """
        response = self._ask(0, "", link=True)
        try:
            if response.status != 204:
                # What fails is asked for once more, so that an error is told as that of any other download.
                if response.status == 200 and response.getheader("Content-Length") != "0":
                    self.copied_because = "the peer does not keep this object in a file, or is on another machine"
                return False
            held = HeldFile.parse(response.getheader(FILE) or "")
            self._link.unlink(missing_ok=True)
            linked = link_file(held, self._link)
        except LinkError as error:
            self.copied_because = str(error)
            return False
        finally:
            self._connection.close()
        try:
            self._verify_link()
        except DamselflyError:
            self._link.unlink()
            raise
        self.etag = response.getheader("ETag") or ""
        self.length = self.done = held.length
        self.linked = linked
        return True

    def _verify_link(self) -> None:
        with self._link.open("rb", buffering=0) as file:
            if (expected := self._settings.digest) is not None:
                hasher = expected.hasher()
                _feed(hasher, file.fileno(), os.fstat(file.fileno()).st_size)
                expected.verify(hasher)
            if self._stopped:
                raise GetError("it was stopped")
            os.fsync(file.fileno())

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

    def _ask(self, held: int, etag: str, *, link: bool = False) -> http.client.HTTPResponse:
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
            ("X-Dragonfly-Priority", str(settings.priority)),
            ("X-Damselfly-Store", self._store or ""),
            (ASKED, "1" if link else ""),
        )
        fields = [
            *((name, value) for name, value in usual if name.lower() not in given),
            *settings.headers,
            ("Accept-Encoding", "identity"),
            *((("Range", f"bytes={held}-"), ("If-Range", etag)) if held else ()),
        ]
        self._sock = dial(connection, settings.proxy)
        if self._stopped:
            self.stop()
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
            raise GetError(f"{response.status} {response.reason}{explanation(response)}")
        declared = response.getheader("Content-Length")
        self.length = int(declared) if declared is not None else None
        return 0

    def _write_note(self, response: http.client.HTTPResponse) -> None:
        self.etag = etag = response.getheader("ETag") or ""
        if self.length is None or not is_strong_tag(etag):
            self._note.unlink(missing_ok=True)
            return
        note = {"task": self.task.id, "boot": _boot_id(), "etag": etag, "length": self.length}
        self._note.write_text(json.dumps(note) + "\n")

    def _copy(self, response: http.client.HTTPResponse, descriptor: int, hasher: Hasher | None) -> None:
        buffer = memoryview(bytearray(WRITE_BYTES))
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


def _short(name: str) -> str:
    """Return a file's name, or what stands for one so long that nothing more fits beside it (255 bytes, NAME_MAX)."""
    octets = os.fsencode(name)
    return name if len(octets) <= _LONGEST_NAME else hashlib.sha256(octets).hexdigest()


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _feed(hasher: Hasher, descriptor: int, count: int) -> None:
    """Hash the first `count` bytes of a file."""
    buffer = memoryview(bytearray(WRITE_BYTES))
    offset = 0
    while offset < count:
        read = os.preadv(descriptor, [buffer[: min(len(buffer), count - offset)]], offset)
        if not read:
            raise GetError("the file of the earlier run shrank while it was read")
        hasher.update(buffer[:read])
        offset += read


def dial(connection: http.client.HTTPConnection, proxy: Address) -> socket.socket:
    """Connect to a peer's proxy and return the socket. Raises GetError, with the remedy."""
    try:
        connection.connect()
    except OSError as error:
        raise GetError(
            f"no peer at {proxy} ({error.strerror or 'no answer'}); start one with `damselfly up` or "
            "`damselfly peer`, or name another with --proxy"
        ) from None
    return connection.sock


def explanation(response: http.client.HTTPResponse) -> str:
    """Return, in parentheses, what an error page says in a few words: our own first line, or a store's error code."""
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
