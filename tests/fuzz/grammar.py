"""What a hostile client may send: whole conversations up to the canary, as Hypothesis strategies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

from hypothesis import strategies as st

ORIGIN = b"127.0.0.1:00000"
"""Stands for the origin's address, which is as long: five digits of port."""

SMUGGLED = b"/smuggled"
"""The target of requests that stand where only data can be."""

SIGNED = b"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AK&X-Amz-SignedHeaders=host&X-Amz-Signature=5ec2e7"
_INNER = b"GET http://%b%b HTTP/1.1\r\nHost: %b\r\n\r\n" % (ORIGIN, SMUGGLED, ORIGIN)


class Fate(Enum):
    """What has to become of an input. ANY: all that is asked is that nothing breaks."""

    ANSWERED = "answered"
    REFUSED = "refused"
    ANY = "any"


@dataclass(frozen=True)
class Case:
    """Octets in the parts in which they are sent, `pause_seconds` apart; `answers` are due where all are ANSWERED."""

    parts: tuple[bytes, ...]
    fate: Fate = Fate.ANY
    answers: int = 0
    pause_seconds: float = 0.0

    def addressed_to(self, origin: bytes) -> Iterator[bytes]:
        """Return the parts with the origin's real address, wherever they are cut."""
        octets = b"".join(self.parts).replace(ORIGIN, origin)
        at = 0
        for part in self.parts:
            yield octets[at : at + len(part)]
            at += len(part)


_TOKENS = st.text("abcdefghijklmnopqrstuvwxyzABCDEFG0123456789-_!#$%&'*+.^`|~", min_size=1, max_size=20).map(
    lambda text: b"X-" + text.encode()
)
_VALUES = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=60).map(
    lambda text: text.strip("\x85\xa0 \t").encode("latin-1")
)
_FIELDS = st.lists(st.tuples(_TOKENS, _VALUES), max_size=6).map(
    lambda pairs: [b"%b: %b" % pair for pair in pairs if not pair[0].lower().startswith(b"x-dragonfly")]
)
_PATHS = st.text("abc/.%+~;=,:@!$&'()*0123456789", max_size=40).map(str.encode)


def _request(method: bytes, target: bytes, fields: Sequence[bytes], body: bytes = b"") -> bytes:
    return b"\r\n".join((method + b" " + target + b" HTTP/1.1", b"Host: " + ORIGIN, *fields, b"", body))


def _chunked(pieces: Sequence[bytes], extension: bytes = b"") -> bytes:
    return b"".join(b"%x%b\r\n%b\r\n" % (len(p), extension, p) for p in pieces if p) + b"0\r\n\r\n"


_BODIES = st.one_of(st.binary(max_size=200), st.just(_INNER), st.just(b"0\r\n\r\n" + _INNER))


@st.composite
def well_formed(draw: st.DrawFn, number: int) -> bytes:
    """Return one request that has to be answered, its target told apart from others by `number`."""
    target = b"http://%b/%d/%b" % (ORIGIN, number, draw(_PATHS))
    fields = [b"User-Agent: fuzz", *draw(_FIELDS)]
    match draw(st.sampled_from(("get", "length", "chunks", "extension"))):
        case "get":
            return _request(b"GET", target, fields)
        case "length":
            body = draw(_BODIES)
            return _request(b"PUT", target, [*fields, b"Content-Length: %d" % len(body)], body)
        case "chunks":
            coded = _chunked(draw(st.lists(_BODIES, max_size=3)))
            return _request(b"POST", target, [*fields, b"Transfer-Encoding: chunked"], coded)
        case _:
            coded = _chunked(draw(st.lists(_BODIES, max_size=3)), b';a="b";c')
            return _request(b"POST", target, [*fields, b"Transfer-Encoding: chunked"], coded)


@st.composite
def _split(draw: st.DrawFn, octets: bytes) -> tuple[bytes, ...]:
    """Cut anywhere: not at all, at some places, or between any two octets of a stretch."""
    if not octets:
        return ()
    cuts = draw(st.sets(st.integers(1, max(1, len(octets) - 1)), max_size=8))
    if draw(st.booleans()):
        start = draw(st.integers(0, len(octets)))
        cuts |= set(range(max(1, start), min(len(octets), start + 60)))
    edges = [0, *sorted(cuts), len(octets)]
    return tuple(octets[a:b] for a, b in pairwise(edges) if a < b)


