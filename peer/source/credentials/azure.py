"""Azure Blob Storage: a SAS made of an account's key, a SAS as given, or a bearer token of Entra ID.

Sources: Azure "Create an account SAS", "Authorize with Microsoft Entra ID" (which needs x-ms-version), "Configure Azure
Storage connection strings", and the variables of the Azure CLI and of Triton. The libraries cost 6 to 9 MiB, so they
are imported when they are needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from p2p.control import Source
from p2p.errors import BadRequestError, CredentialsError
from p2p.fields import values
from p2p.identity import origin_key
from p2p.native import bucket_of
from p2p.stores import Store
from peer.source.credentials.file import AzureEntry
from peer.source.credentials.names import is_own_host
from peer.source.credentials.renewing import Clock, Lease, Renewing
from peer.source.credentials.signer import NOTHING_SECONDS, Unsigned, with_query

SAS_SECONDS = 3600.0
_SKEW_SECONDS = 300.0
"""How much earlier than now a SAS begins: the store's clock may be behind."""

_SCOPE = "https://storage.azure.com/.default"
_VERSION = ("x-ms-version", "2023-11-03")
_IDENTITY_HINTS = (
    "AZURE_CLIENT_SECRET",
    "AZURE_CLIENT_CERTIFICATE_PATH",
    "AZURE_FEDERATED_TOKEN_FILE",
    "IDENTITY_ENDPOINT",
)


@dataclass(frozen=True, slots=True)
class Grant:
    """What opens the store: a SAS for the query, or a bearer token for the header."""

    sas: str = field(default="", repr=False)
    token: str = field(default="", repr=False)


class AzureSigner:
    """Adds the grant that `fetch` finds."""

    def __init__(
        self,
        described: str,
        fetch: Callable[[], Lease[Grant | None]],
        hint: Callable[[], bool],
        *,
        clock: Clock,
        fixed: bool = False,
    ) -> None:
        self.described = described
        self._grant = Renewing(fetch, clock=clock, fixed=fixed)
        self._hint = hint

    @property
    def found(self) -> bool:
        """Whether a grant was found, or something says that it will be."""
        return self._grant.current is not None or self._hint()

    async def sign(self, request: Unsigned) -> Source | None:
        """Return the URL with a SAS or a bearer token, or None without either."""
        grant = (await self._grant.get()).value
        if grant is None:
            return None
        fields = (*request.fields, *request.signed_fields)
        if grant.sas:
            return Source(with_query(request.url, grant.sas), fields)
        if not values(fields, _VERSION[0]):
            fields = (*fields, _VERSION)
        return Source(request.url, (*fields, ("Authorization", f"Bearer {grant.token}")))

    def forget(self) -> bool:
        """Drop the grant."""
        return self._grant.forget()


def account_of(url: str) -> str:
    """Return the account that a URL names; a secondary location is the account's own. Empty if there is none."""
    try:
        return bucket_of(url, Store.AZURE).account.removesuffix("-secondary")
    except BadRequestError:
        return ""


def entry_signer(described: str, entry: AzureEntry, *, clock: Clock) -> AzureSigner:
    """Return the signer for one entry of the credential file."""
    if entry.account_key:
        return _key_signer(described, entry.account_str, entry.account_key, clock=clock)
    if entry.sas_token:
        return _sas_signer(described, entry.sas_token, clock=clock)
    return _identity_signer(described, entry.auth_type, entry.client_id, clock=clock)


@dataclass(frozen=True, slots=True)
class _Environment:
    """What the environment says of storage accounts."""

    account: str
    endpoint: str
    key: str = field(repr=False)
    sas: str = field(repr=False)

    @classmethod
    def read(cls) -> _Environment:
        connection = _connection_string(os.environ.get("AZURE_STORAGE_CONNECTION_STRING", ""))
        account = connection.get("accountname") or os.environ.get("AZURE_STORAGE_ACCOUNT", "")
        key = connection.get("accountkey") or os.environ.get("AZURE_STORAGE_KEY", "")
        sas = connection.get("sharedaccesssignature") or os.environ.get("AZURE_STORAGE_SAS_TOKEN", "")
        endpoint = connection.get("blobendpoint", "").rstrip("/")
        if connection and not account and endpoint:
            account = account_of(f"{endpoint}/any")
        return cls(account, endpoint, key, sas)

    def fits(self, url: str) -> bool:
        """Tell whether these are the account of `url`, at Azure itself or at the endpoint of the connection string."""
        if not (self.key or self.sas):
            return False
        if self.endpoint and origin_key(url) == origin_key(self.endpoint):
            return True
        return is_own_host(Store.AZURE, url) and account_of(url) == self.account


