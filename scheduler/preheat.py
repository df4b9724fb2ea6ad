"""Preheating: jobs that bring objects to hosts before anybody there asks for them.

A job names its objects (by listing prefixes, where that is asked for), has a seed probe each for its version, and
orders every target to fetch it. The targets do that as for any reader: each byte leaves the origin once. Everything
has a deadline: a host that is silent, or makes no progress, is given up and named. Jobs are kept in memory only.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from p2p.control import Source
from p2p.errors import BadRequestError, DamselflyError, OriginError, StoppingError
from p2p.fetches import FetchRequest, FetchState, State, asked_for
from p2p.hostapi import Keepable, Listed, Refused, Stream
from p2p.identity import identify
from p2p.native import is_prefix
from p2p.tasks import TaskScope
from p2p.telemetry import logger
from scheduler.fleet import AT_ONCE, Fleet, HostError, Member, ask_all
from scheduler.jobs import Cell, Item, Job, Known, Order, chosen

log = logger(__name__)

MAX_JOBS = 1000
MAX_CELLS = 200_000
"""Objects times hosts of one job."""

_PROBES_AT_ONCE = 32
_ASKERS = 3
"""How many hosts are tried for a probe or a listing."""

_OUTSTANDING = 64
"""Fetches of one job that a host has at a time."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """How often targets are asked how far they are (at first more often), and when they are given up; seconds."""

    poll: float = 1.0
    silence: float = 15.0
    """Without an answer, although the host is still in the cluster."""
    standstill: float = 300.0
    """With answers that say the same all the time."""


class Preheats:
    """All jobs there are; `fleet` is asked, `scope` owns what runs."""

    def __init__(self, fleet: Fleet, scope: TaskScope, *, patience: Patience | None = None) -> None:
        self._fleet = fleet
        self._scope = scope
        self._patience = patience or Patience()
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._probing = asyncio.Semaphore(_PROBES_AT_ONCE)
        self._ordering = asyncio.Semaphore(AT_ONCE)

    def begin(self, order: Order, *, job_id: str = "", known: Known | None = None) -> Job:
        """Start a job; under the id that it had, and with what is known, if it is taken up from another scheduler.

        Raises BadRequestError for what cannot be, StoppingError while too many run.
        """
        items = [_asked_for(url, order) for url in order.urls]
        if not items:
            raise BadRequestError("a preheat needs at least one URL")
        for item in items:
            if item.prefix and item.source.store is None:
                raise BadRequestError(
                    f"{item.task.canonical} cannot be listed: give a prefix by its native name (s3://bucket/prefix/, …)"
                )
        targets = chosen(self._fleet.members(), order.to, key=items[0].task.id)
        while len(self._jobs) >= MAX_JOBS:
            ended = next((job for job in self._jobs.values() if job.over), None)
            if ended is None:
                raise StoppingError(f"{MAX_JOBS} preheats are under way; wait for one to end, or cancel one")
            del self._jobs[ended.id]
        job = Job(job_id or secrets.token_hex(8), order, targets, known=known or {})
        job.items = list({item.task.id: item for item in items}.values())
        self._jobs[job.id] = job
        job.running = self._scope.spawn(self._run(job), name=f"preheat {job.id}")
        job.running.add_done_callback(lambda _: self._ended(job))
        return job

    def jobs(self) -> tuple[Job, ...]:
        """Return all jobs that are remembered, the oldest first."""
        return tuple(self._jobs.values())

    def job(self, job_id: str) -> Job | None:
        """Return a job, None if it is not remembered."""
        return self._jobs.get(job_id)

    async def cancel(self, job: Job) -> None:
        """End a job: what is under way at the hosts stops, unless another job wants it too; what landed stays."""
        if job.over or job.cancelled or job.running is None:
            return
        job.cancelled = True
        job.running.cancel()
        await asyncio.wait([job.running])
        wanted = {pair for other in self._jobs.values() for pair in other.under_way()}

        async def stop(host: Member) -> None:
            for version_id in stopping[host.host_id]:
                await self._fleet.cancel(host, version_id)

        stopping: dict[str, list[str]] = {member.host_id: [] for member in job.targets}
        for item in job.items:
            for host_id, cell in item.hosts.items():
                if item.version and cell.state is State.RUNNING and (item.version.id, host_id) not in wanted:
                    stopping[host_id].append(item.version.id)
                cell.end(State.CANCELLED)
        _, failures = await ask_all([host for host in job.targets if stopping[host.host_id]], stop)
        for host_id, why in failures.items():
            log.warning("a host did not hear of a cancelled preheat", job=job.id, host=host_id, error=why)

    def _ended(self, job: Job) -> None:
        job.over = True
        log.info("preheat ended", job=job.id, state=job.state.value, objects=len(job.items), hosts=len(job.targets))

    async def _run(self, job: Job) -> None:
        found: dict[str, Item] = {}
        for item in job.items:
            objects = await self._listed(job.order, item) if item.prefix else [item]
            found |= {each.task.id: each for each in objects}
        job.items = list(found.values())
        if len(job.items) * len(job.targets) > MAX_CELLS:
            for item in job.items:
                item.error = f"{len(job.items)} objects for {len(job.targets)} hosts are too many for one preheat"
            return
        for item in job.items:
            item.hosts = {member.host_id: Cell() for member in job.targets} if not item.error else {}
        async with asyncio.TaskGroup() as group:
            for item in job.items:
                item.version, item.checksum = job.known.get(item.task.id, (None, None))
                group.create_task(self._probe(item), name=f"probe of {item.task.id}")
        async with asyncio.TaskGroup() as group:
            for member in job.targets:
                group.create_task(_Bringing(self._fleet, self._ordering, self._patience, job, member).run())

    async def _listed(self, order: Order, prefix: Item) -> Sequence[Item]:
        """Return the objects below a prefix; the prefix itself, with an error, where they cannot be told."""
        source = prefix.source
        store = source.store
        assert store is not None, "a prefix has a store"

        def named(entry: Listed) -> Item:
            task = identify(entry.url, filters=order.filters, tag=order.tag, application=order.application, store=store)
            return Item(task, Source(entry.url, source.headers, store))

        try:
            found = await self._asking(source.url, lambda host: self._fleet.listing(host, source.url, store))
            return [named(entry) for entry in found]
        except DamselflyError as error:
            prefix.error = str(error)
            return [prefix]

    async def _probe(self, item: Item) -> None:
        """Find out which version is to be fetched; what stands in the way of that becomes the item's error."""
        if item.error or item.version is not None:
            return
        async with self._probing:
            try:
                said = await self._asking(item.task.id, lambda host: self._fleet.probe(host, item.source, item.task.id))
                match said:
                    case Keepable():
                        item.version, item.checksum = said.version, said.checksum
                    case Refused():
                        item.error = f"the origin answered {said.status} {said.reason}".rstrip()
                    case Stream():
                        item.error = f"it cannot be kept: {said.reason}"
            except DamselflyError as error:
                item.error = str(error)
        if item.error:
            item.hosts = {}

    async def _asking(self, key: str, ask: Callable[[Member], Awaitable[T]]) -> T:
        """Ask a seed, or any host where there is none; and another one if it does not answer."""
        failure: DamselflyError = OriginError("there is no host that could ask the origin")
        for host in self._fleet.askers(key)[:_ASKERS]:
            try:
                return await ask(host)
            except HostError as error:
                failure = error
        raise failure


