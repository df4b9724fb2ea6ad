"""Object stores end to end: native names and the seed's credentials, through real daemons and the real commands.

Only the seed has credentials; peers and commands know native names, and the presigned URLs that Triton asks with.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.cluster import LocalCluster
from tests.support.azurite import running_azurite
from tests.support.clients import s5cmd
from tests.support.commands import DAMSELFLY, DEADLINE
from tests.support.daemons import fetch
from tests.support.gcs import GcsServer, running_gcs
from tests.support.servers import S3Server
from tests.support.stores import NamedStore, azure_store, gcs_store, s3_store
from tests.support.tls import own_authority

DATA = random.Random(4).randbytes(9 * 1024 * 1024 + 77)
REPOSITORY = {
    "models/resnet/config.pbtxt": b'name: "resnet"\n',
    "models/resnet/1/model.onnx": DATA[: 5 * 1024 * 1024 + 1],
    "models/resnet/2/model.onnx": DATA[5 * 1024 * 1024 :],
    "models/a+b c/1/model.plan": DATA[:70_000],
    "models/a+b c/labels.txt": b"",
    "models/ensemble/1/weights%20.bin": DATA[-3:],
}


class Site:
    """One store, and a cluster whose seed may read it."""

    def __init__(self, store: NamedStore, cluster: LocalCluster) -> None:
        self.store = store
        self.cluster = cluster

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Run the command to its end; return its exit status and what it wrote to standard output and error."""
        done = subprocess.run([*DAMSELFLY, *arguments], capture_output=True, text=True, timeout=DEADLINE, check=False)
        return done.returncode, done.stdout, done.stderr

    def get(self, name: str, output: Path, *more: str, peer: str = "peer-1") -> tuple[int, str]:
        """Fetch a name through a peer; return the exit status and what was said."""
        addresses = self.cluster[peer].addresses
        through = ("--proxy", addresses["proxy"], "--peer-http", addresses["http"])
        status, _, said = self.run("get", name, "-o", str(output), *through, *more)
        return status, said

    def preheat(self, *arguments: str) -> tuple[int, str]:
        """Preheat and wait; return the exit status and everything that was said."""
        scheduler = self.cluster["scheduler"].addresses["http"]
        secret = str(self.cluster.secret_file)
        status, out, said = self.run(
            "preheat", *arguments, "--wait", "--scheduler-http", scheduler, "--cluster-secret-file", secret
        )
        return status, out + said


@contextmanager
def site(
    store: NamedStore,
    directory: Path,
    *,
    others: Mapping[str, object] | None = None,
    peers: int = 2,
    peer_arguments: tuple[str, ...] = (),
) -> Iterator[Site]:
    file = store.write_credentials(directory / "cloud_credential.json", others)
    arguments = {
        "seed": ("--cloud-credentials", str(file), *store.seed_arguments),
        "peer": (*store.seed_arguments, *peer_arguments),
    }
    with LocalCluster(peers=peers, directory=directory / "cluster", arguments=arguments) as cluster:
        yield Site(store, cluster)


@pytest.fixture(scope="module")
def gcs() -> Iterator[GcsServer]:
    with running_gcs() as server:
        yield server


STORES = ["radosgw", "moto", "azurite", "azurite-sas", "azurite-https", "gcs"]


@pytest.fixture(scope="module")
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NamedStore]:
    name, directory = request.param, tmp_path_factory.mktemp("store")
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    match name:
        case "radosgw" | "moto":
            server = request.getfixturevalue("radosgw" if name == "radosgw" else "moto_s3")
            yield s3_store(server, bucket)
        case "azurite" | "azurite-sas":
            yield azure_store(request.getfixturevalue("azurite"), bucket, sas=name == "azurite-sas")
        case "azurite-https":
            ca_file, _ = own_authority(directory)
            with running_azurite(directory, certificate=(ca_file, directory / "key.pem")) as blobs:
                yield azure_store(blobs, bucket, ca_file=ca_file)
        case _:
            yield gcs_store(request.getfixturevalue("gcs"), bucket, directory)


