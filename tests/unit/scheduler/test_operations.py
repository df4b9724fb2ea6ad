"""The scheduler's HTTP API for operators, over hosts that answer the real API of hosts."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from p2p.auth import authorization
from p2p.identity import identify
from scheduler.fleet import Member
from scheduler.operations import routes
from tests.unit.peer.test_hostapi import SECRET
from tests.unit.peer.test_tasks import CONTENT
from tests.unit.scheduler.test_preheat import URL, World, a_world

TASK_ID = identify(URL).id


class Operator:
    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self._session = session
        self._base = base

    async def ask(self, method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
        data = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
        async with self._session.request(method, self._base + path, data=data if body is not None else None) as answer:
            value = await answer.json()
            assert isinstance(value, dict)
            return answer.status, value


@contextlib.asynccontextmanager
async def an_operator(world: World, *, purpose: str = "admin") -> AsyncIterator[Operator]:
    app = web.Application()
    app.add_routes(routes(world.fleet, world.preheats, secret=SECRET))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    listening = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, listening).start()
    headers = {"Authorization": authorization(SECRET.sign(purpose, "test", now=time.time()))}
    async with aiohttp.ClientSession(headers=headers) as session:
        try:
            yield Operator(session, f"http://127.0.0.1:{listening.getsockname()[1]}")
        finally:
            await runner.cleanup()


async def test_a_preheat_is_begun_looked_at_and_cancelled(tmp_path: Path) -> None:
    async with a_world(tmp_path, "seed-1", "peer-1") as world, an_operator(world) as operator:
        status, job = await operator.ask("POST", "/v1/preheats", {"urls": [URL], "to": "seeds", "tag": ""})
        assert (status, job["hosts"]) == (201, ["seed-1"])
        assert "secret" not in json.dumps(job)
        known = world.preheats.job(job["id"])
        assert known is not None
        await world.over(known)
        status, job = await operator.ask("GET", f"/v1/preheats/{job['id']}")
        assert (status, job["state"], job["items"][0]["hosts"][0]["bytes_held"]) == (200, "done", len(CONTENT))
        status, job = await operator.ask("DELETE", f"/v1/preheats/{job['id']}")
        assert (status, job["state"]) == (200, "done")
        assert [row["id"] for row in (await operator.ask("GET", "/v1/preheats"))[1]["preheats"]] == [job["id"]]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        [],
        {},
        {"urls": []},
        {"urls": "http://x/"},
        {"urls": [3]},
        {"urls": [URL], "too": "all"},
        {"urls": [URL], "recursive": "yes"},
        {"urls": [URL], "headers": [["a"]]},
        {"urls": [URL], "to": "nobody"},
        {"urls": ["ftp://x/?token=secret"]},
        b" " * 1_100_000,
    ],
)
async def test_what_is_no_preheat(tmp_path: Path, body: object) -> None:
    async with a_world(tmp_path, "peer-1") as world, an_operator(world) as operator:
        status, answer = await operator.ask("POST", "/v1/preheats", body)
        assert status == 400
        assert "secret" not in answer["error"]


async def test_what_the_fleet_holds(tmp_path: Path) -> None:
    async with a_world(tmp_path, "seed-1", "peer-1") as world, an_operator(world) as operator:
        status, answer = await operator.ask("POST", "/v1/preheats", {"urls": [URL], "to": "seeds"})
        known = world.preheats.job(answer["id"])
        assert known is not None
        await world.over(known)
        for prefix in ("", "s3%2Bhttp://origin/", "http://origin/mod", TASK_ID[:8]):
            status, answer = await operator.ask("GET", f"/v1/tasks?prefix={prefix}")
            (row,) = answer["versions"]
            assert (status, row["task_id"], row["complete"], row["partial"]) == (200, TASK_ID, 1, 0)
        assert (await operator.ask("GET", "/v1/tasks?prefix=other"))[1]["versions"] == []
        (row,) = (await operator.ask("GET", f"/v1/tasks/{TASK_ID}"))[1]["hosts"]
        assert (row["host_id"], row["bytes_held"], row["pinned"]) == ("seed-1", len(CONTENT), False)
        for method, count in (("PUT", 1), ("PUT", 1), ("DELETE", 1), ("DELETE", 0)):
            _, answer = await operator.ask(method, f"/v1/pins/{TASK_ID}")
            assert answer["versions"] == {"seed-1": count, "peer-1": 0}
        for host in world.hosts.values():
            host.peer.schedulers.address = "127.0.0.1:8002"
        for count in (1, 0):
            _, answer = await operator.ask("DELETE", f"/v1/tasks/{TASK_ID}")
            assert answer["versions"] == {"seed-1": count, "peer-1": 0}


async def test_hosts_that_do_not_answer_are_named(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        dead = Member("dead", f"127.0.0.1:{nobody.getsockname()[1]}", False, {})
        async with a_world(tmp_path, "peer-1") as world, an_operator(world) as operator:
            world.members.append(dead)
            for method, path in (
                ("GET", "/v1/tasks"),
                ("GET", f"/v1/tasks/{TASK_ID}"),
                ("DELETE", f"/v1/tasks/{TASK_ID}"),
            ):
                status, answer = await operator.ask(method, path)
                assert (status, list(answer["unreachable"])) == (200, ["dead"])


async def test_only_operators_are_answered(tmp_path: Path) -> None:
    async with a_world(tmp_path, "peer-1") as world, an_operator(world, purpose="host") as operator:
        for method, path in (("GET", "/v1/tasks"), ("POST", "/v1/preheats"), ("DELETE", f"/v1/tasks/{TASK_ID}")):
            assert (await operator.ask(method, path))[0] == 401


async def test_a_job_that_is_not_known(tmp_path: Path) -> None:
    async with a_world(tmp_path, "peer-1") as world, an_operator(world) as operator:
        assert (await operator.ask("GET", "/v1/preheats/00"))[0] == 404
