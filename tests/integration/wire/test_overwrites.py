"""An object that is overwritten a thousand times while it is read: no answer ever mixes two versions, or is stale.

The origin overwrites the object itself, between two requests, whenever a seeded generator says so: there is no clock to
race against. The content of generation g is the number g, over and over, so that a single foreign byte shows.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import random
import re
import struct
from collections import Counter
from email.utils import formatdate

import pytest

from bench.cluster import LocalCluster
from tests.support.daemons import fetch
from tests.support.origins import running_raw_origin
from tests.unit.source.raw_origin import RawRequest, response

from .conftest import SIGNED

PIECE = 4 * 1024 * 1024
READERS = 8
EPOCH = 1_700_000_000


class Overwritten:
    """An object in its `generation`-th version; `validators` says by which fields the origin tells versions apart."""

    def __init__(self, validators: str) -> None:
        self.validators = validators
        self.generation = 1
        self.random = random.Random(7)

    def content(self) -> bytes:
        # Mostly one piece; runs of versions with several, all of one length, so that lengths do not give them away.
        length = PIECE + 64 * 1024 if self.generation % 40 < 4 else 96 * 1024
        return struct.pack(">Q", self.generation) * (length // 8)

    def fields(self) -> tuple[str, ...]:
        modified = EPOCH + 10 * self.generation
        dates = (f"Last-Modified: {formatdate(modified, usegmt=True)}",)
        match self.validators:
            case "strong":
                return (f'ETag: "{self.generation:032x}"',)
            case "dates":
                return (*dates, f"Date: {formatdate(modified + 5, usegmt=True)}")
            case _:  # weak: another tag, but one that promises nothing, and a date that is too young to count
                return (f'ETag: W/"{self.generation}"', *dates, f"Date: {formatdate(modified, usegmt=True)}")

    def answer(self, request: RawRequest) -> bytes:
        answer = self._answer(request)
        self.generation += self.random.random() < 0.2
        return answer

    def _answer(self, request: RawRequest) -> bytes:
        content, fields = self.content(), self.fields()
        validator = fields[0].partition(": ")[2]
        if any(request.field(name) not in (None, validator) for name in ("If-Match", "If-Unmodified-Since")):
            return response(412)
        wanted = re.fullmatch(r"bytes=([0-9]+)-([0-9]+)", request.field("Range") or "")
        if wanted is None:
            return response(200, *fields, body=content)
        part = content[int(wanted[1]) : int(wanted[2]) + 1]
        if not part:
            return response(416, f"Content-Range: bytes */{len(content)}")
        sent = f"{wanted[1]}-{int(wanted[1]) + len(part) - 1}/{len(content)}"
        return response(206, *fields, f"Content-Range: bytes {sent}", body=part)


@pytest.mark.parametrize(("validators", "overwrites"), [("strong", 1000), ("dates", 200), ("weak", 200)])
def test_no_answer_mixes_two_versions(fleet: LocalCluster, validators: str, overwrites: int) -> None:
    thing = Overwritten(validators)

    def read(number: int) -> Counter[str]:
        """Read until the object has been overwritten often enough; count how the reads ended."""
        proxy = fleet[f"peer-{1 + number % 2}"].addresses["proxy"]
        # Two credentials: readers share questions, and downloads go by one or the other's URL.
        url = f"{origin.base}/{validators}.bin?{SIGNED}{number // 2 % 2}"
        ends: Counter[str] = Counter()
        while thing.generation <= overwrites:
            earliest = thing.generation
            try:
                answer = fetch(url, proxy=proxy)
            except (http.client.IncompleteRead, ConnectionError):
                ends["reset"] += 1
                continue
            latest = thing.generation
            ends[str(answer.status)] += 1
            if answer.status == 200:
                (found,) = struct.unpack(">Q", answer.body[:8])
                assert answer.body == answer.body[:8] * (len(answer.body) // 8), "two versions in one answer"
                assert len(answer.body) == int(answer.headers["content-length"])
                assert earliest <= found <= latest, "a version that was not current at any time of the request"
        return ends

    with running_raw_origin(thing.answer) as origin, concurrent.futures.ThreadPoolExecutor(READERS) as readers:
        ends = sum(readers.map(read, range(READERS)), Counter[str]())
    assert ends["200"] > overwrites / 4, ends
    assert set(ends) <= {"200", "502", "reset"}, ends
