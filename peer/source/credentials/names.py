"""Which credentials a URL fits, and whether they may be sent where it leads. Pure.

A prefix is compared as text with the object's native name, as Triton does it, but for one thing: a prefix that ends
within the name of a host or of an Azure account fits only that host or account. Otherwise the credentials of
"as://prod" would be sent to whoever owns the account "prod2".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from p2p.errors import BadRequestError
from p2p.identity import origin_key
from p2p.native import bucket_of, native_name, parse_native
from p2p.stores import Place, Store, place_of

SECTIONS = {"gs": Store.GCS, "s3": Store.S3, "as": Store.AZURE, "oss": Store.OSS, "obs": Store.OBS}
"""The sections of a credential file, which are the schemes of native names as well."""

_ENDPOINT = re.compile(
    r"(?:(?P<transport>https?)://)?(?P<host>[^/:]+|\[[^/\]]*\])(?::(?P<port>[0-9]+))?/?", re.IGNORECASE
)
_DEFAULT_PORTS = {"http": "80", "https": "443"}


@dataclass(frozen=True, slots=True)
class Prefix:
    """A key of a credential file: `written` as the operator wrote it, `name` in the form of `native_name`."""

    written: str
    name: str
    store: Store

    @classmethod
    def parse(cls, written: str, section: str) -> Prefix:
        """Read a prefix of one section; "" fits everything. Raises ValueError for another section's prefix."""
        store = SECTIONS[section]
        scheme, separator, rest = written.partition("://")
        known = ("as", "az") if store is Store.AZURE else (section,)
        if written and (not separator or scheme.lower() not in known):
            raise ValueError(section)
        return cls(written, _canonical(f"{section}://{rest}", section) if rest else "", store)

    @property
    def names_endpoint(self) -> bool:
        """Whether the operator spelt out where these credentials may be sent."""
        return re.match(r"https?://", self._rest) is not None

    @property
    def _rest(self) -> str:
        return self.name.partition("://")[2]

    def fits(self, names: tuple[str, ...]) -> bool:
        """Tell whether one of an object's `spellings` begins with this prefix."""
        return any(self._begins(name) for name in names)

    def _begins(self, name: str) -> bool:
        if not name.startswith(self.name):
            return False
        within_host = "/" not in self._rest.rpartition("://")[2] and (self.names_endpoint or self.store is Store.AZURE)
        return not self.name or not within_host or name[len(self.name) :][:1] in ("", "/")


def spellings(store: Store, url: str) -> tuple[str, ...]:
    """Return the native names of what a plain URL names; the host's own, if it names no bucket.

    Buckets of OSS and OBS at their stores' own hosts also go by their name alone. Raises BadRequestError.
    """
    try:
        name = native_name(url, store)
    except BadRequestError:
        section = next(section for section, known in SECTIONS.items() if known is store)
        return (_canonical(f"{section}://{origin_key(url)}", section),)
    if store in (Store.OSS, Store.OBS) and place(url) is not None:
        bucket = bucket_of(url, store)
        return (name, f"{store.value}://{bucket.name}/{bucket.key}")
    return (name,)


def place(url: str) -> Place | None:
    """Return what is known of a URL's host, if it is a store's own, by its scheme's default port."""
    scheme, _, authority = origin_key(url).partition("://")
    host, _, port = authority.rpartition(":")
    return place_of(host) if port == _DEFAULT_PORTS[scheme] else None


def is_own_host(store: Store, url: str) -> bool:
    """Tell whether a URL leads to the store itself, by TLS: only there may tokens be sent unasked."""
    found = place(url)
    return found is not None and found.store is store and origin_key(url).startswith("https://")


def _canonical(prefix: str, section: str) -> str:
    slash = "/" if prefix.endswith("/") else ""
    store = SECTIONS[section]
    try:
        return native_name(parse_native(prefix).url, store).removesuffix("/") + slash
    except BadRequestError:
        # No bucket in it, or for OSS and OBS no endpoint: the part that there is.
        rest = prefix.partition("://")[2]
    match = _ENDPOINT.fullmatch(rest)
    if match is None:
        return prefix
    if match["transport"] is None and match["port"] is None:
        return f"{section}://{rest.lower()}" if store is Store.AZURE else prefix
    transport = (match["transport"] or "http").lower()
    port = "" if match["port"] in (None, _DEFAULT_PORTS[transport]) else f":{match['port']}"
    return f"{section}://{transport}://{match['host'].lower()}{port}{slash}"
