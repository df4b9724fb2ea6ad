"""A small Google Cloud Storage on loopback: the part of its XML interface that readers use, and who may use it.

The emulators that can be installed know neither ETags nor conditions, and speak Google's JSON interface. What this one
does is what Google's documents say; `tests/integration/test_gcs_server.py` holds it to them, page by page.
Bearer tokens come from its own token endpoint (OAuth 2.0, service accounts) and its own metadata server; signatures in
URLs are verified (`tests/support/gcs_signing.py`). Objects are put by the test, not over HTTP.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import secrets
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import cached_property
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote
from xml.sax.saxutils import escape

from aiohttp import web
from awscrt import checksums
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from google.auth import jwt
from google.auth.exceptions import GoogleAuthError

from tests.support.gcs_signing import HmacKey, RefusalError, rsa_key, sign_url, verify_url
from tests.support.secrets import secret

ACCOUNT = "reader@models.iam.gserviceaccount.com"
_START_SECONDS = 10.0
_TOKEN_ENDPOINT = "https://oauth2.googleapis.com/token"
"""Google's own, which its library has in every assertion, wherever it sends it."""
_JWT_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_SCOPES = {"cloud-platform", "devstorage.read_only", "devstorage.read_write", "devstorage.full_control"}


@dataclass(frozen=True)
class StoredObject:
    """An object; a composite one has no MD5. Every answer has its digests, so they are computed once."""

    data: bytes = field(repr=False)
    generation: int
    modified: float
    composite: bool = False

    @cached_property
    def md5(self) -> bytes:
        """The MD5 of its bytes."""
        return hashlib.md5(self.data).digest()

    @property
    def etag(self) -> str:
        """Its ETag, quotes included."""
        return f'"-{self.generation}"' if self.composite else f'"{self.md5.hex()}"'

    @cached_property
    def hashes(self) -> list[str]:
        """The values of its `x-goog-hash` fields."""
        found = [f"crc32c={base64.b64encode(checksums.crc32c(self.data).to_bytes(4, 'big')).decode()}"]
        if not self.composite:
            found.append(f"md5={base64.b64encode(self.md5).decode()}")
        return found


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer that was sent: its request's method and target without the query, and how much of a body it had."""

    method: str
    path: str
    status: int
    size: int


