"""Which way a request goes: through P2P, straight to its origin, or through a tunnel. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote

from p2p.control import Source
from p2p.digests import ExpectedDigest
from p2p.errors import BadRequestError
from p2p.fields import single, values
from p2p.identity import Task, identify, parse_filters, recognise
from peer.core.rules import DEFAULT_RULE, Action, Rule
from peer.proxy.credentials import STORE, lent_store, named_store, without_signature
from peer.proxy.signals import USE_P2P, choice
from peer.source.fields import REPHRASED, Fields, for_pieces

FILTERS = ("X-Dragonfly-Filter", "X-Dragonfly-Filtered-Query-Params")
TAG = "X-Dragonfly-Tag"
APPLICATION = "X-Dragonfly-Application"

_ABSOLUTE = re.compile(r"https?://", re.IGNORECASE)
_PARTS = re.compile(r"(https?)://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
_SIGNED = re.compile(r"SignedHeaders=([^\s,&]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Wanted:
    """An object that goes through P2P: which one, and the caller's own way to its origin.

    `content` is the digest that the request itself names, which is then the object's only version.
    """

    task: Task
    source: Source = field(repr=False)
    rule: Rule = DEFAULT_RULE
    content: ExpectedDigest | None = None


def require_absolute(target: str) -> None:
    """Raise BadRequestError unless a request's target names its origin."""
    if _ABSOLUTE.match(target) is None:
        raise BadRequestError(
            "this port is an HTTP proxy, and the request names no origin; use it as one (curl -x, http_proxy=…), "
            "not as the server itself"
        )


def upstream(url: str, rule: Rule) -> str:
    """Return the URL that is asked instead of `url` under a rule: another authority, or https; the rest as it came."""
    match = _PARTS.fullmatch(url)
    if match is None or not (rule.redirect or rule.tls):
        return url
    scheme, authority, rest = match.groups()
    if rule.tls:
        scheme, authority = "https", authority.removesuffix(":80")
    return f"{scheme}://{rule.redirect or authority}{rest}"


def route(method: str, url: str, fields: Fields, *, has_body: bool, rule: Rule = DEFAULT_RULE) -> Wanted | None:
    """Return what a request wants through P2P, or None if it is to be forwarded untouched.

    `url` is the absolute one that `rule` leads to. Through P2P go GET and HEAD of presigned URLs, unless the rule says
    otherwise; `X-Dragonfly-Use-P2P` overrules both either way. What is asked with the fleet's credentials goes through
    P2P, too, and its source holds nothing of the caller's. The rule's filters add to the request's; its tag and
    application hold where the request names none. Raises BadRequestError for a header that cannot be understood.
    """
    filters = (*parse_filters(value for name in FILTERS for value in values(fields, name)), *rule.filters)
    tag, application = single(fields, TAG) or rule.tag or "", single(fields, APPLICATION) or rule.application or ""
    if (lent := _lent(method, url, fields, has_body, rule)) is not None:
        task = identify(lent.url, filters=filters, tag=tag, application=application, store=lent.store)
        return Wanted(task, lent, rule)
    chosen = use_p2p(fields)
    if method not in {"GET", "HEAD"} or has_body or chosen is False or _pins_the_request(url, fields):
        return None
    if chosen is None and rule.action is not Action.P2P:
        found = recognise(url) if rule.action is Action.AUTO else None
        if found is None or not found.presigned:
            return None
    task = identify(url, filters=filters, tag=tag, application=application)
    return Wanted(task, Source(url, for_pieces(fields)), rule)


def _lent(method: str, url: str, fields: Fields, has_body: bool, rule: Rule) -> Source | None:
    """Return the source of a request that is made with the fleet's credentials; None if the caller's are to be used."""
    named = named_store(fields) is not None
    if method not in {"GET", "HEAD"} or has_body:
        if named:
            raise BadRequestError(f"{STORE} is for GET and HEAD without a body; {method} is not made for others")
        return None
    if not named and (use_p2p(fields) is False or rule.action is Action.DIRECT):
        return None
    store = lent_store(url, fields, rule)
    return Source(without_signature(url, store), (), store) if store is not None else None


def use_p2p(fields: Fields) -> bool | None:
    """Return whether a request asks for P2P, None where it leaves that open. Raises BadRequestError."""
    return choice(fields, USE_P2P)


def names_peer(fields: Fields, peer_id: str) -> bool:
    """Tell whether `Via` says that the request has been through this peer before (RFC 9110 §7.6.3)."""
    received_by = (member.split() for value in values(fields, "Via") for member in value.split(","))
    return any(len(words) > 1 and words[1].lower() == peer_id.lower() for words in received_by)


def _pins_the_request(url: str, fields: Fields) -> bool:
    """Tell whether a signature covers fields that taking the object in pieces would change (WIRE §4)."""
    texts = (unquote(url.partition("?")[2]), *values(fields, "Authorization"))
    signed = {name.lower() for text in texts for match in _SIGNED.findall(text) for name in match.split(";")}
    return not signed.isdisjoint(REPHRASED)
