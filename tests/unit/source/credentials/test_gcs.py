from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from p2p.control import Source
from p2p.errors import CredentialsError
from p2p.stores import Store
from peer.source.credentials import Credentials
from peer.source.credentials.renewing import GRACE_SECONDS
from tests.unit.source.credentials.conftest import SECRET, Clock
from tests.unit.source.credentials.services import Answer, Asked, TokenService, as_json, running_service

Write = Callable[[str, str], Path]

URL = "https://storage.googleapis.com/bucket/models/a%20b"
LOCAL = "http://127.0.0.1:4443/bucket/key"
SOURCE = Source(URL, store=Store.GCS)


@pytest.fixture(scope="module")
def private_key() -> str:
    key = rsa.generate_private_key(65537, 2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


class Tokens:
    """A token service: each answer has another token."""

    def __init__(self) -> None:
        self.given = 0

    def __call__(self, asked: Asked) -> Answer:
        self.given += 1
        return as_json({"access_token": f"{SECRET}{self.given}", "expires_in": 3600, "token_type": "Bearer"})


def service_account(service: TokenService, private_key: str) -> str:
    return json.dumps(
        {
            "type": "service_account",
            "project_id": "p",
            "private_key_id": "1",
            "private_key": private_key,
            "client_email": "models@p.iam.gserviceaccount.com",
            "client_id": "1",
            "token_uri": f"{service.base}/token",
        }
    )


async def bearer(credentials: Credentials, url: str = URL) -> str | None:
    signed = await credentials.signed(Source(url, store=Store.GCS))
    assert (signed.url, signed.store) == (url, None)
    assert SECRET not in repr(signed)
    return dict(signed.headers).get("Authorization")


async def test_the_key_file_of_a_service_account(write: Write, private_key: str, clock: Clock) -> None:
    with running_service(Tokens()) as service:
        write("google.json", service_account(service, private_key))
        path = write("c.json", json.dumps({"gs": {"": "google.json"}}))
        credentials = Credentials.load(path, clock=clock)
        assert credentials.covers(Store.GCS, URL)
        assert await bearer(credentials) == f"Bearer {SECRET}1"
        assert await bearer(credentials) == f"Bearer {SECRET}1"
        assert parse_qs(service.asked[0].body)["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]
        # Before it ends, and when it is refused.
        clock.now += 3600 - 200
        assert await bearer(credentials) == f"Bearer {SECRET}2"
        assert await credentials.refused(SOURCE, 401)
        assert await bearer(credentials) == f"Bearer {SECRET}3"
        assert await credentials.refused(SOURCE, 401)
        assert await bearer(credentials) == f"Bearer {SECRET}3"
        clock.now += GRACE_SECONDS
        assert not await credentials.refused(SOURCE, 401)


async def test_the_environments_file(write: Write, private_key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_service(Tokens()) as service:
        path = write("google.json", service_account(service, private_key))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
        credentials = Credentials()
        assert credentials.covers(Store.GCS, URL)
        assert await bearer(credentials) == f"Bearer {SECRET}1"


async def test_the_metadata_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(asked: Asked) -> Answer:
        assert asked.headers["metadata-flavor"] == "Google"
        flavor = {"Metadata-Flavor": "Google"}
        if "/token" in asked.path:
            return as_json({"access_token": SECRET, "expires_in": 3600, "token_type": "Bearer"}, headers=flavor)
        if "recursive=true" in asked.path:
            account = {
                "aliases": ["default"],
                "email": "e@x",
                "scopes": ["https://www.googleapis.com/auth/cloud-platform"],
            }
            return as_json(account, headers=flavor)
        return 200, flavor | {"Content-Type": "text/plain"}, "text"

    with running_service(answer) as service:
        metadata = "google.auth.compute_engine._metadata"
        monkeypatch.setattr(f"{metadata}._NO_GCE_CHECK", False)
        monkeypatch.setattr(f"{metadata}._GCE_METADATA_HOST", service.authority)
        monkeypatch.setenv("GCE_METADATA_IP", service.authority)
        credentials = Credentials()
        assert not credentials.covers(Store.GCS, URL)
        assert await bearer(credentials) == f"Bearer {SECRET}"
        assert credentials.covers(Store.GCS, URL)


async def test_without_credentials_the_plain_url_is_asked(clock: Clock) -> None:
    credentials = Credentials(clock=clock)
    assert await bearer(credentials) is None
    assert "the metadata server" in str(credentials.explained(SOURCE, 401))


async def test_a_token_goes_nowhere_but_to_google_unless_a_prefix_says_so(write: Write, private_key: str) -> None:
    with running_service(Tokens()) as service:
        write("google.json", service_account(service, private_key))
        careless = Credentials.load(write("c.json", json.dumps({"gs": {"": "google.json"}})))
        for url in (LOCAL, URL.replace("https", "http"), "https://storage.googleapis.com.evil.example/bucket/key"):
            assert await bearer(careless, url) is None
            assert not careless.covers(Store.GCS, url)
        said = str(careless.explained(Source(LOCAL, store=Store.GCS), 403))
        assert "the prefix '' of" in said
        assert "add a prefix like gs://http://127.0.0.1:4443" in said
        assert service.asked == []
        named = Credentials.load(write("n.json", json.dumps({"gs": {"gs://http://127.0.0.1:4443": "google.json"}})))
        assert await bearer(named, LOCAL) == f"Bearer {SECRET}1"


async def test_what_cannot_be_had_names_the_prefix_and_no_secret(write: Write, private_key: str) -> None:
    def answer(asked: Asked) -> Answer:
        return as_json({"error": "invalid_grant", "error_description": SECRET}, status=400)

    with running_service(answer) as service:
        write("google.json", service_account(service, private_key))
        credentials = Credentials.load(write("c.json", json.dumps({"gs": {"gs://bucket": "google.json"}})))
        with pytest.raises(
            CredentialsError, match=r"'gs://bucket' of .*c\.json got no token \(RefreshError\)"
        ) as caught:
            await bearer(credentials)
        assert SECRET not in str(caught.value)
    credentials = Credentials.load(write("c.json", json.dumps({"gs": {"gs://bucket": "nowhere.json"}})))
    with pytest.raises(CredentialsError, match=r"cannot be read from .*nowhere\.json"):
        await bearer(credentials)
