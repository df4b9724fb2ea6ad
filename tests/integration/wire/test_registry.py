"""WIRE §4 and §5, the registry mirror: Debian's docker-registry with skopeo and as containerd asks."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.cluster import LocalCluster
from tests.support.daemons import Answer, fetch
from tests.support.origins import running_raw_origin
from tests.support.registry import (
    AS_IT_IS,
    PASSWORD,
    TOKEN,
    USER,
    Image,
    Registry,
    digest_of,
    make_image,
    pull,
    pulled,
    push,
    random_layer,
    running_registry,
    running_token_server,
    skopeo,
)
from tests.unit.source.raw_origin import Answer as Answering
from tests.unit.source.raw_origin import RawRequest, response, serving

BIG, SMALL = random_layer(11, 9 * 1024 * 1024 + 77), random_layer(12, 40_000)
BEARER = {"Authorization": f"Bearer {TOKEN}"}
CUT_OFF = (ConnectionResetError, http.client.IncompleteRead)
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True)
class Mirror:
    """Two peers whose default upstream is `registry`, which wants a token from a server that `asked` belongs to."""

    registry: Registry
    asked: Sequence[str]
    proxy: str
    other_proxy: str


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirror]:
    directory = tmp_path_factory.mktemp("mirror")
    with (
        running_token_server() as (realm, asked),
        running_registry(directory / "registry", token_realm=realm) as registry,
        LocalCluster(
            peers=2, directory=directory / "cluster", arguments={"peer": ["--registry-upstream", registry.address]}
        ) as cluster,
    ):
        proxy, other_proxy = (cluster[name].addresses["proxy"] for name in ("peer-1", "peer-2"))
        yield Mirror(registry, asked, proxy, other_proxy)


@pytest.fixture(scope="module")
def image(mirror: Mirror, tmp_path_factory: pytest.TempPathFactory) -> Image:
    made = make_image(tmp_path_factory.mktemp("image") / "oci", BIG, SMALL)
    push(made, mirror.registry, "models/shared:v1")
    return made


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Registry, Image]]:
    """A registry that serves USER only, and what is in it as models/private:v1."""
    directory = tmp_path_factory.mktemp("private")
    with running_registry(directory / "registry", users=True) as registry:
        made = make_image(directory / "oci", random_layer(13, 300_000))
        push(made, registry, "models/private:v1", "--dest-creds", f"{USER}:{PASSWORD}")
        yield registry, made


def test_skopeo_pulls_through_a_token_and_the_second_time_from_disk(mirror: Mirror, tmp_path: Path) -> None:
    layer = random_layer(14, 6 * 1024 * 1024)
    image = make_image(tmp_path / "oci", layer)
    push(image, mirror.registry, "models/resnet:v1")
    blobs = len(image.config) + len(layer)
    before, tokens = mirror.registry.blob_bytes(), len(mirror.asked)
    first = pull(f"{mirror.proxy}/models/resnet:v1", tmp_path / "first")
    assert (first.code, pulled(tmp_path / "first", image)) == (0, True), first.said
    # The challenge came through as the registry wrote it, and so the token server was asked, and by the client itself.
    assert len(mirror.asked) == tokens + 1
    assert "scope=repository%3Amodels%2Fresnet%3Apull" in mirror.asked[-1]
    cold = mirror.registry.blob_bytes() - before
    assert blobs <= cold <= blobs + 8
    for proxy, name in ((mirror.proxy, "second"), (mirror.other_proxy, "other")):
        before = mirror.registry.blob_bytes()
        again = pull(f"{proxy}/models/resnet:v1", tmp_path / name)
        assert (again.code, pulled(tmp_path / name, image)) == (0, True), again.said
        # Each blob costs one byte: the question whether this caller may have it.
        assert mirror.registry.blob_bytes() - before == 2


def test_skopeo_uses_it_as_a_configured_mirror(mirror: Mirror, image: Image, tmp_path: Path) -> None:
    configuration = tmp_path / "registries.conf"
    configuration.write_text(
        f'[[registry]]\nlocation = "registry.invalid/models"\n'
        f'[[registry.mirror]]\nlocation = "{mirror.proxy}/models"\ninsecure = true\n'
    )
    done = pull("registry.invalid/models/shared:v1", tmp_path / "out", registries=configuration)
    assert (done.code, pulled(tmp_path / "out", image)) == (0, True), done.said


def test_skopeo_inspects_and_pushes_through_it(mirror: Mirror, tmp_path: Path) -> None:
    image = make_image(tmp_path / "oci", random_layer(15, 200_000))
    target = f"docker://{mirror.proxy}/models/pushed:v1"
    done = skopeo("copy", *AS_IT_IS, image.reference, target)
    assert done.code == 0, done.said
    seen = skopeo("inspect", "--tls-verify=false", target)
    assert (seen.code, json.loads(seen.said)["Digest"]) == (0, image.digest)


def blob(image: Image, layer: bytes, repository: str = "models/shared") -> str:
    assert layer in image.layers
    return f"/v2/{repository}/blobs/{digest_of(layer)}"


def containerd(proxy: str, target: str, registry: Registry, **headers: str) -> Answer:
    """Ask as containerd asks a mirror: in origin form, with `ns`."""
    own = {"User-Agent": "containerd/1.7.24", "Accept": "*/*", **BEARER}
    return fetch(f"http://{proxy}{target}?ns={registry.address}", headers={**own, **headers})


def test_containerd_names_the_registry_and_its_ranges_are_parts_of_the_blob(mirror: Mirror, image: Image) -> None:
    whole = containerd(mirror.proxy, blob(image, BIG), mirror.registry)
    assert (whole.status, whole.sha256) == (200, hashlib.sha256(BIG).hexdigest())
    assert whole.headers["docker-content-digest"] == digest_of(BIG)
    for start, stop in ((0, 5_000_000), (5_000_000, len(BIG))):
        part = containerd(mirror.other_proxy, blob(image, BIG), mirror.registry, Range=f"bytes={start}-{stop - 1}")
        assert (part.status, part.body == BIG[start:stop]) == (206, True)
        assert part.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(BIG)}"
    assert all("ns=" not in answer.target for answer in mirror.registry.sent())


def test_head_of_a_blob_is_its_length_and_digest(mirror: Mirror, image: Image) -> None:
    url = f"http://{mirror.proxy}{blob(image, SMALL)}"
    answer = fetch(url, method="HEAD", headers=BEARER)
    assert (answer.status, answer.headers["content-length"], answer.body) == (200, str(len(SMALL)), b"")
    assert answer.headers["docker-content-digest"] == digest_of(SMALL)


def test_repositories_share_a_blob(mirror: Mirror, image: Image, tmp_path: Path) -> None:
    assert containerd(mirror.proxy, blob(image, BIG), mirror.registry).body == BIG
    twin = make_image(tmp_path / "oci", BIG)
    push(twin, mirror.registry, "others/finetuned:v1")
    before = mirror.registry.blob_bytes()
    answer = containerd(mirror.proxy, blob(twin, BIG, "others/finetuned"), mirror.registry)
    assert (answer.headers["x-cache"], answer.body == BIG) == ("HIT-LOCAL", True)
    assert mirror.registry.blob_bytes() - before == 1


def test_the_header_names_the_registry_and_refusals_pass_though_the_blob_is_here(
    mirror: Mirror, private: tuple[Registry, Image]
) -> None:
    registry, image = private
    (layer,) = image.layers
    url = f"http://{mirror.proxy}{blob(image, layer, 'models/private')}"
    known = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    unknown = base64.b64encode(f"{USER}:wrong".encode()).decode()
    named = {"X-Dragonfly-Registry": f"http://{registry.address}"}
    allowed = fetch(url, headers={**named, "Authorization": f"Basic {known}"})
    assert (allowed.status, allowed.body == layer) == (200, True)
    for headers in (named, {**named, "Authorization": f"Basic {unknown}"}):
        refused = fetch(url, headers=headers)
        assert refused.status == 401
        assert refused.headers["www-authenticate"] == 'Basic realm="tests"'
        assert json.loads(refused.body)["errors"][0]["code"] == "UNAUTHORIZED"
        manifest = fetch(f"http://{mirror.proxy}/v2/models/private/manifests/v1", headers=headers)
        assert (manifest.status, manifest.headers["www-authenticate"]) == (401, 'Basic realm="tests"')
    hit = fetch(url, headers={**named, "Authorization": f"Basic {known}"})
    assert (hit.headers["x-cache"], hit.body == layer) == ("HIT-LOCAL", True)


def test_manifests_are_asked_for_every_time_and_sent_once(mirror: Mirror, image: Image) -> None:
    for reference in ("v1", image.digest):
        url = f"http://{mirror.proxy}/v2/models/shared/manifests/{reference}"
        answers = [fetch(url, headers={**BEARER, "Accept": MANIFEST_TYPE}) for _ in range(3)]
        for answer in answers:
            assert (answer.status, answer.body) == (200, image.manifest)
            assert answer.headers["content-type"] == MANIFEST_TYPE
            assert answer.headers["docker-content-digest"] == image.digest
        assert [answer.headers["x-cache"] for answer in answers[1:]] == ["HIT-LOCAL", "HIT-LOCAL"]
        asked = [sent.status for sent in mirror.registry.sent() if sent.target.endswith(f"/manifests/{reference}")]
        assert asked[-2:] == [304, 304]


def test_a_tag_that_moves_is_followed_at_once(mirror: Mirror, tmp_path: Path) -> None:
    for number in (1, 2):
        image = make_image(tmp_path / f"oci{number}", random_layer(20 + number, 1000))
        push(image, mirror.registry, "models/moving:latest")
        for _ in range(2):
            url = f"http://{mirror.proxy}/v2/models/moving/manifests/latest"
            answer = fetch(url, headers={**BEARER, "Accept": MANIFEST_TYPE})
            assert (answer.body, answer.headers["docker-content-digest"]) == (image.manifest, image.digest)


def test_what_is_not_there_is_the_registrys_own_404(mirror: Mirror, image: Image) -> None:
    missing = digest_of(b"missing")
    for target, code in (
        (f"/v2/models/shared/blobs/{missing}", "BLOB_UNKNOWN"),
        (f"/v2/models/shared/manifests/{missing}", "MANIFEST_UNKNOWN"),
        ("/v2/models/none/manifests/v1", "MANIFEST_UNKNOWN"),
        ("/v2/models/none/tags/list", "NAME_UNKNOWN"),
    ):
        answer = fetch(f"http://{mirror.proxy}{target}", headers=BEARER)
        assert (answer.status, json.loads(answer.body)["errors"][0]["code"]) == (404, code)


def test_the_rest_of_the_interface_is_forwarded(mirror: Mirror, image: Image) -> None:
    ping = fetch(f"http://{mirror.proxy}/v2/", headers=BEARER)
    assert (ping.status, ping.headers["docker-distribution-api-version"]) == (200, "registry/2.0")
    challenge = fetch(f"http://{mirror.proxy}/v2/")
    assert (challenge.status, challenge.headers["www-authenticate"].partition(" ")[0]) == (401, "Bearer")
    tags = fetch(f"http://{mirror.proxy}/v2/models/shared/tags/list", headers=BEARER)
    assert json.loads(tags.body) == {"name": "models/shared", "tags": ["v1"]}


def test_without_a_registry_the_answer_says_how_to_name_one(proxy: str) -> None:
    answer = fetch(f"http://{proxy}/v2/")
    assert (answer.status, answer.headers["x-dragonfly-error-type"]) == (400, "proxy")
    assert b"--registry-upstream" in answer.body


LAYER = random_layer(30, 300_000)
LAYER_PATH = f"/v2/models/redirected/blobs/{digest_of(LAYER)}"


def redirecting(location: str) -> Answering:
    return lambda _: response(307, f"Location: {location}", f"Docker-Content-Digest: {digest_of(LAYER)}")


def test_a_blob_that_lies_elsewhere_is_followed_without_the_token(proxy: str, other_proxy: str) -> None:
    """Storages behind registries know neither the digest nor who asks, and sign every redirect anew."""
    etags = iter(range(1000))

    def storage_answer(request: RawRequest) -> bytes:
        # No two answers have the same ETag: the digest alone is the version.
        answer = serving(LAYER, "Cache-Control: max-age=60", etag=f'"upload-{next(etags)}"')(request)
        assert isinstance(answer, bytes)
        return answer

    with (
        running_raw_origin(storage_answer) as storage,
        running_raw_origin(redirecting(f"{storage.base}/bucket/x?X-Amz-Signature=5ec2e7")) as registry,
    ):
        headers = {"X-Dragonfly-Registry": registry.base, **BEARER}
        for cache in ("MISS", "HIT-LOCAL"):
            answer = fetch(f"http://{proxy}{LAYER_PATH}", headers=headers)
            assert (answer.status, answer.headers["x-cache"], answer.body == LAYER) == (200, cache, True)
        assert sum(request.field("Range") != "bytes=0-0" for request in storage.requests) == 1
        assert fetch(f"http://{other_proxy}{LAYER_PATH}", headers=headers).body == LAYER
        assert all(request.field("Authorization") == BEARER["Authorization"] for request in registry.requests)
        assert all(request.field("Authorization") is None for request in storage.requests)


@pytest.mark.parametrize("directive", ["max-age=60", "no-store"])
def test_a_blob_with_the_wrong_bytes_never_looks_whole(proxy: str, directive: str) -> None:
    wrong = LAYER[:-1] + bytes([LAYER[-1] ^ 1])
    with running_raw_origin(serving(wrong, f"Cache-Control: {directive}")) as registry:
        url, headers = f"http://{proxy}{LAYER_PATH}", {"X-Dragonfly-Registry": registry.base}
        for _ in range(2):
            with pytest.raises(CUT_OFF):
                fetch(url, headers=headers)
        # The seed holds the wrong bytes, and nobody gets them: they come from the registry as soon as that is well.
        registry.answer = serving(LAYER)
        assert fetch(url, headers=headers).body == LAYER


def test_a_manifest_with_the_wrong_bytes_is_not_sent(proxy: str) -> None:
    path = f"/v2/models/wrong/manifests/{digest_of(b'right')}"
    with running_raw_origin(lambda _: response(200, f"Content-Type: {MANIFEST_TYPE}", body=b"wrong")) as registry:
        answer = fetch(f"http://{proxy}{path}", headers={"X-Dragonfly-Registry": registry.base})
        assert (answer.status, b"was expected" in answer.body) == (502, True)


def test_a_registry_of_the_callers_own_opens_nothing(mirror: Mirror, image: Image) -> None:
    """It may claim to have any blob; what another registry gave stays that one's to give."""
    assert containerd(mirror.proxy, blob(image, SMALL), mirror.registry).body == SMALL
    zeros = bytes(len(SMALL))
    with running_raw_origin(serving(zeros, f"Docker-Content-Digest: {digest_of(SMALL)}")) as registry:
        url, headers = f"http://{mirror.proxy}{blob(image, SMALL)}", {"X-Dragonfly-Registry": registry.base}
        with pytest.raises(CUT_OFF):
            fetch(url, headers=headers)
        part = fetch(url, headers={**headers, "Range": "bytes=0-99"})
        assert (part.status, part.body) == (206, zeros[:100])


@pytest.mark.parametrize("named", ["ns=169.254.169.254", "ns=http-is-not-a-scheme://x", "ns=a.example&ns=b.example"])
@pytest.mark.parametrize("path", ["/v2/", "/v2/x/manifests/v1", f"/v2/x/blobs/{digest_of(b'')}"])
def test_ns_leads_nowhere_that_is_denied(proxy: str, path: str, named: str) -> None:
    answer = fetch(f"http://{proxy}{path}?{named}")
    expected = 403 if "169.254" in named else 400
    assert (answer.status, answer.headers["x-dragonfly-error-type"]) == (expected, "proxy")
