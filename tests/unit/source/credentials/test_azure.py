from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from p2p.control import Source
from p2p.errors import CredentialsError
from p2p.stores import Store
from peer.source.credentials import Credentials
from tests.support.tls import own_authority
from tests.unit.source.credentials.conftest import SECRET, Clock
from tests.unit.source.credentials.services import Answer, Asked, as_json, running_service

Write = Callable[[str, str], Path]

URL = "https://acc.blob.core.windows.net/container/models/a%20b"
OTHER = "https://other.blob.core.windows.net/container/key"
LOCAL = "http://127.0.0.1:10000/acc/container/key"
KEY = base64.b64encode(SECRET.encode()).decode()
SOURCE = Source(URL, store=Store.AZURE)


async def sas_of(credentials: Credentials, url: str = URL) -> dict[str, str]:
    signed = await credentials.signed(Source(url, store=Store.AZURE))
    assert signed.store is None
    assert signed.url.partition("?")[0] == url
    return {name: values[0] for name, values in parse_qs(urlsplit(signed.url).query).items()}


async def bearer(credentials: Credentials, url: str = URL) -> str | None:
    signed = await credentials.signed(Source(url, store=Store.AZURE))
    assert signed.url == url
    headers = dict(signed.headers)
    assert ("Authorization" in headers) == ("x-ms-version" in headers)
    return headers.get("Authorization")


async def test_a_key_makes_a_sas_that_reads_and_lists_and_is_renewed(write: Write, clock: Clock) -> None:
    path = write("c.json", json.dumps({"as": {"": {"account_str": "acc", "account_key": KEY}}}))
    credentials = Credentials.load(path, clock=clock)
    assert credentials.covers(Store.AZURE, URL)
    sas = await sas_of(credentials)
    assert (set(sas["sp"]), set(sas["srt"]), sas["ss"]) == (set("rl"), set("co"), "b")
    assert await sas_of(credentials) == sas
    clock.now += 3600 - 200
    assert (await sas_of(credentials))["se"] > sas["se"]


async def test_a_sas_goes_only_to_its_account(write: Write) -> None:
    path = write("c.json", json.dumps({"as": {"": {"account_str": "acc", "account_key": KEY}}}))
    credentials = Credentials.load(path)
    for url in (OTHER, LOCAL, URL.replace("https", "http"), "https://acc.blob.core.windows.net.evil.example/c/k"):
        assert await sas_of(credentials, url) == {}
        assert not credentials.covers(Store.AZURE, url)
    assert "add a prefix like as://http://127.0.0.1:10000" in str(
        credentials.explained(Source(LOCAL, store=Store.AZURE), 403)
    )
    secondary = URL.replace("acc.", "acc-secondary.")
    assert "sig" in await sas_of(credentials, secondary)
    entry = {"account_str": "acc", "account_key": KEY}
    named = Credentials.load(write("n.json", json.dumps({"as": {"as://http://127.0.0.1:10000/acc": entry}})))
    assert "sig" in await sas_of(named, LOCAL)


async def test_a_sas_as_given(write: Write) -> None:
    path = write("c.json", json.dumps({"as": {"as://acc/container": {"sas_token": "?sv=1&sig=a%2Bb"}}}))
    signed = await Credentials.load(path).signed(SOURCE, query=(("comp", "list"),))
    assert signed.url == f"{URL}?comp=list&sv=1&sig=a%2Bb"


async def test_the_environments_account_and_connection_string(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "acc")
    monkeypatch.setenv("AZURE_STORAGE_KEY", KEY)
    assert "sig" in await sas_of(Credentials())
    assert not Credentials().covers(Store.AZURE, OTHER)
    monkeypatch.delenv("AZURE_STORAGE_KEY")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sv=1&sig=2")
    assert await sas_of(Credentials()) == {"sv": "1", "sig": "2"}
    monkeypatch.setenv(
        "AZURE_STORAGE_CONNECTION_STRING",
        f"DefaultEndpointsProtocol=http;AccountName=acc;AccountKey={KEY};BlobEndpoint=http://127.0.0.1:10000/acc;",
    )
    assert "srt" in await sas_of(Credentials(), LOCAL)
    assert "srt" in await sas_of(Credentials(), URL)


