"""What operators do with the fleet's content: asks the scheduler's HTTP API, and puts its answers into tables."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_from_bytes

from rich.console import Console, Group
from rich.filesize import decimal
from rich.live import Live
from rich.table import Table
from rich.text import Text

from p2p.auth import ClusterSecret, authorization
from p2p.config import Address
from p2p.endpoints import ADMIN_PURPOSE
from p2p.errors import BadRequestError, DamselflyError
from p2p.fetches import asked_for

EXIT_FAILED = 1

_ANSWER_SECONDS = 180.0
"""How long the scheduler may take: it asks every host, each with a deadline of its own."""

_POLL_SECONDS = 1.0
_AWAY_POLLS = 30
"""How often in a row a scheduler may not answer while a preheat is watched: a restart takes less."""
_TASK = re.compile(r"[0-9a-f]{8,64}")
_CANONICAL = re.compile(r"[a-z0-9]+\+https?://")

Json = Mapping[str, Any]


class FleetError(DamselflyError):
    """The scheduler did not do what was asked of it; the text says why."""


class SchedulerAwayError(FleetError):
    """Nothing answers at the scheduler's address."""


class UnknownError(FleetError):
    """The scheduler knows nothing by that name (404)."""


class SchedulerApi:
    """The scheduler's HTTP API; each call is one request on a connection of its own."""

    def __init__(self, address: Address, secret: ClusterSecret | None) -> None:
        self._address = address
        self._secret = secret

    def call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """Return the JSON of an answer. Raises FleetError, also for what the scheduler refuses."""
        headers = {"Content-Type": "application/json"}
        if self._secret is not None:
            headers["Authorization"] = authorization(self._secret.sign(ADMIN_PURPOSE, "cli", now=time.time()))
        connection = http.client.HTTPConnection(
            self._address.host.strip("[]"), self._address.port, timeout=_ANSWER_SECONDS
        )
        with contextlib.closing(connection):
            try:
                connection.request(method, path, None if body is None else json.dumps(body), headers)
                response = connection.getresponse()
                value = json.loads(response.read())
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise SchedulerAwayError(
                    f"the scheduler at {self._address} gave no answer ({type(error).__name__}); start it, or name its "
                    "HTTP address with --scheduler-http"
                ) from None
        if not isinstance(value, dict) or response.status >= 300:
            told = value.get("error") if isinstance(value, dict) else None
            kind = UnknownError if response.status == 404 else FleetError
            raise kind(f"the scheduler at {self._address} answered {response.status}: {told or response.reason}")
        return value


@dataclass(frozen=True, slots=True)
class Naming:
    """What besides the URL names a task."""

    filters: tuple[str, ...] = ()
    tag: str = ""
    application: str = ""


def task_of(api: SchedulerApi, text: str, naming: Naming) -> str:
    """Return the id of the task that a URL, an id or the first digits of one name. Raises DamselflyError."""
    if _TASK.fullmatch(text) is None:
        if _CANONICAL.match(text):
            return _only(text, [row for row in _versions(api, text) if row["object"] == text])
        return asked_for(text, filters=naming.filters, tag=naming.tag, application=naming.application)[0].id
    if len(text) == 64:
        return text
    return _only(text, _versions(api, text))


def _versions(api: SchedulerApi, prefix: str) -> list[dict[str, Any]]:
    return list(_held(api, prefix)["versions"])


def _held(api: SchedulerApi, prefix: str) -> dict[str, Any]:
    return api.call("GET", f"/v1/tasks?prefix={quote_from_bytes(prefix.encode('utf-8', 'surrogateescape'), safe='')}")


def _only(text: str, rows: Iterable[Json]) -> str:
    found = {row["task_id"] for row in rows}
    if len(found) != 1:
        raise BadRequestError(f"{len(found)} tasks in the fleet fit {text!r}; `damselfly ls` shows all")
    return str(found.pop())


