from __future__ import annotations

import asyncio
import hashlib
import io
import json
import re
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from damselfly.get import get
from damselfly.options import parse_header, parse_proxy
from damselfly.transfer import GetSettings
from p2p.config import Address
from p2p.digests import ExpectedDigest
from p2p.errors import ConfigError
from p2p.identity import identify
from p2p.linkfile import HeldFile
from tests.support.servers import free_port

from .source.raw_origin import CUT, RawOrigin, RawRequest, raw_origin, response, serving

CONTENT = bytes(range(256)) * 40
URL = "https://bucket.s3.amazonaws.com/m//x%2Fy.bin?X-Amz-SignedHeaders=host&X-Amz-Signature=5ec2e7"
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
async def proxy() -> AsyncIterator[RawOrigin]:
    """Stand in for a peer's proxy: the target is absolute, the rest as at any origin."""
    async with raw_origin(serving(CONTENT)) as found:
        yield found


async def run(proxy_port: int, output: Path, url: str = URL, **more: Any) -> tuple[int, str]:
    more.setdefault("api", None)
    said = io.StringIO()
    settings = GetSettings(url=url, output=output, proxy=Address("127.0.0.1", proxy_port), **more)
    status = await get(settings, Console(file=said, width=300))
    return status, said.getvalue()


