"""S3, and OSS and OBS in its dialect: presigned URLs by Signature Version 4, with keys from the file or botocore.

Sources: AWS "Authenticating requests: using query parameters", "Virtual hosting of buckets"; Alibaba "Use AWS SDKs to
access OSS"; the variables are those of the stores' own SDKs. botocore costs 8 MiB and a third of a second, so it is
imported when keys are first needed, in a thread.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from p2p.control import Source
from p2p.errors import BadRequestError, CredentialsError
from p2p.identity import origin_key
from p2p.native import bucket_of
from p2p.stores import Store
from peer.source.credentials.file import S3Entry
from peer.source.credentials.renewing import FETCH_SECONDS, USABLE_SECONDS, Clock, Lease, Renewing
from peer.source.credentials.signer import NOTHING_SECONDS, Unsigned
from peer.source.fields import Fields

VALID_SECONDS = 15 * 60
"""How long a presigned URL is good for."""

REUSE_SECONDS = 60.0
"""How long a presigned URL is used again: signing costs a fraction of a millisecond, a thread more."""

DEFAULT_REGION = "us-east-1"
_GLOBAL_HOST = "s3.amazonaws.com"
_REMEMBERED = 1024

_REGION = re.compile(r"[a-z0-9][a-z0-9-]{1,39}")
_HOST_REGIONS = (
    re.compile(
        r"(?:.+\.)?s3(?:-fips)?(?:\.dualstack)?[.-](?P<region>[a-z]{2,4}(?:-[a-z]+)+-[0-9]+)\.amazonaws\.com(?:\.cn)?"
    ),
    re.compile(r"(?:.+\.)?oss-(?P<region>[a-z0-9-]+?)(?:-internal)?\.aliyuncs\.com"),
    re.compile(r"(?:.+\.)?obs\.(?P<region>[a-z0-9-]+)\.(?:myhuaweicloud\.(?:com|eu)|myhwclouds\.com)"),
)
_VARIABLES = {
    Store.OSS: ("OSS_ACCESS_KEY_ID", "OSS_ACCESS_KEY_SECRET", "OSS_SESSION_TOKEN"),
    Store.OBS: ("OBS_ACCESS_KEY_ID", "OBS_SECRET_ACCESS_KEY", "OBS_SECURITY_TOKEN"),
}
_AWS_HINTS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


@dataclass(frozen=True, slots=True)
class Keys:
    """Credentials of botocore (which renews them itself where they expire), and the region that came with them."""

    credentials: Any = field(repr=False)  # botocore has no types
    region: str = ""


class Regions:
    """What origins have said of where their buckets are."""

    def __init__(self) -> None:
        self._learned: dict[tuple[str, str], str] = {}

    def of(self, request: Unsigned, configured: str) -> str:
        """Return the region to sign for: learned, said by the host's name, configured, or AWS' first one."""
        host = origin_key(request.url).partition("://")[2].rpartition(":")[0]
        named = next((match["region"] for known in _HOST_REGIONS if (match := known.fullmatch(host))), "")
        return self._learned.get(_bucket_key(request.store, request.url)) or named or configured or DEFAULT_REGION

    def learn(self, store: Store, url: str, region: str) -> bool:
        """Remember a bucket's region; return whether that is news."""
        key = _bucket_key(store, url)
        if _REGION.fullmatch(region) is None or self._learned.get(key) == region:
            return False
        self._learned[key] = region
        return True


class S3Signer:
    """Presigns with the keys that `fetch` finds; botocore's own renewal is fed by calling it for every signature."""

    def __init__(
        self,
        described: str,
        fetch: Callable[[], Lease[Keys | None]],
        hint: Callable[[], bool],
        regions: Regions,
        *,
        clock: Clock,
        fixed: bool = False,
    ) -> None:
        self.described = described
        self._keys = Renewing(lambda: _prepared(fetch), clock=clock, fixed=fixed)
        self._hint = hint
        self._regions = regions
        self._clock = clock
        self._signed: dict[tuple[str, str, Fields, str], tuple[Source, float]] = {}

    @property
    def found(self) -> bool:
        """Whether keys were found, or something says that they will be."""
        return self._keys.current is not None or self._hint()

    async def sign(self, request: Unsigned) -> Source | None:
        """Return the presigned URL with the request's fields, or None without keys."""
        keys = (await self._keys.get()).value
        if keys is None:
            return None
        region = self._regions.of(request, keys.region)
        key = (request.url, request.method, request.signed_fields, region)
        found, until = self._signed.get(key, (None, 0.0))
        if found is None or self._clock() >= until:
            found, reusable = await self._presigned(request, keys.credentials, region)
            self._remember(key, found, self._clock() + (REUSE_SECONDS if reusable else 0.0))
        return Source(found.url, (*request.fields, *request.signed_fields))

    async def _presigned(self, request: Unsigned, credentials: Any, region: str) -> tuple[Source, bool]:
        from botocore.credentials import RefreshableCredentials
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            if isinstance(credentials, RefreshableCredentials):
                async with asyncio.timeout(FETCH_SECONDS):
                    frozen = await asyncio.to_thread(credentials.get_frozen_credentials)
                lasting = not credentials.refresh_needed(refresh_in=int(REUSE_SECONDS + USABLE_SECONDS))
            else:
                frozen, lasting = credentials.get_frozen_credentials(), True
        except (BotoCoreError, ClientError) as error:
            raise CredentialsError(f"{self.described} cannot be renewed ({type(error).__name__})") from None
        except TimeoutError:
            raise CredentialsError(f"{self.described} were not renewed within {FETCH_SECONDS:g} s") from None
        return Source(presign(addressed(request.url, region), request, frozen, region)), lasting

    def _remember(self, key: tuple[str, str, Fields, str], source: Source, until: float) -> None:
        self._signed.pop(key, None)
        while len(self._signed) >= _REMEMBERED:
            del self._signed[next(iter(self._signed))]
        self._signed[key] = (source, until)

    def forget(self) -> bool:
        """Drop the keys and all that was signed with them."""
        self._signed.clear()
        return self._keys.forget()


