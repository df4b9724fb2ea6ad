"""How the fleet's content is told to people."""

from __future__ import annotations

from typing import Any

import pytest

from damselfly.fleet import (
    FleetError,
    SchedulerApi,
    SchedulerAwayError,
    UnknownError,
    age,
    failures,
    percent,
    watch,
)
from p2p.config import Address


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.9, "59s"), (60, "1m"), (3599, "59m"), (7200, "2h"), (200_000, "2d")]
)
def test_ages(seconds: float, text: str) -> None:
    assert age(seconds) == text


@pytest.mark.parametrize(("held", "pieces", "shown"), [(0, 3, 0), (299, 300, 99), (3, 3, 100), (0, 0, 100)])
def test_percents(held: int, pieces: int, shown: int) -> None:
    assert percent(held, pieces) == shown


def test_each_failure_is_a_line() -> None:
    job = {
        "items": [
            {"object": "a", "error": "the origin answered 404", "hosts": []},
            {"object": "b", "error": "", "hosts": [{"host_id": "x", "error": ""}, {"host_id": "y", "error": "full"}]},
        ]
    }
    assert failures(job) == ["a: the origin answered 404", "b on y: full"]


class Scripted(SchedulerApi):
    """A scheduler that answers as it is told to."""

    def __init__(self, *answers: dict[str, Any] | FleetError) -> None:
        super().__init__(Address("127.0.0.1", 1), None)
        self.answers = list(answers)

    def call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        answer = self.answers.pop(0)
        if isinstance(answer, FleetError):
            raise answer
        return answer


RUNNING: dict[str, Any] = {"id": "j", "state": "running", "items": [], "hosts": []}


def test_a_scheduler_that_is_away_for_a_moment_is_waited_for() -> None:
    away = [SchedulerAwayError("away")] * 30
    api = Scripted(*away, RUNNING, *away, RUNNING | {"state": "done"})
    assert watch(api, RUNNING, sleep=lambda _: None)["state"] == "done"


def test_one_that_stays_away_is_given_up() -> None:
    with pytest.raises(SchedulerAwayError):
        watch(Scripted(*[SchedulerAwayError("away")] * 31), RUNNING, sleep=lambda _: None)


def test_a_job_that_a_restarted_scheduler_has_forgotten_is_said_to_be_lost() -> None:
    with pytest.raises(FleetError, match="restarted and knows nothing of preheat j any more"):
        watch(Scripted(UnknownError("404")), RUNNING, sleep=lambda _: None)
