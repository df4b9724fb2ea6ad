"""The one way from a source that is "ours to ask" to a request that its store accepts."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from pathlib import Path
from urllib.parse import quote

from p2p.control import Source
from p2p.errors import BadRequestError, ConfigError, CredentialsError
from p2p.fields import single
from p2p.identity import origin_key, redact
from p2p.stores import Store
from p2p.telemetry import logger
from peer.source.credentials import azure, gcs, s3
from peer.source.credentials.file import AzureEntry, CredentialFile, Entry, GCSEntry, S3Entry
from peer.source.credentials.names import SECTIONS, Prefix, is_own_host
from peer.source.credentials.renewing import GRACE_SECONDS, Clock
from peer.source.credentials.signer import Signer, Unsigned, with_query
from peer.source.fields import Fields

log = logger(__name__)

_S3_KINDS = (Store.S3, Store.OSS, Store.OBS)
_LIBRARIES = ("botocore", "google", "azure", "msal", "urllib3")
_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,64})</Code>")
_REGION = re.compile(rb"<Region>([a-z0-9-]{1,40})</Region>")
_EXPIRED = re.compile(rb"<Code>(?:Expired|Invalid|TokenRefreshRequired)[A-Za-z]*</Code>")
_CHAINS = {
    Store.S3: "the environment, profiles, web identity, the container's endpoint and the instance's metadata",
    Store.GCS: "GOOGLE_APPLICATION_CREDENTIALS, gcloud's own file and the metadata server",
    Store.AZURE: "AZURE_STORAGE_…, client secret, workload identity and managed identity",
    Store.OSS: "OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET",
    Store.OBS: "OBS_ACCESS_KEY_ID and OBS_SECRET_ACCESS_KEY",
}
_NEWS_SECONDS = 1.0
"""How often the file is looked at."""


class Credentials:
    """This host's own credentials. Belongs to one event loop; blocking libraries run in threads.

    `file` comes first, the longest prefix that fits; then the default chain of the store's SDK; then nothing, which
    public objects need no more than. A file that changes is read again. `clock` gives Unix seconds.
    """

    def __init__(self, file: CredentialFile | None = None, *, clock: Clock = time.time) -> None:
        self._file = file
        self._seen = _stamp(file.path) if file else None
        self._look_at = 0.0
        self._looking = asyncio.Lock()
        self._read_at = float("-inf")
        self._clock = clock
        self._regions = s3.Regions()
        self._signers: dict[tuple[Store, str | None], Signer] = {}
        # They log requests, signatures and tokens included, when the daemon's level lets them.
        for name in _LIBRARIES:
            logging.getLogger(name).setLevel(logging.ERROR)

    @classmethod
    def load(cls, path: Path, *, clock: Clock = time.time) -> Credentials:
        """Return the credentials of a file in Triton's format. Raises ConfigError, which quotes no value."""
        return cls(CredentialFile.load(path), clock=clock)

    async def signed(
        self,
        source: Source,
        *,
        method: str = "GET",
        headers: Fields = (),
        query: tuple[tuple[str, str], ...] = (),
    ) -> Source:
        """Return what to send for `source`, good for at least a minute; without a store it comes back untouched.

        `headers` are added, and signed where the dialect signs; `query` is escaped and added to the URL. The source
        that comes back holds a secret and no store: it is for one request, and must not travel. Raises
        BadRequestError, and CredentialsError where credentials should be there but cannot be had.
        """
        store = source.store
        if store is None:
            return source
        await self.look()
        text = "&".join(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in query)
        url = with_query(source.url, text)
        if store is Store.HTTP:
            return Source(url, (*source.headers, *headers))
        # Whatever a caller proves itself with is not ours, and stores refuse two proofs at once.
        fields = tuple((name, value) for name, value in source.headers if name.lower() != "authorization")
        request = Unsigned(store, url, method, headers, fields)
        signed = await self._signer(store, source.url).sign(request)
        if signed is not None:
            return signed
        plain = s3.addressed(url, self._regions.of(request, "")) if store is Store.S3 else url
        return Source(plain, (*fields, *headers))

    async def refused(self, source: Source, status: int, headers: Fields = (), body: bytes = b"") -> bool:
        """Learn from an answer to a signed request; return whether signing and sending once more is worth it.

        To be told of 401, 403 and redirects, and of S3's 400, with the first bytes of its body (ExpiredToken, or
        another region). Renewing on refusal is limited: an origin that refuses everything costs a token a minute.
        Whoever was refused shortly after a renewal may have asked before it, and tries again too.
        """
        store = source.store
        if store is None or store is Store.HTTP:
            return False
        if store in _S3_KINDS and status in (301, 307, 400, 403):
            found = _REGION.search(body)
            region = single(headers, "x-amz-bucket-region") or (found[1].decode() if found else "")
            if self._regions.learn(store, source.url, region):
                return True
        # Whoever does not read bodies cannot know: the benefit of the doubt costs one request.
        expired = status == 400 and store in _S3_KINDS and (not body or _EXPIRED.search(body) is not None)
        if status not in (401, 403) and not expired:
            return False
        self._look_at = 0.0
        await self.look()
        signer = self._signer(store, source.url)
        return self._clock() < self._read_at + GRACE_SECONDS or signer.forget()

    def explained(self, source: Source, status: int, headers: Fields = (), body: bytes = b"") -> CredentialsError:
        """Return the error for a refusal that stands: whose credentials they were, or where none were found."""
        store = source.store or Store.HTTP
        code = _CODE.search(body)
        said = single(headers, "x-ms-error-code") or (code[1].decode() if code else "")
        said = f" ({said})" if re.fullmatch(r"[A-Za-z0-9]{1,64}", said) else ""
        answer = f"the origin answered {status}{said} for {redact(source.url)}"
        if store is Store.HTTP:
            return CredentialsError(f"{answer}; it was asked without credentials", status)
        signer = self._signer(store, source.url)
        if signer.found:
            hint = "; S3 says 403 of missing objects too, where listing is not allowed" if status == 403 else ""
            return CredentialsError(
                f"{answer} to {signer.described}; check them and their rights" + (hint if store in _S3_KINDS else ""),
                status,
            )
        return CredentialsError(
            f"{answer}; it was asked without credentials: {self._missing(store, source.url)}", status
        )

    def covers(self, store: Store, url: str) -> bool:
        """Tell, without asking anybody, whether this host can sign for a URL, as of the last `look`.

        The identity of an instance counts once it has been found by signing. Raises BadRequestError.
        """
        return store is Store.HTTP or self._signer(store, url).found

    def _signer(self, store: Store, url: str) -> Signer:
        for prefix, entry in self._file.matches(store, url) if self._file else ():
            if _may_go(prefix, entry, store, url):
                return self._kept(store, prefix.name, prefix, entry)
        if store is Store.AZURE and azure.has_environment(url):
            return self._kept(store, "AZURE_STORAGE_", None, None)
        if store in (Store.GCS, Store.AZURE) and not is_own_host(store, url):
            # A token opens all doors of its owner: it goes nowhere but to the store, unless a prefix says so.
            return _Nobody()
        return self._kept(store, None, None, None)

    def _kept(self, store: Store, name: str | None, prefix: Prefix | None, entry: Entry | None) -> Signer:
        if (store, name) not in self._signers:
            self._signers[store, name] = self._made(store, name, prefix, entry)
        return self._signers[store, name]

    def _made(self, store: Store, name: str | None, prefix: Prefix | None, entry: Entry | None) -> Signer:
        described = f"the credentials for the prefix {prefix.written!r} of {self._path}" if prefix else ""
        match entry:
            case S3Entry():
                return s3.entry_signer(described, entry, store, self._regions, clock=self._clock)
            case GCSEntry():
                return gcs.entry_signer(described, entry.path, clock=self._clock)
            case AzureEntry():
                return azure.entry_signer(described, entry, clock=self._clock)
        described = f"the default credentials of {store.value} ({_CHAINS[store]})"
        if store is Store.GCS:
            return gcs.chain_signer(described, clock=self._clock)
        if store is Store.AZURE and name is not None:
            return azure.environment_signer("the credentials of AZURE_STORAGE_…", clock=self._clock)
        if store is Store.AZURE:
            return azure.chain_signer(described, clock=self._clock)
        return s3.chain_signer(described, store, self._regions, clock=self._clock)

    @property
    def _path(self) -> Path | None:
        return self._file.path if self._file else None

    def _missing(self, store: Store, url: str) -> str:
        fitting = self._file.matches(store, url) if self._file else ()
        if fitting:
            prefix = fitting[0][0]
            scheme = next(name for name, each in SECTIONS.items() if each is store)
            return (
                f"the prefix {prefix.written!r} of {self._path} fits, but is not for this account, or does not name "
                f"this endpoint; add a prefix like {scheme}://{origin_key(url)}"
            )
        first = f"no prefix of {self._path} fits" if self._path else "there is no --cloud-credentials file"
        return f"{first}, and nothing was found in {_CHAINS[store]}"

    async def look(self) -> None:
        """Take up a file that has changed; one that cannot be used is logged, and the old one kept.

        Returns at once if that was done a moment ago. Signing does it by itself.
        """
        if self._file is None or (self._clock() < self._look_at and not self._looking.locked()):
            return
        async with self._looking:
            if self._clock() >= self._look_at:
                self._look_at = self._clock() + _NEWS_SECONDS
                await self._reread(self._file)

    async def _reread(self, old: CredentialFile) -> None:
        stamp = await asyncio.to_thread(_stamp, old.path)
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._file = await asyncio.to_thread(CredentialFile.load, old.path)
        except ConfigError as error:
            log.warning("new credential file not usable; the old one stays", error=str(error))
            return
        self._signers.clear()
        self._read_at = self._clock()
        log.info("credential file read again", file=str(old.path))


class _Nobody:
    """The signer for hosts that no credentials may be sent to."""

    described = "no credentials"
    found = False

    async def sign(self, request: Unsigned) -> Source | None:
        return None

    def forget(self) -> bool:
        return False


def _may_go(prefix: Prefix, entry: Entry, store: Store, url: str) -> bool:
    """Tell whether an entry's credentials may be sent to where `url` leads.

    A presigned URL opens nothing else, so keys of S3 may go anywhere. A SAS or a token opens a whole account.
    """
    if isinstance(entry, S3Entry) or prefix.names_endpoint:
        return True
    if not is_own_host(store, url):
        return False
    if isinstance(entry, AzureEntry) and entry.account_str:
        return _same_account(entry.account_str, url)
    return True


def _same_account(account: str, url: str) -> bool:
    try:
        return azure.account_of(url) == account.lower()
    except BadRequestError:
        return False


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
