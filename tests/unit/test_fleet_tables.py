"""How the fleet's content is told to people."""

from __future__ import annotations

import pytest

from damselfly.fleet import age, failures, percent


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
