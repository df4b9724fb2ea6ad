from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import BadRequestError, ConfigError, DeniedError
from peer.core.rules import DEFAULT_RULE, Action, Errors, Rule, Rules, StaleIfError, comparable
from peer.proxy.route import Wanted, route, upstream
from peer.proxy.server import ProxySettings
from peer.settings import Configuration, load_configuration

SIGNED = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AK&X-Amz-SignedHeaders=host&X-Amz-Signature=5ec2e7"
URL = "http://store.example:9000/models/a.onnx"
DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"


def load(directory: Path, text: str) -> Configuration:
    file = directory / "peer.toml"
    file.write_text(text)
    return load_configuration(file)


def wanted(url: str, *fields: tuple[str, str], rule: Rule = DEFAULT_RULE) -> Wanted | None:
    return route("GET", url, fields, has_body=False, rule=rule)


class TestRules:
    def test_the_first_match_anywhere_in_the_url_wins(self) -> None:
        first, second = Rule(re.compile("a"), tag="1"), Rule(re.compile(r"\.onnx"), tag="2")
        assert Rules([first, second]).match(URL).tag == "1"
        assert Rules([second, first]).match(URL).tag == "2"
        assert Rules([Rule(re.compile("^store"))]).match(URL) is DEFAULT_RULE

    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("HTTP://Store.Example:80/A?B=%2f#", "http://store.example/A?B=%2f#"),
            ("https://store.example.:443", "https://store.example/"),
            ("https://user:secret@a:8443?x", "https://a:8443/?x"),
            ("http://a:443//b", "http://a:443//b"),
            ("http://a.:/", "http://a/"),
            ("HTTPS://[::A]:443/x", "https://[::a]/x"),
            ("http://[::1]:9000/x", "http://[::1]:9000/x"),
            ("/v2/", "/v2/"),
        ],
    )
    def test_no_spelling_slips_past_a_rule(self, url: str, expected: str) -> None:
        assert comparable(url) == expected
        rule = Rule(re.compile(f"^{re.escape(expected)}$"), action=Action.DENY)
        assert Rules([rule]).match(url) is rule

    @pytest.mark.parametrize(
        ("rule", "url", "expected"),
        [
            (Rule(), "HTTP://a.example/x?", "HTTP://a.example/x?"),
            (Rule(redirect="b.example"), "http://a.example:80/x?y=%2f+", "http://b.example/x?y=%2f+"),
            (Rule(redirect="b.example:81"), "http://a.example", "http://b.example:81"),
            (Rule(tls=True), "http://a.example:80/x", "https://a.example/x"),
            (Rule(tls=True), "http://a.example:9000/x", "https://a.example:9000/x"),
            (Rule(tls=True, redirect="[::1]:1"), "http://a.example?q", "https://[::1]:1?q"),
        ],
    )
    def test_another_authority_or_https_leaves_the_rest_as_it_came(self, rule: Rule, url: str, expected: str) -> None:
        assert upstream(url, rule) == expected

    @given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#"), max_size=40))
    def test_a_redirect_never_touches_the_target(self, rest: str) -> None:
        assert upstream(f"http://a.example/{rest}", Rule(redirect="b")) == f"http://b/{rest}"


