from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from p2p.auth import TOKEN_SECONDS, ClusterSecret, authorization, bearer_token, is_loopback, require_secret
from p2p.errors import ConfigError, UnauthorizedError

NOW = 1_700_000_000.5
SECRET = ClusterSecret(b"0123456789abcdef")
OTHER = ClusterSecret(b"fedcba9876543210")


def test_a_token_opens_its_own_door_for_its_time() -> None:
    token = SECRET.sign("piece", "ab12", now=NOW)
    assert SECRET.verify(token, "piece", now=NOW, subject="ab12") == "ab12"
    assert SECRET.verify(token, "piece", now=NOW + TOKEN_SECONDS - 1) == "ab12"
    assert SECRET.verify(token, "piece", now=NOW - TOKEN_SECONDS) == "ab12", "clocks differ"


@pytest.mark.parametrize("subject", ["node-1.rack-2.example.com", "..", "", "größe", "a b\nc"])
def test_a_subject_may_be_any_text(subject: str) -> None:
    assert SECRET.verify(SECRET.sign("rpc", subject, now=NOW), "rpc", now=NOW, subject=subject) == subject


def test_a_purpose_has_no_dot() -> None:
    with pytest.raises(ValueError, match="dot"):
        SECRET.sign("rpc.x", "y", now=NOW)
    # Else this would be a token for "rpc" and the subject "x.y".
    assert SECRET.verify(SECRET.sign("rpc", "x.y", now=NOW), "rpc", now=NOW) == "x.y"


def test_other_tokens_open_nothing() -> None:
    token = SECRET.sign("piece", "ab12", now=NOW)
    attempts: list[Callable[[], object]] = [
        lambda: OTHER.verify(token, "piece", now=NOW),
        lambda: SECRET.verify(token, "rpc", now=NOW),
        lambda: SECRET.verify(token, "piece", now=NOW, subject="cd34"),
        lambda: SECRET.verify(token, "piece", now=NOW + TOKEN_SECONDS + 1),
        lambda: SECRET.verify(token, "piece", now=NOW - TOKEN_SECONDS - 2),
        lambda: SECRET.verify("", "piece", now=NOW),
        lambda: SECRET.verify("piece.ab12.soon.\udc80é", "piece", now=NOW),
    ]
    for attempt in attempts:
        with pytest.raises(UnauthorizedError) as caught:
            attempt()
        assert token not in str(caught.value)


def test_a_token_travels_in_an_authorization_field() -> None:
    assert bearer_token(authorization("t.o.k")) == "t.o.k"
    assert bearer_token(" damselfly  t ") == "t"
    for header in ("", "Damselfly", "Damselfly ", "Basic dTpw", "t.o.k"):
        with pytest.raises(UnauthorizedError):
            bearer_token(header)


def test_a_secret_is_made_once_and_read_by_all(tmp_path: Path) -> None:
    path = tmp_path / "cluster-secret"
    with ThreadPoolExecutor(8) as pool:
        secrets = list(pool.map(ClusterSecret.load_or_create, [path] * 32))
    token = ClusterSecret.load(path).sign("rpc", "host", now=NOW)
    assert all(secret.verify(token, "rpc", now=NOW) == "host" for secret in secrets)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name], "no drafts are left"


def test_white_space_around_a_secret_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b" 0123456789abcdef\n")
    ClusterSecret.load(path).verify(SECRET.sign("rpc", "host", now=NOW), "rpc", now=NOW)


def test_bad_secret_files_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "secret"
    for load in (ClusterSecret.load, ClusterSecret.load_or_create):
        with pytest.raises(ConfigError, match="missing"):
            load(missing)
    short = tmp_path / "short"
    short.write_bytes(b"hunter2")
    with pytest.raises(ConfigError, match="7 bytes") as caught:
        ClusterSecret.load(short)
    assert "hunter2" not in str(caught.value)


def test_a_secret_does_not_show() -> None:
    assert "0123" not in repr(SECRET)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_secret(host: str) -> None:
    assert is_loopback(host)
    require_secret(None, host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "192.0.2.1", "node-1", "127.0.0.1.example"])
def test_any_other_listener_needs_one(host: str) -> None:
    with pytest.raises(ConfigError, match="--cluster-secret-file"):
        require_secret(None, "127.0.0.1", host)
    require_secret(SECRET, host)
