from __future__ import annotations

import re
from pathlib import Path

import pytest

from p2p.errors import ConfigError, OriginError
from peer.core.rules import Rule, Rules
from peer.source.client import OriginClient, OriginSettings
from peer.source.trust import Trust
from tests.support.tls import own_authority

from .raw_origin import raw_origin, response


def rule(pattern: str, ca_file: Path | None = None, redirect: str | None = None, *, tls: bool = False) -> Rule:
    return Rule(re.compile(pattern), ca_file=ca_file, redirect=redirect, tls=tls)


def test_the_rule_that_leads_to_a_url_says_who_vouches_for_it(tmp_path: Path) -> None:
    ca_file, _ = own_authority(tmp_path)
    trust = Trust(
        rules=Rules(
            [
                rule("^https://private/", ca_file),
                rule("^http://models/", ca_file, "store:9000", tls=True),
                rule("^http://upgraded/", ca_file, tls=True),
                rule("^http://plain/", ca_file),
                rule("^https://public/"),
            ]
        )
    )
    urls = ("https://private/x", "https://store:9000/x", "https://upgraded/x")
    assert [trust.ca_file(url) for url in urls] == [ca_file] * 3
    others = ("https://public/x", "https://plain/x", "https://store/x", "https://elsewhere/https://private/")
    assert [trust.ca_file(url) for url in others] == [None] * 4
    assert trust.context(ca_file) is trust.context(ca_file)
    assert trust.context(ca_file) is not trust.context()


def test_a_file_without_certificates_is_named_at_the_start(tmp_path: Path) -> None:
    (empty := tmp_path / "empty.pem").touch()
    with pytest.raises(ConfigError, match=r"empty\.pem"):
        Trust(rules=Rules([rule("x", empty)]))


async def test_only_the_rules_own_urls_are_vouched_for(tmp_path: Path) -> None:
    ca_file, context = own_authority(tmp_path)
    async with raw_origin(lambda _: response(200), tls=context) as origin:
        base = f"https://127.0.0.1:{origin.port}"
        async with OriginClient(OriginSettings(rules=Rules([rule("/private/", ca_file)]))) as client:
            (await client.request("GET", f"{base}/private/x", ())).release()
            with pytest.raises(OriginError, match="cannot be verified"):
                await client.request("GET", f"{base}/public/x", ())
        assert [request.target for request in origin.requests] == ["/private/x"]
