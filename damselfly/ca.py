"""`damselfly ca`: make authorities, look at them, and have them sign certificates for members of the cluster.

Each command imports `p2p.tls` when it is called: no other command but a peer needs cryptography.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from p2p.errors import ConfigError

app = typer.Typer(
    help="Make certificate authorities, for `intercept` rules and for TLS within the cluster, and look at them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Directory = Annotated[
    Path, typer.Option("--dir", metavar="DIR", help="Where the authority is kept; give it to peers as --ca-dir.")
]


@app.command()
def init(
    directory: Directory,
    name: Annotated[str, typer.Option(help="What clients' lists of authorities show.")] = "Damselfly interception CA",
) -> None:
    """Make an authority: ca.pem for clients to trust, and ca-key.pem (mode 0600), which is a secret of the peers."""
    from p2p.tls import CA_FILE, KEY_FILE, CertificateAuthority, fingerprint

    try:
        authority = CertificateAuthority.create(directory, name=name, now=datetime.now(UTC))
    except (ConfigError, ValueError) as error:
        raise _refused("init", error) from error
    typer.echo(f"{directory / CA_FILE}: for clients to trust (SHA-256 {fingerprint(authority.certificate)})")
    typer.echo(f"{directory / KEY_FILE}: keep it secret; whoever has it can be any host to those clients")


@app.command()
def issue(
    directory: Annotated[
        Path,
        typer.Option("--dir", metavar="DIR", help="The authority's; not the one that clients trust for `intercept`."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where it goes; give it to the host as --cluster-tls-dir.")],
    name: Annotated[str, typer.Option(help="The host's name, for people: it is not compared with anything.")],
    days: Annotated[int, typer.Option(min=1, help="How long it is good for, at most as long as the authority.")] = 3650,
) -> None:
    """Make a certificate for one host of the cluster: ca.crt, tls.crt, and tls.key (mode 0600), which is its secret."""
    from p2p.tls import CertificateAuthority, fingerprint

    try:
        certificate = CertificateAuthority.load(directory).issue(out, name, now=datetime.now(UTC), days=days)
    except (ConfigError, ValueError) as error:
        raise _refused("issue", error) from error
    typer.echo(f"{out}: for {name}, until {certificate.not_valid_after_utc:%Y-%m-%d}")
    typer.echo(f"SHA-256 {fingerprint(certificate)}")


@app.command()
def show(directory: Directory) -> None:
    """Print the authority's name, fingerprint and validity, and its certificate in PEM."""
    from p2p.tls import CA_FILE, CertificateAuthority, fingerprint

    try:
        certificate = CertificateAuthority.load_certificate(directory)
        pem = (directory / CA_FILE).read_text()
    except (ConfigError, OSError) as error:
        raise _refused("show", error) from error
    typer.echo(f"subject:   {certificate.subject.rfc4514_string()}")
    typer.echo(f"sha256:    {fingerprint(certificate)}")
    typer.echo(f"not after: {certificate.not_valid_after_utc:%Y-%m-%d}")
    typer.echo(pem, nl=False)


def _refused(command: str, error: Exception) -> typer.Exit:
    typer.echo(f"damselfly ca {command}: {error}", err=True)
    return typer.Exit(2)
