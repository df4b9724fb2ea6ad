import http.client
import http.server
import json
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.ground import ExternalGround, Target, embedded_ground
from bench.hits import GIB, Sample, measure, summarise
from bench.origin import Stats
from bench.origin_client import OriginClient, running_origin
from bench.reader import ReadError
from bench.reserve import MemoryReserve

MIB = 1024 * 1024


class ForwardingProxy(http.server.ThreadingHTTPServer):
    """A plain proxy, as any: it knows nothing of peers, and may be told to alter bytes."""

    daemon_threads = True

    def __init__(self, *, spoil: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        self.spoil = spoil
        self.tags: list[str | None] = []
        self.address = f"127.0.0.1:{self.server_address[1]}"


class _Forward(http.server.BaseHTTPRequestHandler):
    server: ForwardingProxy

    def do_GET(self) -> None:  # the name http.server asks for
        self.server.tags.append(self.headers["X-Dragonfly-Tag"])
        parts = urlsplit(self.path)
        origin = http.client.HTTPConnection(parts.netloc, timeout=30)
        origin.request("GET", f"{parts.path}?{parts.query}")
        response = origin.getresponse()
        body = response.read()
        origin.close()
        self.send_response(response.status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Cache", "BYPASS")
        self.send_header("X-Dragonfly-Task-ID", "task")
        self.end_headers()
        self.wfile.write(body[:-1] + b"?" if self.server.spoil else body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name http.server uses
        pass


@contextmanager
def proxying(*, spoil: bool = False) -> Iterator[ForwardingProxy]:
    with ForwardingProxy(spoil=spoil) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OriginClient]:
    with running_origin("unlimited", tmp_path_factory.mktemp("origin")) as client:
        yield client


class OwnGround:
    """A real origin behind plain proxies."""

    profile = "unlimited"

    def __init__(self, origin: OriginClient, proxies: Sequence[str]) -> None:
        self.proxies = proxies
        self.forgotten: list[str] = []
        self.reads: list[str] = []
        self._origin = origin

    def target(self, size: int) -> Target:
        made = self._origin.create(f"object-{len(self.forgotten)}", size)
        return Target(made.url, (), made.xxh3_128)

    def origin_stats(self) -> Stats:
        return self._origin.stats()

    def cpu_seconds(self) -> dict[str, float]:
        return {"origin": self._origin.child.cpu_seconds(), "client": 0.0}

    def take_peaks(self) -> dict[str, int]:
        return {"peer-1": 5, "origin": 7}

    @contextmanager
    def prepared(self, name: str) -> Iterator[None]:
        self.reads.append(name)
        yield

    def forget(self, task_id: str) -> None:
        self.forgotten.append(task_id)


def test_every_object_is_read_four_ways_and_forgotten(origin: OriginClient) -> None:
    with proxying() as first, proxying() as second:
        ground = OwnGround(origin, [first.address, second.address])
        seen: list[str] = []
        result = measure(ground, size=MIB, objects=3, progress=seen.append)
    assert [run.name for run in result.runs] == ["direct", "cold", "remote", "local"]
    assert ground.reads == ["direct", "cold", "remote", "local"] * 4
    assert (len(first.tags), len(second.tags)) == (8, 4)  # three objects and the warm-up
    assert ground.forgotten == ["task"] * 4
    assert result.digest_ok
    assert (result.object_bytes, result.objects, result.profile) == (MIB, 3, "unlimited")
    assert result.origin_copies == 4.0
    assert [run.origin_bytes for run in result.runs] == [MIB] * 4
    assert [run.origin_requests for run in result.runs] == [1] * 4
    assert [run.cache for run in result.runs] == [None, "BYPASS", "BYPASS", "BYPASS"]
    assert {run.peak_rss_bytes for run in result.runs} == {5}
    assert result.runs[0].ratio == 1.0
    assert seen == ["warm-up", "object 1 of 3", "object 2 of 3", "object 3 of 3"]


def test_wrong_bytes_are_noticed(origin: OriginClient) -> None:
    with proxying() as right, proxying(spoil=True) as wrong:
        result = measure(OwnGround(origin, [right.address, wrong.address]), size=MIB, objects=1)
    assert [run.digest_ok for run in result.runs] == [True, True, False, True]
    assert not result.digest_ok


def test_on_foreign_ground_every_round_is_a_task_of_its_own(origin: OriginClient) -> None:
    made = origin.create("foreign", MIB)
    with proxying() as proxy:
        result = measure(ExternalGround(made.url, [proxy.address]), size=0, objects=2)
    assert [run.name for run in result.runs] == ["direct", "cold", "local"]
    assert result.object_bytes == MIB
    assert result.digest_ok
    assert result.origin_copies is None
    assert result.runs[1].peak_rss_bytes is None
    assert proxy.tags[0] == proxy.tags[1] != proxy.tags[2] == proxy.tags[3]


def sample(name: str, seconds: float) -> Sample:
    return Sample(
        name=name,
        seconds=seconds,
        first_byte_seconds=seconds / 10,
        object_bytes=GIB // 2,
        digest_ok=True,
        cache=None,
        origin=Stats(requests=3, one_byte_requests=1, body_bytes=GIB // 2),
        cpu_seconds={"peer-1": seconds, "client": 1.0},
        peak_rss_bytes={"peer-1": int(seconds)},
    )


def test_the_figures_are_medians() -> None:
    samples = [sample(name, seconds) for seconds in (2.0, 9.0, 4.0) for name in ("direct", "cold")]
    samples[1] = replace(samples[1], seconds=5.0, digest_ok=False)
    result = summarise(samples, profile="gateway")
    direct, cold = result.runs
    assert (direct.seconds, direct.seconds_min, direct.seconds_max) == (4.0, 2.0, 9.0)
    assert direct.bytes_per_second == GIB / 8
    assert (direct.cpu_seconds, direct.cpu_seconds_per_gib) == (5.0, 10.0)
    assert (cold.seconds, cold.ratio, cold.digest_ok) == (5.0, 1.25, False)
    assert (cold.origin_requests, cold.origin_one_byte_requests) == (3, 1)
    assert cold.process_cpu_seconds == {"peer-1": 4.0, "client": 1.0}
    assert result.origin_copies == 2.0
    assert [(process.name, process.peak_rss_bytes) for process in result.processes] == [("peer-1", 9), ("client", None)]


@pytest.mark.parametrize(
    ("profile", "bars"),
    [
        ("gateway", [("cold: seconds over direct's", 0.5, True), ("local: seconds over direct's", 0.25, False)]),
        ("s3", [("cold: seconds over direct's", 0.5, False)]),
        ("unlimited", [("cold: CPU-seconds a GiB", 6.0, False), ("local: CPU-seconds a GiB", 4.0, False)]),
        ("external", []),
    ],
)
def test_each_profile_has_its_bars(profile: str, bars: list[tuple[str, float, bool]]) -> None:
    samples = [sample("direct", 4.0), sample("cold", 2.0), sample("local", 1.0)]
    result = summarise(samples, profile=profile)
    assert [(bar.name, bar.value, bar.met) for bar in result.bars] == bars


def test_the_command_writes_figures_and_charts(origin: OriginClient, tmp_path: Path) -> None:
    made = origin.create("command", MIB)
    figures, chart = tmp_path / "hits.json", tmp_path / "hits"
    with proxying() as proxy:
        arguments = ["hits", "--url", made.url, "--proxy", proxy.address, "--objects", "1"]
        done = CliRunner().invoke(app, [*arguments, "--json", str(figures), "--chart", str(chart)])
    assert done.exit_code == 0, done.output
    assert "X-Amz-Signature" not in done.output
    document = json.loads(figures.read_text())
    assert document["profile"] == "external"
    assert {"name", "seconds", "bytes_per_second", "ratio", "digest_ok", "origin_bytes", "origin_requests"} <= set(
        document["runs"][0]
    )
    assert {"cpu_seconds", "peak_rss_bytes"} <= set(document["runs"][0])
    assert chart.with_suffix(".png").exists()
    assert chart.with_suffix(".svg").exists()


def test_the_command_fails_when_bytes_are_wrong(origin: OriginClient, tmp_path: Path) -> None:
    made = origin.create("wrong", MIB)
    with proxying(spoil=True) as proxy:
        arguments = ["hits", "--url", made.url, "--proxy", proxy.address, "--objects", "1"]
        done = CliRunner().invoke(app, [*arguments, "--json", str(tmp_path / "j"), "--chart", str(tmp_path / "c")])
    assert done.exit_code == 1
    assert "wrong bytes were read: cold, local" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--url", "http://127.0.0.1:1/x"], "--url and --proxy go together"),
        (["--proxy", "127.0.0.1:1"], "--url and --proxy go together"),
        (["--size", "big"], "'big'"),
        (["--size", "0"], "at least one byte"),
        (["--origin-profile", "fast"], "gateway, s3, unlimited"),
    ],
)
def test_settings_that_cannot_work_are_told(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["hits", *arguments])
    assert done.exit_code == 2
    assert message in done.output


def test_an_error_takes_the_ends_of_the_logs_along() -> None:
    standin = (sys.executable, str(Path(__file__).with_name("standin.py")))
    ground = embedded_ground("unlimited", program=standin)
    inside = ground.__enter__()
    assert len(inside.proxies) == 2
    assert set(inside.cpu_seconds()) == {"scheduler", "seed-1", "peer-1", "peer-2", "origin", "client"}
    error = ReadError("it broke")
    assert not ground.__exit__(ReadError, error, None)
    notes = "\n".join(error.__notes__)
    assert "the log of peer-2 ends with:" in notes
    assert '"pieces": "127.0.0.1:' in notes


def test_the_reserve_holds_what_it_was_asked_for_and_gives_it_back() -> None:
    with MemoryReserve() as reserve:
        before = anonymous_bytes()
        reserve.fill(100 * MIB)
        assert anonymous_bytes() - before >= 100 * MIB
        reserve.release(100 * MIB)
        assert anonymous_bytes() - before < 64 * MIB
        reserve.release(100 * MIB)


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:"))
