"""Upgrades of forwarded requests (RFC 9110 §7.8): WebSocket and its kin go through to their origin.

`h2c` is left out: the origin then answers in HTTP/1.1, and the request stays one that the proxy understands.
"""

from __future__ import annotations

import aiohttp

from p2p.errors import OriginError
from p2p.fields import single, values
from peer.proxy.exchange import Exchange
from peer.proxy.relay import Early, End, relay
from peer.source.client import fields_of
from peer.source.fields import Fields, end_to_end


def upgrade_fields(fields: Fields) -> Fields:
    """Return the fields that ask the origin for the upgrade that a client asks for, if any."""
    asked = [token.strip() for value in values(fields, "upgrade") for token in value.split(",")]
    wanted = ", ".join(token for token in asked if token and token.lower() != "h2c")
    if not wanted or not _names_upgrade(fields):
        return ()
    return (("Connection", "Upgrade"), ("Upgrade", wanted))


async def switch(exchange: Exchange, response: aiohttp.ClientResponse, via: Fields, *, idle_seconds: float) -> None:
    """Pass a 101 on and relay from there, until both sides have ended or nothing has gone for `idle_seconds`.

    The client's connection leaves HTTP before the 101 is written, so that what it sends next is never taken for a
    request. Raises OriginError if nobody asked for a switch, and ConnectionError.
    """
    exchange.step = "upgrade"
    received, connection = fields_of(response), response.connection
    protocol = single(received, "upgrade")
    if connection is None or connection.protocol is None or connection.transport is None:
        raise OriginError("the origin switched protocols and hung up")
    if not upgrade_fields(exchange.fields) or protocol is None:
        raise OriginError("the origin switched protocols (101), which nobody had asked for")
    upstream, first = End(), Early()
    connection.protocol.set_parser(first, None)
    upstream.transport = connection.transport
    upstream.transport.set_protocol(upstream)
    lines = ["HTTP/1.1 101 Switching Protocols"]
    lines += (f"{name}: {value}" for name, value in (*end_to_end(received), *via))
    lines += ("Connection: Upgrade", f"Upgrade: {protocol}", "", "")
    exchange.status = 101
    head = "\r\n".join(lines).encode("latin-1", "surrogateescape")
    await relay(exchange, upstream, head, first=bytes(first.data), idle_seconds=idle_seconds)


def _names_upgrade(fields: Fields) -> bool:
    return any(
        token.strip().lower() == "upgrade" for value in values(fields, "connection") for token in value.split(",")
    )
