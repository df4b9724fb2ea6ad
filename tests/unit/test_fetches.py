"""Orders to fetch, their states, what hosts hold and errors come back from JSON as they went in."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from p2p import fetches, hostapi
from p2p.checksums import Checksum, ChecksumKind
from p2p.control import Source
from p2p.errors import (
    BadRequestError,
    DamselflyError,
    DeniedError,
    OriginError,
    OriginRefusedError,
    StoreFullError,
)
from p2p.fetches import FetchRequest, FetchState, HeldVersion, State
from p2p.identity import Store, identify
from p2p.versions import ValidatorKind, Version

TASK = identify("http://origin.test/model")
VERSION = Version(TASK.id, 5, ValidatorKind.ETAG, '"\udcff"')
SIGNED = Source("https://bucket.s3.amazonaws.com/key?X-Amz-Signature=abc", (("X-Key", "\udce4"),))
OURS = Source("https://bucket.s3.amazonaws.com/key", (), Store.S3)
STATE = FetchState("v", "t", "s3+x/y", State.RUNNING, 4, 2, 100, 50, "")
HELD = HeldVersion("t", "s3+x/y", "v", 100, 4, 2, 50, 1.5, 0, pinned=True, in_use=False)


def over_the_wire(body: object) -> object:
    return json.loads(json.dumps(body))


@pytest.mark.parametrize("source", [SIGNED, OURS])
def test_an_order_to_fetch(source: Source) -> None:
    request = FetchRequest(TASK, VERSION, source, pin=True, checksum=Checksum(ChecksumKind.CRC32C, bytes(4)))
    assert fetches.fetch_from_json(over_the_wire(fetches.fetch_to_json(request))) == request


def test_an_order_names_one_task() -> None:
    other = FetchRequest(replace(TASK, id="0" * 64), VERSION, OURS)
    with pytest.raises(BadRequestError, match="is of task"):
        fetches.fetch_from_json(fetches.fetch_to_json(other))


def test_rows() -> None:
    assert fetches.fetch_state_from_json(over_the_wire(fetches.row_to_json(STATE))) == STATE
    assert fetches.held_from_json(over_the_wire(fetches.row_to_json(HELD))) == HELD


@pytest.mark.parametrize("change", [{"state": "late"}, {"pieces": "4"}, {"length": None}])
def test_rows_that_do_not_fit(change: dict[str, object]) -> None:
    with pytest.raises(BadRequestError):
        fetches.fetch_state_from_json({**fetches.row_to_json(STATE), **change})


@pytest.mark.parametrize("value", [None, [], {}, {"task": {}, "pin": True}, {"task": {"id": "x"}, "pin": 1}])
def test_no_order(value: object) -> None:
    with pytest.raises(BadRequestError):
        fetches.fetch_from_json(value)


@pytest.mark.parametrize("error", [DeniedError("no"), OriginRefusedError(403, "no"), StoreFullError("full")])
def test_errors_keep_their_class_and_text(error: DamselflyError) -> None:
    back = hostapi.error_from_json(over_the_wire(hostapi.error_to_json(error)))
    assert (type(back), str(back)) == (type(error), str(error))
    assert getattr(back, "status", None) == getattr(error, "status", None)


@pytest.mark.parametrize("kind", ["Exception", "Enum", "annotations", None, 3, "RangeNotSatisfiableError"])
def test_an_error_of_no_known_class_is_the_origin_s(kind: object) -> None:
    assert type(hostapi.error_from_json({"error": "x", "kind": kind})) is OriginError