class TestRoute:
    @pytest.mark.parametrize(
        ("action", "plain", "presigned"),
        [(Action.AUTO, False, True), (Action.P2P, True, True), (Action.DIRECT, False, False)],
    )
    def test_actions(self, action: Action, plain: bool, presigned: bool) -> None:
        rule = Rule(action=action)
        assert (wanted(URL, rule=rule) is not None) is plain
        assert (wanted(f"{URL}?{SIGNED}", rule=rule) is not None) is presigned

    @pytest.mark.parametrize("action", [Action.AUTO, Action.P2P, Action.DIRECT])
    def test_the_header_outranks_the_action(self, action: Action) -> None:
        rule = Rule(action=action)
        assert wanted(URL, ("X-Dragonfly-Use-P2P", "true"), rule=rule) is not None
        assert wanted(f"{URL}?{SIGNED}", ("X-Dragonfly-Use-P2P", "False"), rule=rule) is None
        with pytest.raises(BadRequestError):
            wanted(URL, ("X-Dragonfly-Use-P2P", "maybe"), rule=rule)

    def test_what_is_wanted_carries_its_rule(self) -> None:
        rule = Rule(action=Action.P2P, authorize_ttl=60.0)
        found = wanted(URL, rule=rule)
        assert found is not None
        assert found.rule is rule

    def test_filters_add_up(self) -> None:
        rule = Rule(action=Action.P2P, filters=("token",))
        request = (("X-Dragonfly-Filter", "a&b"),)
        one = wanted(f"{URL}?v=1&token=x&a=2", *request, rule=rule)
        other = wanted(f"{URL}?v=1&token=y&b=3", *request, rule=rule)
        assert one is not None
        assert other is not None
        assert one.task == other.task
        assert one.source.url == f"{URL}?v=1&token=x&a=2"

    def test_a_request_outranks_a_rule_in_tag_and_application(self) -> None:
        rule = Rule(action=Action.P2P, tag="rule", application="triton")
        assert "tag=rule&application=triton" in str(wanted(URL, rule=rule))
        own = wanted(URL, ("X-Dragonfly-Tag", "own"), ("X-Dragonfly-Application", "mine"), rule=rule)
        assert "tag=own&application=mine" in str(own)