class GcsServer:
    """A running server; its methods may be called from any thread. `clock` gives Unix seconds."""

    def __init__(self) -> None:
        self.url = ""
        self.answered: list[Answered] = []
        """Every answer about buckets and objects, in order."""
        self.tokens_issued = 0
        self.token_seconds = 3600
        """How long a token is good for from its issue on."""
        hmac_secret = secret("the HMAC key of the GCS of the tests", secrets.token_urlsafe(30))
        self.hmac_key = HmacKey("GOOG1E" + secrets.token_hex(12).upper(), hmac_secret)
        self.clock = time.time
        self._key = rsa_key()
        self._tokens: dict[str, float] = {}
        self._buckets: dict[str, dict[str, StoredObject]] = {}
        self._public: set[str] = set()
        self._generation = int(time.time() * 1_000_000)
        self._refusals: list[RefusalError] = []
        self._revoke_after: int | None = None

    @property
    def token_uri(self) -> str:
        """The token endpoint, for service accounts."""
        return f"{self.url}/token"

    @property
    def metadata_host(self) -> str:
        """What GCE_METADATA_HOST is to be for clients on a machine of Google's: "127.0.0.1:port"."""
        return self.url.removeprefix("http://")

    def put(self, bucket: str, key: str, data: bytes, *, composite: bool = False) -> str:
        """Store an object, making the bucket if need be, and return its ETag, quotes included."""
        self._generation += 1
        stored = StoredObject(data, self._generation, self.clock(), composite)
        self._buckets.setdefault(bucket, {})[key] = stored
        return stored.etag

    def make_public(self, bucket: str) -> None:
        """Let anybody read and list a bucket."""
        self._public.add(bucket)

    def service_account_file(self, directory: Path) -> Path:
        """Write the key file of an account that may read everything, and return its path."""
        private = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        file = directory / "service-account.json"
        content = {
            "type": "service_account",
            "project_id": "models",
            "private_key_id": "1",
            "private_key": private,
            "client_email": ACCOUNT,
            "client_id": "1",
            "token_uri": self.token_uri,
        }
        file.write_text(json.dumps(content))
        file.chmod(0o600)
        return file

    def issue_token(self) -> str:
        """Return a bearer token that is good for `token_seconds`."""
        token = secret("a bearer token of the GCS of the tests", f"ya29.{secrets.token_urlsafe(48)}")
        self._tokens[token] = self.clock() + self.token_seconds
        self.tokens_issued += 1
        return token

    def expire_tokens(self, *, after_answers: int = 0) -> None:
        """Make every token that was issued worthless, once `after_answers` more requests have been answered."""
        self._revoke_after = after_answers
        self._revoke()

    def refuse(self, times: int, *, status: int, retry_after: int | None = None) -> None:
        """Answer the next requests for buckets and objects with 429 or 503."""
        code = {429: "TooManyRequests", 503: "ServiceUnavailable"}[status]
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        self._refusals += [RefusalError(status, code, headers)] * times

    def signed_url(self, bucket: str, key: str, *, seconds: int = 3600, hmac: bool = False, method: str = "GET") -> str:
        """Return a URL with a V4 signature of the service account's RSA key, or of the HMAC key."""
        url = f"{self.url}/{bucket}/{quote(key, safe='/~')}"
        signer = self.hmac_key if hmac else self._key
        return sign_url(url, signer, ACCOUNT, method=method, now=self.clock(), seconds=seconds)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        path, _, query = request.raw_path.partition("?")
        if path == "/token" and request.method == "POST":
            return self._grant(await request.text())
        if path == "/" or path.startswith("/computeMetadata/"):
            return self._metadata(path, request)
        try:
            if self._refusals:
                raise self._refusals.pop()
            response = self._answer(request, path, query)
        except RefusalError as refusal:
            response = web.Response(
                status=refusal.status,
                body=b"" if request.method == "HEAD" or refusal.status == 304 else refusal.body(),
                headers={"Content-Type": "application/xml; charset=UTF-8", **refusal.headers},
            )
        body = response.body
        self.answered.append(
            Answered(request.method, path, response.status, len(body) if isinstance(body, bytes) else 0)
        )
        self._revoke()
        return response

    def _revoke(self) -> None:
        if self._revoke_after is None:
            return
        if self._revoke_after <= 0:
            self._tokens.clear()
            self._revoke_after = None
        else:
            self._revoke_after -= 1

    def _grant(self, form: str) -> web.Response:
        fields = {name: values[0] for name, values in parse_qs(form).items()}
        if fields.get("grant_type") != _JWT_GRANT:
            wrong = "unsupported_grant_type"
        elif (claims := self._claims(fields.get("assertion", ""))) is None:
            wrong = "invalid_grant"
        elif not _SCOPES & {each.rpartition("/")[2] for each in str(claims.get("scope", "")).split()}:
            wrong = "invalid_scope"
        else:
            return self._token_response()
        return web.json_response({"error": wrong, "error_description": wrong}, status=400)

    def _claims(self, assertion: str) -> Mapping[str, object] | None:
        """Return what a JWT says that the account's key has signed for this endpoint, and that has not expired."""
        public = self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        try:
            audience = [self.token_uri, _TOKEN_ENDPOINT]
            claims: Mapping[str, object] = jwt.decode(assertion, certs=public, audience=audience)  # type: ignore[no-untyped-call]
        except (ValueError, GoogleAuthError):
            return None
        return claims if claims.get("iss") == ACCOUNT else None

    def _token_response(self) -> web.Response:
        token = {"access_token": self.issue_token(), "expires_in": self.token_seconds, "token_type": "Bearer"}
        return web.json_response(token, headers={"Metadata-Flavor": "Google"})

    def _metadata(self, path: str, request: web.BaseRequest) -> web.Response:
        flavor = {"Metadata-Flavor": "Google"}
        if request.headers.get("Metadata-Flavor") != "Google":
            return web.Response(status=403, text="Missing Metadata-Flavor:Google header.", headers=flavor)
        account = re.fullmatch(
            rf"/computeMetadata/v1/instance/service-accounts/(?:default|{ACCOUNT})/(.*)", unquote(path)
        )
        match account[1] if account else path:
            case "token":
                return self._token_response()
            case "email":
                return web.Response(text=ACCOUNT, headers=flavor)
            case "":
                scopes = ["https://www.googleapis.com/auth/cloud-platform"]
                return web.json_response({"aliases": ["default"], "email": ACCOUNT, "scopes": scopes}, headers=flavor)
            case "/computeMetadata/v1/project/project-id":
                return web.Response(text="models", headers=flavor)
            case "/":
                return web.Response(text="computeMetadata/\n", headers=flavor)
            case _:
                return web.Response(status=404, headers=flavor)

    def _answer(self, request: web.BaseRequest, path: str, query: str) -> web.Response:
        if request.method not in ("GET", "HEAD"):
            raise RefusalError(405, "MethodNotAllowed")
        bucket, _, key = path.removeprefix("/").partition("/")
        name = unquote(bucket)
        self._authorise(request, path, query, name)
        if name not in self._buckets:
            raise RefusalError(404, "NoSuchBucket")
        parameters = {key: values[-1] for key, values in parse_qs(query, keep_blank_values=True).items()}
        if not key:
            return _listing(name, self._buckets[name], parameters)
        stored = self._buckets[name].get(unquote(key))
        if stored is None or parameters.get("generation", str(stored.generation)) != str(stored.generation):
            raise RefusalError(404, "NoSuchKey")
        return _content(request, stored)

    def _authorise(self, request: web.BaseRequest, path: str, query: str, bucket: str) -> None:
        authorization = request.headers.get("Authorization")
        if authorization is not None:
            kind, _, token = authorization.partition(" ")
            if kind.lower() != "bearer" or self._tokens.get(token, 0.0) <= self.clock():
                challenge = {"WWW-Authenticate": 'Bearer realm="https://accounts.google.com/"'}
                raise RefusalError(401, "AuthenticationRequired", challenge)
        elif "X-Goog-Signature=" in query:
            verify_url(
                request.method,
                path,
                query,
                request.headers,
                self._key.public_key(),
                self.hmac_key,
                ACCOUNT,
                self.clock(),
            )
        elif bucket not in self._public:
            raise RefusalError(403, "AccessDenied")


