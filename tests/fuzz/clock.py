"""An event loop with real sockets and a clock that runs only while nothing else happens.

Deadlines of minutes come at once, in their order, and only when every byte that was sent has been taken. The loop knows
no host but this one, whatever a fuzzed request asks it to connect to.
"""

from __future__ import annotations

import asyncio
import ipaddress
import selectors
import socket
from collections.abc import Callable
from typing import Any

_QUIET_SECONDS = 0.01
"""How long no socket may have anything to say before the clock is moved to the next deadline."""


class NothingLeftError(RuntimeError):
    """Everybody waits, and nothing is scheduled that could end it: a hang."""


class _Selector(selectors.DefaultSelector):
    def __init__(self, advance: Callable[[float], None]) -> None:
        super().__init__()
        self._advance = advance

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(timeout)
        found = super().select(_QUIET_SECONDS)
        if not found:
            if timeout is None:
                raise NothingLeftError("nothing is scheduled, and no socket has anything to say")
            self._advance(timeout)
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """The loop; `failures` are the contexts its exception handler was called with."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_Selector(self._pass))
        self.failures: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.failures.append(context))

    def time(self) -> float:
        return self._now

    async def elapse(self, seconds: float) -> None:
        """Let time go by, and with it whatever is due; nobody really waits."""
        moment = self.create_future()
        self.call_later(seconds, moment.set_result, None)
        await moment

    def _pass(self, seconds: float) -> None:
        self._now += seconds

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        if not ipaddress.ip_address(address[0]).is_loopback:
            raise ConnectionRefusedError("only this host is there")
        await super().sock_connect(sock, address)
