"""Preheat jobs and pins that outlive the scheduler they were given to: in Redis, where all schedulers see them.

Whoever runs a job holds a lease on it and writes down how far it is; when the lease ends, another scheduler takes the
job up, with the versions that are known already. Only orders that hold no secret are written down: native names, and
URLs without a query, without headers. Of any other job the others know how far it was when its scheduler was lost.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from p2p.checksums import Checksum
from p2p.errors import DamselflyError
from p2p.fetches import State
from p2p.hostapi import version_from_json, version_to_json
from p2p.native import is_native
from p2p.rendezvous import weight
from p2p.telemetry import logger
from scheduler.fleet import Fleet, Member, ask_all
from scheduler.jobs import Job, Known, Order
from scheduler.preheat import Preheats
from scheduler.shared import PREFIX, Shared

log = logger(__name__)

LOOK_SECONDS = 1.0
LEASE_SECONDS = 5.0

REMEMBERED_SECONDS = 86_400
"""For how long it is known what became of a job."""

_JOBS = f"{PREFIX}jobs"
_PINS = f"{PREFIX}pins"
_LISTED = 1000
_PLENTY = 10_000
"""A job with more objects times hosts is written down in full only now and then."""
_SELDOM_SECONDS = 30.0

_LOST = "its scheduler was lost, and its URLs or headers may be secret, so they are kept nowhere else; start it again"


class Board:
    """Looks after this scheduler's jobs in Redis, takes up those of lost ones, and brings pins to hosts that return."""

    def __init__(
        self, shared: Shared, own: str, preheats: Preheats, fleet: Fleet, members: Callable[[], Sequence[str]]
    ) -> None:
        self._shared = shared
        self._own = own
        self._preheats = preheats
        self._fleet = fleet
        self._members = members
        self._written: dict[str, tuple[float, str]] = {}
        self._others: dict[str, dict[str, Any]] = {}
        self._seen: set[str] = set()

    def summaries(self) -> list[dict[str, Any]]:
        """Return the jobs that are not this scheduler's, a line each."""
        return [record["summary"] for job_id, record in self._others.items() if self._preheats.job(job_id) is None]

    async def detail(self, job_id: str) -> dict[str, Any] | None:
        """Return how far a job of another scheduler is, or None if there is none."""
        record = _record(await self._shared.ask("GET", _job(job_id)))
        return None if record is None else {**record["summary"], "items": record["items"]}

    async def cancel(self, job_id: str) -> None:
        """Have another scheduler end its job."""
        await self._shared.ask("SET", f"{_job(job_id)}:cancel", "", "EX", REMEMBERED_SECONDS)

    def pin(self, task_id: str, pinned: bool) -> None:
        """Remember that a task is to be kept wherever it is, or no more."""
        self._shared.write(("SADD" if pinned else "SREM", _PINS, task_id))

    async def run(self) -> None:
        """Look again and again, for ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Look after everything once, unless Redis is away."""
        if not self._shared.up:
            # It may come back empty.
            self._written.clear()
            return
        await self._tend()
        await self._look_after_others()
        await self._pin_newcomers()

    async def _tend(self) -> None:
        """Renew the leases of this scheduler's jobs, write down how far they are, and end those that are to end."""
        for job in self._preheats.jobs():
            self._write(job)
            if not job.over:
                await self._shared.ask("SET", f"{_job(job.id)}:owner", self._own, "PX", _LEASE_MS)
                if await self._shared.ask("GETDEL", f"{_job(job.id)}:cancel") is not None:
                    await self._preheats.cancel(job)

    def _write(self, job: Job) -> None:
        now = time.monotonic()
        written, before = self._written.get(job.id, (0.0, ""))
        cells = len(job.items) * len(job.targets)
        if before and not job.over and cells > _PLENTY and now < written + _SELDOM_SECONDS:
            return
        detail = job.detail()
        text = json.dumps(
            {
                "summary": job.summary(),
                "items": detail["items"],
                "order": _order_to_json(job.order),
                "known": _known_to_json(job),
                "over": job.over,
            }
        )
        if text == before:
            return
        self._written[job.id] = now, text
        self._shared.write(("SET", _job(job.id), text, "EX", REMEMBERED_SECONDS))
        if not before:
            self._shared.write(("ZADD", _JOBS, int(time.time()), job.id), ("ZREMRANGEBYRANK", _JOBS, 0, -_LISTED - 1))

    async def _look_after_others(self) -> None:
        """Read what other schedulers' jobs are like, and take up what nobody looks after."""
        listed = await self._shared.ask("ZRANGE", _JOBS, 0, -1)
        ids = [each.decode() for each in listed or ()]
        others = [job_id for job_id in ids if self._preheats.job(job_id) is None]
        found: dict[str, dict[str, Any]] = {}
        for job_id in others:
            known = self._others.get(job_id)
            record = known if known and known["over"] else None
            record = record or _record(await self._shared.ask("GET", _job(job_id)))
            if record is None:
                continue
            found[job_id] = record
            if not record["over"]:
                await self._take_up(job_id, record)
        self._others = found

    async def _take_up(self, job_id: str, record: dict[str, Any]) -> None:
        if not self._fleet.members():
            return
        if not await self._shared.ask("SET", f"{_job(job_id)}:owner", self._own, "PX", _LEASE_MS, "NX"):
            return
        try:
            order = _order_from_json(record["order"])
            job = self._preheats.begin(order, job_id=job_id, known=_known_from_json(record))
        except DamselflyError as error:
            log.warning("preheat lost", job=job_id, error=str(error))
            record["over"], record["summary"]["state"] = True, State.FAILED.value
            record["summary"]["error"] = str(error)
            self._shared.write(("SET", _job(job_id), json.dumps(record), "EX", REMEMBERED_SECONDS))
        else:
            log.info("preheat taken up", job=job.id, hosts=len(job.targets))

    async def _pin_newcomers(self) -> None:
        """Bring the pins to hosts that have come, each by the scheduler that rendezvous hashing gives for it."""
        hosts = {member.host_id: member for member in self._fleet.members()}
        new = [host for host_id, host in hosts.items() if host_id not in self._seen and self._is_ours(host_id)]
        pins = await self._shared.ask("SMEMBERS", _PINS) if new else ()
        if pins is None:
            return
        self._seen = set(hosts)
        task_ids = sorted(each.decode() for each in pins)

        async def pin(host: Member) -> None:
            for task_id in task_ids:
                await self._fleet.pin(host, task_id, True)

        _, failures = await ask_all(new if task_ids else [], pin)
        for host_id, why in failures.items():
            log.warning("a host did not hear of all pins", host=host_id, error=why)

    def _is_ours(self, host_id: str) -> bool:
        return max(self._members(), key=lambda name: weight(name, host_id)) == self._own


