"""URLs byte for byte: what a signature covers must reach the origin exactly as the caller wrote it (WIRE §4)."""

from __future__ import annotations

import re
from urllib.parse import urljoin

import yarl

from p2p.errors import BadRequestError

_ABSOLUTE = re.compile(r"(https?)://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
_UNSENDABLE = re.compile(r"[\x00-\x20\x7f]")
DEFAULT_PORTS = {"http": ":80", "https": ":443"}
"""What the end of an authority says for nothing, by scheme."""


def _split(url: str) -> tuple[str, str, str]:
    """Return the scheme, the authority as it came, and the request target of an absolute URL; no fragment is sent."""
    match = _ABSOLUTE.fullmatch(url.partition("#")[0])
    if match is None:
        raise BadRequestError("not an absolute http:// or https:// URL")
    scheme, authority, target = match.groups()
    if not target.startswith("/"):
        target = "/" + target
    return scheme.lower(), authority, target


def exact_url(url: str) -> yarl.URL:
    """Return a URL that aiohttp's client sends with the very request target of `url`.

    The whole target travels as the path: a URL that is taken apart into path and query loses a bare trailing `?`.
    Raises BadRequestError for what is not an absolute http(s) URL, or cannot stand in a request line.
    """
    scheme, authority, target = _split(url)
    if "@" in authority:
        raise BadRequestError("a user in the URL is not supported (RFC 9110 §4.2.4); send an Authorization header")
    if _UNSENDABLE.search(url):
        raise BadRequestError("the URL holds a blank or a control character; percent-encode it")
    try:
        target.encode()
        parsed = yarl.URL.build(scheme=scheme, authority=authority, path=target, encoded=True)
        usable = bool(parsed.raw_host) and parsed.port != 0
    except (ValueError, UnicodeError):
        # The cause's text may quote the URL, and with it a signature.
        raise BadRequestError("the URL's host, port or encoding is not valid") from None
    if not usable:
        raise BadRequestError("the URL names no host, or port 0")
    return parsed


def origin_of(url: str) -> str:
    """Return scheme, host and port of a URL, the default port left out: fit for logs and comparisons."""
    scheme, authority, _ = _split(url)
    host = authority.rpartition("@")[2].lower()
    return f"{scheme}://{host.removesuffix(DEFAULT_PORTS[scheme])}"


def redirect_target(url: str, location: str) -> str:
    """Return where a redirect from `url` leads; `location` stays as the origin wrote it wherever possible.

    Blanks are percent-encoded, as browsers do, and a fragment is dropped. Raises BadRequestError for another scheme.
    """
    location = location.partition("#")[0].replace(" ", "%20")
    scheme, authority, _ = _split(url)
    if location.startswith("//"):
        absolute = f"{scheme}:{location}"
    elif location.startswith("/"):
        absolute = f"{scheme}://{authority}{location}"
    elif _ABSOLUTE.fullmatch(location):
        absolute = location
    else:
        absolute = urljoin(url, location)
    exact_url(absolute)
    return absolute