@st.composite
def pipelines(draw: st.DrawFn) -> Case:
    """Several well-formed requests behind each other, cut anywhere."""
    count = draw(st.integers(1, 4))
    octets = b"".join(draw(well_formed(number)) for number in range(count))
    return Case(draw(_split(octets)), Fate.ANSWERED, count, draw(st.sampled_from((0.0, 0.0, 0.1))))


_AMBIGUOUS: tuple[tuple[bytes, ...], ...] = (
    (b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    (b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    (b"Content-Length: 0", b"Transfer-Encoding: chunked"),
    (b"Content-Length: 5", b"Content-Length: 6"),
    (b"Content-Length: 5", b"Content-Length: 5"),
    (b"Content-Length: 5, 5",),
    (b"Content-Length: +5",),
    (b"Content-Length: -5",),
    (b"Content-Length: 0x5",),
    (b"Content-Length: 5 5",),
    (b"Content-Length:",),
    (b"Content-Length: 99999999999999999999999999",),
    (b"Content-Length : 5",),
    (b" Content-Length: 5",),
    (b"X: y\r\n\tfolded", b"Content-Length: 5"),
    (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    (b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"),
    (b"Transfer-Encoding: identity",),
    (b"Transfer-Encoding: xchunked",),
    (b"Transfer-Encoding: chunked, identity",),
    (b"Transfer-Encoding: gzip, chunked",),
    (b"Transfer-Encoding: chunked;q=1",),
    (b"Transfer-Encoding : chunked",),
    (b"Transfer-Encoding:\x0bchunked",),
    (b"Transfer-Encoding: \x00chunked",),
    (b"Transfer-Encoding:",),
    (b"X: a\nTransfer-Encoding: chunked",),
    (b"X: a\rTransfer-Encoding: chunked",),
    (b"X: a\x00b",),
    (b"X y: z",),
    (b": empty",),
    (b"no colon",),
    (b"Host: 127.0.0.1",),
)
_BAD_CHUNKS = (
    b"-5\r\nhello\r\n0\r\n\r\n",
    b"+5\r\nhello\r\n0\r\n\r\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b" 5\r\nhello\r\n0\r\n\r\n",
    b"5\nhello\n0\n\n",
    b"5\r\nhelloX\r\n0\r\n\r\n",
    b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    b"5;\x00\r\nhello\r\n0\r\n\r\n",
    b"ffffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    b"\r\nhello\r\n0\r\n\r\n",
)


@st.composite
def smuggling(draw: st.DrawFn) -> Case:
    """A request that two readers could take for different ones, with a request inside; all before it are sound."""
    before = draw(st.integers(0, 2))
    octets = b"".join(draw(well_formed(number)) for number in range(before))
    target = b"http://%b/ambiguous" % ORIGIN
    fields = [b"User-Agent: fuzz", *draw(_FIELDS)]
    pair = draw(st.sampled_from(_AMBIGUOUS))
    place = draw(st.integers(0, len(fields))) if not pair[0].startswith(b" ") else 0
    body = draw(st.sampled_from((b"0\r\n\r\n" + _INNER, b"hello" + _INNER, _chunked([_INNER]), b"")))
    method = draw(st.sampled_from((b"POST", b"GET", b"PUT")))
    octets += _request(method, target, [*fields[:place], *pair, *fields[place:]], body)
    return Case(draw(_split(octets)), Fate.REFUSED)


@st.composite
def bad_chunks(draw: st.DrawFn) -> Case:
    """A body whose chunks cannot be read; nothing behind it may be taken for a request."""
    octets = _request(
        b"POST", b"http://%b/chunks" % ORIGIN, [b"User-Agent: fuzz", b"Transfer-Encoding: chunked"], b""
    ) + draw(st.sampled_from(_BAD_CHUNKS))
    return Case(draw(_split(octets)), Fate.ANY)


_TARGETS = st.one_of(
    st.sampled_from(
        (
            b"/", b"*", b"", b"http://", b"http:///x", b"http://:80/", b"http://user:secret@%b/x" % ORIGIN,
            b"http://%b@evil/x" % ORIGIN, b"http://127.0.0.1:0/", b"http://127.0.0.1:65536/", b"http://127.0.0.1:-1/",
            b"http://127.0.0.1:x/", b"http://[::1]:9/x", b"http://[::1/x", b"http://[::ffff:127.0.0.1]:9/", b"http://[]/",
            b"http://[::1%25lo]:9/", b"http://%b/%%" % ORIGIN, b"http://%b/%%zz%%0" % ORIGIN,
            b"http://%b/\xff\xfe" % ORIGIN,
            b"http://%b/a\x00b" % ORIGIN, b"http://%b/a b" % ORIGIN, b"http://%b/?" % ORIGIN, b"http://%b?x" % ORIGIN,
            b"http://%b/#f" % ORIGIN, b"http://%b/../../x" % ORIGIN, b"http:\\\\%b\\x" % ORIGIN,
            b"HTTP://%b/x" % ORIGIN,
            b"ftp://%b/x" % ORIGIN, b"http://169.254.169.254/latest", b"http://0/", b"http://127.1/",
            b"//%b/x" % ORIGIN,
            b"http://%b/" % ORIGIN + b"a" * 70_000, b"http://" + b"a" * 300 + b"/", b"http://xn--\xe4/",
            b"https://%b/" % ORIGIN,
        )
    ),
    _PATHS.map(lambda path: b"http://%b/%b" % (ORIGIN, path)),
    st.binary(max_size=60),
)  # fmt: skip
_METHODS = st.sampled_from(
    (b"GET", b"PUT", b"DELETE", b"OPTIONS", b"PURGE", b"get", b"CONNECT", b"G\x00T", b"", b"PRI")
)
_RANGES = st.one_of(
    st.sampled_from(
        (b"bytes=-0", b"bytes=5-1", b"bytes=-99999999999999999999", b"bytes=0-,1-", b"bytes=", b"bites=0-1")
    ),
    st.tuples(st.integers(-(2**70), 2**70), st.integers(-(2**70), 2**70)).map(lambda pair: b"bytes=%d-%d" % pair),
    st.just(b"bytes=" + b",".join(b"%d-%d" % (n, n) for n in range(2000))),
)
_ODD_FIELDS = st.one_of(
    _RANGES.map(lambda value: b"Range: " + value),
    st.sampled_from(
        (
            b"Expect: 100-continue", b"Expect: nonsense", b"Connection: close", b"Connection: keep-alive, X-Y",
            b"Upgrade: websocket\r\nConnection: upgrade", b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings",
            b"X-Dragonfly-Use-P2P: true", b"X-Dragonfly-Use-P2P: false", b"X-Dragonfly-Use-P2P: perhaps",
            b"X-Dragonfly-Filter: ,&,&", b"X-Dragonfly-Digest: sha256:zz", b"X-Dragonfly-Registry: ::",
            b"If-Range: \xff",
            b"If-Modified-Since: Thu, 99 Foo 99999 99:99:99 GMT", b"If-None-Match: \"a, W/\"", b"Via: , ,1.1",
            b"Proxy-Authorization: Basic \xff", b"Authorization: AWS4-HMAC-SHA256 SignedHeaders=range", b"TE: trailers",
            b"Accept-Encoding: \xff", b"Content-Type: \x01", b"Cookie: " + b"c" * 5000, b"X-Big: " + b"v" * 70_000,
            b"\r\n".join(b"X-%d: y" % n for n in range(300)), b"Proxy-Connection: Keep-Alive", b"Max-Forwards: 0",
        )
    ),
    st.tuples(_TOKENS, _VALUES).map(lambda pair: b"%b: %b" % pair),
)  # fmt: skip


@st.composite
def oddities(draw: st.DrawFn) -> Case:
    """Requests with sound framing and odd content: targets, methods, ranges, fields of every kind."""
    signed = draw(st.booleans())
    target = b"http://%b/object?%b" % (ORIGIN, SIGNED) if signed else draw(_TARGETS)
    method = b"GET" if signed else draw(_METHODS)
    octets = _request(method, target, draw(st.lists(_ODD_FIELDS, max_size=4)))
    return Case(draw(_split(octets)))


@st.composite
def mutations(draw: st.DrawFn) -> Case:
    """Sound requests in which octets were changed, taken out, put in or doubled."""
    octets = bytearray(draw(well_formed(0)) + draw(well_formed(1)))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(octets)))
        match draw(st.sampled_from(("set", "cut", "put", "double"))):
            case "set":
                octets[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del octets[at : at + draw(st.integers(1, 30))]
            case "put":
                octets[at:at] = draw(
                    st.sampled_from((b"\r", b"\n", b"\0", b" ", b"\r\n", b"\r\n\r\n", b":", b"\xff", b"%"))
                )
            case _:
                octets[at:at] = octets[at : at + draw(st.integers(1, 200))]
    return Case(draw(_split(bytes(octets).replace(SMUGGLED, b"/innocent"))))


noise = st.binary(max_size=400).flatmap(_split).map(Case)
"""Anything at all."""

cases = st.one_of(pipelines(), smuggling(), bad_chunks(), oddities(), mutations(), noise)
"""Any of it."""