_LEASE_MS = round(LEASE_SECONDS * 1000)


def _job(job_id: str) -> str:
    return f"{PREFIX}job:{job_id}"


def _record(text: object) -> dict[str, Any] | None:
    if not isinstance(text, bytes | str):
        return None
    record: dict[str, Any] = json.loads(text)
    return record


def _order_to_json(order: Order) -> dict[str, Any] | None:
    """Return an order as JSON values, or None if something in it may be secret."""
    if order.headers or not all(is_native(url) or not set("?#@") & set(url) for url in order.urls):
        return None
    values = asdict(order)
    del values["headers"]
    return values


def _order_from_json(values: Mapping[str, Any] | None) -> Order:
    if values is None:
        raise DamselflyError(_LOST)
    return Order(**{**values, "urls": tuple(values["urls"]), "filters": tuple(values["filters"])})


def _known_to_json(job: Job) -> dict[str, Any]:
    return {
        item.task.id: [version_to_json(item.version), str(item.checksum) if item.checksum else None]
        for item in job.items
        if item.version is not None
    }


def _known_from_json(record: Mapping[str, Any]) -> Known:
    return {
        task_id: (version_from_json(version), Checksum.parse(checksum) if checksum else None)
        for task_id, (version, checksum) in record["known"].items()
    }
