"""The `damselfly` command: turns flags into settings and hands them to the part that does the work.

Each command imports that part when it is called, so that a daemon starts without all the others.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import typer

from damselfly.ca import app as ca_app
from damselfly.config import app as config_app
from damselfly.fleet_cli import app as fleet_app
from damselfly.options import parse_header, parse_proxy
from p2p.config import Address, Capacity, parse_address, parse_capacity, parse_duration
from p2p.digests import ExpectedDigest
from p2p.dns import parse_place
from p2p.errors import BadRequestError, ConfigError
from p2p.identity import parse_filters
from p2p.native import is_prefix
from p2p.registry import parse_upstream
from p2p.urgency import DEFAULT_PRIORITY, HIGHEST_PRIORITY, LOWEST_PRIORITY

T = TypeVar("T")

app = typer.Typer(
    name="damselfly",
    help="Distribute model files to a fleet of GPU nodes: every byte leaves the object store once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # what is wrong stays on one line, for logs and for grep
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(ca_app, name="ca")
app.add_typer(config_app, name="config")
app.add_typer(fleet_app)

_SCHEDULER = Address("127.0.0.1", 8002)


def _data_home() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "damselfly"


def _parsed(parse: Callable[[str], T]) -> Callable[[str | T], T]:
    """Make a settings parser a typer parser: its error becomes a usage error with the same text."""

    def parser(value: str | T) -> T:
        if not isinstance(value, str):
            return value
        try:
            return parse(value)
        except (ConfigError, BadRequestError) as error:
            raise typer.BadParameter(str(error)) from error

    return parser


class Label(NamedTuple):
    """One `name=value`."""

    name: str
    value: str


def _label(text: str) -> Label:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ConfigError(f"label {text!r} is not name=value; write for example zone=eu-1a")
    return Label(name, value)


class Header(NamedTuple):
    """One header field."""

    name: str
    value: str


def _header(text: str) -> Header:
    return Header(*parse_header(text))


_address = _parsed(parse_address)

LogLevel = Annotated[str, typer.Option(help="debug, info, warning or error.")]
SecretFile = Annotated[
    Path | None,
    typer.Option(
        envvar="DAMSELFLY_CLUSTER_SECRET_FILE",
        help="File with the secret that all hosts of the cluster share. Required to listen on anything but loopback.",
    ),
]

ClusterTlsDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="ca.crt, tls.crt and tls.key of this host (`damselfly ca issue`): other hosts are spoken to by TLS, and "
        "have to show a certificate too.",
    ),
]
OriginCaFile = Annotated[
    Path | None,
    typer.Option(help="Certificates (PEM) of private authorities, trusted for origins besides the system's."),
]
CloudCredentials = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Credentials for s3://, gs://, as:// … (Triton's cloud_credential.json; docs/credentials.md).",
    ),
]


@app.command()
def scheduler(
    grpc_listen: Annotated[
        Address, typer.Option(parser=_address, metavar="HOST:PORT", help="Where peers connect (gRPC).")
    ] = _SCHEDULER,
    http_listen: Annotated[
        Address, typer.Option(parser=_address, metavar="HOST:PORT", help="Health, metrics and the admin API.")
    ] = Address("127.0.0.1", 8000),
    redis: Annotated[
        str | None,
        typer.Option(
            envvar="DAMSELFLY_REDIS",
            metavar="URL",
            show_envvar=True,
            help="redis://… that several schedulers share (docs/schedulers.md); one with a password by the variable.",
        ),
    ] = None,
    member: Annotated[
        list[Address] | None,
        typer.Option(
            parser=_parsed(parse_place),
            metavar="HOST:PORT",
            help="One of several schedulers, this one included; repeatable, and dns+NAME:PORT is all that the name "
            "stands for. Not needed with --redis.",
        ),
    ] = None,
    advertise: Annotated[
        str | None,
        typer.Option(help="Host name or address that hosts dial, where there are several; default: --grpc-listen's."),
    ] = None,
    state_dir: Annotated[
        Path | None,
        typer.Option(help="Where piece digests outlive a restart; without it they are kept in memory only."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What the cluster may ask of each origin (docs/origin-budgets.md)."),
    ] = None,
    cluster_secret_file: SecretFile = None,
    cluster_tls_dir: ClusterTlsDir = None,
    log_level: LogLevel = "info",
) -> None:
    """Run a scheduler: it tells every peer where to fetch which pieces."""
    from scheduler.main import SchedulerSettings, run

    settings = SchedulerSettings(
        grpc=grpc_listen,
        http=http_listen,
        advertise=advertise,
        members=tuple(member or ()),
        redis=redis,
        state_dir=state_dir,
        cluster_secret_file=cluster_secret_file,
        cluster_tls_dir=cluster_tls_dir,
        config_file=config,
        log_level=log_level,
    )
    raise typer.Exit(run(settings))


@app.command()
def peer(
    seed: Annotated[
        bool, typer.Option("--seed", help="Be a seed peer: go to the origin on behalf of the others.")
    ] = False,
    scheduler: Annotated[
        list[Address] | None,
        typer.Option(
            parser=_parsed(parse_place),
            metavar="HOST:PORT",
            help="A scheduler; repeatable, and dns+NAME:PORT is all that the name stands for. Default 127.0.0.1:8002.",
        ),
    ] = None,
    proxy_listen: Annotated[
        Address, typer.Option(parser=_address, metavar="HOST:PORT", help="The HTTP proxy that clients use.")
    ] = Address("127.0.0.1", 65001),
    piece_listen: Annotated[
        Address, typer.Option(parser=_address, metavar="HOST:PORT", help="Where other hosts fetch pieces.")
    ] = Address("127.0.0.1", 65002),
    http_listen: Annotated[
        Address, typer.Option(parser=_address, metavar="HOST:PORT", help="Health, metrics and the admin API.")
    ] = Address("127.0.0.1", 65003),
    advertise: Annotated[
        str | None, typer.Option(help="Host name or address that other hosts dial; default: what --piece-listen says.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where pieces are kept. Default ~/.local/share/damselfly/peer (seed: …/seed).")
    ] = None,
    capacity: Annotated[
        Capacity | None,
        typer.Option(
            parser=_parsed(parse_capacity),
            metavar="SIZE|SHARE",
            help="Most bytes to keep, for example 500GiB, or 80% of the disk; the least recently used go first. "
            "Default: no bound.",
        ),
    ] = None,
    host_id: Annotated[
        str | None, typer.Option(help="This host's name in the cluster; default: made once and kept in --data-dir.")
    ] = None,
    label: Annotated[
        list[Label] | None,
        typer.Option(
            parser=_parsed(_label), metavar="NAME=VALUE", help="Where this host is (zone, rack …); repeatable."
        ),
    ] = None,
    upload_slots: Annotated[int, typer.Option(min=1, help="Piece responses sent to other hosts at once.")] = 16,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Threads that send to clients and other hosts. Default: one a CPU, at most 4."),
    ] = None,
    drain: Annotated[
        float,
        typer.Option(
            parser=_parsed(parse_duration),
            metavar="DURATION",
            show_default="30s",
            help="How long SIGTERM lets running responses finish; a second one ends them.",
        ),
    ] = 30.0,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Rules, users, limits and what may be asked (docs/configuration.md)."),
    ] = None,
    origin_ca_file: OriginCaFile = None,
    ca_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The authority (`damselfly ca init`) that `intercept` rules need."),
    ] = None,
    registry_upstream: Annotated[
        str | None,
        typer.Option(
            parser=_parsed(parse_upstream),
            metavar="HOST|URL",
            help="The container registry to ask for clients of the mirror (/v2/…) that name none.",
        ),
    ] = None,
    cloud_credentials: CloudCredentials = None,
    cluster_secret_file: SecretFile = None,
    cluster_tls_dir: ClusterTlsDir = None,
    log_level: LogLevel = "info",
) -> None:
    """Run a peer: the HTTP proxy, piece cache and piece server of one node."""
    from peer.main import PeerSettings, run

    settings = PeerSettings(
        data_dir=data_dir or _data_home() / ("seed" if seed else "peer"),
        schedulers=tuple(scheduler or [_SCHEDULER]),
        seed=seed,
        proxy=proxy_listen,
        pieces=piece_listen,
        http=http_listen,
        advertise=advertise,
        host_id=host_id,
        registry_upstream=registry_upstream,
        cloud_credentials=cloud_credentials,
        cluster_secret_file=cluster_secret_file,
        cluster_tls_dir=cluster_tls_dir,
        config_file=config,
        origin_ca_file=origin_ca_file,
        ca_dir=ca_dir,
        capacity=capacity,
        upload_slots=upload_slots,
        workers=workers,
        drain_seconds=drain,
        log_level=log_level,
        labels=dict(label or []),
    )
    raise typer.Exit(run(settings))


@app.command()
def get(
    url: Annotated[
        str,
        typer.Argument(
            help="What to fetch: http(s)://, presigned or not; or s3://, gs://, as://, oss://, obs:// with the fleet's "
            "credentials (docs/native-urls.md).",
            metavar="URL",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FILE|DIR", help="Where it goes; each file appears when it is whole."),
    ],
    recursive: Annotated[
        bool,
        typer.Option(
            "-r",
            "--recursive",
            help="Fetch all objects under URL (a native name, taken for a directory) into DIR, keeping the tree; files "
            "that are there already are skipped. A native name that ends with / implies it.",
        ),
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="With --recursive: files fetched at once.")] = 8,
    digest: Annotated[
        ExpectedDigest | None,
        typer.Option(
            parser=_parsed(ExpectedDigest.parse),
            metavar="sha256:HEX",
            help="Fail, and leave no FILE, unless the whole object has this digest.",
        ),
    ] = None,
    link: Annotated[
        bool,
        typer.Option(
            "--link",
            help="Make FILE a reflink of the peer's own file, or else a read-only hard link, where the file system and "
            "the user's rights allow it; a copy otherwise.",
        ),
    ] = False,
    header: Annotated[
        list[Header] | None,
        typer.Option(
            "-H", "--header", parser=_parsed(_header), metavar="'NAME: VALUE'", help="For the origin; repeatable."
        ),
    ] = None,
    filter: Annotated[  # noqa: A002  # the flag's name
        list[str] | None,
        typer.Option(metavar="NAMES", help="Query parameters that do not identify the object; joined with & or ,"),
    ] = None,
    tag: Annotated[str, typer.Option(help="Keeps equal URLs with different tags apart.")] = "",
    application: Annotated[str, typer.Option(help="Keeps equal URLs of different applications apart.")] = "",
    priority: Annotated[
        int, typer.Option(min=LOWEST_PRIORITY, max=HIGHEST_PRIORITY, help="How urgent it is; 7 is the most urgent.")
    ] = DEFAULT_PRIORITY,
    proxy: Annotated[
        Address, typer.Option(parser=_parsed(parse_proxy), metavar="HOST:PORT", help="The local peer's proxy.")
    ] = Address("127.0.0.1", 65001),
    peer_http: Annotated[
        Address, typer.Option(parser=_address, metavar="HOST:PORT", help="The same peer's HTTP port, for the sources.")
    ] = Address("127.0.0.1", 65003),
    stall: Annotated[
        float,
        typer.Option(
            parser=_parsed(parse_duration),
            metavar="DURATION",
            show_default="2m",
            help="Give up when nothing arrives for so long.",
        ),
    ] = 120.0,
) -> None:
    """Fetch one object, or a whole tree, through the local peer; resumes, verifies, and leaves no partial FILE."""
    from damselfly.get import run_get
    from damselfly.transfer import GetSettings

    settings = GetSettings(
        url=url,
        output=output,
        proxy=proxy,
        api=peer_http,
        digest=digest,
        headers=tuple(header or ()),
        filters=parse_filters(filter or ()),
        tag=tag,
        application=application,
        priority=priority,
        stall_seconds=stall,
        link=link,
    )
    raise typer.Exit(run_get(settings, jobs=jobs if recursive or is_prefix(url) else None))


@app.command()
def up(
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Where data, logs and the cluster secret go. Default ~/.local/share/damselfly/up."),
    ] = None,
    cloud_credentials: CloudCredentials = None,
    origin_ca_file: OriginCaFile = None,
    log_level: LogLevel = "info",
) -> None:
    """Start a scheduler, a seed and a peer on this machine, and stay until Ctrl-C."""
    from damselfly.up import UpSettings
    from damselfly.up import up as run

    settings = UpSettings(
        data_dir or _data_home() / "up",
        cloud_credentials=cloud_credentials,
        origin_ca_file=origin_ca_file,
        log_level=log_level,
    )
    raise typer.Exit(run(settings, say=typer.echo))


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(context: typer.Context) -> None:
    """Measure what Damselfly does on this machine, or on your cluster."""
    from bench.cli import app as bench_app

    bench_app(args=context.args, prog_name="damselfly bench")


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"damselfly {package_version('damselfly')}")


def main() -> None:
    """Run the command line."""
    app()
