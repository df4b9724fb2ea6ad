"""Requests that are made with the fleet's own credentials instead of their caller's. Pure.

Either the caller asks for it (`X-Damselfly-Store`: it has a plain URL and names the store), or a rule says so
(`credentials = "seed"`). Such a request reaches the store with nothing of the caller's but what names the object:
whoever may use this proxy then reads what the fleet may read. That is for a listener that only this machine reaches, or
that knows its users.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from p2p.auth import is_loopback
from p2p.errors import BadRequestError, ConfigError, DeniedError
from p2p.fields import single
from p2p.identity import recognise
from p2p.native import bucket_of
from p2p.stores import SIGNING_PARAMETERS, Store, signed_for
from p2p.telemetry import logger
from peer.core.rules import Credentials, Rule, Rules
from peer.source.fields import Fields

log = logger(__name__)

STORE = "X-Damselfly-Store"
LIST = "X-Damselfly-List"

_HARMLESS_PARAMETERS = re.compile(r"versionid|generation|snapshot|response-[a-z-]+", re.IGNORECASE)
"""What may stand beside a signature and still ask for an object's bytes; `acl` asks for something else."""

_STORES_FIELD = re.compile(r"x-(?:amz|goog|ms|oss|obs)-(?P<name>.+)", re.IGNORECASE)
_PROOFS = frozenset(
    {"date", "content-sha256", "security-token", "checksum-mode", "user-agent", "api-client", "version"}
    | {"client-request-id", "return-client-request-id"}
)
"""Stores' own request fields that prove something, or say who asks, and do not choose the bytes."""


def named_store(fields: Fields) -> Store | None:
    """Return the store whose dialect a request asks the fleet to speak, None if it does not. Raises BadRequestError."""
    value = single(fields, STORE)
    if value is None:
        return None
    try:
        return Store(value.lower())
    except ValueError:
        raise BadRequestError(f"{STORE}: {value!r} is none of {', '.join(Store)}") from None


def wants_listing(fields: Fields) -> bool:
    """Tell whether a request asks for the names under a prefix instead of an object. Raises BadRequestError."""
    value = single(fields, LIST)
    if value is None:
        return False
    if value != "1":
        raise BadRequestError(f"{LIST}: {value!r} is not 1")
    if named_store(fields) is None:
        raise BadRequestError(f"{LIST} needs {STORE}, which says how the store is spoken to")
    return True


def lent_store(url: str, fields: Fields, rule: Rule) -> Store | None:
    """Return the store that is to be asked for `url` with the fleet's credentials; None: with the caller's own.

    Under a rule that is so for what asks for an object's bytes and nothing more: a request with a customer's key
    (SSE-C), or for an ACL or a listing, stays the caller's. Raises BadRequestError where nothing tells the store, and
    for a caller that names the store and asks for more than bytes: it has no way of its own.
    """
    named = named_store(fields)
    if named is not None and not _selects_bytes(url, named):
        raise BadRequestError(
            f"{STORE} is for the bytes of objects; this URL's query asks the store for something else, or cannot be "
            "signed for: send the plain URL of the object"
        )
    if named is not None or rule.credentials is not Credentials.SEED:
        return named
    store = rule.store or _told_by(url, fields)
    if store is None:
        raise BadRequestError(
            f"the rule {rule.pattern.pattern!r} gives this URL the seeds' credentials, and neither its host nor its "
            'signature tells of what store; add store = "s3" (or gcs, azure, oss, obs) to the rule'
        )
    return store if _asks_for_bytes(url, fields, store) else None


def without_signature(url: str, store: Store) -> str:
    """Return `url` without the parameters that sign it in the store's dialect, and otherwise as it came."""
    head, _, query = url.partition("#")[0].partition("?")
    unwanted = _signing(query, store)
    kept = "&".join(segment for segment in query.split("&") if segment and _name(segment) not in unwanted)
    return f"{head}?{kept}" if kept else head


def require_lendable(host: str, users: int) -> None:
    """Raise DeniedError if a proxy that listens on `host`, with so many users, may not lend credentials."""
    if not (is_loopback(host) or users):
        raise DeniedError(
            f"{STORE} is refused: this proxy can be reached from other machines and knows no users, and would lend the "
            "fleet's credentials to anyone; name users in [proxy.users], or listen on 127.0.0.1"
        )


def require_guarded(rules: Rules, host: str, users: int) -> None:
    """Raise ConfigError if a rule lends the fleet's credentials to whoever reaches `host`; else log to whom."""
    for rule in rules:
        if rule.credentials is not Credentials.SEED:
            continue
        if not (is_loopback(host) or users):
            raise ConfigError(
                f'the rule {rule.pattern.pattern!r} has credentials = "seed", and the proxy listens on '
                f"{host or 'every interface'} without users: anyone who reaches it could read what the seeds may read; "
                "name users in [proxy.users], or listen on 127.0.0.1"
            )
        readers = "the users of [proxy.users]" if users else "whoever reaches this port"
        log.warning("callers read what the seeds may read", rule=rule.pattern.pattern, callers=readers, listen=host)


def _told_by(url: str, fields: Fields) -> Store | None:
    """Return the store that a URL's host or signature tells, or the way in which a request is signed."""
    found = recognise(url)
    if found is not None:
        return found.store
    authorization = single(fields, "Authorization") or ""
    return Store.S3 if authorization.startswith(("AWS4-", "AWS ")) else None


def _asks_for_bytes(url: str, fields: Fields, store: Store) -> bool:
    theirs = (match["name"].lower() for name, _ in fields if (match := _STORES_FIELD.fullmatch(name)))
    return _selects_bytes(url, store) and all(name in _PROOFS for name in theirs) and _names_object(url, store)


def _selects_bytes(url: str, store: Store) -> bool:
    """Tell whether a URL's query leaves it an object's bytes that are asked for: `acl` or `policy` does not."""
    query = url.partition("#")[0].partition("?")[2]
    signing = _signing(query, store)
    names = (_name(segment) for segment in query.split("&") if segment)
    return store is Store.HTTP or all(name in signing or _HARMLESS_PARAMETERS.fullmatch(name) for name in names)


def _names_object(url: str, store: Store) -> bool:
    """Tell an object's URL from that of a bucket or of the service."""
    if store is Store.HTTP:
        return True
    try:
        return bool(bucket_of(url, store).key)
    except BadRequestError:
        return False


def _signing(query: str, store: Store) -> frozenset[str]:
    signer = signed_for(frozenset(_name(segment) for segment in query.split("&") if segment))
    own = SIGNING_PARAMETERS.get(store, frozenset())
    return own | (SIGNING_PARAMETERS[signer] if signer else frozenset())


def _name(segment: str) -> str:
    return unquote(segment.partition("=")[0]).lower()
