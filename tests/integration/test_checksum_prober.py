"""Which checksums real stores give for whole objects, when this host signs."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path

import pytest

from p2p.checksums import Checksum, ChecksumKind
from p2p.control import Source
from p2p.hostapi import Keepable
from p2p.identity import identify
from p2p.native import parse_native
from peer.source.checksums import ChecksumProber
from peer.source.client import OriginClient
from peer.source.credentials import Credentials
from peer.source.http import Prober
from tests.support.servers import S3Server

DATA = b"the bytes of a model" * 1000


def upload(server: S3Server, bucket: str, algorithm: str) -> None:
    server.client.create_bucket(Bucket=bucket)
    server.client.put_object(Bucket=bucket, Key="model", Body=DATA, ChecksumAlgorithm=algorithm)


async def checksum_of(server: S3Server, algorithm: str, directory: Path, *, signed: bool = True) -> Checksum | None:
    bucket = f"bucket-{uuid.uuid4()}"
    await asyncio.to_thread(upload, server, bucket, algorithm)
    keys = server.client._request_signer._credentials
    path = directory / "cloud_credential.json"
    entry = {"key_id": keys.access_key, "secret_key": keys.secret_key}
    path.write_text(json.dumps({"s3": {f"s3://{server.endpoint}/{bucket}": entry}}))
    credentials = Credentials.load(path)
    location = parse_native(f"s3://{server.endpoint}/{bucket}/model")
    if signed:
        source = Source(location.url, store=location.store)
    else:
        source = Source(await asyncio.to_thread(server.presign, bucket, "model"))
    async with OriginClient(credentials=credentials) as client:
        prober = ChecksumProber(Prober(client), client)
        probe = await prober.probe(source, identify(location.url).id)
        again = await prober.probe(source, identify(location.url).id)
        assert isinstance(probe, Keepable)
        assert isinstance(again, Keepable)
        assert again.checksum == probe.checksum
        return probe.checksum


@pytest.mark.parametrize(("algorithm", "kind"), [("CRC32", ChecksumKind.CRC32), ("SHA256", ChecksumKind.SHA256)])
async def test_s3_tells_who_signs(moto_s3: S3Server, tmp_path: Path, algorithm: str, kind: ChecksumKind) -> None:
    found = await checksum_of(moto_s3, algorithm, tmp_path)
    assert found is not None
    hasher = found.hasher()
    hasher.update(DATA)
    found.verify(hasher)
    assert found.kind is kind


async def test_a_callers_own_url_is_not_asked_for_more(moto_s3: S3Server, tmp_path: Path) -> None:
    assert await checksum_of(moto_s3, "CRC32", tmp_path, signed=False) is None


async def test_a_store_that_verifies_signatures_takes_the_question(radosgw: S3Server, tmp_path: Path) -> None:
    """Ceph 16 keeps no checksums, and says nothing; whatever a later one says must be right."""
    found = await checksum_of(radosgw, "CRC32", tmp_path)
    if found is not None:
        hasher = found.hasher()
        hasher.update(DATA)
        found.verify(hasher)