def list_held(api: SchedulerApi, what: str, console: Console, *, as_json: bool) -> int:
    """Print what the fleet holds whose name begins with `what`; return the exit status."""
    prefix = what
    if what and not (_TASK.fullmatch(what) or _CANONICAL.match(what)):
        prefix = asked_for(what)[0].canonical
    answer = _held(api, prefix)
    if as_json:
        _print_json(console, answer)
    else:
        _print_table(
            console,
            ("OBJECT", "TASK", "VERSION", "SIZE", "COMPLETE", "PARTIAL", "PINNED", "AGE"),
            [
                (
                    row["object"],
                    row["task_id"][:12],
                    row["version_id"][:12],
                    decimal(row["length"]),
                    str(row["complete"]),
                    str(row["partial"]),
                    str(row["pinned"]),
                    age(row["age_seconds"]),
                )
                for row in answer["versions"]
            ],
        )
    return _unreachable(answer)


def show_task(api: SchedulerApi, task_id: str, console: Console, *, as_json: bool) -> int:
    """Print who holds what of a task; return the exit status, which is 1 if nobody holds anything."""
    answer = api.call("GET", f"/v1/tasks/{task_id}")
    rows = answer["hosts"]
    if as_json:
        _print_json(console, answer)
    elif rows:
        console.print(Text(f"{rows[0]['object']}\ntask {task_id}"), soft_wrap=True)
        _print_table(
            console,
            ("HOST", "VERSION", "PIECES", "%", "AGE", "LAST USE", "PINNED", "IN USE"),
            [
                (
                    row["host_id"],
                    row["version_id"][:12],
                    f"{row['pieces_held']}/{row['pieces']}",
                    str(percent(row["pieces_held"], row["pieces"])),
                    age(row["age_seconds"]),
                    age(row["used_seconds"]),
                    "yes" if row["pinned"] else "no",
                    "yes" if row["in_use"] else "no",
                )
                for row in rows
            ],
        )
    else:
        _complain(f"no host holds anything of task {task_id}")
    return _unreachable(answer) or (0 if rows else EXIT_FAILED)


def remove_task(api: SchedulerApi, task_id: str, console: Console, *, as_json: bool) -> int:
    """Remove a task everywhere; return the exit status, which is 1 if a host did not answer."""
    return _everywhere(api, "DELETE", f"/v1/tasks/{task_id}", "removed from", console, as_json=as_json)


def pin_task(api: SchedulerApi, task_id: str, console: Console, *, pinned: bool, as_json: bool) -> int:
    """Pin or unpin a task everywhere; return the exit status, which is 1 if nobody held anything of it."""
    method, verb = ("PUT", "pinned on") if pinned else ("DELETE", "unpinned on")
    return _everywhere(api, method, f"/v1/pins/{task_id}", verb, console, as_json=as_json)


def _everywhere(api: SchedulerApi, method: str, path: str, verb: str, console: Console, *, as_json: bool) -> int:
    answer = api.call(method, path)
    hosts = [host_id for host_id, count in answer["versions"].items() if count]
    if as_json:
        _print_json(console, answer)
    else:
        console.print(Text(f"{verb} {_count(len(hosts), 'host')}" + (f": {', '.join(sorted(hosts))}" if hosts else "")))
    return _unreachable(answer) or (0 if hosts else EXIT_FAILED)


def begin_preheat(api: SchedulerApi, order: Json, console: Console, *, wait: bool, as_json: bool) -> int:
    """Start a preheat and print its id; with `wait` show how it goes, and return 1 if anything failed."""
    job = api.call("POST", "/v1/preheats", order)
    if not as_json:
        console.print(Text(job["id"]))
    if not wait:
        if as_json:
            _print_json(console, job)
        return 0
    try:
        job = watch(api, job)
    except KeyboardInterrupt:
        _complain(f"the preheat goes on; `damselfly preheat --cancel {job['id']}` ends it")
        return 130
    return show_preheat(job, console, as_json=as_json)


def watch(api: SchedulerApi, job: dict[str, Any], sleep: Callable[[float], None] = time.sleep) -> dict[str, Any]:
    """Poll a job until it is over, with a live table where a terminal shows it.

    A scheduler that is away is waited for. Raises FleetError when it stays away, or has forgotten the job.
    """
    screen = Console(stderr=True)
    with (
        Live(_progress(job), console=screen, transient=True, auto_refresh=False)
        if screen.is_terminal
        else (contextlib.nullcontext()) as live
    ):
        away = 0
        pause = _POLL_SECONDS / 16  # small objects are there in no time
        while job["state"] == "running":
            sleep(pause)
            pause = min(2 * pause, _POLL_SECONDS)
            try:
                job, away = api.call("GET", f"/v1/preheats/{job['id']}"), 0
            except SchedulerAwayError:
                away += 1
                if away > _AWAY_POLLS:
                    raise
            except UnknownError:
                raise FleetError(
                    f"the scheduler has been restarted and knows nothing of preheat {job['id']} any more; what has "
                    "landed stays where it is, and the same command brings the rest"
                ) from None
            if live is not None:
                live.update(_progress(job), refresh=True)
    return job


