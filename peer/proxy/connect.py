"""CONNECT: a tunnel between a client and a host, blind unless a rule says to open it (RFC 9110 §9.3.6)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from p2p.config import Address, parse_address
from p2p.errors import BadRequestError, ConfigError, DeniedError, OriginUnreachableError
from peer.core.rules import Action, Rules
from peer.proxy.exchange import Exchange
from peer.proxy.intercept import ESTABLISHED, Interceptor
from peer.proxy.relay import End, relay
from peer.source.guard import Resolver


class Connector:
    """Answers CONNECT. `ports` are those that may be asked for, at what `resolver` lets through; times in seconds.

    Without an `interceptor` every tunnel is blind.
    """

    def __init__(
        self,
        rules: Rules,
        interceptor: Interceptor | None,
        resolver: Resolver,
        *,
        ports: Sequence[range],
        connect_seconds: float,
        idle_seconds: float,
    ) -> None:
        self._rules = rules
        self._interceptor = interceptor
        self._resolver = resolver
        self._ports = tuple(ports)
        self._connect_seconds = connect_seconds
        self._idle_seconds = idle_seconds

    async def connect(self, exchange: Exchange) -> None:
        """Tunnel until either side ends or both are silent too long, or open the tunnel and hand it over.

        Rules are matched against `https://host[:port]/`. Raises BadRequestError for a target that is not host:port,
        DeniedError, OriginUnreachableError, and ConnectionError.
        """
        exchange.step = "connect"
        address = _address(exchange.target)
        exchange.rule = rule = self._rules.match(f"https://{str(address).removesuffix(':443')}/")
        if rule.action is Action.DENY:
            raise DeniedError(f"{address} is denied by the rule {rule.pattern.pattern!r}")
        if not any(address.port in ports for ports in self._ports):
            raise DeniedError(f"CONNECT to port {address.port} is not allowed; connect_ports names those that are")
        if rule.intercept and self._interceptor is not None:
            await self._interceptor.open(exchange, address)
            return
        upstream = await self._dial(address)
        exchange.status = 200
        await relay(exchange, upstream, ESTABLISHED, idle_seconds=self._idle_seconds)

    async def _dial(self, address: Address) -> End:
        loop, reason = asyncio.get_running_loop(), "its name has no address"
        try:
            async with asyncio.timeout(self._connect_seconds):
                for family, *_, found in await self._resolver.addresses(address.host, address.port):
                    try:
                        _, end = await loop.create_connection(End, *found[:2], family=family)
                    except OSError as error:
                        reason = error.strerror or str(error)
                    else:
                        return end
        except TimeoutError:
            raise OriginUnreachableError(f"no connection to {address} within {self._connect_seconds:g} s") from None
        except OSError as error:
            raise OriginUnreachableError(f"cannot look {address.host} up: {error.strerror or error}") from error
        raise OriginUnreachableError(f"cannot connect to {address}: {reason}")


def _address(target: str) -> Address:
    try:
        address = parse_address(target)
    except ConfigError as error:
        raise BadRequestError(f"CONNECT: {error}") from error
    if not address.host or not address.port:
        raise BadRequestError(f"CONNECT {target!r} names no host and port")
    return address
