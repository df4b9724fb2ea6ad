"""Back to source: the bytes of a landing from the origin, patiently where it is overloaded, elsewhere where it stalls.

Every request is signed as it is made, where that is this host's business, and is held to the origin's budget.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from random import Random

from prometheus_client import Counter

from p2p.control import Source
from p2p.errors import (
    OriginError,
    OriginStalledError,
    OriginUnreachableError,
)
from p2p.identity import origin_key, redact
from p2p.stores import Store
from p2p.telemetry import REGISTRY
from p2p.urgency import Urgency
from p2p.versions import Version
from peer.download.connection import ExchangeError, Limits, Progress, StalledError
from peer.download.contract import Signer
from peer.download.exchange import Exchanges, Request, Rivalry
from peer.download.hedge import hedged
from peer.download.landing import Landing
from peer.download.origin import Later, Redirect, Unaccepted, endpoint_of, judge_origin, range_request
from peer.download.patience import Patience
from peer.source.backoff import Backoff
from peer.source.client import MAX_REDIRECTS, REDIRECTS, redirected
from peer.source.fields import Fields
from peer.source.governor import Governor
from peer.source.guard import Resolver
from peer.source.trust import Trust

PROGRESS_BYTES = 64 * 1024
"""An attempt that brings less counts as one that brings nothing: it is not the sort that gets anywhere."""

KNOWN_ORIGINS = 256
"""Of how many origins it is remembered what their answers are like."""

_OVERLOADED = frozenset({429, 503})
_REFUSALS = frozenset({400, 401, 403})
_REASON_BYTES = 4096

_REQUESTS = Counter(
    "damselfly_origin_requests_total",
    "Requests for pieces to origins, by kind (piece, hedge) and outcome (ok, redirected, refused: 429 or 503, failed, "
    "aborted)",
    ["kind", "outcome"],
    registry=REGISTRY,
)


@dataclass(frozen=True, slots=True)
class Setback:
    """Why an attempt at the origin came to nothing, and how long the origin wants to be left alone."""

    error: OriginError
    seconds: float = 0.0
    overloaded: bool = False


class BackSource:
    """Brings what is missing of a landing from the origin. Belongs to the event loop."""

    def __init__(
        self,
        exchanges: Exchanges,
        *,
        limits: Limits,
        backoff: Backoff,
        overload_attempts: int,
        resolver: Resolver,
        trust: Trust,
        signer: Signer,
        governor: Governor,
        random: Random,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._exchanges = exchanges
        self._limits = limits
        self._backoff = backoff
        self._overload = replace(backoff, attempts=overload_attempts)
        self._resolver = resolver
        self._trust = trust
        self._signer = signer
        self._governor = governor
        self._random = random
        self._sleep = sleep
        self._patience: dict[str, Patience] = {}

    async def fetch(
        self,
        landing: Landing,
        version: Version,
        source: Source,
        on_overload: Callable[[], None] | None,
        urgency: Urgency,
    ) -> None:
        """Land all that remains. `on_overload` is called whenever the origin answers 429 or 503.

        What breaks off is taken up again at the first missing byte. Raises OriginError kinds, BadRequestError for what
        cannot be sent, StoreError and StoppingError.
        """
        failures = 0
        while landing.remaining is not None:
            before = landing.offset
            setback = await self._attempt(landing, version, source, urgency)
            if setback is None:
                return
            gained = landing.offset - before >= PROGRESS_BYTES
            failures = 1 if gained else failures + 1
            if setback.overloaded and on_overload is not None:
                on_overload()
            # An origin that says nothing for a whole deadline is not asked again: the caller has waited long enough.
            silent = isinstance(setback.error, OriginStalledError) and not gained
            backoff = self._overload if setback.overloaded else self._backoff
            pause = backoff.pause(failures, setback.seconds, self._random)
            if silent or pause is None:
                raise setback.error
            await self._sleep(pause)

    async def _attempt(self, landing: Landing, version: Version, source: Source, urgency: Urgency) -> Setback | None:
        """Ask the origin once for what remains, redirects included; return None when everything has landed."""
        may_sign_again = True
        redirects = 0
        while redirects <= MAX_REDIRECTS:
            url = source.url
            try:
                answer = await self._hedged(landing, version, source, urgency, may_sign_again)
            except StalledError as error:
                return Setback(OriginStalledError(f"{redact(url)}: {error}"))
            except ExchangeError as error:
                return Setback(OriginUnreachableError(f"{redact(url)}: {error}"))
            match answer:
                case Unaccepted():
                    may_sign_again = False
                case Source():
                    source, redirects = answer, redirects + 1
                case Later(status, seconds):
                    later = OriginUnreachableError(f"the origin answers {status} ({redact(url)})")
                    return Setback(later, seconds, status in _OVERLOADED)
                case None:
                    return None
        raise OriginError(f"{redact(source.url)} redirected more than {MAX_REDIRECTS} times")

    async def _hedged(
        self, landing: Landing, version: Version, source: Source, urgency: Urgency, may_sign_again: bool
    ) -> Source | Unaccepted | Later | None:
        """Ask for what remains, a second time if the first brings nothing; return what to do instead of landing it.

        A source is where else to ask. Unaccepted, only where it `may_sign_again`: ask for the same once more.
        """

        async def ask(progress: Progress, rivalry: Rivalry | None) -> Source | Unaccepted | Later | None:
            return await self._ask(landing, version, source, urgency, may_sign_again, progress, rivalry)

        return await hedged(ask, landing, self._patience_with(source.url))

    async def _ask(
        self,
        landing: Landing,
        version: Version,
        source: Source,
        urgency: Urgency,
        may_sign_again: bool,
        progress: Progress,
        rivalry: Rivalry | None,
    ) -> Source | Unaccepted | Later | None:
        signed = await self._signer.signed(source)
        patience = self._patience_with(source.url)
        ours = source.store not in (None, Store.HTTP)
        outcome = "failed"
        try:
            async with self._governor.request(signed.url, urgency=urgency, task=version.task_id) as permit:
                wanted = rivalry.wanted if rivalry is not None else landing.wanted

                def judge(
                    status: int, headers: Fields, body: Callable[[], bytes]
                ) -> Redirect | Unaccepted | Later | None:
                    patience.answered(progress.first_byte)
                    if ours and (status in _REFUSALS or status in REDIRECTS):
                        return Unaccepted(status, headers, body()[:_REASON_BYTES])
                    return judge_origin(signed.url, version, wanted, status, headers)

                request: Request[Redirect | Unaccepted | Later] = Request(
                    replace(endpoint_of(signed.url), ca_file=self._trust.ca_file(signed.url)),
                    self._limits,
                    range_request(signed, version, wanted),
                    judge,
                    self._resolver,
                    permit.take,
                    progress,
                    urgency,
                    version.task_id,
                )
                if rivalry is None:
                    verdict = await self._exchanges.land(request, landing)
                else:
                    verdict = await self._exchanges.race(request, landing, rivalry)
                if isinstance(verdict, Unaccepted):
                    refusal = (source, verdict.status, verdict.headers, verdict.body)
                    # Once is enough: what was renewed just now is not out of date.
                    if may_sign_again and await self._signer.refused(*refusal):
                        return verdict
                    if verdict.status in _REFUSALS:
                        raise self._signer.explained(*refusal)
                    verdict = judge_origin(signed.url, version, wanted, verdict.status, verdict.headers)
                if isinstance(verdict, Redirect):
                    outcome = "redirected"
                    return redirected(signed, verdict.location)
                if verdict is None:
                    outcome = "ok"
                elif verdict.status in _OVERLOADED:
                    outcome = "refused"
                    permit.refused(verdict.seconds)
                return verdict
        except asyncio.CancelledError:
            outcome = "aborted"
            raise
        finally:
            _REQUESTS.labels("piece" if rivalry is None else "hedge", outcome).inc()

    def _patience_with(self, url: str) -> Patience:
        key = origin_key(url)
        patience = self._patience.pop(key, None) or Patience()
        self._patience[key] = patience
        if len(self._patience) > KNOWN_ORIGINS:
            del self._patience[next(iter(self._patience))]
        return patience
