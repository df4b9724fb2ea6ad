"""Objects of real stores are compared with the stores' own checksums, by a fleet whose seed alone has credentials.

Between the seed and the store is a relay, which can flip a bit in what comes from the store.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from azure.storage.blob import ContentSettings

from bench.cluster import LocalCluster
from p2p.checksums import ChecksumKind
from p2p.ranges import parse_content_range
from tests.support.attributes import object_attributes
from tests.support.azurite import ACCOUNT, BlobServer
from tests.support.daemons import CLIENT_SECONDS, Answer, fetch
from tests.support.gcs import GcsServer, running_gcs
from tests.support.origins import downloads, running_raw_origin
from tests.support.servers import S3Server
from tests.unit.source.raw_origin import RawOrigin, RawRequest

DATA = random.Random(9).randbytes(700_077)
PARTS = (DATA[:300_000], DATA[300_000:600_000], DATA[600_000:])
ODD_PARTS = (DATA[:300_000], DATA[300_000:400_000], DATA[400_000:])
BUCKET = f"bucket-{uuid.uuid4().hex[:12]}"
_HOP = ("connection", "content-length", "transfer-encoding")


class Relay:
    """Passes requests on to a store, and flips a bit in as many transfers of the last byte as `wrong` says."""

    def __init__(self, endpoint: str) -> None:
        self.backend = urlsplit(endpoint).netloc
        self.wrong = 0
        self.listed: Mapping[str, bytes] = {}
        """What GetObjectAttributes answers for a key, where the store leaves the parts out."""

    def answer(self, request: RawRequest) -> bytes:
        method, target, _ = request.line.split(" ")
        listed = next((body for key, body in self.listed.items() if f"/{key}?attributes" in target), None)
        if listed is not None:
            return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(listed) + listed
        connection = http.client.HTTPConnection(self.backend, timeout=CLIENT_SECONDS)
        try:
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in request.fields:
                connection.putheader(name, value)
            connection.endheaders()
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        head = [f"HTTP/1.1 {response.status} {response.reason}"]
        head += [f"{name}: {value}" for name, value in response.getheaders() if name.lower() not in _HOP]
        head += [f"Content-Length: {response.headers.get('Content-Length', len(body))}"]
        if self.wrong and _is_end(response, body):
            self.wrong -= 1
            body = body[:-1] + bytes([body[-1] ^ 1])
        return "\r\n".join((*head, "", "")).encode("latin-1") + body


def _is_end(response: http.client.HTTPResponse, body: bytes) -> bool:
    content_range = parse_content_range(response.headers.get("Content-Range", ""))
    return len(body) > 1 and content_range.range is not None and content_range.range.stop == content_range.length


class Fleet:
    """A seed that may read the store by way of the relay, and a peer that may not."""

    def __init__(self, cluster: LocalCluster, relay: Relay, origin: RawOrigin, store: str, root: str) -> None:
        self.cluster = cluster
        self.relay = relay
        self.origin = origin
        self._store = store
        self._root = root

    def ask(self, key: str) -> Answer:
        """Fetch an object through the peer, with the credentials of the fleet."""
        url, proxy = f"{self._root}/{key}", self.cluster["peer-1"].addresses["proxy"]
        return fetch(url, proxy=proxy, headers={"X-Damselfly-Store": self._store})

    def metric(self, line: str) -> float:
        """Return a counter of the peer's."""
        text = fetch(f"http://{self.cluster['peer-1'].addresses['http']}/metrics").body.decode()
        return sum(float(each.rpartition(" ")[2]) for each in text.splitlines() if each.startswith(f"{line} "))

    def verdicts(self, verdict: str) -> float:
        """Return how many whole objects the peer found to be so."""
        return self.metric(f'damselfly_object_digests_total{{verdict="{verdict}"}}')

    def mismatches(self, kind: str) -> float:
        """Return how many versions the peer dropped for a checksum of this kind."""
        return self.metric(f'damselfly_checksum_mismatches_total{{kind="{kind}"}}')


def upload_in_parts(server: S3Server, key: str, algorithm: str, parts: tuple[bytes, ...]) -> None:
    arguments = {"Bucket": BUCKET, "Key": key}
    upload = server.client.create_multipart_upload(**arguments, ChecksumAlgorithm=algorithm)["UploadId"]
    done = []
    for number, data in enumerate(parts, 1):
        asked = {"UploadId": upload, "PartNumber": number, "ChecksumAlgorithm": algorithm}
        answer = server.client.upload_part(**arguments, **asked, Body=data)
        name = f"Checksum{algorithm}"
        done.append({"PartNumber": number, "ETag": answer["ETag"], name: answer[name]})
    server.client.complete_multipart_upload(**arguments, UploadId=upload, MultipartUpload={"Parts": done})


def fill_s3(server: S3Server) -> tuple[str, Any]:
    server.client.create_bucket(Bucket=BUCKET)
    for algorithm in ("SHA256", "CRC32"):
        upload_in_parts(server, f"{algorithm}-listed", algorithm, ODD_PARTS)
        upload_in_parts(server, f"{algorithm}-equal", algorithm, PARTS)
        upload_in_parts(server, f"{algorithm}-odd", algorithm, ODD_PARTS)
    keys = server.client._request_signer._credentials
    return f"/{BUCKET}", {"key_id": keys.access_key, "secret_key": keys.secret_key}


