"""Google Cloud Storage: bearer tokens by google-auth, for reading only.

Sources: Google "Application Default Credentials", "Cloud Storage authentication" (OAuth 2.0 scopes). google-auth costs
4 MiB, so it is imported when a token is fetched.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC
from pathlib import Path
from typing import Any, cast

from p2p.control import Source
from p2p.errors import CredentialsError
from peer.source.credentials.renewing import Clock, Lease, Renewing
from peer.source.credentials.signer import NOTHING_SECONDS, Unsigned

_SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"
_VARIABLE = "GOOGLE_APPLICATION_CREDENTIALS"
_TOKEN_SECONDS = 3600.0
_METADATA_SECONDS = 1.0
"""How long each of google-auth's three tries may take to find a metadata server that is next door or not at all."""


class GCSSigner:
    """Adds the token that `fetch` finds."""

    def __init__(
        self, described: str, fetch: Callable[[], Lease[str | None]], hint: Callable[[], bool], *, clock: Clock
    ) -> None:
        self.described = described
        self._token = Renewing(fetch, clock=clock)
        self._hint = hint

    @property
    def found(self) -> bool:
        """Whether a token was found, or something says that it will be."""
        return self._token.current is not None or self._hint()

    async def sign(self, request: Unsigned) -> Source | None:
        """Return the URL with a bearer token, or None without one."""
        token = (await self._token.get()).value
        if token is None:
            return None
        bearer = ("Authorization", f"Bearer {token}")
        return Source(request.url, (*request.fields, *request.signed_fields, bearer))

    def forget(self) -> bool:
        """Drop the token."""
        return self._token.forget()


def entry_signer(described: str, path: Path, *, clock: Clock) -> GCSSigner:
    """Return the signer for one entry of the credential file: the path of a file that google-auth understands."""

    def fetch() -> Lease[str | None]:
        from google.auth.exceptions import GoogleAuthError

        try:
            found = _read(path)
        except KeyError:
            raise CredentialsError(
                f"{described} cannot be read from {path}: its type is not service_account, authorized_user or "
                "external_account"
            ) from None
        except (GoogleAuthError, ValueError, OSError) as error:
            raise CredentialsError(f"{described} cannot be read from {path} ({type(error).__name__})") from None
        return _refreshed(found, described, clock)

    return GCSSigner(described, fetch, lambda: True, clock=clock)


def chain_signer(described: str, *, clock: Clock) -> GCSSigner:
    """Return the signer with Google's application default credentials."""

    def fetch() -> Lease[str | None]:
        import google.auth
        from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
        from google.auth.transport.requests import Request

        ask = Request()

        def briefly(**arguments: Any) -> Any:
            return ask(**(arguments | {"timeout": _METADATA_SECONDS}))

        try:
            found, _ = google.auth.default(scopes=[_SCOPE], request=cast(Request, briefly))
        except DefaultCredentialsError:
            if os.environ.get(_VARIABLE):
                raise CredentialsError(f"{described} cannot be had: {_VARIABLE} names no usable file") from None
            return Lease(None, clock() + NOTHING_SECONDS)
        except (GoogleAuthError, OSError) as error:
            raise CredentialsError(f"{described} cannot be had ({type(error).__name__})") from None
        return _refreshed(found, described, clock)

    return GCSSigner(described, fetch, _hinted, clock=clock)


def _read(path: Path) -> Any:
    """Return the credentials in a file. Raises KeyError for an unknown type, ValueError for what is no such file."""
    from google.auth import identity_pool
    from google.oauth2 import credentials, service_account

    info = json.loads(path.read_text())
    makers: dict[str, Callable[..., Any]] = {
        "service_account": service_account.Credentials.from_service_account_info,
        "authorized_user": credentials.Credentials.from_authorized_user_info,
        "external_account": identity_pool.Credentials.from_info,
    }
    return makers[info["type"] if isinstance(info, dict) else ""](info, scopes=[_SCOPE])


def _refreshed(found: Any, described: str, clock: Clock) -> Lease[str | None]:
    from google.auth.exceptions import GoogleAuthError
    from google.auth.transport.requests import Request

    try:
        found.refresh(Request())
    except (GoogleAuthError, OSError, ValueError) as error:
        raise CredentialsError(f"{described} got no token ({type(error).__name__})") from None
    # google-auth keeps UTC without saying so.
    expiry = found.expiry.replace(tzinfo=UTC).timestamp() if found.expiry else clock() + _TOKEN_SECONDS
    return Lease(str(found.token), expiry)


def _hinted() -> bool:
    directory = os.environ.get("CLOUDSDK_CONFIG") or "~/.config/gcloud"
    user_file = Path(directory, "application_default_credentials.json").expanduser()
    return bool(os.environ.get(_VARIABLE)) or user_file.exists()