def show_preheat(job: Json, console: Console, *, as_json: bool) -> int:
    """Print how far a preheat is and what failed; return 1 if something did, or it was cancelled."""
    if as_json:
        _print_json(console, job)
    else:
        console.print(_headline(job), soft_wrap=True)
        _print_table(console, _COLUMNS, _by_host(job))
        for line in failures(job):
            _complain(line)
    return EXIT_FAILED if job["state"] in ("failed", "cancelled") or failures(job) else 0


def list_preheats(api: SchedulerApi, console: Console, *, as_json: bool) -> int:
    """Print the preheats that the scheduler remembers."""
    answer = api.call("GET", "/v1/preheats")
    if as_json:
        _print_json(console, answer)
    else:
        _print_table(
            console,
            ("JOB", "STATE", "OBJECTS", "TO", "HOSTS"),
            [
                (job["id"], job["state"], str(job["objects"]), job["to"], str(len(job["hosts"])))
                for job in answer["preheats"]
            ],
        )
    return 0


def failures(job: Json) -> list[str]:
    """Return a line for each object, or object on a host, that failed."""
    found = []
    for item in job["items"]:
        if item["error"]:
            found.append(f"{item['object']}: {item['error']}")
        found += [f"{item['object']} on {row['host_id']}: {row['error']}" for row in item["hosts"] if row["error"]]
    return found


_COLUMNS = ("HOST", "STATE", "OBJECTS", "PIECES", "BYTES", "FAILED")


def _headline(job: Json) -> Text:
    return Text(f"preheat {job['id']}: {job['state']}, {_count(len(job['items']), 'object')}")


def _progress(job: Json) -> Group:
    """Return what a terminal shows while a job runs."""
    table = Table(*_COLUMNS, box=None, pad_edge=False)
    for row in _by_host(job):
        table.add_row(*row)
    return Group(_headline(job), table)


def _by_host(job: Json) -> list[tuple[str, ...]]:
    """Return a row a host: how far it is with all the objects."""
    lines: list[tuple[str, ...]] = []
    for host_id in job["hosts"]:
        rows = [(item, row) for item in job["items"] for row in item["hosts"] if row["host_id"] == host_id]
        states = [row["state"] for _, row in rows]
        total = sum(item["length"] or 0 for item, _ in rows)
        lines.append(
            (
                host_id,
                next((state for state in _WORST_FIRST if state in states), "nothing to do"),
                f"{states.count('done')}/{len(rows)}",
                f"{sum(row['pieces_held'] for _, row in rows)}/{sum(row['pieces'] for _, row in rows)}",
                f"{decimal(sum(row['bytes_held'] for _, row in rows))}/{decimal(total)}",
                str(states.count("failed")),
            )
        )
    return lines


_WORST_FIRST = ("running", "pending", "failed", "cancelled", "done")


def age(seconds: float) -> str:
    """Return a time span in its largest unit: 45s, 12m, 5h, 3d."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


def percent(held: int, pieces: int) -> int:
    """Return how much is held in percent, rounded down; of nothing everything is held."""
    return 100 * held // pieces if pieces else 100


def _unreachable(answer: Json) -> int:
    for host_id, why in sorted(answer["unreachable"].items()):
        _complain(f"{host_id} gave no answer: {why}")
    return EXIT_FAILED if answer["unreachable"] else 0


def _complain(text: str) -> None:
    """Say something on standard error, on one line."""
    Console(stderr=True).print(Text(text), soft_wrap=True)


def _print_json(console: Console, value: object) -> None:
    console.print(Text(json.dumps(value)), soft_wrap=True)


def _print_table(console: Console, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print aligned columns as wide as they are, for people and for awk."""
    lines = [tuple(columns), *map(tuple, rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        text = "  ".join(value.ljust(width) for value, width in zip(line, widths, strict=True)).rstrip()
        console.print(Text(text), soft_wrap=True)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
