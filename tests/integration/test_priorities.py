"""A file of a megabyte never waits behind models, however many requests for these hang at their origin."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.cluster import LocalCluster
from p2p.urgency import kept_for_brief
from peer.download.transfer import TransferSettings
from tests.support.daemons import Answer, fetch
from tests.support.origins import running_raw_origin
from tests.unit.source.raw_origin import RawRequest, serving

MIB = 1024 * 1024
MODEL = bytes(36 * MIB)
CONFIG = bytes(range(256)) * (MIB // 256)
HEADERS = {"X-Dragonfly-Use-P2P": "true"}
HELD_SECONDS = 60.0
"""How long the requests for models may take to come, before the test fails."""


class Holding:
    """Answers checks and requests for the config file at once, and those for models when told to."""

    def __init__(self) -> None:
        self._model, self._config = serving(MODEL, etag='"model"'), serving(CONFIG, etag='"config"')
        self._released = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._held = 0
        self._changed = threading.Condition()

    async def answer(self, request: RawRequest) -> bytes:
        self._loop = asyncio.get_running_loop()
        if not request.target.startswith("/model"):
            answer = self._config(request)
        else:
            if request.field("Range") != "bytes=0-0":
                await self._hold()
            answer = self._model(request)
        assert isinstance(answer, bytes)
        return answer

    async def _hold(self) -> None:
        with self._changed:
            self._held += 1
            self._changed.notify_all()
        await self._released.wait()

    def wait_for(self, count: int) -> None:
        """Wait until so many requests for models hang."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._held >= count, HELD_SECONDS), f"{self._held} requests hang"

    def release(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._released.set)


@contextmanager
def models_hang(
    directory: Path, *, models: int, requests: int, arguments: Mapping[str, list[str]] | None = None
) -> Iterator[tuple[str, str, list[Future[Answer]]]]:
    """Have models wanted until so many requests hang; yields the peer's proxy, the config file and the answers.

    The answers to who wants models come after the block.
    """
    holding = Holding()
    with (
        running_raw_origin(holding.answer) as origin,
        LocalCluster(peers=1, seeds=1, directory=directory, arguments=arguments or {}) as cluster,
        ThreadPoolExecutor(models) as pool,
    ):
        proxy = cluster["peer-1"].addresses["proxy"]
        try:
            urls = [f"{origin.base}/model-{number}.bin" for number in range(models)]
            wanted = [pool.submit(fetch, url, proxy=proxy, headers=HEADERS) for url in urls]
            holding.wait_for(requests)
            yield proxy, f"{origin.base}/config.json", wanted
            assert not any(answer.done() for answer in wanted)
            holding.release()
            for answer in wanted:
                assert answer.result().body == MODEL
        finally:
            holding.release()


@pytest.mark.parametrize("priority", [None, "0"])
def test_a_config_file_passes_models_that_use_all_threads(tmp_path: Path, priority: str | None) -> None:
    workers = TransferSettings().workers
    headers = HEADERS if priority is None else {**HEADERS, "X-Dragonfly-Priority": priority}
    with models_hang(tmp_path, models=6, requests=workers - kept_for_brief(workers)) as (proxy, url, _):
        answer = fetch(url, proxy=proxy, headers=headers)
    assert (answer.status, answer.body == CONFIG) == (200, True)


def test_a_config_file_passes_a_model_that_uses_up_the_budget_of_its_origin(tmp_path: Path) -> None:
    budgets = tmp_path / "scheduler.toml"
    budgets.write_text("[[origin_budgets]]\nmatch = '^http://127'\nconnections = 4\n")
    arguments = {"scheduler": ["--config", str(budgets)]}
    with models_hang(tmp_path / "cluster", models=1, requests=2, arguments=arguments) as (proxy, url, _):
        answer = fetch(url, proxy=proxy, headers=HEADERS)
    assert (answer.status, answer.body == CONFIG) == (200, True)
