"""One HTTP client for everything the peer asks of origins on the event loop: probes and pass-through.

Requests leave as they are given: the target byte for byte, no header added but `Host`, TLS always verified.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from p2p.control import Source
from p2p.errors import BadRequestError, OriginError, OriginStalledError, OriginUnreachableError
from p2p.identity import origin_key, redact
from p2p.stores import Store
from peer.core.rules import Rules
from peer.source.credentials import Credentials
from peer.source.fields import Fields, across_hosts, retry_after
from peer.source.governor import Governor, Kind, Permit
from peer.source.guard import Resolver
from peer.source.trust import Trust
from peer.source.urls import exact_url, origin_of, redirect_target

REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_REDIRECTS = 10
_REFUSALS = frozenset({400, 401, 403})
"""What stores answer to what is not signed, not rightly signed, or signed with a token that has expired."""

_EXPLANATION_BYTES = 4096
OVERLOADED = frozenset({429, 503})
"""Statuses by which an origin asks for patience."""

LINE_BYTES = 64 * 1024
"""How long a header line of an answer may be."""


_LISTING = re.compile(r"[?&](?:list-type=2|comp=list|prefix=)")


@dataclass(frozen=True, slots=True)
class OriginSettings:
    """How origins are reached; times in seconds.

    `ca_file` adds authorities (PEM) to the system's, and so do the `rules` for their URLs.
    """

    connect_seconds: float = 10.0
    stall_seconds: float = 30.0
    ca_file: Path | None = None
    rules: Rules = field(default_factory=Rules)


@contextmanager
def origin_errors(url: str) -> Iterator[None]:
    """Turn what aiohttp raises while `url` is asked into Damselfly's errors.

    The causes are not chained: their texts quote the URL, and with it a signature.
    """
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as error:
        reason = getattr(error.certificate_error, "verify_message", None) or type(error.certificate_error).__name__
        raise OriginUnreachableError(
            f"the certificate of {origin_of(url)} cannot be verified ({reason}); a private authority goes into "
            "--origin-ca-file, or a rule's ca_file"
        ) from None
    except aiohttp.ConnectionTimeoutError:
        raise OriginUnreachableError(f"no connection to {origin_of(url)} within the deadline") from None
    except TimeoutError:
        raise OriginStalledError(f"{origin_of(url)} sent nothing within the deadline") from None
    except aiohttp.ClientConnectorError as error:
        reason = error.os_error.strerror or type(error.os_error).__name__
        raise OriginUnreachableError(f"cannot connect to {origin_of(url)}: {reason}") from None
    except (aiohttp.ClientError, OSError) as error:
        raise OriginUnreachableError(f"the connection to {origin_of(url)} broke ({type(error).__name__})") from None


class OriginClient:
    """A pool of keep-alive connections to origins; made inside the running loop, closed by `async with` or `close`.

    `resolver` decides which origins may be asked, `governor` when; `credentials` sign for sources that have a store.
    """

    def __init__(
        self,
        settings: OriginSettings | None = None,
        *,
        resolver: Resolver | None = None,
        credentials: Credentials | None = None,
        governor: Governor | None = None,
    ) -> None:
        self.resolver = resolver or Resolver()
        self._governor = governor or Governor()
        self.credentials = credentials or Credentials()
        self._settings = settings = settings or OriginSettings()
        self._trust = Trust(settings.ca_file, settings.rules)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, resolver=self.resolver),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            auto_decompress=False,
            max_line_size=LINE_BYTES,
            max_field_size=LINE_BYTES,
            max_headers=256,
        )

    async def request(
        self,
        method: str,
        url: str,
        headers: Fields,
        *,
        body: AsyncIterator[bytes] | None = None,
        stall_seconds: float | None = None,
    ) -> aiohttp.ClientResponse:
        """Send one request and return its answer, the head read and the body not; redirects are not followed.

        It waits for leave within the origin's budget, which it takes a part of until its answer is read or released.
        The origin may be silent for `stall_seconds` (the settings' by default) before and within its answer.
        Raises BadRequestError for a URL that cannot be sent, DeniedError for an origin that may not be asked,
        OriginUnreachableError and OriginStalledError.
        """
        exact = exact_url(url)
        # Connections that are kept, and hosts that are spelt as addresses, never come to the resolver.
        self.resolver.guard.require(exact.raw_host or "")
        permit = await self._governor.enter(url, kind_of(url, headers))
        try:
            with origin_errors(url):
                response = await self._session.request(
                    method,
                    exact,
                    headers=_spelt_alike(headers),
                    data=body,
                    allow_redirects=False,
                    ssl=self._trust.context(self._trust.ca_file(url)),
                    timeout=self._timeout(stall_seconds or self._settings.stall_seconds),
                )
        except BaseException:
            self._governor.leave(permit)
            raise
        self._watch(response, permit)
        return response

    def _watch(self, response: aiohttp.ClientResponse, permit: Permit) -> None:
        """Give the permit back when the answer is done with, and count its bytes."""
        if response.status in OVERLOADED:
            permit.refused(retry_after(fields_of(response)))
        else:
            permit.answered()

        def over() -> None:
            # Nobody can be slowed down who reads from the loop: what came too soon, the next requests wait for.
            permit.take(response.content.total_bytes)
            self._governor.leave(permit)

        if response.connection is None:
            over()
        else:
            response.connection.add_callback(over)

    def _timeout(self, stall_seconds: float) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(total=None, sock_connect=self._settings.connect_seconds, sock_read=stall_seconds)

    async def follow(
        self, method: str, source: Source, extra: Fields = (), *, stall_seconds: float | None = None
    ) -> tuple[aiohttp.ClientResponse, Source]:
        """Send one request without a body, follow redirects, and return the answer and the source that gave it.

        Only fields that cannot carry a secret follow to another scheme, host or port. A source with a store is signed
        for, a second time if the first is refused, and comes back as it was: what it led to holds our signature. Raises
        as `request` does, OriginError for a redirect that leads nowhere, and CredentialsError.
        """
        asked, resigned = source, False
        for _ in range(MAX_REDIRECTS + 1):
            sent = await self.credentials.signed(asked, method=method)
            response = await self.request(method, sent.url, sent.headers + extra, stall_seconds=stall_seconds)
            if asked.store is not None and await self._is_to_be_signed_again(asked, response, once_more=not resigned):
                response.release()
                resigned = True
                continue
            location = response.headers.get("Location")
            if response.status not in REDIRECTS or location is None:
                return response, (asked if source.store is None else source)
            response.release()
            asked = redirected(sent, location)
        raise OriginError(f"{origin_of(source.url)} redirected more than {MAX_REDIRECTS} times")

    async def _is_to_be_signed_again(
        self, source: Source, response: aiohttp.ClientResponse, *, once_more: bool
    ) -> bool:
        """Tell whether another signature may get another answer; raises CredentialsError for a refusal that stands."""
        if source.store is Store.HTTP or response.status not in _REFUSALS | REDIRECTS:
            return False
        body = b""
        if response.status in _REFUSALS:
            try:
                with origin_errors(source.url):
                    body = await read_at_most(response, _EXPLANATION_BYTES)
            except OriginError:
                response.close()
                raise
        refusal = (source, response.status, fields_of(response), body)
        if once_more and await self.credentials.refused(*refusal):
            return True
        if response.status in _REFUSALS:
            response.release()
            raise self.credentials.explained(*refusal)
        return False

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def kind_of(url: str, headers: Fields) -> Kind:
    """Return what sort of a request it is, as budgets count them."""
    if any(name.lower() == "range" and value == "bytes=0-0" for name, value in headers):
        return "check"
    return "list" if _LISTING.search(url) else "read"


def _spelt_alike(fields: Fields) -> Fields:
    """Give every field the spelling of its first namesake: aiohttp takes one in another case for a replacement."""
    spellings: dict[str, str] = {}
    return tuple((spellings.setdefault(name.lower(), name), value) for name, value in fields)


def redirected(source: Source, location: str) -> Source:
    """Return the source that a redirect leads to; nothing that may be a secret follows to another scheme, host or port.

    Raises OriginError for what cannot be followed.
    """
    try:
        url = redirect_target(source.url, location)
        origin_key(url)  # budgets know origins by it
    except BadRequestError as error:
        raise OriginError(f"{redact(source.url)} redirects to what is not a usable URL: {error}") from None
    same_host = origin_of(url) == origin_of(source.url)
    return Source(url, source.headers if same_host else across_hosts(source.headers))


async def read_at_most(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Return the first `limit` bytes of an answer's body, or all of it if it is shorter."""
    body = bytearray()
    while len(body) < limit and (chunk := await response.content.read(limit - len(body))):
        body += chunk
    return bytes(body)


def fields_of(response: aiohttp.ClientResponse) -> Fields:
    """Return an answer's fields in order, each octet as one character (latin-1), so that they can be sent on as is."""
    return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in response.raw_headers)