async def test_a_key_that_is_none_is_an_error_without_it(write: Write) -> None:
    path = write("c.json", json.dumps({"as": {"as://acc": {"account_str": "acc", "account_key": "abc"}}}))
    with pytest.raises(CredentialsError, match=r"'as://acc' of .* hold an account key that is not base64"):
        await sas_of(Credentials.load(path))


async def test_the_managed_identity_of_a_machine(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    def answer(asked: Asked) -> Answer:
        if "metadata" not in asked.headers:
            return as_json({"error": "invalid_request"}, status=400)
        assert "resource=https://storage.azure.com" in unquote(asked.path)
        expires = str(int(time.time()) + 86400)
        token = {"access_token": SECRET, "token_type": "Bearer", "resource": "https://storage.azure.com"}
        return as_json(token | {"expires_on": expires, "expires_in": "86400"})

    with running_service(answer) as service:
        monkeypatch.delenv("AZURE_TOKEN_CREDENTIALS")
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", service.base)
        by_chain = Credentials()
        assert not by_chain.covers(Store.AZURE, URL)
        assert await bearer(by_chain) == f"Bearer {SECRET}"
        assert by_chain.covers(Store.AZURE, URL)
        entry = {"account_str": "acc", "auth_type": "managed_identity", "client_id": "mine"}
        credentials = Credentials.load(write("c.json", json.dumps({"as": {"as://acc": entry}})))
        assert await bearer(credentials) == f"Bearer {SECRET}"
        assert "mine" in service.asked[-1].path
        assert await bearer(by_chain, LOCAL) is None


@pytest.mark.parametrize("shape", ["client secret", "workload identity"])
async def test_an_application_of_entra_id(
    shape: str, monkeypatch: pytest.MonkeyPatch, write: Write, tmp_path: Path
) -> None:
    def answer(asked: Asked) -> Answer:
        base = f"{service.base}/tenant"
        if "openid-configuration" in asked.path:
            return as_json(
                {
                    "token_endpoint": f"{base}/oauth2/v2.0/token",
                    "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                    "issuer": f"{base}/v2.0",
                }
            )
        form = {name: values[0] for name, values in parse_qs(asked.body).items()}
        assert form["client_id"] == "client"
        assert form.get("client_secret", form.get("client_assertion")) == "proof"
        return as_json({"access_token": SECRET, "expires_in": 3600, "token_type": "Bearer"})

    ca_file, context = own_authority(tmp_path)
    with running_service(answer, context) as service:
        monkeypatch.delenv("AZURE_TOKEN_CREDENTIALS")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(ca_file))
        monkeypatch.setenv("AZURE_AUTHORITY_HOST", service.base)
        monkeypatch.setenv("AZURE_TENANT_ID", "tenant")
        monkeypatch.setenv("AZURE_CLIENT_ID", "client")
        if shape == "client secret":
            monkeypatch.setenv("AZURE_CLIENT_SECRET", "proof")
        else:
            monkeypatch.setenv("AZURE_FEDERATED_TOKEN_FILE", str(write("token", "proof")))
        credentials = Credentials()
        assert credentials.covers(Store.AZURE, URL)
        assert await bearer(credentials) == f"Bearer {SECRET}"


async def test_without_credentials_the_plain_url_is_asked(clock: Clock) -> None:
    credentials = Credentials(clock=clock)
    assert await bearer(credentials) is None
    said = str(credentials.explained(SOURCE, 401, (("x-ms-error-code", "NoAuthenticationInformation"),)))
    assert "answered 401 (NoAuthenticationInformation)" in said
    assert "managed identity" in said
