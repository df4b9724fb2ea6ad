"""The scheduler as a process: how it starts, says that it is ready, stops, and refuses settings that cannot work."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from pathlib import Path

import pytest
from aiohttp import ClientSession

PROGRAM = """
import sys
from pathlib import Path
from p2p.config import parse_address
from scheduler.main import SchedulerSettings, run

grpc, http, state_dir, secret = sys.argv[1:]
sys.exit(run(SchedulerSettings(
    grpc=parse_address(grpc),
    http=parse_address(http),
    state_dir=Path(state_dir) if state_dir else None,
    cluster_secret_file=Path(secret) if secret else None,
)))
"""
DEADLINE = 30.0
ANY = "127.0.0.1:0"


async def start(grpc: str = ANY, http: str = ANY, state_dir: str = "", secret: str = "") -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, grpc, http, state_dir, secret, stderr=asyncio.subprocess.PIPE
    )


async def finished(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    async with asyncio.timeout(DEADLINE):
        _, errors = await process.communicate()
    return process.returncode, errors.decode()


async def ready(process: asyncio.subprocess.Process) -> dict[str, str]:
    """Return the ready event of a daemon; its addresses are the ones really bound."""
    assert process.stderr is not None
    async with asyncio.timeout(DEADLINE):
        async for line in process.stderr:
            event: dict[str, str] = json.loads(line)
            if event["event"] == "ready":
                return event
    raise AssertionError("the scheduler ended before it was ready")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_says_where_it_listens_and_stops_when_told(tmp_path: Path, number: signal.Signals) -> None:
    process = await start(state_dir=str(tmp_path / "state"))
    event = await ready(process)
    assert not event["grpc"].endswith(":0")
    async with ClientSession() as client:
        assert (await client.get(f"http://{event['http']}/readyz")).status == 200
    process.send_signal(number)
    code, log = await finished(process)
    assert code == 0
    assert [json.loads(line)["event"] for line in log.splitlines()] == ["stopping", "stopped"]
    assert list((tmp_path / "state").iterdir()), "the journal is kept there"


@pytest.mark.parametrize("which", ["grpc", "http"])
async def test_a_taken_port_is_named(which: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process = await (start(grpc=address) if which == "grpc" else start(http=address))
        code, log = await finished(process)
    assert code == 2
    assert log == (
        f"damselfly scheduler: cannot listen on {address}: Address already in use; "
        f"free the port or choose another with --{which}-listen\n"
    )


async def test_two_schedulers_do_not_share_a_port() -> None:
    first = await start()
    event = await ready(first)
    code, log = await finished(await start(grpc=event["grpc"]))
    first.terminate()
    await finished(first)
    assert code == 2
    assert event["grpc"] in log


async def test_a_state_dir_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    code, log = await finished(await start(state_dir=str(tmp_path / "file")))
    assert code == 2
    assert str(tmp_path / "file") in log
    assert "--state-dir" in log


async def test_it_does_not_open_up_to_the_network_without_a_secret() -> None:
    code, log = await finished(await start(grpc="0.0.0.0:0"))
    assert code == 2
    assert "--cluster-secret-file" in log


async def test_a_missing_secret_is_named(tmp_path: Path) -> None:
    code, log = await finished(await start(secret=str(tmp_path / "none")))
    assert code == 2
    assert str(tmp_path / "none") in log