def _asked_for(url: str, order: Order) -> Item:
    task, source = asked_for(
        url, headers=order.headers, filters=order.filters, tag=order.tag, application=order.application
    )
    return Item(task, source, prefix=order.recursive or is_prefix(url))


class _Bringing:
    """What one job has one host do: a few fetches at a time, and an eye on them."""

    def __init__(self, fleet: Fleet, ordering: asyncio.Semaphore, patience: Patience, job: Job, member: Member) -> None:
        self._fleet = fleet
        self._ordering = ordering
        self._patience = patience
        self._job = job
        self._member = member
        self._waiting = deque(item for item in job.items if item.version is not None)
        self._ordered: dict[str, Cell] = {}
        self._clock = asyncio.get_running_loop().time

    async def run(self) -> None:
        """Return when nothing more is to be expected of the host."""
        heard = moved = self._clock()
        seen: object = None
        pause = self._patience.poll
        while self._waiting or self._ordered:
            try:
                await self._order()
                if self._ordered:
                    under_way = len(self._ordered)
                    self._take(await self._fleet.fetches(self._member))
                    if len(self._ordered) < under_way or seen is None:
                        pause = self._patience.poll / 16  # small objects are there in no time
            except DamselflyError as error:
                if self._gone() or self._clock() - heard > self._patience.silence:
                    self._give_up(f"{error}; the host was given up")
                    return
            else:
                heard = self._clock()
            sight = len(self._waiting), [(cell.state, cell.pieces_held) for cell in self._ordered.values()]
            if sight != seen:
                moved, seen = self._clock(), sight
            elif self._clock() - moved > self._patience.standstill:
                self._give_up(f"nothing moved for {self._patience.standstill:.0f} s; the host was given up")
                return
            if self._ordered or self._waiting:
                await asyncio.sleep(pause)
                pause = min(2 * pause, self._patience.poll)

    async def _order(self) -> None:
        while self._waiting and len(self._ordered) < _OUTSTANDING:
            item = self._waiting[0]
            assert item.version is not None, "only items with a version wait"
            request = FetchRequest(item.task, item.version, item.source, self._job.order.pin, item.checksum)
            cell = item.hosts[self._member.host_id]
            async with self._ordering:
                # From now on the host may have it, whatever becomes of its answer.
                cell.state = State.RUNNING
                try:
                    await self._fleet.fetch(self._member, request)
                except (HostError, StoppingError) as error:
                    # Busy or stopping is like not answering: it may do so a little later.
                    raise error if isinstance(error, HostError) else HostError(str(error)) from None
                except DamselflyError as error:
                    cell.end(State.FAILED, str(error))
                else:
                    self._ordered[item.version.id] = cell
            self._waiting.popleft()

    def _take(self, states: dict[str, FetchState]) -> None:
        for version_id, cell in tuple(self._ordered.items()):
            row = states.get(version_id)
            if row is None:
                cell.end(State.FAILED, "the host knows nothing of the fetch any more; it was restarted")
            elif row.state is State.CANCELLED:
                cell.end(State.FAILED, "the fetch was cancelled at the host")
            else:
                cell.take(row)
            if cell.state.over:
                del self._ordered[version_id]

    def _gone(self) -> bool:
        return all(member.host_id != self._member.host_id for member in self._fleet.members())

    def _give_up(self, why: str) -> None:
        for item in self._waiting:
            item.hosts[self._member.host_id].end(State.FAILED, why)
        for cell in self._ordered.values():
            cell.end(State.FAILED, why)
