"""Spans from origins, over real sockets."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from p2p.control import Source
from p2p.errors import (
    BadRequestError,
    OriginError,
    OriginRefusedError,
    OriginStalledError,
    OriginUnreachableError,
    VersionChangedError,
)
from p2p.pieces import Span
from p2p.versions import ValidatorKind, Version
from peer.download.transfer import Transfers, TransferSettings
from peer.source.client import MAX_REDIRECTS, OriginSettings
from tests.unit.download.support import (
    CONTENT,
    DIGESTS,
    ETAG,
    EVERYTHING,
    KIB,
    FileTarget,
    Pieces,
    Request,
    Restless,
    Script,
    ScriptedServer,
    StallError,
    body,
    cut,
    gone,
    head,
    partial,
    serving,
    silent,
    sound,
    status,
)

PATIENT = OriginSettings(connect_seconds=10, stall_seconds=10)
HASTY = OriginSettings(connect_seconds=10, stall_seconds=0.05)
SECRET = "X-Amz-Signature=0123456789abcdef"


class Pauses(list[float]):
    """Stands for asyncio.sleep."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[FileTarget]:
    target = FileTarget(tmp_path / "data")
    yield target
    target.close()


@asynccontextmanager
async def running(origin: OriginSettings = PATIENT, pauses: Pauses | None = None) -> AsyncIterator[Transfers]:
    transfers = Transfers(
        TransferSettings(workers=4, origin=origin),
        governor=Restless(),
        random=Random(1),
        sleep=Pauses() if pauses is None else pauses,
    )
    try:
        yield transfers
    finally:
        await transfers.close()


async def fetch(
    transfers: Transfers,
    target: FileTarget,
    server: ScriptedServer,
    span: Span = EVERYTHING,
    *,
    pieces: Pieces | None = None,
    path: str = f"/object?{SECRET}",
    headers: tuple[tuple[str, str], ...] = (),
) -> Pieces:
    pieces = Pieces() if pieces is None else pieces
    source = Source(f"http://{server.address}{path}", headers)
    await transfers.from_origin(target, span, source=source, on_piece=pieces)
    return pieces


async def test_every_piece_is_written_and_its_digest_reported(target: FileTarget) -> None:
    async with serving(sound) as server, running() as transfers:
        pieces = await fetch(transfers, target, server)
    assert pieces == list(enumerate(DIGESTS))
    assert target.holds(EVERYTHING)


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/b/a%2Fb?a=%2F+%2B&b=&&c?", "/b/a%2Fb?a=%2F+%2B&b=&&c?"),
        ("/bare?", "/bare?"),
        ("/%7e~//x/../y;v=1?q='\"<>|", "/%7e~//x/../y;v=1?q='\"<>|"),
        ("?q", "/?q"),
        ("", "/"),
        ("/f#fragment", "/f"),
    ],
)
async def test_the_target_goes_out_byte_for_byte(target: FileTarget, path: str, sent: str) -> None:
    async with serving(sound) as server, running() as transfers:
        await fetch(transfers, target, server, Span(0, 1), path=path)
    assert server.requests[0].target == sent


async def test_the_request_is_the_callers_with_a_range_and_a_condition(target: FileTarget) -> None:
    headers = (
        ("Host", "elsewhere"),
        ("authorization", "Bearer token"),
        ("Range", "bytes=5-6"),
        ("If-None-Match", '"x"'),
        ("Accept-Encoding", "gzip"),
        ("Connection", "keep-alive, X-Hop"),
        ("X-Hop", "1"),
        ("Proxy-Authorization", "Basic secret"),
        ("Proxy-Connection", "Keep-Alive"),
        ("X-Dragonfly-Tag", "t"),
        ("TE", "trailers"),
        ("User-Agent", "Łódź\udcff"),
    )
    async with serving(sound) as server, running() as transfers:
        await fetch(transfers, target, server, Span(1, 2), path="/o", headers=headers)
    assert server.requests[0].head == (
        f"GET /o HTTP/1.1\r\nHost: {server.address}\r\nauthorization: Bearer token\r\nUser-Agent: Łódź\udcff\r\n"
        f"Range: bytes={100 * KIB}-{200 * KIB - 1}\r\nIf-Match: {ETAG}\r\nAccept-Encoding: identity\r\n\r\n"
    ).encode("utf-8", "surrogateescape")


