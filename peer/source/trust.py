"""Which authorities vouch for an origin: the system's, those of every origin, and those of the rule for its URL.

Certificates and names are always verified; a rule can only say by whom.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from p2p.errors import ConfigError
from peer.core.rules import Rules
from peer.source.urls import origin_of


class Trust:
    """Clients' TLS contexts, all made at the start: ConfigError for a file that holds no certificates."""

    def __init__(self, ca_file: Path | None = None, rules: Rules | None = None) -> None:
        self._rules = rules or Rules()
        files = {rule.ca_file for rule in self._rules} | {None}
        self._contexts = {file: tls_context(*(each for each in (ca_file, file) if each)) for file in files}
        self._redirected = {
            origin_of(f"https://{rule.redirect}"): rule.ca_file
            for rule in self._rules
            if rule.redirect is not None and rule.ca_file is not None
        }

    def ca_file(self, url: str) -> Path | None:
        """Return the file of the rule that leads to `url`, the URL as it is asked; None if that names none."""
        if (file := self._rules.match(url).ca_file) is not None:
            return file
        if (file := self._redirected.get(origin_of(url))) is not None:
            return file
        plain = self._rules.match("http" + url.removeprefix("https"))
        return plain.ca_file if plain.tls else None

    def context(self, ca_file: Path | None = None) -> ssl.SSLContext:
        """Return the context for a rule's file; the same one every time, so that connections can be kept."""
        return self._contexts[ca_file]


def tls_context(*ca_files: Path) -> ssl.SSLContext:
    """Return a context that verifies certificates and names against the system's authorities and those of files (PEM).

    Raises ConfigError for a file that cannot be used.
    """
    context = ssl.create_default_context()
    for file in ca_files:
        try:
            context.load_verify_locations(cafile=file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"cannot load certificates from {str(file)!r}: {error}") from error
    return context