def _content(request: web.BaseRequest, stored: StoredObject) -> web.Response:
    """Answer for an object: conditions first (RFC 9110 §13.2.2), then the range."""
    headers = [
        ("ETag", stored.etag),
        ("Last-Modified", formatdate(stored.modified, usegmt=True)),
        ("x-goog-generation", str(stored.generation)),
        ("x-goog-metageneration", "1"),
        ("x-goog-stored-content-encoding", "identity"),
        ("x-goog-stored-content-length", str(len(stored.data))),
        *(("x-goog-hash", value) for value in stored.hashes),
        *([("x-goog-component-count", "2")] if stored.composite else []),
        ("Accept-Ranges", "bytes"),
        ("Cache-Control", "private, max-age=0"),
        ("Content-Type", "application/octet-stream"),
    ]
    asked = request.headers
    if not _matches(asked.get("If-Match"), stored.etag, otherwise=True):
        raise RefusalError(412, "PreconditionFailed")
    if asked.get("x-goog-if-generation-match", str(stored.generation)) != str(stored.generation):
        raise RefusalError(412, "PreconditionFailed")
    if _matches(asked.get("If-None-Match"), stored.etag, otherwise=False):
        raise RefusalError(304, "NotModified", {"ETag": stored.etag})
    status, data, length = 200, stored.data, len(stored.data)
    match = re.fullmatch(r"bytes=([0-9]*)-([0-9]*)", asked.get("Range", ""))
    if match is not None and match[0] != "bytes=-":
        first = int(match[1]) if match[1] else max(0, length - int(match[2]))
        last = min(int(match[2]), length - 1) if match[1] and match[2] else length - 1
        if first >= length:
            raise RefusalError(416, "InvalidRange", {"Content-Range": f"bytes */{length}"})
        if first <= last:
            status, data = 206, stored.data[first : last + 1]
            headers.append(("Content-Range", f"bytes {first}-{last}/{length}"))
    if request.method == "HEAD":
        return web.Response(status=status, headers=[*headers, ("Content-Length", str(len(data)))])
    return web.Response(status=status, body=data, headers=headers)


