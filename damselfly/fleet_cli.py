"""The commands that look after the fleet's content: preheat, ls, stat, rm, pin, unpin."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from damselfly import fleet
from damselfly.fleet import Naming, SchedulerApi
from damselfly.options import parse_header
from damselfly.transfer import spelt_out
from p2p.auth import ClusterSecret
from p2p.config import parse_address
from p2p.errors import BadRequestError, ConfigError, DamselflyError
from p2p.identity import parse_filters

app = typer.Typer()

SchedulerHttp = Annotated[str, typer.Option(metavar="HOST:PORT", help="The scheduler's HTTP address.")]
SecretFile = Annotated[
    Path | None,
    typer.Option(
        envvar="DAMSELFLY_CLUSTER_SECRET_FILE", help="The cluster's secret, which the scheduler's admin API asks for."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print what the scheduler answered, as JSON.")]
What = Annotated[
    str, typer.Argument(metavar="URL|TASK", help="The object: its URL (a signature does not count) or id.")
]
Filter = Annotated[
    list[str] | None,
    typer.Option(metavar="NAMES", help="Query parameters that do not identify the object; joined with & or ,"),
]
Tag = Annotated[str, typer.Option(help="The tag it was fetched with.")]
Application = Annotated[str, typer.Option(help="The application it was fetched for.")]

_SCHEDULER = "127.0.0.1:8000"


@app.command()
def preheat(
    urls: Annotated[
        list[str] | None,
        typer.Argument(metavar="URL…", help="What to bring: s3://, gs://, as:// … or http(s)://, presigned or not."),
    ] = None,
    recursive: Annotated[
        bool,
        typer.Option(
            "-r",
            "--recursive",
            help="The URLs are prefixes: bring every object below them. One that ends with / is one anyway.",
        ),
    ] = False,
    to: Annotated[
        str, typer.Option(metavar="seeds|all|LABEL=VALUE|N", help="Which hosts; a number picks so many.")
    ] = "all",
    wait: Annotated[
        bool, typer.Option("--wait", help="Show how it goes until it is over; 1 if anything failed.")
    ] = False,
    pin: Annotated[bool, typer.Option("--pin", help="Keep it from eviction on those hosts.")] = False,
    header: Annotated[
        list[str] | None, typer.Option("-H", "--header", metavar="'NAME: VALUE'", help="For the origin; repeatable.")
    ] = None,
    filter: Filter = None,  # noqa: A002  # the flag's name
    tag: Tag = "",
    application: Application = "",
    status: Annotated[str, typer.Option(metavar="JOB", help="Show how far a preheat is.")] = "",
    cancel: Annotated[str, typer.Option(metavar="JOB", help="End a preheat; what is there by then stays.")] = "",
    list_jobs: Annotated[bool, typer.Option("--list", help="Show all preheats that the scheduler remembers.")] = False,
    scheduler_http: SchedulerHttp = _SCHEDULER,
    cluster_secret_file: SecretFile = None,
    as_json: AsJson = False,
) -> None:
    """Bring objects to hosts before anybody there asks for them; prints the job's id."""
    if sum((bool(urls), bool(status), bool(cancel), list_jobs)) != 1:
        raise typer.BadParameter("give URLs, or one of --status JOB, --cancel JOB and --list")

    def act(api: SchedulerApi, console: Console) -> int:
        if list_jobs:
            return fleet.list_preheats(api, console, as_json=as_json)
        if status:
            return fleet.show_preheat(api.call("GET", f"/v1/preheats/{_job(status)}"), console, as_json=as_json)
        if cancel:
            job = api.call("DELETE", f"/v1/preheats/{_job(cancel)}")
            fleet.show_preheat(job, console, as_json=as_json)
            return 0
        order = {
            "urls": [_spelt_out(url) for url in urls or ()],
            "recursive": recursive,
            "to": to,
            "pin": pin,
            "headers": [list(parse_header(text)) for text in header or ()],
            "filters": list(parse_filters(filter or ())),
            "tag": tag,
            "application": application,
        }
        return fleet.begin_preheat(api, order, console, wait=wait, as_json=as_json)

    _run(act, scheduler_http, cluster_secret_file)


