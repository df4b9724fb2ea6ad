"""How many connections to an origin are worth having, and how much to ask for at once.

Object stores limit a connection, gateways limit everybody together: more connections help with the first and only add
latency with the second. `OriginPace` finds out by trying: it doubles the number while the measured rate grows with it,
and goes back as soon as doubling did not pay. An origin that refuses a notable share of its requests (429, 503) gets
half as many, again and again; one that refuses a few loses nothing but those requests' pauses.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from p2p.pieces import MIB

LOWEST, HIGHEST = 4, 16
"""Between how many connections the number is tried out."""

WINDOW_SECONDS = 0.15
WINDOW_PIECES_EACH = 2
WINDOW_BYTES_EACH = 8 * MIB
"""How many pieces, and bytes, from each connection make a window: what is asked for at once comes at once, and with one
piece from each a thin link that many share looks fast in every burst."""

WORTHWHILE_GROWTH = 1.2
RETRY_AFTER_WINDOWS = 5
"""After how many windows doubling is tried again that did not pay; twice as many after every further time."""

LONGEST_RETRY_WINDOWS = 40

REQUEST_SECONDS = 1.0
"""How long a request is to take: some twenty times what a store's first byte does, and so few that their heads, leave
and reports do not count."""

FIRST_REQUEST_BYTES = 16 * MIB
"""What one request asks for, more or less, as long as no rate is known."""

_GOLDEN = 0.618034
"""Multiples of this, without their whole part, are spread evenly however many there are."""

LARGEST_REQUEST_BYTES = 64 * MIB

NOTABLE_REFUSALS = 4
NOTABLE_SHARE = 1 / 3
"""So many refusals, and such a share of the requests, that there are too many connections."""

REMEMBERED_REQUESTS = 48.0
REMEMBERED_ORIGINS = 256


@dataclass(slots=True)
class OriginPace:
    """Counts landed bytes and refusals, and steps `limit`, the number of concurrent ranged requests.

    It lies between `lowest` and `highest`; only refusals push it further down, to 1.
    """

    lowest: int = LOWEST
    highest: int = HIGHEST
    limit: int = 0
    rate: float = 0.0
    """Bytes a second in the last full window; 0 before there was one."""
    _bytes: int = 0
    _pieces: int = 0
    _began: float | None = None
    _settled: int = RETRY_AFTER_WINDOWS
    _retry_after: int = RETRY_AFTER_WINDOWS
    _limit_before: int = 0
    """The limit that the one now on trial must beat; 0 when none is."""
    _rate_before: float = 0.0
    _requests: float = 0.0
    _refusals: float = 0.0
    _varied: float = 0.0

    def __post_init__(self) -> None:
        self.limit = self.limit or self.lowest

    def began(self, now: float) -> None:
        """Note that a request starts at `now` (seconds); time in which nothing was asked for does not count."""
        if self._began is None:
            self._began = now
        self._count_request()

    def idle(self) -> None:
        """Note that no request is under way any more: the window that was open says nothing."""
        self._began, self._bytes, self._pieces = None, 0, 0

    def landed(self, size: int, now: float) -> None:
        """Count a piece of `size` bytes that arrived at `now` and step the limit when a window is full."""
        self._bytes += size
        self._pieces += 1
        if self._began is None or now - self._began < WINDOW_SECONDS or self._pieces < WINDOW_PIECES_EACH * self.limit:
            return
        if self._bytes < WINDOW_BYTES_EACH * self.limit:
            return
        self.rate = self._bytes / (now - self._began)
        self._began, self._bytes, self._pieces = now, 0, 0
        self._step()

    def refused(self) -> None:
        """Count a request that the origin asked to make again later; it is about to be."""
        self._refusals += 1
        self._count_request()
        if self._refusals < NOTABLE_REFUSALS or self._refusals < NOTABLE_SHARE * self._requests:
            return
        self.limit = max(1, self.limit // 2)
        self._requests = self._refusals = 0.0
        self._settled = self._limit_before = 0
        self._retry_after = RETRY_AFTER_WINDOWS

    @property
    def proven(self) -> int:
        """The limit that is known to be worth having: not the one that is only on trial."""
        return self._limit_before or self.limit

    def request_bytes(self, missing: int) -> int:
        """Return how much to ask for at once when `missing` bytes are left to be asked for.

        No two in a row are alike: connections that share a rate evenly would all end together again and again, and
        wait for their next first byte together. The last requests get smaller and smaller, so that all end together.
        """
        worth = self.rate / self.limit * REQUEST_SECONDS if self.rate else FIRST_REQUEST_BYTES
        self._varied = (self._varied + _GOLDEN) % 1.0
        return int(min(min(worth, LARGEST_REQUEST_BYTES / 1.5) * (0.5 + self._varied), missing / self.limit))

    def _count_request(self) -> None:
        self._requests += 1
        if self._requests > REMEMBERED_REQUESTS:
            self._requests /= 2
            self._refusals /= 2

    def _step(self) -> None:
        if self._limit_before:
            if self.rate < self._rate_before * WORTHWHILE_GROWTH:
                self.limit, self._limit_before, self._settled = self._limit_before, 0, 0
                self._retry_after = min(2 * self._retry_after, LONGEST_RETRY_WINDOWS)
                return
            self._retry_after = RETRY_AFTER_WINDOWS
        else:
            self._settled += 1
            # Below `lowest` only refusals have pushed it, and a window without a halving says that they are over.
            if self._settled < self._retry_after and self.limit >= self.lowest:
                return
        if self.limit < self.highest:
            self._limit_before, self._rate_before = self.limit, self.rate
            self.limit = min(max(self.limit * 2, self.lowest), self.highest)
        else:
            self._limit_before = self._settled = 0


class Paces:
    """How many connections the last download from each origin found worth having: the next one begins with them."""

    def __init__(self) -> None:
        self._limits: OrderedDict[str, int] = OrderedDict()

    def recall(self, origin: str) -> int:
        """Return the number for an origin; that of a pace which knows nothing if there was no download from it."""
        return self._limits.get(origin, LOWEST)

    def learn(self, origin: str, pace: OriginPace) -> None:
        """Remember where a download's pace has come to; what is not proved yet does not count."""
        self._limits[origin] = max(pace.lowest, pace.proven)
        self._limits.move_to_end(origin)
        while len(self._limits) > REMEMBERED_ORIGINS:
            self._limits.popitem(last=False)