def has_environment(url: str) -> bool:
    """Tell whether AZURE_STORAGE_… variables hold a key or a SAS that is meant for a URL. Raises BadRequestError."""
    return _Environment.read().fits(url)


def environment_signer(described: str, *, clock: Clock) -> AzureSigner:
    """Return the signer with what AZURE_STORAGE_… variables say; they must hold a key or a SAS."""
    found = _Environment.read()
    if found.key:
        return _key_signer(described, found.account, found.key, clock=clock)
    return _sas_signer(described, found.sas, clock=clock)


def chain_signer(described: str, *, clock: Clock) -> AzureSigner:
    """Return the signer with the identity that azure-identity's default chain finds."""
    return _identity_signer(described, os.environ.get("AZURE_STORAGE_AUTH_TYPE", ""), "", clock=clock, optional=True)


def _key_signer(described: str, account: str, key: str, *, clock: Clock) -> AzureSigner:
    def fetch() -> Lease[Grant | None]:
        from azure.storage.blob import AccountSasPermissions, ResourceTypes, generate_account_sas

        now = clock()
        try:
            sas = generate_account_sas(
                account,
                key,
                ResourceTypes(container=True, object=True),
                AccountSasPermissions(read=True, list=True),
                datetime.fromtimestamp(now, UTC) + timedelta(seconds=SAS_SECONDS),
                datetime.fromtimestamp(now, UTC) - timedelta(seconds=_SKEW_SECONDS),
            )
        except ValueError:
            raise CredentialsError(f"{described} hold an account key that is not base64") from None
        return Lease(Grant(sas=sas), now + SAS_SECONDS)

    return AzureSigner(described, fetch, lambda: True, clock=clock)


def _sas_signer(described: str, sas: str, *, clock: Clock) -> AzureSigner:
    grant = Grant(sas=sas.removeprefix("?"))
    return AzureSigner(described, lambda: Lease(grant, float("inf")), lambda: True, clock=clock, fixed=True)


def _identity_signer(
    described: str, auth_type: str, client_id: str, *, clock: Clock, optional: bool = False
) -> AzureSigner:
    """Return the signer with a token of an identity; with `optional` there may be none."""

    def hinted() -> bool:
        return not optional or bool(auth_type) or any(os.environ.get(name) for name in _IDENTITY_HINTS)

    def fetch() -> Lease[Grant | None]:
        from azure.core.exceptions import AzureError, ClientAuthenticationError

        try:
            # A new one each time: each keeps its tokens, and would give back the one that was refused.
            with _identity(auth_type, client_id) as identity:
                token = identity.get_token(_SCOPE)
        except (AzureError, ValueError, OSError) as error:
            if isinstance(error, ClientAuthenticationError) and not hinted():
                return Lease(None, clock() + NOTHING_SECONDS)
            raise CredentialsError(f"{described} got no token ({type(error).__name__})") from None
        return Lease(Grant(token=token.token), float(token.expires_on))

    return AzureSigner(described, fetch, hinted, clock=clock)


def _identity(auth_type: str, client_id: str) -> Any:
    from azure.identity import DefaultAzureCredential, ManagedIdentityCredential

    client_id = client_id or os.environ.get("AZURE_STORAGE_CLIENT_ID", "")
    if auth_type == "managed_identity":
        return ManagedIdentityCredential(client_id=client_id or None)
    chosen = {"managed_identity_client_id": client_id} if client_id else {}
    # A daemon has no browser and no developer: only what machines have.
    return DefaultAzureCredential(
        exclude_cli_credential=True,
        exclude_developer_cli_credential=True,
        exclude_powershell_credential=True,
        exclude_shared_token_cache_credential=True,
        exclude_visual_studio_code_credential=True,
        exclude_interactive_browser_credential=True,
        exclude_broker_credential=True,
        # An authority that the operator names is trusted: the public cloud may not be within reach to vouch for it.
        disable_instance_discovery="AZURE_AUTHORITY_HOST" in os.environ,
        **chosen,
    )


def _connection_string(text: str) -> dict[str, str]:
    parts = (part.partition("=") for part in text.split(";") if part.strip())
    return {name.strip().lower(): value.strip() for name, _, value in parts}
