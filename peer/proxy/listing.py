"""Answers to `X-Damselfly-List`: what is under a prefix, a JSON text a line (NDJSON), as the pages come."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

from p2p.hostapi import Listed, listed_to_json
from p2p.stores import Store
from peer.proxy.credentials import named_store, without_signature
from peer.proxy.exchange import Exchange
from peer.source.fields import Fields

_CHUNK_BYTES = 64 * 1024


class Listings(Protocol):
    """Lists prefixes; `peer.source.remote.Origins` does."""

    def listing(self, url: str, store: Store) -> AsyncGenerator[Listed, None]:
        """Yield every object under the prefix that a plain URL names."""


async def answer_listing(exchange: Exchange, listings: Listings, fields: Fields) -> None:
    """List the prefix that an exchange's URL names; `fields` go with the answer.

    What fails before the first entry is raised, to be told by a status; what fails later is a reset.
    """
    exchange.step = "list"
    store = named_store(exchange.fields)
    assert store is not None, "a listing names its store"
    async with aclosing(listings.listing(without_signature(exchange.url, store), store)) as entries:
        lines = bytearray()
        async for entry in entries:
            lines += json.dumps(listed_to_json(entry)).encode() + b"\n"
            if not exchange.head_sent:
                await _begin(exchange, fields)
            if len(lines) >= _CHUNK_BYTES:
                await exchange.send(bytes(lines))
                lines.clear()
        if not exchange.head_sent:
            await _begin(exchange, fields)
        if lines and exchange.method != "HEAD":
            await exchange.send(bytes(lines))
    await exchange.finish()


async def _begin(exchange: Exchange, fields: Fields) -> None:
    await exchange.send_head(200, (("Content-Type", "application/x-ndjson"), *fields), length=None)
