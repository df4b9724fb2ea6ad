"""`damselfly config`: write configuration files, from what is configured elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from damselfly.options import parse_header
from p2p.errors import ConfigError
from p2p.identity import parse_filters

app = typer.Typer(
    help="Write configuration files: a peer's out of Dragonfly's, and the one of Triton's agent.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="DRAGONFLY.yaml", help="A dfget.yaml (Go) or dfdaemon.yaml (Rust).")],
) -> None:
    """Print Dragonfly's proxy rules as TOML for `damselfly peer --config`; name on stderr what it cannot say."""
    # Imported here: only this command needs YAML.
    from damselfly.importer import import_dragonfly

    try:
        imported = import_dragonfly(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise _refused("import", f"cannot read {str(file)!r}: {error.strerror}") from None
    except UnicodeError:
        raise _refused("import", f"{str(file)!r} is not UTF-8") from None
    except ConfigError as error:
        raise _refused("import", f"{file}: {error}") from None
    typer.echo(imported.toml, nl=False)
    for note in imported.notes:
        typer.echo(f"{file}: {note}", err=True)


@app.command()
def triton(
    proxy: Annotated[
        str, typer.Option(metavar="URL", help="The local peer's proxy; with its user, http://USER:PASSWORD@HOST:PORT.")
    ] = "http://127.0.0.1:65001",
    filter: Annotated[  # noqa: A002  # the flag's name
        list[str] | None,
        typer.Option(metavar="NAMES", help="Query parameters that do not identify the object; joined with & or ,"),
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option("-H", "--header", metavar="'NAME: VALUE'", help="For the origin; repeatable.")
    ] = None,
) -> None:
    """Print a dragonfly_config.json for Triton's `dragonfly` repository agent."""
    try:
        headers = dict(parse_header(each) for each in header or ())
        text = triton_config(proxy, filters=parse_filters(filter or ()), headers=headers)
    except ConfigError as error:
        raise _refused("triton", str(error)) from None
    typer.echo(text)


def triton_config(proxy: str, *, filters: Iterable[str] = (), headers: Mapping[str, str] | None = None) -> str:
    """Return the JSON that Triton's `dragonfly` repository agent reads: `proxy`, `header` and `filter` (WIRE §1).

    Raises ConfigError, which does not repeat the URL, for a proxy that is not http://[user:password@]host:port.
    """
    match = re.fullmatch(r"http://(?:[^\s/@]+@)?(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})/?", proxy)
    if match is None or not 0 < int(match[1]) <= 0xFFFF:
        raise ConfigError("the proxy is not http://HOST:PORT or http://USER:PASSWORD@HOST:PORT")
    # All three always: an agent that reads a field expects it, and empty ones say nothing.
    config = {"proxy": proxy.rstrip("/"), "header": dict(headers or {}), "filter": list(filters)}
    return json.dumps(config, indent=2, ensure_ascii=False)


def _refused(command: str, what: str) -> typer.Exit:
    typer.echo(f"damselfly config {command}: {what}", err=True)
    return typer.Exit(2)
