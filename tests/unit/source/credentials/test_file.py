from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2p.errors import ConfigError
from p2p.stores import Store
from peer.settings import load_configuration
from peer.source.credentials.file import AzureEntry, CredentialFile, GCSEntry, S3Entry
from tests.unit.source.credentials.conftest import SECRET

Write = Callable[[str, str], Path]

TRITON = {
    "gs": {"": "google.json", "gs://gcs-bucket-002": "/etc/google-2.json"},
    "s3": {
        "": {"secret_key": SECRET, "key_id": "AKIA1", "region": "eu-west-1", "session_token": "", "profile": ""},
        "s3://s3-bucket-002": {
            "secret_key": SECRET,
            "key_id": "AKIA2",
            "region": "us-west-2",
            "session_token": SECRET,
            "profile": "two",
        },
    },
    "as": {
        "": {"account_str": "acc", "account_key": SECRET},
        "as://Account-002/Container": {"account_str": "", "account_key": ""},
        "as://Account-MI/Container": {"account_str": "mi", "auth_type": "managed_identity", "client_id": ""},
    },
}
"""The example of Triton's "Model Repository", with values of our own."""


def load(write: Write, value: Any) -> CredentialFile:
    return CredentialFile.load(write("cloud_credential.json", json.dumps(value)))


def test_tritons_own_example_is_read_as_it_is(write: Write, tmp_path: Path) -> None:
    read = load(write, TRITON)

    def best(store: Store, url: str) -> object:
        return read.matches(store, url)[0][1]

    assert best(Store.GCS, "https://storage.googleapis.com/b/k") == GCSEntry(tmp_path / "google.json")
    assert best(Store.GCS, "https://storage.googleapis.com/gcs-bucket-002/k") == GCSEntry(Path("/etc/google-2.json"))
    assert best(Store.S3, "https://s3.amazonaws.com/b/k") == S3Entry("AKIA1", SECRET, "", "eu-west-1")
    assert best(Store.S3, "https://s3.amazonaws.com/s3-bucket-002/k") == S3Entry(
        "AKIA2", SECRET, SECRET, "us-west-2", "two"
    )
    assert best(Store.AZURE, "https://account-mi.blob.core.windows.net/Container/k") == AzureEntry(
        "mi", auth_type="managed_identity"
    )


def test_the_longest_prefix_comes_first(write: Write) -> None:
    read = load(write, {"s3": {"": {}, "s3://b/models/big": {}, "s3://b": {}, "s3://b/models": {}}})
    found = read.matches(Store.S3, "https://s3.amazonaws.com/b/models/small")
    assert [prefix.written for prefix, _ in found] == ["s3://b/models", "s3://b", ""]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "is to be an object"),
        ({"gcs": {}}, "'gcs' is not a known key; did you mean 'gs'?"),
        ({"s3": {"": {"secretkey": SECRET}}}, "s3: '': 'secretkey' is not a known key; did you mean 'secret_key'?"),
        ({"s3": {"": {"secret_key": SECRET}}}, "only one of key_id and secret_key"),
        ({"s3": {"": {"key_id": 5, "secret_key": SECRET}}}, "key_id is to be a string"),
        ({"s3": {"gs://b": {}}}, "s3: 'gs://b' is to begin with \"s3://\""),
        ({"s3": {"": SECRET}}, "is to be an object"),
        ({"gs": {"": {"private_key": SECRET}}}, "the path of a credential file"),
        ({"as": {"": {"account_key": SECRET}}}, "without account_str"),
        ({"as": {"": {"account_str": "a", "auth_type": SECRET}}}, "auth_type is to be one of"),
    ],
)
def test_what_cannot_work_is_named_and_never_quoted(write: Write, value: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write, value)
    assert said in str(caught.value)
    assert "cloud_credential.json" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_file_that_is_missing_or_broken_is_named(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json"):
        CredentialFile.load(tmp_path / "nowhere.json")
    with pytest.raises(ConfigError, match="not JSON: line 2") as caught:
        CredentialFile.load(write("broken.json", f'{{"s3":\n "{SECRET}'))
    assert SECRET not in str(caught.value)


def test_the_configuration_file_names_it_too(write: Write, tmp_path: Path) -> None:
    configuration = load_configuration(write("peer.toml", '[origin]\ncredentials = "cloud_credential.json"\n'))
    assert configuration.cloud_credentials == tmp_path / "cloud_credential.json"


def test_no_repr_shows_a_secret(write: Write) -> None:
    assert SECRET not in repr(load(write, TRITON))
