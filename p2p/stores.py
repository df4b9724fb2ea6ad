"""What is known about object stores: their hosts, and the query parameters that sign a URL.

The parameters are those of WIRE §1 and of the stores' own documents: AWS "Authenticating requests: using query
parameters" (Signature Version 4 and 2), Google "Signed URLs" (V4 and V2), Azure "Create a service SAS", "… an account
SAS" and "… a user delegation SAS", Alibaba "Add signatures to URLs" (V1 and V4), Huawei "Authentication of signature in
a URL". All of them only prove the right to read and never choose the bytes. Names are in lower case, and compared so: a
store that minds the case ignores the other spellings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class Store(StrEnum):
    """The kind of origin a task's bytes come from; `HTTP` is any that is not a known object store."""

    S3 = "s3"
    GCS = "gcs"
    AZURE = "azure"
    OSS = "oss"
    OBS = "obs"
    HTTP = "http"


_V2 = frozenset({"expires", "signature"})

_S3_PARAMETERS = _V2 | {
    "awsaccesskeyid",
    "x-amz-algorithm",
    "x-amz-checksum-mode",
    "x-amz-content-sha256",
    "x-amz-credential",
    "x-amz-date",
    "x-amz-expires",
    "x-amz-region-set",
    "x-amz-s3session-token",
    "x-amz-security-token",
    "x-amz-signature",
    "x-amz-signedheaders",
    "x-id",
}

SIGNING_PARAMETERS: dict[Store, frozenset[str]] = {
    Store.S3: _S3_PARAMETERS,
    Store.GCS: _V2
    | {
        "googleaccessid",
        "x-goog-algorithm",
        "x-goog-credential",
        "x-goog-date",
        "x-goog-expires",
        "x-goog-signature",
        "x-goog-signedheaders",
    },
    # Service, account and user delegation SAS. `sdd`, `ses`, `si`, `ss`, `srt` and the object ids go beyond WIRE §1.
    Store.AZURE: frozenset(
        {"sv", "st", "se", "sr", "sp", "sip", "spr", "sig", "skoid", "sktid", "skt", "ske", "sks", "skv"}
        | {"sdd", "ses", "si", "ss", "srt", "saoid", "suoid", "scid", "skdutid", "sduoid"}
    ),
    Store.OSS: _V2
    | {
        "ossaccesskeyid",
        "security-token",
        "x-oss-additional-headers",
        "x-oss-credential",
        "x-oss-date",
        "x-oss-expires",
        "x-oss-security-token",
        "x-oss-signature",
        "x-oss-signature-version",
    },
    # OBS speaks S3's dialect as well as its own.
    Store.OBS: _S3_PARAMETERS
    | {
        "accesskeyid",
        "x-obs-algorithm",
        "x-obs-content-sha256",
        "x-obs-credential",
        "x-obs-date",
        "x-obs-expires",
        "x-obs-security-token",
        "x-obs-signature",
        "x-obs-signedheaders",
    },
}
"""What each store's own part of a task's identity leaves out."""

_PROOFS: tuple[tuple[Store, frozenset[str]], ...] = (
    (Store.S3, frozenset({"x-amz-signature"})),
    (Store.GCS, frozenset({"x-goog-signature"})),
    (Store.OSS, frozenset({"x-oss-signature"})),
    (Store.OBS, frozenset({"x-obs-signature"})),
    (Store.S3, _V2 | {"awsaccesskeyid"}),
    (Store.GCS, _V2 | {"googleaccessid"}),
    (Store.OSS, _V2 | {"ossaccesskeyid"}),
    (Store.OBS, _V2 | {"accesskeyid"}),
    (Store.AZURE, frozenset({"sig", "sv", "sr"})),
    (Store.AZURE, frozenset({"sig", "sv", "ss"})),
)


def signed_for(names: frozenset[str]) -> Store | None:
    """Return the store whose signature a query with these parameter names (in lower case) carries, if any."""
    return next((store for store, proof in _PROOFS if proof <= names), None)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a host name points: a store, one name for all hosts that serve the same buckets, and the bucket.

    `bucket` is None where the first segment of the path names it (path style).
    """

    store: Store
    endpoint: str
    bucket: str | None


_AWS_REGION = r"[a-z]{2,4}(?:-[a-z]+)+-[0-9]+"
# Only the hosts of the plain REST interface: websites, access points, Object Lambda and S3 Express have other names for
# other things, and stand for themselves. A bucket may hold dots, so it takes as much as it can.
_AWS = re.compile(
    rf"(?:(?P<bucket>.+)\.)?s3(?:-fips|-accelerate|-external-1)?(?:\.dualstack)?(?:[.-](?P<region>{_AWS_REGION}))?"
    r"\.(?P<suffix>amazonaws\.com(?:\.cn)?)"
)
_GCS = re.compile(r"(?:(?P<bucket>.+)\.)?storage\.googleapis\.com")
_AZURE = re.compile(
    r"[a-z0-9-]+(?:\.[a-z0-9]+)?\.blob\."
    r"(?:core\.windows\.net|core\.chinacloudapi\.cn|core\.usgovcloudapi\.net|storage\.azure\.net)"
)
_OSS = re.compile(r"(?P<bucket>[a-z0-9-]+)\.(?P<endpoint>oss-[a-z0-9-]+\.aliyuncs\.com)")
_OBS = re.compile(r"(?:(?P<bucket>.+)\.)?(?P<endpoint>obs\.[a-z0-9-]+\.(?:myhuaweicloud\.(?:com|eu)|myhwclouds\.com))")


def place_of(host: str) -> Place | None:
    """Return what is known of a host name in lower case, or None. It says nothing about ports other than 80 and 443.

    Two hosts share an endpoint only where the same bucket name cannot mean two buckets. AWS promises that within a
    partition, so all commercial regions (and the accelerated, dual-stack and FIPS hosts) are `s3.amazonaws.com`; the
    hosts of other partitions keep their region.
    """
    if match := _AWS.fullmatch(host):
        region = match["region"]
        commercial = match["suffix"] == "amazonaws.com" and not (region or "").startswith("us-gov-")
        endpoint = f"s3.{match['suffix']}" if commercial or not region else f"s3.{region}.{match['suffix']}"
        return Place(Store.S3, endpoint, match["bucket"])
    if match := _GCS.fullmatch(host):
        return Place(Store.GCS, "storage.googleapis.com", match["bucket"])
    if _AZURE.fullmatch(host):
        return Place(Store.AZURE, host, None)
    if match := _OSS.fullmatch(host):
        return Place(Store.OSS, match["endpoint"], match["bucket"])
    if match := _OBS.fullmatch(host):
        return Place(Store.OBS, match["endpoint"], match["bucket"])
    return None