@pytest.mark.parametrize(
    ("url", "header"),
    [("ftp://h/x", "v"), ("http://h/a b", "v"), ("http://u:p@h/x", "v"), ("http://h/x", "v\r\nEvil: 1")],
)
async def test_what_cannot_be_sent_is_refused(target: FileTarget, url: str, header: str) -> None:
    async with running() as transfers:
        with pytest.raises(BadRequestError):
            await transfers.from_origin(target, EVERYTHING, source=Source(url, (("X-A", header),)), on_piece=Pieces())


async def test_connections_are_kept(target: FileTarget) -> None:
    async with serving(sound) as server, running() as transfers:
        for index in EVERYTHING:
            await fetch(transfers, target, server, Span(index, index + 1))
    assert server.connections == 1
    assert target.holds(EVERYTHING)


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (status(412), VersionChangedError),
        (status(416), VersionChangedError),
        (status(401), OriginRefusedError),
        (status(403), OriginRefusedError),
        (status(404), OriginRefusedError),
        (status(410), OriginRefusedError),
        (status(302), OriginRefusedError),  # no Location
        (status(204, text=b""), OriginRefusedError),
    ],
)
async def test_refusals(target: FileTarget, script: Script, error: type[OriginError]) -> None:
    async with serving(script) as server, running() as transfers:
        with pytest.raises(error) as refusal:
            await fetch(transfers, target, server)
    assert refusal.type is error
    assert len(server.requests) == 1
    assert "0123456789abcdef" not in str(refusal.value)
    assert target.path.read_bytes() == b""