class TestConfiguration:
    def test_without_a_file_the_defaults_hold(self) -> None:
        configuration = Configuration()
        assert (list(configuration.rules), len(configuration.users)) == ([], 0)
        assert configuration.proxy == ProxySettings()

    def test_an_empty_file_is_the_defaults(self, tmp_path: Path) -> None:
        assert load(tmp_path, "").proxy == ProxySettings()

    def test_the_documented_example_says_what_it_seems_to(self, tmp_path: Path) -> None:
        example = re.search(r"```toml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
        assert example is not None
        (tmp_path / "triton.password").write_text("hush:hush\n")
        configuration = load(tmp_path, example[1])
        store, intercepted, direct, denied = configuration.rules
        assert store == Rule(
            pattern=re.compile(r"^https?://models\.internal(:9000)?/"),
            action=Action.P2P,
            redirect="store-1.internal:9000",
            tls=True,
            filters=("token", "request-id"),
            tag="prod",
            application="triton",
            revalidate=300.0,
            authorize_ttl=60.0,
            stale_if_error=StaleIfError.SAME_CREDENTIAL,
            errors=Errors.STATUS,
            prefetch=True,
            ca_file=tmp_path / "private-ca.pem",
        )
        assert intercepted == Rule(re.compile(r"^https://storage\.googleapis\.com/"), intercept=True)
        assert (direct.action, denied.action) == (Action.DIRECT, Action.DENY)
        assert len(configuration.users) == 2
        assert configuration.proxy.connect_ports == (range(443, 444), range(8000, 10000))
        assert configuration.ca_dir == tmp_path / "ca"
        assert configuration.proxy.registry_upstream == "https://registry-1.docker.io"
        with pytest.raises(DeniedError):
            configuration.guard.require("git.corp.internal")

    def test_the_documented_limits_are_the_defaults(self, tmp_path: Path) -> None:
        example = re.search(r"\[proxy\.limits\].*?```", DOCUMENT.read_text(), re.DOTALL)
        assert example is not None
        assert load(tmp_path, example[0].removesuffix("```")).proxy == ProxySettings()

    def test_every_key_is_documented(self) -> None:
        text = DOCUMENT.read_text()
        for key in ("match", *(name for name in Rule.__dataclass_fields__ if name != "pattern")):
            assert f"`{key}`" in text

    @pytest.mark.parametrize(
        ("text", "seconds"), [('"always"', 0.0), ('"never"', math.inf), ('"1h30m"', 5400.0), ("0", 0.0)]
    )
    def test_revalidate(self, tmp_path: Path, text: str, seconds: float) -> None:
        (rule,) = load(tmp_path, f'[[rules]]\nmatch = "a"\nrevalidate = {text}').rules
        assert rule.revalidate == seconds

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("rule = 1", r"peer\.toml: rule is not a known key; did you mean 'rules'"),
            (
                '[[rules]]\nmatch = "a"\n[[rules]]\nmatch="b"\nrevaldate = "1s"',
                r"rules number 2\.revaldate .*'revalidate'",
            ),
            ("[proxy]\nzzzz = 1", r"proxy\.zzzz is not a known key; known are users, allow, deny"),
            ("[proxy.limits]\nclientstall = '1s'", r"proxy\.limits\.clientstall .*'client_stall'"),
            ("[[rules]]\ntag = 'a'", r"rules number 1 has no 'match'"),
            ("[rules]\nmatch = 'a'", r"rules is a table; write each of them as \[\[rules\]\]"),
            ("proxy = 1", r"proxy is a number; write it as a table, \[proxy\]"),
            ("rules = [1]", "rules number 1 is a number"),
            ("[[rules]]\nmatch = '('", "rules number 1.match: '\\(' is not a regular expression"),
            (
                "[[rules]]\nmatch = 'a'\naction = 'directly'",
                "'directly' is not one of .* did you mean 'direct'",
            ),
            ("[[rules]]\nmatch = 'a'\ntls = 'yes'", "write true or false instead of a string"),
            ("[[rules]]\nmatch = 'a'\nfilters = 'x'", "write a list of strings"),
            ("[[rules]]\nmatch = 'a'\nauthorize_ttl = 60", "write a duration with a unit"),
            ("[[rules]]\nmatch = 'a'\nauthorize_ttl = '60'", "duration '60'"),
            ("[[rules]]\nmatch = 'a'\nredirect = 'http://u:p@b/'", r"redirect: it is to be a host or host:port"),
            ("[[rules]]\nmatch = 'a'\nredirect = 'b:99999'", r"redirect: it is to be a host or host:port"),
            ("[proxy]\nconnect_ports = [0]", "0 is neither a port"),
            ("[proxy]\nconnect_ports = ['9-8']", "'9-8' is neither a port"),
            ("[proxy]\nallow = ['http://a']", r"proxy\.allow: 'http://a' is neither a host name nor a network"),
            ("[proxy]\nregistry_upstream = 'docker.io'", r"registry_upstream: it is to be http://"),
            ("[proxy.limits]\nconnect = '0s'", "limits.connect: a deadline of 0"),
            ("[proxy.limits]\nline = '2MiB'", "limits.line: a line of a head"),
            ("[proxy.limits]\nheaders = true", "limits.headers: a request may be limited"),
            ("[proxy.users]\n'a:b' = 'hush'", "the name 'a:b' cannot stand"),
            ("[proxy.users]\na = ''", "the password is empty"),
            ("[proxy.users]\na = { password_file = 'none' }", "cannot read password_file .*No such file"),
            ("[proxy.users]\na = { file = 'none' }", "a user is name = "),
            ("= 1", "is not TOML"),
        ],
    )
    def test_what_cannot_work_is_told_with_its_place(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            load(tmp_path, text)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"cannot read .*none\.toml"):
            load_configuration(tmp_path / "none.toml")

    def test_no_error_and_no_repr_shows_a_password(self, tmp_path: Path) -> None:
        text = "[proxy.users]\na = 'hush-hush'\n"
        assert "hush" not in repr(load(tmp_path, text))
        with pytest.raises(ConfigError) as raised:
            load(tmp_path, f"{text}b = ['hush-hush']")
        assert "hush" not in str(raised.value)
