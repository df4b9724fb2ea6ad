"""Every store that tests take for the real thing, in one shape: what is in it, what it is called, who may read it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.azurite import ACCOUNT, BlobServer
from tests.support.gcs import GcsServer
from tests.support.servers import S3Server


@dataclass(frozen=True, slots=True)
class NamedStore:
    """A bucket of a running store. `native` and `presign` name an object of it; `root` is the bucket's native name.

    `credentials` is a section of Triton's `cloud_credential.json` that opens it, `wrong` one that does not.
    """

    name: str
    root: str
    put: Callable[[str, bytes], object]
    presign: Callable[[str], str]
    section: str
    credentials: Any = field(repr=False)
    wrong: Any = field(repr=False)
    seed_arguments: tuple[str, ...] = ()

    def native(self, key: str) -> str:
        """Return the native name of an object."""
        return f"{self.root}/{key}"

    def write_credentials(self, file: Path, others: Mapping[str, Any] | None = None) -> Path:
        """Write a `cloud_credential.json` with these credentials, and `others` by prefix.

        Tokens are never sent to an endpoint that the file does not name; S3's signatures give nothing away.
        """
        prefix = "" if self.section == "s3" else self.root
        file.write_text(json.dumps({self.section: {prefix: self.credentials, **(others or {})}}))
        return file


def s3_store(server: S3Server, bucket: str) -> NamedStore:
    """Return a new bucket of an S3 server."""
    server.client.create_bucket(Bucket=bucket)
    keys = server.client._request_signer._credentials
    return NamedStore(
        server.name,
        f"s3://{server.endpoint}/{bucket}",
        put=lambda key, data: server.client.put_object(Bucket=bucket, Key=key, Body=data),
        presign=lambda key: server.presign(bucket, key),
        section="s3",
        credentials={"key_id": keys.access_key, "secret_key": keys.secret_key, "region": "us-east-1"},
        wrong={"key_id": keys.access_key, "secret_key": "wrong" + keys.secret_key[5:], "region": "us-east-1"},
    )


def azure_store(server: BlobServer, container: str, *, sas: bool = False, ca_file: Path | None = None) -> NamedStore:
    """Return a new container of a blob service, opened by the account's key or by a SAS of the container."""
    server.client.create_container(container)
    given = {"sas_token": server.container_url(container, "").partition("?")[2]} if sas else {"account_key": server.key}
    wrong = server.key[:4].swapcase() + server.key[4:]
    return NamedStore(
        "azurite-sas" if sas else "azurite-https" if ca_file else "azurite",
        f"as://{server.endpoint}/{container}",
        put=lambda key, data: server.client.get_blob_client(container, key).upload_blob(data),
        presign=lambda key: server.blob_url(container, key),
        section="as",
        credentials={"account_str": ACCOUNT, **given},
        wrong={"account_str": ACCOUNT, "account_key": wrong},
        seed_arguments=("--origin-ca-file", str(ca_file)) if ca_file else (),
    )


def gcs_store(server: GcsServer, bucket: str, directory: Path) -> NamedStore:
    """Return a bucket of a GCS server; the service account's file goes into `directory`."""
    account = server.service_account_file(directory)
    stranger = json.loads(account.read_text()) | {"client_email": "stranger@models.iam.gserviceaccount.com"}
    wrong = directory / "stranger.json"
    wrong.write_text(json.dumps(stranger))
    return NamedStore(
        "gcs",
        f"gs://{server.url}/{bucket}",
        put=lambda key, data: server.put(bucket, key, data),
        presign=lambda key: server.signed_url(bucket, key),
        section="gs",
        credentials=str(account),
        wrong=str(wrong),
    )
