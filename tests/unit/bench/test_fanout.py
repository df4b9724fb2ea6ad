"""The pure parts of the fanout benchmark: addresses, shaping, counters, clients, tables, and what was asked for."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
import xxhash
from rich.console import Console

from bench.fanout import ALL, NAMES, PARENT, RESTART, SEED, SINGLE, Sample, Sampler, cpu_ticks
from bench.fanout_clients import Client
from bench.fanout_command import parse_runs
from bench.fanout_network import CONTROL, Plan, Shape, received_bytes, stale
from bench.fanout_report import Result, summarise
from p2p.errors import ConfigError

SIZE = 16 * 1024 * 1024
RATE = 25e6


def a_sample(name: str, seconds: Mapping[str, float], **fields: object) -> Sample:
    usual: dict[str, object] = {
        "failed": {},
        "wrong": (),
        "lost": (),
        "origin_bytes": SIZE,
        "seed_bytes": 2 * SIZE,
        "scheduler_events": 24,
        "cpu_idle_share": 0.25,
        "daemons_cpu_seconds": 1.5,
        "client_cpu_seconds": 0.25,
        "machine_cpu_seconds": 2.0,
        "accident_seconds": None if name in (SINGLE, ALL) else 0.5,
        "sent": {("seed-1", 0): SIZE, ("peer-2", 1): SIZE, ("control", 0): SIZE},
        "slice_seconds": 0.2,
        "wall_seconds": 2.0,
    }
    return Sample(name=name, object_bytes=SIZE, completed=seconds, **{**usual, **fields})  # type: ignore[arg-type]


def a_result(*samples: Sample) -> Result:
    return summarise(samples, nodes=2, object_bytes=SIZE, rate=RATE, namespaces=True)


def test_every_place_has_an_address_and_a_port_of_its_own() -> None:
    nodes = [f"peer-{number}" for number in range(1, 300)]
    plan = Plan.of(nodes)
    assert list(plan.places)[:3] == [CONTROL, "peer-1", "peer-2"]
    assert (plan.places[CONTROL], plan.places["peer-1"], plan.places["peer-255"]) == (
        "10.213.0.1",
        "10.213.0.2",
        "10.213.1.0",
    )
    assert len(set(plan.places.values())) == 300
    assert len({plan.port(name) for name in plan.places}) == 300
    # A device's name may have 15 characters.
    assert max(len(plan.port(name)) for name in plan.places) <= 15


def test_links_lead_from_each_place_to_the_switch() -> None:
    plan = Plan.of(["peer-1"])
    lines = plan.switch_lines("prefix")
    assert "link add name port1 type veth peer name up0 netns prefix-peer-1" in lines
    assert "link set port1 master br0 up" in lines
    assert "addr add 10.213.0.2/16 dev up0" in plan.place_lines("peer-1")


def test_a_network_has_a_bound_and_no_name_twice() -> None:
    with pytest.raises(ConfigError, match="no addresses for so many"):
        Plan.of([str(number) for number in range(70_000)])
    with pytest.raises(ValueError, match="twice"):
        Plan.of(["peer-1", "peer-1"])


def test_a_bucket_fits_its_rate() -> None:
    assert Shape.of(25e6).words() == ["tbf", "rate", "200000000bit", "burst", "250000b", "limit", "2750000b"]
    assert Shape.of(125_000).burst_bytes == 64 * 1024


def test_namespaces_are_stale_when_their_maker_is_gone_or_another_has_its_id() -> None:
    names = ["damselfly-10-500-switch", "damselfly-11-600-peer-1", "damselfly-12-700-peer-1", "tst1", "damselfly-x-1-y"]
    assert stale(names, {10: 500, 11: 601}) == ["damselfly-11-600-peer-1", "damselfly-12-700-peer-1"]


def test_counters_of_devices() -> None:
    text = (
        "Inter-|   Receive                            |  Transmit\n"
        " face |bytes    packets errs drop fifo frame |bytes    packets errs\n"
        "    lo:       0       0    0    0    0     0          0         0        0\n"
        " port1:  254966    3855    0    0    0     0          0         0 166890974\n"
        "port12:3000000000  3855    0    0    0     0          0         0 166890974\n"
    )
    assert received_bytes(text) == {"lo": 0, "port1": 254966, "port12": 3_000_000_000}


def test_idle_ticks() -> None:
    assert cpu_ticks("cpu  100 1 50 800 20 0 4 25 7 0\ncpu0 1 2 3\n") == (820, 1000)


def test_what_is_sent_is_noted_by_slice_also_by_one_that_started_again() -> None:
    answers = iter([{"a": 10, "b": 5}, {"a": 30, "b": 5}, {"a": 7}])
    seen = threading.Event()
    last: dict[str, int] = {}

    def sent() -> Mapping[str, int]:
        nonlocal last
        try:
            last = next(answers)
        except StopIteration:
            seen.set()
        return last

    with Sampler(sent, 0.001) as sampler:
        assert seen.wait(10)
    by_name = {name: [sampler.slices[key] for key in sorted(sampler.slices) if key[0] == name] for name in "ab"}
    assert (by_name["a"][:2], sum(by_name["a"]), sum(by_name["b"])) == ([20, 7], 27, 0)


def test_a_client_takes_an_answer_in_any_parts() -> None:
    body = bytes(range(200))
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\nX-Dragonfly-Task-ID: t\r\n\r\n" + body
    for step in (1, 7, 64, len(answer)):
        client = Client()
        for at in range(0, len(answer), step):
            assert not client.over
            client.take(memoryview(answer[at : at + step]), 1.5)
        assert (client.seconds, client.received, client.task_id) == (1.5, 200, "t")
        assert client.xxh3_128 == xxhash.xxh3_128(body).hexdigest()


def test_a_client_says_what_went_wrong() -> None:
    short, refused = Client(), Client()
    short.take(memoryview(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"), 1.0)
    short.take(memoryview(b""), 2.0)
    refused.take(memoryview(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 9\r\n\r\n"), 1.0)
    assert short.failure == "the connection ended after 3 of 9 bytes"
    assert refused.failure == "answered 502, with 9 Content-Length"
    assert short.seconds is refused.seconds is None


def test_runs_are_named_with_commas() -> None:
    assert parse_runs(" all,single ,") == (ALL, SINGLE)
    with pytest.raises(ConfigError, match="did you mean 'seed-killed'"):
        parse_runs("seed-kiled")
    with pytest.raises(ConfigError, match="names none"):
        parse_runs(",")


def test_the_table_and_what_was_asked_for(tmp_path: Path) -> None:
    result = a_result(
        a_sample(RESTART, {"peer-1": 2.0, "peer-2": 4.0}, scheduler_events=None),
        a_sample(SEED, {"peer-1": 2.0, "peer-2": 3.0}),
        a_sample(PARENT, {"peer-2": 3.0}, lost=("peer-1",)),
        a_sample(ALL, {"peer-1": 2.0, "peer-2": 2.2}, origin_bytes=SIZE + SIZE // 10),
        a_sample(SINGLE, {"peer-1": 2.0}),
    )
    assert [sample.name for sample in result.samples] == list(NAMES)
    assert [(bar.value, bar.met) for bar in result.bars] == [
        (pytest.approx(2.98, abs=0.01), False),
        (1.1, True),
        (1.5, True),
        (1.5, True),
        (2.0, False),
        (pytest.approx(1.1), False),
        (0.0, True),
    ]
    rows = {row["name"]: row for row in result.figures()["runs"]}
    assert (rows[ALL]["first_seconds"], rows[ALL]["median_seconds"], rows[ALL]["last_seconds"]) == (2.0, 2.1, 2.2)
    assert (rows[ALL]["seed_copies"], rows[PARENT]["nodes_killed"]) == (2.0, ["peer-1"])
    console = Console(width=80, record=True)
    console.print(result.table())
    text = console.export_text()
    assert all(name in text for name in NAMES)
    assert "right" in text
    result.draw(tmp_path / "fanout.png")
    assert (tmp_path / "fanout.png").stat().st_size > 0


def test_what_failed_or_never_happened_is_no_figure() -> None:
    result = a_result(
        a_sample(SINGLE, {"peer-1": 2.0}),
        a_sample(ALL, {"peer-1": 2.0}, failed={"peer-2": "reset"}),
        a_sample(PARENT, {"peer-1": 2.0, "peer-2": 2.0}, wrong=("peer-2",)),
        a_sample(SEED, {"peer-1": 2.0, "peer-2": 2.0}, accident_seconds=None),
    )
    assert (result.failed, result.wrong) == ([ALL], [PARENT])
    assert [bar.value for bar in result.bars][1:] == [None, None, None, 1.0, 2.0]
    assert a_result(a_sample(ALL, {"peer-1": 2.0})).over_single(ALL) is None
