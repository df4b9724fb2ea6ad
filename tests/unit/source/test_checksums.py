"""Composite checksums of S3, asked for as AWS documents it, of a bucket that answers as AWS documents it.

The documents: "Checking object integrity" (composite values, "-" and the number of parts), "GetObjectAttributes" (its
fields and its XML, pages of parts) and "HeadObject" (partNumber: 206, the part's length, x-amz-mp-parts-count).
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from p2p.checksums import Checksum, ChecksumKind
from p2p.control import Source
from p2p.hostapi import Keepable, probe_from_json, probe_to_json
from p2p.identity import identify
from p2p.parts import Parts
from p2p.ranges import parse_range
from p2p.stores import Store
from peer.source.checksums import ChecksumProber
from peer.source.client import OriginClient
from peer.source.credentials import Credentials
from peer.source.http import Prober
from tests.support.attributes import composite, object_attributes

from .raw_origin import RawOrigin, RawRequest, raw_origin

DATA = random.Random(7).randbytes(5000)
TAG = '"0123456789abcdef0123456789abcdef-3"'


class Bucket:
    """One object of certain parts, with a composite CRC-32."""

    def __init__(self, lengths: Sequence[int], *, attributes: bool = True, page: int = 1000) -> None:
        self.lengths = lengths
        self.attributes = attributes
        self.page = page
        self.changed = False
        self.lie = 0

    @property
    def parts(self) -> list[bytes]:
        starts = [sum(self.lengths[:index]) for index in range(len(self.lengths) + 1)]
        return [DATA[start:stop] for start, stop in pairwise(starts)]

    @property
    def checksum(self) -> Checksum:
        return Checksum(ChecksumKind.CRC32, composite(ChecksumKind.CRC32, self.parts), Parts.of(self.lengths))

    def answer(self, request: RawRequest) -> bytes:
        query = parse_qs(urlsplit(request.target).query, keep_blank_values=True)
        signed = query["X-Amz-SignedHeaders"][0].split(";")
        amazon = {name.lower() for name, _ in request.fields if name.lower().startswith("x-amz-")}
        assert amazon <= set(signed), "S3 refuses fields of its own that are not signed"
        if "attributes" in query:
            return self._attributes(request)
        if request.line.startswith("HEAD"):
            assert request.field("x-amz-checksum-mode") == "ENABLED"
            return self._head(query)
        [wanted] = parse_range(request.field("Range") or "", len(DATA)) or ()
        content_range = f"Content-Range: bytes {wanted.start}-{wanted.stop - 1}/{len(DATA)}"
        return message("206 Partial Content", content_range, f"ETag: {TAG}", body=DATA[wanted.start : wanted.stop])

    def _head(self, query: dict[str, list[str]]) -> bytes:
        if "partNumber" not in query:
            tag = '"another"' if self.changed else TAG
            value = base64.b64encode(self.checksum.value).decode()
            value = f"x-amz-checksum-crc32: {value}-{len(self.lengths)}"
            kind = "x-amz-checksum-type: COMPOSITE"
            return message("200 OK", f"Content-Length: {len(DATA)}", f"ETag: {tag}", value, kind)
        number = int(query["partNumber"][0])
        length = self.lengths[number - 1] + self.lie
        count = f"x-amz-mp-parts-count: {len(self.lengths)}"
        return message("206 Partial Content", f"Content-Length: {length}", f"ETag: {TAG}", count)

    def _attributes(self, request: RawRequest) -> bytes:
        asked = (request.field("x-amz-object-attributes") or "").split(",")
        assert {"Checksum", "ObjectParts"} == set(asked)
        if not self.attributes:
            return message("403 Forbidden", body=b"<Error><Code>AccessDenied</Code></Error>")
        done = int(request.field("x-amz-part-number-marker") or 0)
        body = object_attributes(ChecksumKind.CRC32, self.parts, marker=done, page=self.page)
        return message("200 OK", body=body.replace(b"<Size>", b"<Size>1") if self.lie else body)


def message(status: str, *fields: str, body: bytes = b"") -> bytes:
    if not any(field.startswith("Content-Length") for field in fields):
        fields = (*fields, f"Content-Length: {len(body)}")
    return "\r\n".join((f"HTTP/1.1 {status}", *fields, "", "")).encode() + body


async def asked(bucket: Bucket, directory: Path) -> tuple[Checksum | None, RawOrigin]:
    """Probe the bucket's object twice; return what was learnt of its checksum, and the requests that took."""
    path = directory / "cloud_credential.json"
    path.write_text(json.dumps({"s3": {"": {"key_id": "AK", "secret_key": "of nobody"}}}))
    async with raw_origin(bucket.answer) as origin, OriginClient(credentials=Credentials.load(path)) as client:
        source = Source(f"{origin.base}/bucket/model", store=Store.S3)
        prober = ChecksumProber(Prober(client), client)
        probe = await prober.probe(source, identify(source.url).id)
        requests = len(origin.requests)
        assert await prober.probe(source, identify(source.url).id) == probe
        assert len(origin.requests) == requests + 1, "once a version"
        assert isinstance(probe, Keepable)
        assert probe_from_json(probe_to_json(probe)) == probe
        return probe.checksum, origin


def compared(checksum: Checksum) -> bool:
    hasher = checksum.hasher()
    hasher.update(DATA)
    return checksum.verify(hasher)


@pytest.mark.parametrize("lengths", [[2000, 2000, 1000], [1, 4000, 999], [5000]], ids=str)
async def test_parts_are_listed(tmp_path: Path, lengths: list[int]) -> None:
    bucket = Bucket(lengths)
    checksum, origin = await asked(bucket, tmp_path)
    assert checksum == bucket.checksum
    assert compared(checksum)
    assert sum("attributes" in request.target for request in origin.requests) == 1


async def test_parts_come_in_pages(tmp_path: Path) -> None:
    bucket = Bucket([1000] * 5, page=2)
    checksum, origin = await asked(bucket, tmp_path)
    assert checksum == bucket.checksum
    markers = [request.field("x-amz-part-number-marker") for request in origin.requests if "attrib" in request.target]
    assert markers == [None, "2", "4"]


async def test_without_the_right_to_list_parts_equal_ones_are_assumed(tmp_path: Path) -> None:
    checksum, _ = await asked(Bucket([2000, 2000, 1000], attributes=False), tmp_path)
    assert checksum is not None
    assert checksum.assumed
    assert compared(checksum)
    checksum, _ = await asked(Bucket([2000, 1500, 1500], attributes=False), tmp_path)
    assert checksum is not None
    assert not compared(checksum)


async def test_parts_that_cannot_be_the_objects_are_unknown(tmp_path: Path) -> None:
    bucket = Bucket([1500, 2000, 1500], attributes=False)
    assert (await asked(bucket, tmp_path))[0] is None
    bucket = Bucket([2000, 2000, 1000])
    bucket.lie = 1000
    assert (await asked(bucket, tmp_path))[0] is None


async def test_the_checksum_of_another_version_is_none(tmp_path: Path) -> None:
    bucket = Bucket([2000, 2000, 1000])
    bucket.changed = True
    assert (await asked(bucket, tmp_path))[0] is None
