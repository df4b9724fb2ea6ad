"""The credential file: Triton's `cloud_credential.json`, read as it is, with sections of our own for OSS and OBS.

Sources: Triton's "Model Repository", section "Cloud Storage with Credential file". No value of it is ever quoted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from p2p.config import nearest
from p2p.errors import ConfigError
from p2p.stores import Store
from peer.source.credentials.names import SECTIONS, Prefix, spellings


@dataclass(frozen=True, slots=True)
class S3Entry:
    """Keys of S3, OSS or OBS. Without keys the default chain of the SDK finds them, in `profile` if that is set."""

    key_id: str = field(default="", repr=False)
    secret_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    region: str = ""
    profile: str = ""


@dataclass(frozen=True, slots=True)
class GCSEntry:
    """A file that google-auth understands: of a service account, a user, or a federated identity."""

    path: Path


@dataclass(frozen=True, slots=True)
class AzureEntry:
    """An account with its key or a SAS, or an identity: `auth_type` is "managed_identity", "default" or empty."""

    account_str: str = ""
    account_key: str = field(default="", repr=False)
    sas_token: str = field(default="", repr=False)
    auth_type: str = ""
    client_id: str = field(default="", repr=False)


Entry = S3Entry | GCSEntry | AzureEntry

_S3_KEYS = ("secret_key", "key_id", "region", "session_token", "profile")
_AZURE_KEYS = ("account_str", "account_key", "sas_token", "auth_type", "client_id")
_AUTH_TYPES = ("", "shared_key", "managed_identity", "default")


@dataclass(frozen=True, slots=True)
class CredentialFile:
    """What a file says: the entries of each store, the longest prefix first."""

    path: Path
    entries: Mapping[Store, tuple[tuple[Prefix, Entry], ...]]

    @classmethod
    def load(cls, path: Path) -> CredentialFile:
        """Read a file; paths in it are looked for beside it. Raises ConfigError, which quotes no value."""
        try:
            top = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read the credential file {str(path)!r}: {error.strerror}") from None
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path} is not JSON: line {error.lineno}, column {error.colno}: {error.msg}") from None
        except UnicodeError:
            raise ConfigError(f"{path} is not UTF-8") from None
        sections = _table(top, str(path), SECTIONS)
        return cls(path, {SECTIONS[name]: _section(name, section, path) for name, section in sections.items()})

    def matches(self, store: Store, url: str) -> tuple[tuple[Prefix, Entry], ...]:
        """Return the entries that fit a plain URL, the longest prefix first. Raises BadRequestError."""
        entries = self.entries.get(store, ())
        if not entries:
            return ()
        names = spellings(store, url)
        return tuple((prefix, entry) for prefix, entry in entries if prefix.fits(names))


def _section(name: str, section: object, path: Path) -> tuple[tuple[Prefix, Entry], ...]:
    found = []
    for written, values in _table(section, f"{path}: {name}").items():
        place = f"{path}: {name}: {written!r}"
        try:
            prefix = Prefix.parse(written, name)
        except ValueError:
            raise ConfigError(f'{place} is to begin with "{name}://", or to be empty for the default') from None
        found.append((prefix, _entry(name, values, place, path.parent)))
    return tuple(sorted(found, key=lambda entry: len(entry[0].name), reverse=True))


def _entry(section: str, values: object, place: str, directory: Path) -> Entry:
    if section == "gs":
        if not isinstance(values, str) or not values:
            raise ConfigError(f"{place} is to be the path of a credential file, as a string that is not empty")
        return GCSEntry(directory / values)
    keys = _AZURE_KEYS if section == "as" else _S3_KEYS
    texts = _table(values, place, keys)
    for key, value in texts.items():
        if not isinstance(value, str):
            raise ConfigError(f"{place}: {key} is to be a string")
    read = {key: str(value) for key, value in texts.items()}
    return _azure(AzureEntry(**read), place) if section == "as" else _s3(S3Entry(**read), place)


def _s3(entry: S3Entry, place: str) -> S3Entry:
    if bool(entry.key_id) != bool(entry.secret_key):
        raise ConfigError(f"{place} has only one of key_id and secret_key; give both, or neither for the default chain")
    return entry


def _azure(entry: AzureEntry, place: str) -> AzureEntry:
    if entry.auth_type not in _AUTH_TYPES:
        raise ConfigError(f"{place}: auth_type is to be one of {', '.join(_AUTH_TYPES[1:])}")
    if entry.account_key and not entry.account_str:
        raise ConfigError(f"{place} has an account_key without account_str, the account's name")
    return entry


def _table(values: object, place: str, known: Mapping[str, object] | tuple[str, ...] = ()) -> dict[str, object]:
    """Return an object of the file, whose keys must be known ones if there are any."""
    if not isinstance(values, dict):
        raise ConfigError(f"{place} is to be an object, {{…}}")
    for key in values:
        if known and key not in known:
            near = nearest(key, known)
            hint = f"did you mean {near!r}?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"{place}: {key!r} is not a known key; {hint}")
    return values
