"""Native names of objects (`s3://bucket/key` and its kin), and the plain URLs that they stand for.

A name's key is literal: `?`, `#`, `%` and `+` are part of it, and every key has exactly one escaped form in a URL. The
forms are those of Triton's model repositories ("Cloud Storage with Credential variables": S3, Google Cloud Storage,
Azure Storage), of Hadoop's ABFS driver, and of the stores' own tools for OSS and OBS.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import quote, unquote

from p2p.errors import BadRequestError
from p2p.stores import Place, Store, place_of, signed_for

__all__ = ["Bucket", "Location", "bucket_of", "is_native", "is_prefix", "native_name", "object_url", "parse_native"]


@dataclass(frozen=True, slots=True)
class Location:
    """An object, or a prefix of keys: its plain http(s) URL without any signature, and the dialect to ask it in."""

    url: str
    store: Store


@dataclass(frozen=True, slots=True)
class Bucket:
    """A URL taken apart: `url` is that of the bucket (Azure: container), without a slash at its end.

    `account` is an Azure account's name where the URL shows it, else empty. `key` is decoded; bytes that are not UTF-8
    are surrogate escapes.
    """

    url: str
    endpoint: str
    account: str
    name: str
    key: str


_SCHEMES = {
    "s3": Store.S3,
    "gs": Store.GCS,
    "as": Store.AZURE,
    "az": Store.AZURE,
    "abfs": Store.AZURE,
    "abfss": Store.AZURE,
    "oss": Store.OSS,
    "obs": Store.OBS,
}
_NAMES = {Store.S3: "s3", Store.GCS: "gs", Store.AZURE: "as", Store.OSS: "oss", Store.OBS: "obs"}
_HOMES = {Store.S3: "https://s3.amazonaws.com", Store.GCS: "https://storage.googleapis.com"}
_AZURE_HOME = ".blob.core.windows.net"
_REGIONAL = {Store.OSS: "oss-cn-hangzhou.aliyuncs.com", Store.OBS: "obs.cn-north-4.myhuaweicloud.com"}
_NO_ENDPOINTS: Mapping[Store, str] = MappingProxyType({})

_PORTS = {"http": "80", "https": "443"}
_HOST = r"\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+"
_ENDPOINT = re.compile(rf"(?P<scheme>https?)://(?P<host>{_HOST})(?::(?P<port>[0-9]{{1,5}}))?", re.IGNORECASE)
_HOST_AND_PORT = re.compile(rf"(?:{_HOST}):[0-9]{{1,5}}")
_BUCKET = re.compile(r"[A-Za-z0-9._-]+")


def is_native(text: str) -> bool:
    """Tell whether a text is a native name, by its scheme; it may still be one that `parse_native` refuses."""
    scheme, separator, _ = text.partition("://")
    return bool(separator) and scheme.lower() in _SCHEMES


def is_prefix(text: str) -> bool:
    """Tell whether a text is a native name that ends with a slash, and so names a tree and no object."""
    return is_native(text) and text.endswith("/")


def parse_native(text: str, *, endpoints: Mapping[Store, str] = _NO_ENDPOINTS) -> Location:
    """Return what a name stands for; an http(s):// URL is its own location, in the dialect `Store.HTTP`.

    `endpoints` says where the buckets of a store are whose names hold no endpoint ("https://host[:port]"). Raises
    BadRequestError, whose text holds no user, password or query, for what cannot be fetched.
    """
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if separator and scheme in _PORTS:
        return Location(text, Store.HTTP)
    if not separator or scheme not in _SCHEMES:
        raise BadRequestError(
            f"{_shown(text)!r} has no scheme to fetch by; use one of {', '.join(_SCHEMES)}, http, https"
        )
    store = _SCHEMES[scheme]
    if scheme in ("abfs", "abfss"):
        return _parse_abfs(text, rest)
    if re.match("https?://", rest, re.IGNORECASE):
        transport, _, rest = rest.partition("://")
        authority, _, path = rest.partition("/")
        return _locate(text, store, f"{transport}://{authority}", path)
    name, _, path = rest.partition("/")
    if _HOST_AND_PORT.fullmatch(name):
        return _locate(text, store, f"http://{name}", path)
    if _BUCKET.fullmatch(name) is None:
        raise BadRequestError(f"{_shown(text)!r} names no {_container(store)}; write {_example(store)}")
    if store is Store.AZURE and "." in name:
        return _locate(text, store, f"https://{name}", path)
    if _is_host_of(store, name):
        return _locate(text, store, f"https://{name}", path)
    endpoint = endpoints.get(store)
    if endpoint is not None:
        return _locate(text, store, endpoint if "://" in endpoint else f"https://{endpoint}", f"{name}/{path}")
    if store is Store.AZURE:
        return _locate(text, store, f"https://{name}{_AZURE_HOME}", path)
    if store not in _HOMES:
        raise BadRequestError(f"{_shown(text)!r} does not say at which endpoint the bucket is; write {_example(store)}")
    return _locate(text, store, _HOMES[store], f"{name}/{path}")


def native_name(url: str, store: Store) -> str:
    """Return the native spelling of a plain URL, as people and the prefixes of credentials write it.

    `parse_native` of it is the same object. Buckets at the store's own endpoint are `s3://bucket/key`, all others
    `s3://http(s)://host[:port]/bucket/key`; a query, which no name can hold, is left out. A URL in the dialect
    `Store.HTTP` is its own name. Raises BadRequestError for a URL that names no bucket.
    """
    if store is Store.HTTP:
        return url
    bucket = bucket_of(url, store)
    scheme = _NAMES[store]
    # A bucket without a key is as it was written without the slash, since both list the same.
    tail = f"{bucket.name}/{bucket.key}" if bucket.key else bucket.name
    home = _HOMES.get(store)
    if store is Store.AZURE and bucket.endpoint == f"https://{bucket.account}{_AZURE_HOME}":
        return f"{scheme}://{bucket.account}/{tail}"
    if bucket.endpoint == home:
        return f"{scheme}://{tail}"
    account = f"{bucket.account}/" if store is Store.AZURE and _is_path_style(bucket.endpoint) else ""
    return f"{scheme}://{bucket.endpoint}/{account}{tail}"


def bucket_of(url: str, store: Store) -> Bucket:
    """Take the plain URL of an object or a prefix apart, in a store's dialect; its query is left out.

    At hosts that are not known as a store's, the bucket is the first segment of the path; in Azure's dialect, at a host
    with a port, an address, or a host without a dot, that is the account, as emulators have it, and the second one the
    container. Raises BadRequestError for a URL that names no bucket.
    """
    bucket = _taken_apart(url, store, text=url)
    if bucket is None:
        raise BadRequestError(f"{_shown(url)!r} names no {_container(store)}; write {_example(store)}")
    return bucket


def _taken_apart(url: str, store: Store, *, text: str) -> Bucket | None:
    match = re.fullmatch(r"([^/?#]*://[^/?#]*)([^?#]*)(?:[?#].*)?", url, re.DOTALL)
    url = endpoint = _endpoint(match[1] if match else "", text)
    path = match[2].removeprefix("/") if match else ""
    place = _place(endpoint)
    if place is not None:
        endpoint = f"{endpoint.partition('://')[0]}://{place.endpoint}"
        if place.bucket is not None:
            return Bucket(url, endpoint, "", place.bucket, _decoded(path))
    account = ""
    if store is Store.AZURE:
        if _is_path_style(endpoint):
            account, _, path = path.partition("/")
            url = f"{url}/{account}"
        else:
            account = endpoint.partition("://")[2].partition(".")[0]
    name, _, key = path.partition("/")
    if not name or (store is Store.AZURE and not account):
        return None
    return Bucket(f"{url}/{name}", endpoint, _decoded(account), _decoded(name), _decoded(key))


def object_url(bucket: Bucket, key: str) -> str:
    """Return the plain URL of another key of a bucket, escaped in the one way in which `parse_native` does it."""
    return f"{bucket.url}/{_escaped(key)}"


def _parse_abfs(text: str, rest: str) -> Location:
    """`abfss://container@account.dfs.core.windows.net/path`: the same blobs, by their other host."""
    authority, _, path = rest.partition("/")
    container, at, host = authority.partition("@")
    if not at or re.fullmatch(r"[a-z0-9$-]+", container) is None or ".dfs." not in host:
        raise BadRequestError(
            f"{_shown(text, user=True)!r} names no container of an account; write "
            "abfss://container@account.dfs.core.windows.net/path"
        )
    return _locate(text, Store.AZURE, f"https://{host.replace('.dfs.', '.blob.', 1)}", f"{container}/{path}")


def _locate(text: str, store: Store, endpoint: str, path: str) -> Location:
    """Return the location of a path, literal and without its first slash, at an endpoint."""
    query = path.rpartition("?")[2].lower()
    if "?" in path and signed_for(frozenset(each.partition("=")[0] for each in query.split("&"))) is not None:
        # Its key would be literal and so hold the signature, on disks and in logs.
        raise BadRequestError(f"{_shown(text)!r} has a signature; give the http(s):// URL that was signed")
    endpoint = _endpoint(endpoint, text)
    name, _, key = path.partition("/")
    host = endpoint.partition("://")[2]
    # These two refuse buckets in paths; a bucket with a dot would not fit the wildcard of their certificates.
    place = _place(endpoint.replace("://", f"://{name}.", 1)) if store in _REGIONAL and "." not in name else None
    if place is not None and (place.store, place.bucket, place.endpoint) == (store, name, host):
        endpoint, path = endpoint.replace("://", f"://{name}.", 1), key
    url = f"{endpoint}/{_escaped(path)}"
    if _taken_apart(url, store, text=text) is None:
        raise BadRequestError(f"{_shown(text)!r} names no {_container(store)}; write {_example(store)}")
    return Location(url, store)


def _endpoint(text: str, whole: str) -> str:
    """Return `scheme://host[:port]` in one form: lower case, the default port left out."""
    match = _ENDPOINT.fullmatch(text)
    scheme = match["scheme"].lower() if match else ""
    port = (match["port"] if match else None) or _PORTS.get(scheme, "0")
    if match is None or not 0 < int(port) <= 0xFFFF:
        raise BadRequestError(
            f"{_shown(whole)!r} has an endpoint that cannot be used; write http(s)://host[:port], with no user in it"
        )
    authority = match["host"].lower()
    return f"{scheme}://{authority}" + ("" if int(port) == int(_PORTS[scheme]) else f":{int(port)}")


def _place(endpoint: str) -> Place | None:
    host = endpoint.partition("://")[2]
    return None if re.search(r":[0-9]+$", host) else place_of(host)


def _is_host_of(store: Store, host: str) -> bool:
    """Tell a host name of OSS or OBS from the name of a bucket; buckets of the others may look like any host."""
    if store not in _REGIONAL:
        return False
    place = place_of(host.lower()) or place_of(f"bucket.{host.lower()}")
    return place is not None and place.store is store


def _is_path_style(endpoint: str) -> bool:
    host = endpoint.partition("://")[2]
    return re.fullmatch(r"\[.*|.*:[0-9]+|[0-9.]+|[^.]+", host) is not None


def _decoded(escaped: str) -> str:
    return unquote(escaped, errors="surrogateescape")


def _escaped(text: str) -> str:
    try:
        return quote(text, errors="surrogateescape")
    except UnicodeEncodeError as error:
        raise BadRequestError("a name holds half of a surrogate pair; send UTF-8") from error


def _container(store: Store) -> str:
    return "account and container" if store is Store.AZURE else "bucket"


def _example(store: Store) -> str:
    match store:
        case Store.AZURE:
            return "as://account/container/blob, or as://https://host[:port]/account/container/blob"
        case Store.OSS | Store.OBS:
            name = _NAMES[store]
            return f"{name}://https://{_REGIONAL[store]}/bucket/key, or {name}://bucket.{_REGIONAL[store]}/key"
        case Store.HTTP:
            return "http(s)://host[:port]/path"
        case _:
            return f"{_NAMES[store]}://bucket/key, or {_NAMES[store]}://http(s)://host[:port]/bucket/key"


def _shown(text: str, *, user: bool = False) -> str:
    """Return a name as errors may show it: whatever comes before an `@` may be a password, after a `?` a signature.

    With `user` what comes before the `@` is a container's name.
    """
    scheme, separator, rest = text.partition("://")
    if "@" in rest and not user:
        rest = f"***@{rest.rpartition('@')[2]}"
    return f"{scheme}{separator}{rest}".partition("?")[0].partition("#")[0]