def fill_azure(server: BlobServer) -> tuple[str, Any]:
    server.client.create_container(BUCKET)
    for key in ("md5", "wrong-md5"):
        # The service computes the MD5 of what comes at once.
        server.client.get_blob_client(BUCKET, key).upload_blob(DATA)
    wrong = ContentSettings(content_md5=bytearray(hashlib.md5(b"another").digest()))
    server.client.get_blob_client(BUCKET, "wrong-md5").set_http_headers(wrong)
    return f"/{ACCOUNT}/{BUCKET}", {"account_str": ACCOUNT, "account_key": server.key}


def fill_gcs(server: GcsServer, directory: Path) -> tuple[str, Any]:
    server.put(BUCKET, "crc32c", DATA)
    server.put(BUCKET, "composite", DATA, composite=True)
    return f"/{BUCKET}", str(server.service_account_file(directory))


@pytest.fixture(scope="module")
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    directory = tmp_path_factory.mktemp("fleet")
    with pytest.MonkeyPatch.context() as patch:
        # The least size of a part, which S3 has for its own sake.
        patch.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", 1)
        match request.param:
            case "s3":
                server = request.getfixturevalue("moto_s3")
                relay, (path, entry) = Relay(server.endpoint), fill_s3(server)
            case "azure":
                server = request.getfixturevalue("azurite")
                relay, (path, entry) = Relay(server.endpoint), fill_azure(server)
            case _:
                server = request.getfixturevalue("gcs")
                relay, (path, entry) = Relay(server.url), fill_gcs(server, directory)
    section = {"s3": "s3", "azure": "as", "gcs": "gs"}[request.param]
    with running_raw_origin(relay.answer) as origin:
        file = directory / "cloud_credential.json"
        file.write_text(json.dumps({section: {f"{section}://{origin.base}{path}": entry}}))
        arguments = {"seed": ("--cloud-credentials", str(file))}
        with LocalCluster(peers=1, directory=directory / "cluster", arguments=arguments) as cluster:
            yield Fleet(cluster, relay, origin, request.param, f"{origin.base}{path}")


@pytest.fixture(scope="module")
def gcs() -> Iterator[GcsServer]:
    with running_gcs() as server:
        yield server


def flips_and_comes_right(fleet: Fleet, key: str, kind: str) -> None:
    """The store's word finds a bit that flips on the way; the bytes are dropped everywhere and fetched once more."""
    before, verified, transfers = fleet.mismatches(kind), fleet.verdicts("verified"), len(downloads_of(fleet, key))
    fleet.relay.wrong = 1
    answer = fleet.ask(key)
    assert (answer.status, answer.sha256) == (200, hashlib.sha256(DATA).hexdigest())
    assert fleet.relay.wrong == 0
    assert fleet.mismatches(kind) == before + 1
    assert fleet.verdicts("verified") == verified + 1
    assert len(downloads_of(fleet, key)) == transfers + 2


def downloads_of(fleet: Fleet, key: str) -> list[RawRequest]:
    asked = downloads(fleet.origin)
    return [request for request in asked if f"/{key}" in request.target and request.field("Range") is not None]


@pytest.mark.parametrize("fleet", ["gcs"], indirect=True)
@pytest.mark.parametrize("key", ["crc32c", "composite"])
def test_google_gives_the_crc_of_every_object(fleet: Fleet, key: str) -> None:
    flips_and_comes_right(fleet, key, "crc32c")


@pytest.mark.parametrize("fleet", ["azure"], indirect=True)
def test_azure_gives_the_md5_of_what_was_uploaded_at_once(fleet: Fleet) -> None:
    flips_and_comes_right(fleet, "md5", "md5")


@pytest.mark.parametrize("fleet", ["azure"], indirect=True)
def test_a_blob_with_a_wrong_md5_is_refused_with_both_values(fleet: Fleet) -> None:
    answer = fleet.ask("wrong-md5")
    assert answer.status == 502
    said = answer.body.decode()
    assert f"the store says md5:{hashlib.md5(b'another').hexdigest()}" in said
    assert f"md5:{hashlib.md5(DATA).hexdigest()}" in said


@pytest.mark.parametrize("fleet", ["s3"], indirect=True)
@pytest.mark.parametrize("kind", [ChecksumKind.SHA256, ChecksumKind.CRC32])
def test_a_composite_checksum_of_s3_with_the_parts_that_it_lists(fleet: Fleet, kind: ChecksumKind) -> None:
    key = f"{kind.upper()}-listed"
    fleet.relay.listed = {key: object_attributes(kind, ODD_PARTS)}
    flips_and_comes_right(fleet, key, f"{kind}-composite")


@pytest.mark.parametrize("fleet", ["s3"], indirect=True)
@pytest.mark.parametrize(("layout", "verdict"), [("equal", "verified"), ("odd", "unknown")])
def test_a_composite_checksum_of_parts_that_are_not_listed(fleet: Fleet, layout: str, verdict: str) -> None:
    """Equal parts are tried: what comes out right is right, and what does not is not wrong for that."""
    for algorithm in ("SHA256", "CRC32"):
        before = fleet.verdicts(verdict)
        answer = fleet.ask(f"{algorithm}-{layout}")
        assert (answer.status, answer.sha256) == (200, hashlib.sha256(DATA).hexdigest())
        assert fleet.verdicts(verdict) == before + 1
