"""Azurite, Azure's own emulator of its blob service, on loopback: it verifies shared access signatures."""

from __future__ import annotations

import base64
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from azure.storage.blob import BlobSasPermissions, BlobServiceClient, ContainerSasPermissions
from azure.storage.blob import generate_blob_sas as blob_sas
from azure.storage.blob import generate_container_sas as container_sas

from tests.support.secrets import secret
from tests.support.servers import free_port, require_programs, wait_listening

ACCOUNT = "models"
_START_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class BlobServer:
    """A running blob service; `endpoint` ends with the account's name, as path-style endpoints do."""

    endpoint: str
    key: str = field(repr=False)
    client: Any = field(repr=False)

    def put(self, container: str, name: str, data: bytes) -> str:
        """Store a blob in a new container and return its ETag, quotes included."""
        self.client.create_container(container)
        answer = self.client.get_blob_client(container, name).upload_blob(data)
        return str(answer["etag"])

    def blob_url(self, container: str, name: str, *, minutes: int = 60) -> str:
        """Return a URL with a service SAS of one blob."""
        expiry = datetime.now(UTC) + timedelta(minutes=minutes)
        permission = BlobSasPermissions(read=True)
        query = blob_sas(ACCOUNT, container, name, account_key=self.key, permission=permission, expiry=expiry)
        return f"{self.endpoint}/{container}/{name}?{query}"

    def container_url(self, container: str, name: str, *, minutes: int = 60) -> str:
        """Return a blob's URL with a service SAS of its container, as TorchServe's plugin has them."""
        expiry = datetime.now(UTC) + timedelta(minutes=minutes)
        permission = ContainerSasPermissions(read=True, list=True)
        query = container_sas(ACCOUNT, container, account_key=self.key, permission=permission, expiry=expiry)
        return f"{self.endpoint}/{container}/{name}?{query}"


@contextmanager
def running_azurite(directory: Path, *, certificate: tuple[Path, Path] | None = None) -> Iterator[BlobServer]:
    """Run the blob service, data in memory, while the context lasts; skips the test where it is missing.

    With a `certificate` (its file, which also vouches for it, and the key's) it speaks HTTPS. Its log stays in
    `directory`. Raises ServerError if it does not start.
    """
    require_programs("Azurite", ["azurite-blob"], ["npm", "&&", "npm", "install", "--global", "azurite"])
    port, key = free_port(), secret("Azurite's account key", base64.b64encode(secrets.token_bytes(32)).decode())
    log = directory / "azurite.log"
    options = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence", "--disableTelemetry"]
    if certificate is not None:
        options += ["--cert", str(certificate[0]), "--key", str(certificate[1])]
    with log.open("ab") as file:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "azurite-blob", *options, "--skipApiVersionCheck"],
            env={"PATH": os.environ["PATH"], "HOME": str(directory), "AZURITE_ACCOUNTS": f"{ACCOUNT}:{key}"},
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_listening(process, port, log, seconds=_START_SECONDS)
        endpoint = f"{'https' if certificate else 'http'}://127.0.0.1:{port}/{ACCOUNT}"
        verify: dict[str, Any] = {"connection_verify": str(certificate[0])} if certificate else {}
        account = {"account_name": ACCOUNT, "account_key": key}
        with BlobServiceClient(endpoint, credential=account, **verify) as client:
            yield BlobServer(endpoint, key, client)
    finally:
        process.kill()
        process.wait()
