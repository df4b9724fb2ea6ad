"""Registry mirrors: what an origin-form request under `/v2/` asks for, and of which registry. Pure.

Container clients speak to a mirror as if it were the registry itself, so the request does not name its origin. Who the
upstream is comes from the header `X-Dragonfly-Registry`, from the `ns` parameter that containerd adds, or from the
configuration, in this order: the header is what an operator wrote down for one mirror, scheme included.

Paths and digests are those of the OCI Distribution Specification ("Pulling manifests", "Pulling blobs") and the OCI
Image Specification ("Digests").
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from dataclasses import dataclass, field
from enum import StrEnum

from p2p.digests import ExpectedDigest
from p2p.errors import BadRequestError, ConfigError
from p2p.identity import Store, Task, redact

__all__ = ["Kind", "Mirrored", "blob_task", "is_mirrored", "mirrored", "parse_upstream"]


class Kind(StrEnum):
    """What of a registry is asked for."""

    BLOB = "blob"
    MANIFEST = "manifest"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Mirrored:
    """A request to a mirror.

    `url` is the upstream's, the target byte for byte but for `ns`. `digest` is the one that the path names: always for
    a BLOB, and for a MANIFEST that is not asked for by its tag.
    """

    url: str = field(repr=False)  # its query may be signed
    kind: Kind
    digest: ExpectedDigest | None = None


_PATH = re.compile(r"/v2(?:/[^?]*)?")
_NAME = r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*"
_OBJECT = re.compile(
    rf"/v2/{_NAME}(?:/{_NAME})*/(?P<kind>blobs|manifests)/(?P<reference>[A-Za-z0-9_][A-Za-z0-9._:+-]*)"
)
_UPSTREAM = re.compile(
    r"(?:(?P<scheme>https?)://)?(?P<authority>(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9._-]*))(?::[0-9]{1,5})?)/?",
    re.IGNORECASE,
)

# The name that images and containerd use is not the name of the registry behind it.
_REAL_HOSTS = {"docker.io": "registry-1.docker.io"}


def is_mirrored(target: str) -> bool:
    """Tell whether a request target is the origin form of something in a registry's interface."""
    return _PATH.fullmatch(target.partition("?")[0]) is not None


def mirrored(target: str, *, named: str | None = None, default: str | None = None) -> Mirrored:
    """Return what an origin-form target asks for; `is_mirrored` must hold for it.

    `named` is the value of `X-Dragonfly-Registry`, `default` the configured upstream. Raises BadRequestError if nothing
    names the upstream, or if what names it cannot.
    """
    path, _, query = target.partition("?")
    segments = query.split("&") if query else []
    namespaces = {segment[3:] for segment in segments if segment.startswith("ns=")}
    if len(namespaces) > 1:
        raise BadRequestError("the request has several ns= parameters; a request is for one registry")
    chosen = named or (namespaces.pop().replace("%3A", ":").replace("%3a", ":") if namespaces else None) or default
    if chosen is None:
        raise BadRequestError(
            "the request is for a registry but names none; add ?ns=HOST (containerd does) or the header "
            "X-Dragonfly-Registry, or start the peer with --registry-upstream"
        )
    try:
        upstream = parse_upstream(chosen)
    except ConfigError as error:
        raise BadRequestError(str(error)) from None
    rest = "&".join(segment for segment in segments if not segment.startswith("ns="))
    url = upstream + path + (f"?{rest}" if rest else "")
    match = _OBJECT.fullmatch(path)
    if match is None:
        return Mirrored(url, Kind.OTHER)
    kind, digest = match["kind"], _digest(match["reference"])
    if kind == "manifests":
        return Mirrored(url, Kind.MANIFEST, digest)
    # A digest of a kind that cannot be verified here is the client's business: straight on.
    return Mirrored(url, Kind.BLOB, digest) if digest else Mirrored(url, Kind.OTHER)


def parse_upstream(text: str) -> str:
    """Return `scheme://host[:port]` of a registry written as a host or as a URL.

    Without a scheme, a registry on this machine is asked by http and any other by https, as the clients have it.
    Raises ConfigError.
    """
    match = _UPSTREAM.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"registry {redact(text)!r} is not a host, host:port or http(s) URL without a path")
    host = match["host"].lower()
    authority = match["authority"].lower()
    if host in _REAL_HOSTS and authority == host:
        authority = _REAL_HOSTS[host]
    scheme = (match["scheme"] or ("http" if _is_local(host) else "https")).lower()
    return f"{scheme}://{authority}"


def blob_task(url: str, digest: ExpectedDigest) -> Task:
    """Return the task of a blob: its digest, in whichever repository of the registry at `url` it lies.

    Repositories share: a registry gives a blob only through a repository that has it, to those who may read that
    repository, and this is asked anew for every caller, with its own URL and token. Once the registry has let a caller
    read bytes of that digest, it cannot matter which repository they first came through.

    Registries do not share. The caller chooses whom to ask, so a server of its own would give it leave to read any
    cached blob whose digest it knows.
    """
    scheme, _, rest = url.partition("://")
    canonical = f"registry+{scheme}://{rest.partition('/')[0]}/{digest}"
    return Task(hashlib.sha256(canonical.encode()).hexdigest(), canonical, Store.HTTP)


def _digest(reference: str) -> ExpectedDigest | None:
    if ":" not in reference or reference != reference.lower():
        return None
    try:
        return ExpectedDigest.parse(reference)
    except BadRequestError:
        return None


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
