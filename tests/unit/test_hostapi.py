from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.control import Source
from p2p.errors import BadRequestError, CredentialsError, OriginRefusedError
from p2p.hostapi import (
    Keepable,
    Listed,
    Probe,
    Refused,
    Stream,
    error_from_json,
    error_to_json,
    listed_from_json,
    listed_to_json,
    probe_from_json,
    probe_to_json,
    source_from_json,
    source_to_json,
    version_from_json,
)
from p2p.stores import Store
from p2p.versions import ValidatorKind, Version

# Whatever octets came in a head are characters here: latin-1 of an origin, surrogate escapes of a client.
texts = st.text(st.characters(max_codepoint=0xFF) | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF))
pairs = st.lists(st.tuples(texts, texts), max_size=4).map(tuple)
sources = st.builds(Source, texts, pairs, st.none() | st.sampled_from(Store))
versions = st.builds(Version, texts, st.integers(0, 2**60), st.sampled_from(ValidatorKind), texts)
probes = (
    st.builds(Keepable, versions, pairs, sources)
    | st.builds(Refused, st.integers(400, 599), texts, pairs, st.binary(max_size=64))
    | st.builds(Stream, texts)
)


@given(probes)
def test_a_probes_answer_comes_out_as_it_went_in(probe: Probe) -> None:
    assert probe_from_json(json.loads(json.dumps(probe_to_json(probe)))) == probe


@given(sources)
def test_a_source_comes_out_as_it_went_in(source: Source) -> None:
    assert source_from_json(json.loads(json.dumps(source_to_json(source)))) == source


@given(st.builds(Listed, texts, texts, st.integers(0, 2**60), texts))
def test_an_entry_comes_out_as_it_went_in(listed: Listed) -> None:
    assert listed_from_json(json.loads(json.dumps(listed_to_json(listed)))) == listed


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (None, "source is not"),
        ({}, "source.url"),
        ({"url": 5}, "source.url"),
        ({"url": "https://h/?sig=5ec2e7", "headers": [["a"]]}, "source.headers"),
        ({"url": "https://h/?sig=5ec2e7", "headers": [], "store": "s4"}, "s3, gcs"),
    ],
)
def test_a_source_that_does_not_fit_is_named_and_not_repeated(value: object, named: str) -> None:
    with pytest.raises(BadRequestError, match=named) as raised:
        source_from_json(value)
    assert "5ec2e7" not in str(raised.value)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"outcome": "other"}, "probe.outcome"),
        ({"outcome": "stream"}, "probe.reason"),
        ({"outcome": "refused", "status": 200}, "probe.status"),
        ({"outcome": "refused", "status": True}, "probe.status"),
        ({"outcome": "refused", "status": 403, "body": "%"}, "probe.body"),
        ({"outcome": "keepable"}, "version"),
    ],
)
def test_an_answer_that_does_not_fit_is_named(value: object, named: str) -> None:
    with pytest.raises(BadRequestError, match=named):
        probe_from_json(value)


@pytest.mark.parametrize("change", [{"length": -1}, {"length": True}, {"kind": "mood"}, {"task_id": None}])
def test_a_version_that_does_not_fit_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(BadRequestError, match="version"):
        version_from_json({"task_id": "t", "length": 1, "kind": "etag", "validator": '"v"', **change})


def test_a_negative_length_is_no_entry() -> None:
    with pytest.raises(BadRequestError, match=r"entry\.length"):
        listed_from_json({"key": "k", "url": "u", "length": -1, "etag": ""})


def test_an_error_keeps_its_status() -> None:
    told = error_from_json(json.loads(json.dumps(error_to_json(CredentialsError("of the prefix 's3://b'", 403)))))
    assert isinstance(told, CredentialsError)
    assert (str(told), told.status) == ("of the prefix 's3://b'", 403)
    refused = error_from_json(error_to_json(OriginRefusedError(404, "no object")))
    assert isinstance(refused, OriginRefusedError)
    assert (str(refused), refused.status) == ("the origin answered 404: no object", 404)
