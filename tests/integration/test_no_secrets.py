"""No log, metric, error, command's output or data directory of the suite's daemons holds a secret.

What all the other tests leave behind is judged by `_watch_for_secrets` (tests/conftest.py) when the last has run.
"""

from __future__ import annotations

from pathlib import Path

from bench.origin_client import OriginClient
from bench.sigv4 import SECRET_KEY
from tests.support.commands import run
from tests.support.daemons import fetch, running_cluster
from tests.support.secrets import WATCH, secret


def test_nothing_that_daemons_leave_behind_holds_a_secret(tmp_path: Path, origin: OriginClient) -> None:
    secret("the key of the bench's origin", SECRET_KEY)
    # So that there is something of each kind to look at, whichever tests ran before.
    made = origin.create("models/secret/1/model.bin", 3 * 1024 * 1024)
    broken = f"{made.url[:-1]}{'0' if made.url[-1] != '0' else '1'}"
    with running_cluster(tmp_path / "cluster", peers=1) as cluster:
        proxy = cluster["peer-1"].addresses["proxy"]
        assert fetch(made.url, proxy=proxy).status == 200
        assert fetch(broken, proxy=proxy).status == 403
        assert run("get", broken, "-o", str(tmp_path / "no"), "--proxy", proxy).returncode != 0
    for kind in ("log", "metrics", "page", "index", "name", "note", "command", "error"):
        assert WATCH.looked[kind], f"nothing of the kind {kind!r} was looked at"
    assert not WATCH.findings, WATCH.report()
