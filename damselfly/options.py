"""How the command line reads what several commands take."""

from __future__ import annotations

import re

from p2p.config import Address, parse_address
from p2p.errors import ConfigError


def parse_proxy(text: str) -> Address:
    """Read the address of a peer's proxy: "host:port", or as an http:// URL. Raises ConfigError."""
    return parse_address(text.removeprefix("http://").rstrip("/"))


def parse_header(text: str) -> tuple[str, str]:
    """Read "Name: value", as curl's -H takes it. Raises ConfigError, which does not repeat the value."""
    name, colon, value = text.partition(":")
    if not colon or re.fullmatch(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+", name) is None or re.search(r"[\r\n\0]", value):
        raise ConfigError(f"header {name!r} is not of the form 'Name: value' on one line")
    return name, value.strip()