def entry_signer(described: str, entry: S3Entry, store: Store, regions: Regions, *, clock: Clock) -> S3Signer:
    """Return the signer for one entry of the credential file; without keys the default chain finds them."""
    if not entry.key_id:
        return chain_signer(described, store, regions, clock=clock, entry=entry)

    def fetch() -> Lease[Keys | None]:
        from botocore.credentials import Credentials

        found = Credentials(entry.key_id, entry.secret_key, entry.session_token or None)
        return Lease(Keys(found, entry.region or _environment_region()), float("inf"))

    return S3Signer(described, fetch, lambda: True, regions, clock=clock, fixed=True)


def chain_signer(
    described: str, store: Store, regions: Regions, *, clock: Clock, entry: S3Entry | None = None
) -> S3Signer:
    """Return the signer with what the store's SDK finds by itself; AWS': botocore's whole chain."""
    if store in _VARIABLES:
        return _variables_signer(described, _VARIABLES[store], regions, clock=clock)
    profile, region = (entry.profile, entry.region) if entry else ("", "")

    def fetch() -> Lease[Keys | None]:
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.session import Session

        session = Session(profile=profile or None)
        try:
            found = session.get_credentials()
            if found is None:
                return Lease(None, clock() + NOTHING_SECONDS)
            known = region or _environment_region() or session.get_config_variable("region") or ""
        except (BotoCoreError, ClientError) as error:
            # Its text may quote what a credential process wrote.
            raise CredentialsError(f"{described} cannot be had ({type(error).__name__})") from None
        return Lease(Keys(found, known), float("inf"))

    return S3Signer(described, fetch, lambda: bool(profile) or _aws_hint(os.environ), regions, clock=clock)


def _variables_signer(described: str, names: tuple[str, str, str], regions: Regions, *, clock: Clock) -> S3Signer:
    def present() -> bool:
        return all(os.environ.get(name) for name in names[:2])

    def fetch() -> Lease[Keys | None]:
        from botocore.credentials import Credentials

        if not present():
            return Lease(None, clock() + NOTHING_SECONDS)
        key_id, secret_key, token = (os.environ.get(name) for name in names)
        return Lease(Keys(Credentials(key_id, secret_key, token or None)), float("inf"))

    return S3Signer(described, fetch, present, regions, clock=clock)


def addressed(url: str, region: str) -> str:
    """Return the URL at which AWS serves a bucket of `region`, for one at the host of all regions; others as they are.

    Buckets are part of the host's name, but for those with a dot, which no certificate fits.
    """
    host = origin_key(url).partition("://")[2].rpartition(":")[0]
    if host != _GLOBAL_HOST:
        return url
    scheme, _, rest = url.partition("://")
    path = rest.partition("/")[2]
    match = re.fullmatch(r"([^/?]*)(.*)", path, re.DOTALL)
    bucket, tail = match.groups() if match else ("", "")
    endpoint = f"s3.{region}.amazonaws.com" + (".cn" if region.startswith("cn-") else "")
    if re.fullmatch(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]", bucket):
        return f"{scheme}://{bucket}.{endpoint}{tail if tail.startswith('/') else '/' + tail}"
    return f"{scheme}://{endpoint}/{path}"


def presign(url: str, request: Unsigned, frozen: Any, region: str) -> str:
    """Return `url`, its path byte for byte, with a signature of the method, the host and the signed fields."""
    from botocore.auth import S3SigV4QueryAuth
    from botocore.awsrequest import AWSRequest

    signed = AWSRequest(method=request.method, url=url, headers=dict(request.signed_fields))
    S3SigV4QueryAuth(frozen, "s3", region, expires=VALID_SECONDS).add_auth(signed)
    return str(signed.url)


def _prepared(fetch: Callable[[], Lease[Keys | None]]) -> Lease[Keys | None]:
    """Import what signatures are made with while this is still a thread's work, then fetch."""
    importlib.import_module("botocore.auth")
    importlib.import_module("botocore.awsrequest")
    return fetch()


def _bucket_key(store: Store, url: str) -> tuple[str, str]:
    try:
        bucket = bucket_of(url, store)
    except BadRequestError:
        return origin_key(url), ""
    return bucket.endpoint, bucket.name


def _environment_region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""


def _aws_hint(environment: Mapping[str, str]) -> bool:
    shared = environment.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials"
    return any(environment.get(name) for name in _AWS_HINTS) or Path(shared).expanduser().exists()
