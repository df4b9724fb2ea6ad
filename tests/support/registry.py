"""Debian's docker-registry on loopback, images made of local files, and skopeo to move them."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.clients import Outcome, run
from tests.support.secrets import secret
from tests.support.servers import free_port, require_programs, wait_listening

USER, PASSWORD = "puller", "secret"
AS_IT_IS = ("--preserve-digests", "--dest-tls-verify=false")
"""Arguments of a `skopeo copy` to a registry that is to have the image's very bytes: skopeo would compress them."""
TOKEN = secret("the token of the registry's tests", "a-token-of-the-tests")

_START_SECONDS = 30.0
# bcrypt of PASSWORD, with few rounds: the registry compares it at every request.
_HTPASSWD = f"{USER}:$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n"

_CONFIGURATION = """\
version: 0.1
log: {{level: info, formatter: json, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {directory}/data}}}}
http: {{addr: "127.0.0.1:{port}", relativeurls: true}}
{auth}
"""


@dataclass(frozen=True, slots=True)
class Sent:
    """An answer that the registry has sent, as its log tells: `size` is that of the body in bytes."""

    method: str
    target: str
    status: int
    size: int


@dataclass(frozen=True, slots=True)
class Registry:
    """A running registry; `address` is "127.0.0.1:port"."""

    address: str
    log: Path

    def sent(self) -> list[Sent]:
        """Return every answer so far, in the order of their ends."""
        answers = []
        for line in self.log.read_text().splitlines():
            fields = json.loads(line) if line.startswith("{") else {}
            if fields.get("msg") == "response completed":
                names = ("http.request.method", "http.request.uri", "http.response.status", "http.response.written")
                answers.append(Sent(*(fields[name] for name in names)))
        return answers

    def blob_bytes(self) -> int:
        """Return how many bytes of blobs the registry has sent."""
        return sum(answer.size for answer in self.sent() if answer.method == "GET" and "/blobs/" in answer.target)


@contextmanager
def running_registry(directory: Path, *, users: bool = False, token_realm: str | None = None) -> Iterator[Registry]:
    """Run a registry in `directory` while the context lasts; skips the test where it is missing.

    With `users` only USER may do anything; with `token_realm` it wants a Bearer token from there, and takes any.
    """
    require_programs("the registry", ["docker-registry"], ["docker-registry"])
    directory.mkdir()
    port = free_port()
    auth = ""
    if users:
        (directory / "htpasswd").write_text(_HTPASSWD)
        auth = f"auth: {{htpasswd: {{realm: tests, path: {directory}/htpasswd}}}}"
    elif token_realm is not None:
        auth = f'auth: {{silly: {{realm: "{token_realm}", service: tests}}}}'
    configuration, log = directory / "config.yml", directory / "registry.log"
    configuration.write_text(_CONFIGURATION.format(directory=directory, port=port, auth=auth))
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(configuration)],
            env={"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_listening(process, port, log, seconds=_START_SECONDS)
        yield Registry(f"127.0.0.1:{port}", log)
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True, slots=True)
class Image:
    """An image in an OCI layout on disk: `reference` is skopeo's name for it."""

    reference: str
    manifest: bytes
    config: bytes
    layers: tuple[bytes, ...]

    @property
    def digest(self) -> str:
        """The manifest's."""
        return digest_of(self.manifest)


def digest_of(data: bytes) -> str:
    """Return `sha256:…` of bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def make_image(directory: Path, *layers: bytes) -> Image:
    """Write an image with these layers, which need not be archives: nobody unpacks it."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def add(data: bytes, media_type: str) -> dict[str, Any]:
        digest = digest_of(data)
        (blobs / digest.removeprefix("sha256:")).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    root = {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": root}).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": add(config, "application/vnd.oci.image.config.v1+json"),
            "layers": [add(layer, "application/vnd.oci.image.layer.v1.tar") for layer in layers],
        }
    ).encode()
    entry = add(manifest, "application/vnd.oci.image.manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": "tests"}
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return Image(f"oci:{directory}:tests", manifest, config, layers)


def random_layer(seed: int, size: int) -> bytes:
    """Return bytes that no compression makes shorter, the same for the same seed."""
    return random.Random(seed).randbytes(size)


def skopeo(*arguments: str, registries: Path | None = None) -> Outcome:
    """Run skopeo; `registries` is a registries.conf. Plain http is allowed for what is on loopback."""
    require_programs("this client", ["skopeo"], ["skopeo"])
    configuration = ["--registries-conf", str(registries)] if registries is not None else []
    return run(["skopeo", "--insecure-policy", *configuration, *arguments])


def push(image: Image, registry: Registry, name: str, *arguments: str) -> None:
    """Let skopeo copy an image from disk to `name` ("repository:tag") of a registry."""
    target = f"docker://{registry.address}/{name}"
    done = skopeo("copy", *AS_IT_IS, *arguments, image.reference, target)
    assert done.code == 0, done.said


def pull(source: str, directory: Path, *arguments: str, registries: Path | None = None) -> Outcome:
    """Let skopeo copy `source` ("host/repository:tag") into a directory of plain files."""
    options = ("--src-tls-verify=false", *arguments)
    return skopeo("copy", *options, f"docker://{source}", f"dir:{directory}", registries=registries)


def pulled(directory: Path, image: Image) -> bool:
    """Tell whether a directory holds exactly an image."""
    names = ["manifest.json", *(digest_of(blob).removeprefix("sha256:") for blob in (image.config, *image.layers))]
    expected = dict(zip(names, (image.manifest, image.config, *image.layers), strict=True))
    return all((directory / name).exists() and (directory / name).read_bytes() == expected[name] for name in names)


@contextmanager
def running_token_server() -> Iterator[tuple[str, Sequence[str]]]:
    """Hand out TOKEN to whoever asks; yields the address ("http://…/token") and the targets asked for so far."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = json.dumps({"token": TOKEN}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the overridden method's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, name="token-server")
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/token", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
