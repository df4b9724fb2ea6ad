"""Pass-through: a request goes to its origin as it came, and the answer comes back as it is, in bounded memory.

This is the way of everything that is not P2P's, and of objects that cannot or may not be kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from http import HTTPStatus

import aiohttp
from aiohttp.web import RequestPayloadError

from p2p.control import Source
from p2p.digests import ExpectedDigest
from p2p.errors import BadRequestError, OriginStalledError, OriginUnreachableError
from p2p.fields import single
from peer.proxy.digest import expected_digest, verified
from peer.proxy.exchange import Exchange
from peer.proxy.upgrade import switch, upgrade_fields
from peer.source.client import OriginClient, fields_of, origin_errors
from peer.source.fields import Fields, end_to_end, for_origin
from peer.source.urls import origin_of


class Forwarder:
    """Sends requests on to their origins. `via` names this peer.

    An origin may be silent for `stall_seconds`, and what an upgrade has led to for `upgraded_idle_seconds`.
    """

    def __init__(
        self, client: OriginClient, *, via: str, stall_seconds: float, upgraded_idle_seconds: float = 3600.0
    ) -> None:
        self._client = client
        self._via = ("Via", via)
        self._stall_seconds = stall_seconds
        self._upgraded_idle_seconds = upgraded_idle_seconds

    async def forward(
        self,
        exchange: Exchange,
        *,
        follow: bool = False,
        method: str | None = None,
        extra: Fields = (),
        content: ExpectedDigest | None = None,
        source: Source | None = None,
    ) -> None:
        """Answer an exchange with what its origin answers; the fields in `extra` replace the origin's.

        With `follow` the origin's redirects are followed on the client's behalf. `method` is what the origin is asked
        with, if not with the client's own: a presigned URL binds it, so that a HEAD may have to be answered by a GET.
        `content` is the digest that the URL names, to be verified. `source` is what is asked instead of the exchange's
        own URL, with headers of its own. Raises OriginError kinds, BadRequestError and
        DigestMismatchError; ConnectionError when the client is gone.
        """
        method = method or exchange.method
        exchange.step = "forward"
        expected = expected_digest(exchange.method, exchange.fields, content)
        if source is None:
            source = Source(exchange.url, (*for_origin(exchange.fields), *upgrade_fields(exchange.fields)))
        source = replace(source, headers=(*source.headers, self._via))
        if exchange.request.body_exists:
            response = await self._upload(exchange, source)
        elif follow:
            response, source = await self._client.follow(method, source, stall_seconds=self._stall_seconds)
        else:
            response = await self._client.request(method, source.url, source.headers, stall_seconds=self._stall_seconds)
        try:
            if response.status == HTTPStatus.SWITCHING_PROTOCOLS:
                await switch(exchange, response, (self._via,), idle_seconds=self._upgraded_idle_seconds)
            else:
                await self._answer(exchange, source.url, response, extra, expected)
        finally:
            response.release()

    async def _answer(
        self,
        exchange: Exchange,
        url: str,
        response: aiohttp.ClientResponse,
        extra: Fields,
        expected: ExpectedDigest | None,
    ) -> None:
        if response.status >= 400 and exchange.told_by_reset:
            exchange.reset()
            return
        if exchange.request.body_exists and not exchange.request.content.is_eof():
            exchange.keep_alive = False
        received = fields_of(response)
        replaced = {name.lower() for name, _ in extra}
        kept = tuple((name, value) for name, value in end_to_end(received) if name.lower() not in replaced)
        body = verified(response.status, expected, length=_length(received))
        await exchange.send_head(
            response.status, (*kept, self._via, *extra), length=_length(received), reason=response.reason
        )
        while exchange.method != "HEAD":
            with origin_errors(url):
                chunk = await response.content.readany()
            if not chunk:
                break
            if ready := body.feed(chunk):
                await exchange.send(ready)
        if last := body.finish():
            await exchange.send(last)
        await exchange.finish()

    async def _upload(self, exchange: Exchange, source: Source) -> aiohttp.ClientResponse:
        """Send a request with the client's body; what counts is progress, however long the whole takes.

        A body that cannot be read any more (its chunks are none) breaks the origin's connection off, before its answer
        as BadRequestError, and within the answer as a part of it that never comes.
        """
        loop = asyncio.get_running_loop()
        response: aiohttp.ClientResponse | None = None
        unanswered, unreadable = True, False

        async def body() -> AsyncIterator[bytes]:
            nonlocal unreadable
            if (single(exchange.fields, "Expect") or "").lower() == "100-continue":
                # The body is asked for only once the origin has agreed to take it.
                await exchange.send_continue()
            try:
                while chunk := await exchange.request.content.readany():
                    if unanswered:
                        deadline.reschedule(loop.time() + self._stall_seconds)
                    yield chunk
            except RequestPayloadError:
                unreadable = True
                if response is not None:
                    response.close()
                raise

        try:
            async with asyncio.timeout(self._stall_seconds) as deadline:
                response = await self._client.request(
                    exchange.method, source.url, source.headers, body=body(), stall_seconds=self._stall_seconds
                )
                return response
        except TimeoutError:
            raise OriginStalledError(f"{origin_of(source.url)} took nothing within the deadline") from None
        except OriginUnreachableError:
            if not unreadable:
                raise
            exchange.keep_alive = False
            exchange.request.content.feed_eof()  # nobody is to wait for the rest
            raise BadRequestError("the chunks of the request's body cannot be read") from None
        finally:
            unanswered = False


def _length(fields: Fields) -> int | None:
    """Return the length of the body on the wire, if the origin declared it."""
    value = single(fields, "content-length")
    chunked = single(fields, "transfer-encoding") is not None
    return int(value) if value is not None and value.isdecimal() and not chunked else None