def left(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def interrupted(etag: str = '"v1"', sent: int = 4000) -> Any:
    """Answer the first request with the head of everything and only the first bytes of it."""
    whole = serving(CONTENT, etag=etag)

    async def answer(request: RawRequest) -> bytes:
        octets = whole(request)
        assert isinstance(octets, bytes)
        return octets[: octets.index(b"\r\n\r\n") + 4 + sent]

    return answer


async def break_off(proxy: RawOrigin, output: Path, etag: str = '"v1"') -> str:
    """Run a download that breaks off after some bytes."""
    answer = interrupted(etag)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(await answer(RawRequest(head[:-4], b"", 1)))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        status, said = await run(server.sockets[0].getsockname()[1], output)
    assert status == 1
    return said


async def test_a_file_is_whole_verified_and_in_its_place(proxy: RawOrigin, tmp_path: Path) -> None:
    output = tmp_path / "m.bin"
    status, said = await run(proxy.port, output, digest=ExpectedDigest.parse(SHA256))
    assert status == 0
    assert output.read_bytes() == CONTENT
    assert left(tmp_path) == {"m.bin"}
    assert "10.2 kB in" in said
    assert "sha256 verified" in said


async def test_the_request_is_absolute_and_byte_for_byte(proxy: RawOrigin, tmp_path: Path) -> None:
    await run(
        proxy.port,
        tmp_path / "m",
        headers=(("Authorization", "Bearer mine"), ("user-agent", "me")),
        filters=("a", "b"),
        tag="blue",
        application="triton",
        priority=7,
    )
    request = proxy.requests[0]
    assert request.target == URL
    assert request.field("Host") == "bucket.s3.amazonaws.com"
    assert request.field("X-Dragonfly-Use-P2P") == "true"
    assert request.field("X-Dragonfly-Filter") == "a&b"
    assert (request.field("X-Dragonfly-Tag"), request.field("X-Dragonfly-Application")) == ("blue", "triton")
    assert request.field("X-Dragonfly-Priority") == "7"
    assert request.field("Authorization") == "Bearer mine"
    assert [value for name, value in request.fields if name.lower() == "user-agent"] == ["me"]
    assert request.field("Range") is None


@pytest.mark.parametrize("name", ["n" * 255, "n" * 239, "é" * 120])
async def test_a_name_may_be_as_long_as_names_can_be(proxy: RawOrigin, tmp_path: Path, name: str) -> None:
    await break_off(proxy, tmp_path / name)
    status, said = await run(proxy.port, tmp_path / name)
    assert (status, (tmp_path / name).read_bytes()) == (0, CONTENT)
    assert "from before" in said
    assert left(tmp_path) == {name}


async def test_a_bucket_is_no_object(proxy: RawOrigin, tmp_path: Path) -> None:
    status, said = await run(proxy.port, tmp_path / "m", url="s3://bucket")
    assert (status, "--recursive" in said, proxy.requests) == (1, True, [])


async def test_an_existing_file_is_replaced(proxy: RawOrigin, tmp_path: Path) -> None:
    output = tmp_path / "m"
    output.write_bytes(b"the old one, which is longer" * 1000)
    assert (await run(proxy.port, output))[0] == 0
    assert output.read_bytes() == CONTENT


async def test_an_empty_object_is_an_empty_file(proxy: RawOrigin, tmp_path: Path) -> None:
    proxy.answer = serving(b"")
    assert (await run(proxy.port, tmp_path / "m"))[0] == 0
    assert (tmp_path / "m").read_bytes() == b""


async def test_an_object_without_a_length_is_taken(proxy: RawOrigin, tmp_path: Path) -> None:
    chunked = response(200, "Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n", length=False)
    proxy.answer = lambda _: chunked
    assert (await run(proxy.port, tmp_path / "m"))[0] == 0
    assert (tmp_path / "m").read_bytes() == b"abc"


async def test_a_refusal_leaves_nothing(proxy: RawOrigin, tmp_path: Path) -> None:
    proxy.answer = lambda _: response(403, body=b"<Error><Code>SignatureDoesNotMatch</Code>5ec2e7</Error>")
    status, said = await run(proxy.port, tmp_path / "m")
    assert status == 1
    assert "403 As Written (the origin says SignatureDoesNotMatch)" in said
    assert "5ec2e7" not in said
    assert left(tmp_path) == set()


async def test_our_own_explanation_is_shown(proxy: RawOrigin, tmp_path: Path) -> None:
    proxy.answer = lambda _: response(502, body=b"damselfly: 502 while in step 'probe': cannot connect\ntask: 1\n")
    _, said = await run(proxy.port, tmp_path / "m")
    assert "(502 while in step 'probe': cannot connect)" in said


async def test_a_wrong_digest_leaves_nothing(proxy: RawOrigin, tmp_path: Path) -> None:
    status, said = await run(proxy.port, tmp_path / "m", digest=ExpectedDigest("sha256", "0" * 64))
    assert status == 1
    assert SHA256 in said
    assert left(tmp_path) == set()


async def test_a_broken_download_resumes(proxy: RawOrigin, tmp_path: Path) -> None:
    output = tmp_path / "m"
    assert "broke off after 4000 bytes; the same command goes on" in await break_off(proxy, output)
    assert left(tmp_path) == {".m.damselfly", ".m.damselfly.json"}
    assert "5ec2e7" not in (tmp_path / ".m.damselfly.json").read_text()
    status, said = await run(proxy.port, output, digest=ExpectedDigest.parse(SHA256))
    assert status == 0
    assert "4.0 kB of it from before" in said
    assert (proxy.requests[0].field("Range"), proxy.requests[0].field("If-Range")) == ("bytes=4000-", '"v1"')
    assert output.read_bytes() == CONTENT
    assert left(tmp_path) == {"m"}


async def test_a_whole_download_that_was_not_renamed_is_confirmed(proxy: RawOrigin, tmp_path: Path) -> None:
    await break_off(proxy, tmp_path / "m")
    (tmp_path / ".m.damselfly").write_bytes(CONTENT)
    assert (await run(proxy.port, tmp_path / "m"))[0] == 0
    assert proxy.requests[0].field("Range") == f"bytes={len(CONTENT) - 1}-"
    assert (tmp_path / "m").read_bytes() == CONTENT


async def test_a_changed_object_is_fetched_anew(proxy: RawOrigin, tmp_path: Path) -> None:
    await break_off(proxy, tmp_path / "m", etag='"v0"')
    whole = response(200, 'ETag: "v1"', body=CONTENT)
    proxy.answer = lambda _: whole
    assert (await run(proxy.port, tmp_path / "m"))[0] == 0
    assert (tmp_path / "m").read_bytes() == CONTENT


async def test_a_206_of_another_version_is_refused(proxy: RawOrigin, tmp_path: Path) -> None:
    await break_off(proxy, tmp_path / "m", etag='"v0"')
    status, said = await run(proxy.port, tmp_path / "m")
    assert status == 1
    assert "another part" in said


@pytest.mark.parametrize("spoil", ["task", "boot"])
async def test_what_another_url_or_boot_has_left_is_not_resumed(proxy: RawOrigin, tmp_path: Path, spoil: str) -> None:
    await break_off(proxy, tmp_path / "m")
    note = tmp_path / ".m.damselfly.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {spoil: "other"}))
    assert (await run(proxy.port, tmp_path / "m"))[0] == 0
    assert proxy.requests[0].field("Range") is None
    assert (tmp_path / "m").read_bytes() == CONTENT


async def test_without_a_peer_it_says_how_to_start_one(tmp_path: Path) -> None:
    status, said = await run(free_port(), tmp_path / "m")
    assert status == 1
    assert "start one with `damselfly up`" in said
    assert left(tmp_path) == set()


async def test_a_reset_before_the_answer_is_a_failure(proxy: RawOrigin, tmp_path: Path) -> None:
    proxy.answer = lambda _: CUT
    status, said = await run(proxy.port, tmp_path / "m")
    assert (status, "before it answered" in said) == (1, True)


async def test_a_silent_peer_is_given_up(proxy: RawOrigin, tmp_path: Path) -> None:
    never: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    proxy.answer = lambda _: never
    status, said = await run(proxy.port, tmp_path / "m", stall_seconds=0.01)
    assert (status, "sent nothing for 0.01 s" in said) == (1, True)


@pytest.mark.parametrize("url", ["s3://bucket/key", "model.bin", "http://"])
async def test_a_url_that_cannot_be_fetched(tmp_path: Path, url: str) -> None:
    status, _ = await run(free_port(), tmp_path / "m", url)
    assert status == 1


async def test_a_directory_is_no_target(proxy: RawOrigin, tmp_path: Path) -> None:
    status, said = await run(proxy.port, tmp_path)
    assert (status, "is a directory" in said) == (1, True)


async def test_a_directory_that_is_missing_is_named(proxy: RawOrigin, tmp_path: Path) -> None:
    status, said = await run(proxy.port, tmp_path / "none" / "m")
    assert (status, "No such file or directory" in said) == (1, True)


async def test_a_header_with_a_line_break_is_not_sent(proxy: RawOrigin, tmp_path: Path) -> None:
    status, said = await run(proxy.port, tmp_path / "m", headers=(("X-A", "1\r\nX-B: 2"),))
    assert (status, "line break" in said, proxy.requests) == (1, True, [])


async def test_two_at_once_do_not_write_one_file(proxy: RawOrigin, tmp_path: Path) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()
    whole = serving(CONTENT)

    async def slow(request: RawRequest) -> bytes:
        asked.set()
        await go_on.wait()
        octets = whole(request)
        return octets if isinstance(octets, bytes) else await octets

    proxy.answer = slow
    first = asyncio.ensure_future(run(proxy.port, tmp_path / "m"))
    await asked.wait()
    status, said = await run(proxy.port, tmp_path / "m")
    assert (status, "another damselfly get" in said) == (1, True)
    go_on.set()
    assert (await first)[0] == 0


async def test_cancelling_ends_the_transfer(proxy: RawOrigin, tmp_path: Path) -> None:
    asked = asyncio.Event()
    never: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def silent(_: RawRequest) -> Awaitable[bytes]:
        asked.set()
        return never

    proxy.answer = silent
    running = asyncio.ensure_future(run(proxy.port, tmp_path / "m"))
    await asked.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.get_running_loop().shutdown_default_executor()
    assert left(tmp_path) == set()


async def test_the_sources_of_the_bytes_are_shown(proxy: RawOrigin, tmp_path: Path) -> None:
    told = iter([(100, 50), (1100, 2050)])

    def tell(request: RawRequest) -> bytes:
        assert request.target == f"/v1/tasks/{identify(URL).id}"
        origin, parents = next(told)
        body = json.dumps({"bytes_by_source": {"origin": origin, "parents": parents}}).encode()
        return response(200, "Content-Type: application/json", body=body)

    async with raw_origin(tell) as api:
        _, said = await run(proxy.port, tmp_path / "m", api=Address("127.0.0.1", api.port))
    assert "(origin 1.0 kB, peers 2.0 kB, local 7.2 kB)" in said


@pytest.mark.parametrize("answer", [response(404), response(200, body=b"{}"), response(200, body=b"no"), CUT])
async def test_without_them_only_that_part_is_missing(proxy: RawOrigin, tmp_path: Path, answer: bytes) -> None:
    async with raw_origin(lambda _: answer) as api:
        status, _ = await run(proxy.port, tmp_path / "m", api=Address("127.0.0.1", api.port))
    assert status == 0


async def test_a_terminal_gets_a_bar(proxy: RawOrigin, tmp_path: Path) -> None:
    said = io.StringIO()
    settings = GetSettings(url=URL, output=tmp_path / "m", proxy=Address("127.0.0.1", proxy.port), api=None)
    console = Console(file=said, width=120, force_terminal=True)
    assert await get(settings, console) == 0
    assert "10.2 kB in" in said.getvalue()


def giving(file: Path) -> Any:
    """Answer as a peer that holds the object in a file."""
    whole = serving(CONTENT)
    with file.open("rb") as opened:
        field = HeldFile.of(file, opened.fileno()).field()

    def answer(request: RawRequest) -> Any:
        asked = request.field("X-Damselfly-Link")
        assert asked in (None, "1")
        return response(204, 'ETag: "v1"', f"X-Damselfly-File: {field}") if asked else whole(request)

    return answer


async def test_a_link_is_verified_and_takes_the_place_of_what_was_there(proxy: RawOrigin, tmp_path: Path) -> None:
    store, output = tmp_path / "store", tmp_path / "out" / "m"
    output.parent.mkdir()
    store.write_bytes(CONTENT)
    proxy.answer = giving(store)
    # The second time both names may be of one file already.
    for _ in range(2):
        status, said = await run(proxy.port, output, link=True, digest=ExpectedDigest.parse(SHA256))
        assert (status, output.read_bytes()) == (0, CONTENT), said
        assert re.search("sha256 verified; a (reflink|hard link) of the peer's file", said)
        assert left(output.parent) == {"m"}
    assert len(proxy.requests) == 2
    status, said = await run(proxy.port, output, link=True, digest=ExpectedDigest.parse("sha256:" + "0" * 64))
    assert (status, output.read_bytes(), left(output.parent)) == (1, CONTENT, {"m"})
    # A copy afterwards is a file of its own.
    assert (await run(proxy.port, output))[0] == 0
    assert output.stat().st_ino != store.stat().st_ino
    assert store.read_bytes() == CONTENT


async def test_what_cannot_be_linked_is_copied_and_told(proxy: RawOrigin, tmp_path: Path) -> None:
    store, output = tmp_path / "store", tmp_path / "m"
    store.write_bytes(CONTENT)
    proxy.answer = giving(store)
    store.write_bytes(CONTENT * 2)
    for answer, reason in ((proxy.answer, "is another file than the peer's"), (serving(CONTENT), "does not keep")):
        proxy.answer = answer
        status, said = await run(proxy.port, output, link=True)
        assert (status, output.read_bytes(), left(tmp_path)) == (0, CONTENT, {"store", "m"})
        assert f"{output} is a copy: " in said
        assert reason in said


async def test_a_refusal_is_told_with_a_link_as_without(proxy: RawOrigin, tmp_path: Path) -> None:
    proxy.answer = lambda _: response(403, body=b"<Code>AccessDenied</Code>")
    status, said = await run(proxy.port, tmp_path / "m", link=True)
    assert (status, "403" in said, "is a copy" in said, left(tmp_path)) == (1, True, False, set())


def test_parsing_options() -> None:
    assert parse_proxy("http://10.0.0.1:65001/") == parse_proxy("10.0.0.1:65001") == Address("10.0.0.1", 65001)
    assert parse_header("X-Name:  value: with colon ") == ("X-Name", "value: with colon")
    for bad in ("nothing", ": x", "a b: c", "x: a\r\ny: b"):
        with pytest.raises(ConfigError):
            parse_header(bad)