async def test_another_validator_is_another_version(target: FileTarget) -> None:
    async def overwritten(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(partial(request, etag='"v2"') + body(request))

    async with serving(overwritten) as server, running() as transfers:
        with pytest.raises(VersionChangedError):
            await fetch(transfers, target, server)
    assert target.path.read_bytes() == b""


async def test_a_version_that_changes_in_mid_span_is_never_mixed(target: FileTarget) -> None:
    async def overwritten(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(partial(request, etag='"v2"') + bytes(len(request.wanted)))

    pieces = Pieces()
    async with serving(cut(250 * KIB), overwritten) as server, running() as transfers:
        with pytest.raises(VersionChangedError):
            await fetch(transfers, target, server, pieces=pieces)
    assert pieces == list(enumerate(DIGESTS))[:2]
    assert target.holds(Span(0, 2))


async def test_generations_are_checked_without_a_condition(tmp_path: Path) -> None:
    target = FileTarget(tmp_path / "g", Version("ab" * 32, len(CONTENT), ValidatorKind.GENERATION, "17"))

    async def generation(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(partial(request)[:-2] + b"x-goog-generation: 17\r\n\r\n" + body(request))

    async with serving(generation, sound) as server, running() as transfers:
        await fetch(transfers, target, server)
        with pytest.raises(VersionChangedError):
            await fetch(transfers, target, server)
    assert "if-match" not in server.requests[0].headers
    target.close()


async def whole(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(head(200, len(CONTENT), f"ETag: {ETAG}") + CONTENT)


async def test_the_whole_object_may_come_with_200(target: FileTarget) -> None:
    async with serving(whole) as server, running() as transfers:
        await fetch(transfers, target, server)
    assert target.holds(EVERYTHING)


@pytest.mark.parametrize("span", [Span(1, 11), Span(0, 10), Span(3, 4)])
async def test_200_for_a_part_is_refused(target: FileTarget, span: Span) -> None:
    async with serving(whole) as server, running() as transfers:
        with pytest.raises(OriginError, match="does not serve ranges"):
            await fetch(transfers, target, server, span)
    assert target.path.read_bytes() == b""


@pytest.mark.parametrize(
    "lines",
    [
        (f"ETag: {ETAG}",),
        (f"ETag: {ETAG}", f"Content-Range: bytes 0-{len(CONTENT) - 1}/*"),
        (f"ETag: {ETAG}", f"Content-Range: bytes 1-{len(CONTENT) - 1}/{len(CONTENT)}"),
        (f"ETag: {ETAG}", f"Content-Range: bytes 0-9/{len(CONTENT)}"),
        (f"ETag: {ETAG}", "Content-Type: multipart/byteranges; boundary=x"),
    ],
)
async def test_other_bytes_than_those_asked_for_are_refused(target: FileTarget, lines: tuple[str, ...]) -> None:
    async def other(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(206, len(CONTENT), *lines) + CONTENT)

    async with serving(other) as server, running() as transfers:
        with pytest.raises(OriginError, match="206"):
            await fetch(transfers, target, server)
    assert target.path.read_bytes() == b""


async def test_chunks_and_the_end_of_the_connection_frame_a_body_too(target: FileTarget) -> None:
    def unframed(request: Request, *lines: str) -> bytes:
        kept = [line for line in partial(request).decode().split("\r\n")[:-2] if "Content-Length" not in line]
        return "\r\n".join((*kept, *lines, "", "")).encode()

    async def chunked(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(unframed(request, "Transfer-Encoding: chunked"))
        data = body(request)
        for start in range(0, len(data), 77_777):
            chunk = data[start : start + 77_777]
            writer.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
        writer.write(b"0\r\n\r\n")

    async def closed(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(unframed(request, "Connection: close") + body(request))
        await writer.drain()
        writer.close()

    async with serving(chunked, closed) as server, running() as transfers:
        await fetch(transfers, target, server, Span(0, 5))
        await fetch(transfers, target, server, Span(5, 11))
    assert target.holds(EVERYTHING)


async def test_what_breaks_off_is_taken_up_at_the_first_missing_byte(target: FileTarget) -> None:
    pauses = Pauses()
    async with (
        serving(cut(250 * KIB), cut(9 * KIB), cut(100 * KIB), sound) as server,
        running(pauses=pauses) as transfers,
    ):
        pieces = await fetch(transfers, target, server)
    assert pieces == list(enumerate(DIGESTS))
    assert [request.wanted.start // KIB for request in server.requests] == [0, 250, 259, 359]
    assert target.holds(EVERYTHING)
    # The second brought too little to speak of.
    assert [0.1 <= pauses[0] <= 0.2, 0.2 <= pauses[1] <= 0.4, 0.1 <= pauses[2] <= 0.2] == [True] * 3


@pytest.mark.parametrize(
    ("script", "attempts"),
    [(gone, 4), (cut(50 * KIB), 4), (status(500), 4), (status(408), 4), (status(503), 6), (status(429), 6)],
)
async def test_attempts_are_bounded_and_further_and_further_apart(
    target: FileTarget, script: Script, attempts: int
) -> None:
    pauses = Pauses()
    async with serving(script) as server, running(pauses=pauses) as transfers:
        with pytest.raises(OriginUnreachableError) as failure:
            await fetch(transfers, target, server)
    assert len(server.requests) == attempts
    assert len(pauses) == attempts - 1
    assert pauses == sorted(pauses)
    assert "0123456789abcdef" not in str(failure.value)


@pytest.mark.parametrize(
    "lines",
    [
        ("Retry-After: 7",),
        ("Retry-After: Fri, 20 Nov 2026 10:00:07 GMT", "Date: Fri, 20 Nov 2026 10:00:00 GMT"),
    ],
)
async def test_an_origin_is_left_alone_for_as_long_as_it_asks(target: FileTarget, lines: tuple[str, ...]) -> None:
    pauses = Pauses()
    async with serving(status(429, *lines), sound) as server, running(pauses=pauses) as transfers:
        await fetch(transfers, target, server)
    assert pauses == [7.0]


async def test_an_origin_that_asks_for_too_long_is_given_up(target: FileTarget) -> None:
    async with serving(status(503, "Retry-After: 3600")) as server, running() as transfers:
        with pytest.raises(OriginUnreachableError, match="503"):
            await fetch(transfers, target, server)
    assert len(server.requests) == 1


async def test_an_origin_that_says_nothing_is_given_up(target: FileTarget) -> None:
    async with serving(silent) as server, running(HASTY) as transfers:
        with pytest.raises(OriginStalledError, match="nothing came"):
            await fetch(transfers, target, server)
    assert len(server.requests) == 1


async def test_an_origin_that_stalls_after_some_bytes_is_asked_again(target: FileTarget) -> None:
    async with serving(cut(150 * KIB, StallError), sound) as server, running(HASTY) as transfers:
        await fetch(transfers, target, server)
    assert [request.wanted.start // KIB for request in server.requests] == [0, 150]
    assert target.holds(EVERYTHING)


async def test_cancelling_closes_the_connection(target: FileTarget) -> None:
    async with serving(cut(250 * KIB, StallError)) as server, running() as transfers:
        fetching = asyncio.ensure_future(fetch(transfers, target, server))
        await server.asked.wait()
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        await server.left.wait()


SECRETS = (("Authorization", "Bearer s"), ("Cookie", "s"), ("X-Amz-Security-Token", "s"), ("User-Agent", "agent/1"))


async def test_redirects_to_another_host_leave_secrets_behind(target: FileTarget) -> None:
    async with serving(sound) as elsewhere:
        redirect = status(307, f"Location: {elsewhere.url}?x=%2F&y?")
        async with serving(redirect) as server, running() as transfers:
            await fetch(transfers, target, server, headers=SECRETS)
    assert server.requests[0].headers["authorization"] == "Bearer s"
    followed = elsewhere.requests[0]
    assert followed.target == "/object?x=%2F&y?"
    assert followed.headers.keys() == {"host", "user-agent", "range", "if-match", "accept-encoding"}
    assert target.holds(EVERYTHING)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_redirects_on_the_same_host_keep_them(target: FileTarget, code: int) -> None:
    async with serving(status(code, "Location: /there?"), sound) as server, running() as transfers:
        await fetch(transfers, target, server, headers=SECRETS)
    assert server.requests[1].target == "/there?"
    assert server.requests[1].headers["authorization"] == "Bearer s"
    assert server.connections == 1


async def test_redirects_are_bounded(target: FileTarget) -> None:
    async with serving(status(302, "Location: /again")) as server, running() as transfers:
        with pytest.raises(OriginError, match="redirected more than"):
            await fetch(transfers, target, server)
    assert len(server.requests) == MAX_REDIRECTS + 1


async def test_redirects_to_another_scheme_are_not_followed(target: FileTarget) -> None:
    async with serving(status(302, "Location: file:///etc/passwd")) as server, running() as transfers:
        with pytest.raises(OriginError, match="usable URL"):
            await fetch(transfers, target, server)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("tls")
    pem, key = directory / "cert.pem", directory / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", pem],
        check=True,
        capture_output=True,
    )
    return pem, key


@pytest.mark.parametrize("trusted", [True, False])
async def test_tls_is_verified(target: FileTarget, certificate: tuple[Path, Path], trusted: bool) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    scripted = ScriptedServer(sound)
    server = await asyncio.start_server(scripted.serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    settings = OriginSettings(connect_seconds=10, stall_seconds=10, ca_file=certificate[0] if trusted else None)
    source = Source(f"https://localhost:{port}/object")
    async with running(settings) as transfers:
        if trusted:
            for span in (Span(0, 5), Span(5, 11)):
                await transfers.from_origin(target, span, source=source, on_piece=Pieces())
            assert target.holds(EVERYTHING)
            assert scripted.connections == 1
        else:
            with pytest.raises(OriginUnreachableError, match="certificate cannot be verified"):
                await transfers.from_origin(target, EVERYTHING, source=source, on_piece=Pieces())
            assert scripted.requests == []
    server.close()
    await server.wait_closed()