def _matches(condition: str | None, etag: str, *, otherwise: bool) -> bool:
    if condition is None:
        return otherwise
    return condition.strip() == "*" or etag in (each.strip().removeprefix("W/") for each in condition.split(","))


def _listing(bucket: str, objects: dict[str, StoredObject], parameters: dict[str, str]) -> web.Response:
    """Answer for a bucket: version 2 of the listing with `list-type=2`, else version 1 with markers."""
    second = parameters.get("list-type") == "2"
    prefix, delimiter = parameters.get("prefix", ""), parameters.get("delimiter", "")
    escaped = parameters.get("encoding-type") == "url"
    most = min(1000, int(parameters.get("max-keys", "1000")))
    after = parameters.get("start-after" if second else "marker", "")
    if second and "continuation-token" in parameters:
        after = base64.urlsafe_b64decode(parameters["continuation-token"]).decode()

    def shown(text: str) -> str:
        return escape(quote(text, safe="") if escaped else text)

    # Keys that share a beginning up to the delimiter are one row, named by it.
    rows: dict[str, StoredObject | None] = {}
    for key in sorted(objects, key=str.encode):
        if key.startswith(prefix):
            head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            name = f"{prefix}{head}{found}" if found else key
            rows.setdefault(name, None if found else objects[key])
    names = [name for name in rows if name.encode() > after.encode()]
    page, truncated = names[:most], len(names) > most
    text = [f"<Name>{escape(bucket)}</Name><Prefix>{shown(prefix)}</Prefix>"]
    text += ["<EncodingType>url</EncodingType>"] if escaped else []
    text.append(f"<IsTruncated>{str(truncated).lower()}</IsTruncated>")
    if truncated and second:
        token = base64.urlsafe_b64encode(page[-1].encode()).decode()
        text.append(f"<NextContinuationToken>{token}</NextContinuationToken>")
    elif truncated:
        text.append(f"<NextMarker>{shown(page[-1])}</NextMarker>")
    for name in page:
        stored = rows[name]
        if stored is None:
            text.append(f"<CommonPrefixes><Prefix>{shown(name)}</Prefix></CommonPrefixes>")
            continue
        moment = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(stored.modified))
        text.append(
            f"<Contents><Key>{shown(name)}</Key><Generation>{stored.generation}</Generation>"
            f"<MetaGeneration>1</MetaGeneration><LastModified>{moment}</LastModified>"
            f"<ETag>{escape(stored.etag)}</ETag><Size>{len(stored.data)}</Size></Contents>"
        )
    body = "<?xml version='1.0' encoding='UTF-8'?><ListBucketResult xmlns='http://doc.s3.amazonaws.com/2006-03-01'>"
    return web.Response(body=f"{body}{''.join(text)}</ListBucketResult>".encode(), content_type="application/xml")


@contextmanager
def running_gcs() -> Iterator[GcsServer]:
    """Run a server in a thread, on a free port of 127.0.0.1, while the context lasts."""
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
    gcs = GcsServer()

    async def serve() -> None:
        runner = web.ServerRunner(web.Server(gcs.handle))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        gcs.url = f"http://{host}:{port}"
        stopped = asyncio.Event()
        started.set_result((asyncio.get_running_loop(), stopped))
        await stopped.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="gcs")
    thread.start()
    loop, stopped = started.result(_START_SECONDS)
    try:
        yield gcs
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join()


@asynccontextmanager
async def gcs_server() -> AsyncIterator[GcsServer]:
    """Do the same for a test that runs in a loop."""
    with running_gcs() as gcs:
        yield gcs