@pytest.fixture(scope="module")
def place(store: NamedStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A store with a model repository in it, and a cluster; under `locked/` the seed has wrong credentials."""
    for key, data in REPOSITORY.items():
        store.put(key, data)
    store.put("locked/model.onnx", DATA)
    with site(store, tmp_path_factory.mktemp("site"), others={store.native("locked"): store.wrong}) as started:
        yield started


every_store = pytest.mark.parametrize("store", STORES, indirect=True)


@every_store
def test_an_object_is_fetched_by_its_native_name(place: Site, tmp_path: Path) -> None:
    key = "models/resnet/1/model.onnx"
    status, said = place.get(place.store.native(key), tmp_path / "model.onnx")
    assert status == 0, said
    assert (tmp_path / "model.onnx").read_bytes() == REPOSITORY[key]


@every_store
def test_a_model_repository_keeps_its_tree(place: Site, tmp_path: Path) -> None:
    status, said = place.get(place.store.native("models/"), tmp_path / "repository", "--recursive")
    assert status == 0, said
    found = {
        f"models/{file.relative_to(tmp_path / 'repository')}": file.read_bytes()
        for file in (tmp_path / "repository").rglob("*")
        if file.is_file() and not file.name.startswith(".")
    }
    assert found == REPOSITORY


@every_store
def test_what_was_preheated_by_name_is_a_local_hit_for_triton(place: Site) -> None:
    key = "models/resnet/2/model.onnx"
    status, said = place.preheat(place.store.native(key), "--to", "all")
    assert status == 0, said
    for peer in ("peer-1", "peer-2"):
        answer = fetch(place.store.presign(key), proxy=place.cluster[peer].addresses["proxy"])
        assert (answer.status, answer.headers["x-cache"]) == (200, "HIT-LOCAL")
        assert answer.body == REPOSITORY[key]


@every_store
def test_wrong_credentials_are_called_by_their_prefix(place: Site, tmp_path: Path) -> None:
    if place.store.name == "moto":
        pytest.skip("moto takes any signature")
    status, said = place.get(place.store.native("locked/model.onnx"), tmp_path / "model.onnx")
    assert status == 1
    assert place.store.native("locked") in said
    assert not (tmp_path / "model.onnx").exists()


@every_store
def test_an_object_that_is_not_there_is_said_to_be_so(place: Site, tmp_path: Path) -> None:
    status, said = place.get(place.store.native("models/none.bin"), tmp_path / "none.bin")
    assert (status, "404" in said) == (1, True), said
    status, said = place.get(place.store.native("nothing/here/"), tmp_path / "none", "--recursive")
    assert status == 1, said
    assert "nothing/here" in said


@every_store
def test_a_preheat_of_a_whole_repository_names_what_failed(place: Site) -> None:
    status, said = place.preheat(place.store.native("models/"), place.store.native("models/none.bin"), "--recursive")
    assert status == 1
    assert "none.bin" in said


def test_a_token_that_expires_in_mid_download_is_renewed(gcs: GcsServer, tmp_path: Path) -> None:
    store = gcs_store(gcs, f"bucket-{uuid.uuid4().hex[:12]}", tmp_path)
    data = random.Random(5).randbytes(150 * 1024 * 1024)
    store.put("model.bin", data)
    with site(store, tmp_path, peers=1) as started:
        gcs.expire_tokens(after_answers=3)
        status, said = started.get(store.native("model.bin"), tmp_path / "model.bin")
    assert status == 0, said
    assert (tmp_path / "model.bin").read_bytes() == data


def test_what_s5cmd_signs_becomes_cacheable_where_a_rule_lends_credentials(radosgw: S3Server, tmp_path: Path) -> None:
    """It signs its ranges, so they could not be taken in pieces with its own signature."""
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    store = s3_store(radosgw, bucket)
    store.put("model.bin", DATA)
    keys = radosgw.client._request_signer._credentials
    # Go never sends 127.0.0.1 to a proxy, so the endpoint is spelt in a way that it does not know for loopback.
    endpoint = radosgw.endpoint.replace("127.0.0.1", "0x7f.1")
    rules = tmp_path / "peer.toml"
    rules.write_text(f"[[rules]]\nmatch = '^{endpoint}/'\ncredentials = 'seed'\n")
    with site(store, tmp_path, peers=1, peer_arguments=("--config", str(rules))) as started:
        proxy = started.cluster["peer-1"].addresses["proxy"]
        said = []
        for number in range(2):
            file = tmp_path / f"copy-{number}"
            copy = ("--log", "trace", "cp", f"s3://{bucket}/model.bin", str(file))
            outcome = s5cmd(*copy, endpoint=endpoint, credentials=(keys.access_key, keys.secret_key), proxy=proxy)
            assert outcome.code == 0, outcome.said
            assert file.read_bytes() == DATA
            said.append(outcome.said)
    assert "X-Cache: HIT-LOCAL" in said[1]
    assert "X-Cache: MISS" not in said[1]


def test_what_only_the_seed_may_fetch_outlives_a_scheduler_that_forgets(moto_s3: S3Server, tmp_path: Path) -> None:
    """Nobody else could confirm what the seed holds: only it has credentials, and it is the only one that has it."""
    store = s3_store(moto_s3, f"bucket-{uuid.uuid4().hex[:12]}")
    store.put("model.bin", DATA)
    with site(store, tmp_path, peers=1) as started:
        status, said = started.preheat(store.native("model.bin"), "--to", "seeds")
        assert status == 0, said
        started.cluster.kill("scheduler")
        shutil.rmtree(started.cluster["scheduler"].directory)
        started.cluster.restart("scheduler")
        started.cluster.restart("peer-1")
        status, said = started.get(store.native("model.bin"), tmp_path / "model.bin")
    assert status == 0, said
    assert "origin 0 bytes" in said
    assert (tmp_path / "model.bin").read_bytes() == DATA