@app.command()
def ls(
    what: Annotated[
        str, typer.Argument(metavar="[URL|TASK|PREFIX]", help="Only what begins with this; without it everything.")
    ] = "",
    scheduler_http: SchedulerHttp = _SCHEDULER,
    cluster_secret_file: SecretFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what the fleet holds: object, version, size, how many hosts have all or some of it, age."""

    def act(api: SchedulerApi, console: Console) -> int:
        return fleet.list_held(api, _spelt_out(what), console, as_json=as_json)

    _run(act, scheduler_http, cluster_secret_file)


@app.command()
def stat(
    what: What,
    filter: Filter = None,  # noqa: A002
    tag: Tag = "",
    application: Application = "",
    scheduler_http: SchedulerHttp = _SCHEDULER,
    cluster_secret_file: SecretFile = None,
    as_json: AsJson = False,
) -> None:
    """Show which hosts hold an object, how complete, how old, how used, pinned or not."""
    naming = Naming(parse_filters(filter or ()), tag, application)
    act = _on_task(what, naming, partial(fleet.show_task, as_json=as_json))
    _run(act, scheduler_http, cluster_secret_file)


@app.command()
def rm(
    what: What,
    filter: Filter = None,  # noqa: A002
    tag: Tag = "",
    application: Application = "",
    scheduler_http: SchedulerHttp = _SCHEDULER,
    cluster_secret_file: SecretFile = None,
    as_json: AsJson = False,
) -> None:
    """Remove an object from every host; 1 if a host did not answer, or none had it."""
    naming = Naming(parse_filters(filter or ()), tag, application)
    act = _on_task(what, naming, partial(fleet.remove_task, as_json=as_json))
    _run(act, scheduler_http, cluster_secret_file)


@app.command()
def pin(
    what: What,
    filter: Filter = None,  # noqa: A002
    tag: Tag = "",
    application: Application = "",
    scheduler_http: SchedulerHttp = _SCHEDULER,
    cluster_secret_file: SecretFile = None,
    as_json: AsJson = False,
) -> None:
    """Keep what hosts hold of an object now from eviction."""
    naming = Naming(parse_filters(filter or ()), tag, application)
    act = _on_task(what, naming, partial(fleet.pin_task, pinned=True, as_json=as_json))
    _run(act, scheduler_http, cluster_secret_file)


@app.command()
def unpin(
    what: What,
    filter: Filter = None,  # noqa: A002
    tag: Tag = "",
    application: Application = "",
    scheduler_http: SchedulerHttp = _SCHEDULER,
    cluster_secret_file: SecretFile = None,
    as_json: AsJson = False,
) -> None:
    """Let an object be evicted again."""
    naming = Naming(parse_filters(filter or ()), tag, application)
    act = _on_task(what, naming, partial(fleet.pin_task, pinned=False, as_json=as_json))
    _run(act, scheduler_http, cluster_secret_file)


def _spelt_out(text: str) -> str:
    """Return what a user named; the endpoints that only this command's environment tells are in the name then."""
    return spelt_out(text, os.environ)


def _on_task(
    what: str, naming: Naming, do: Callable[[SchedulerApi, str, Console], int]
) -> Callable[[SchedulerApi, Console], int]:
    return lambda api, console: do(api, fleet.task_of(api, _spelt_out(what), naming), console)


def _job(text: str) -> str:
    if re.fullmatch("[0-9a-f]+", text) is None:
        raise BadRequestError(f"{text!r} is no job; `damselfly preheat --list` shows them")
    return text


def _run(act: Callable[[SchedulerApi, Console], int], scheduler_http: str, secret_file: Path | None) -> None:
    """Do what a command does; errors are one line and an exit status: 2 for what was asked, 1 for what failed."""
    try:
        secret = ClusterSecret.load(secret_file) if secret_file else None
        status = act(SchedulerApi(parse_address(scheduler_http), secret), Console())
    except (ConfigError, BadRequestError) as error:
        raise typer.BadParameter(str(error)) from error
    except DamselflyError as error:
        typer.echo(f"damselfly: {error}", err=True)
        raise typer.Exit(fleet.EXIT_FAILED) from None
    raise typer.Exit(status)
