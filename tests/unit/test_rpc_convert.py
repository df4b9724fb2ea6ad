"""Control values survive the wire, and nothing malformed gets past it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.control import (
    ORIGIN,
    Allowance,
    Assignment,
    Condemned,
    Dropped,
    Failed,
    FailureReason,
    Following,
    Hello,
    Holding,
    Holdings,
    KnownDigests,
    Landed,
    OriginLoad,
    OriginUse,
    Parent,
    Part,
    PeerMessage,
    Progress,
    SchedulerMessage,
    Schedulers,
    SeedHost,
    Seeds,
    Source,
    Unwant,
    Verdict,
    Verify,
    Want,
)
from p2p.errors import BadRequestError
from p2p.pieces import Bitmap, PieceLayout, Span
from p2p.rpc.convert import (
    peer_message_from_proto,
    peer_message_to_proto,
    scheduler_message_from_proto,
    scheduler_message_to_proto,
)
from p2p.rpc.values import MAX_OBJECT_BYTES
from p2p.stores import Store
from p2p.v1 import scheduler_pb2 as pb
from p2p.versions import ValidatorKind, Version
from tests.support.pieces import PIECE

TASK_ID = "ab" * 32
VERSION = Version(TASK_ID, 10 * PIECE + 1, ValidatorKind.ETAG, '"v1"')
SECRET_URL = "https://bucket.test/model?X-Amz-Signature=5ec7e7"

host_ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
sources = st.builds(
    Source,
    st.just(SECRET_URL),
    st.lists(st.tuples(texts, texts), max_size=3).map(tuple),
    st.none() | st.sampled_from(Store),
)
checksums = st.sampled_from(["", "md5:XUFAKrxLKna5cZ2REBfFkg==", "sha256:" + "ab" * 32])


@st.composite
def versions(draw: st.DrawFn) -> Version:
    return Version(
        draw(st.from_regex(r"[0-9a-f]{64}", fullmatch=True)),
        draw(st.integers(0, 25 * PIECE)),
        draw(st.sampled_from(ValidatorKind)),
        draw(texts),
    )


@st.composite
def spans(draw: st.DrawFn, pieces: int = 1000) -> Span:
    start = draw(st.integers(0, pieces - 1))
    return Span(start, draw(st.integers(start + 1, pieces)))


def digests(count: int) -> tuple[bytes, ...]:
    return tuple(index.to_bytes(16, "big") for index in range(count))


@st.composite
def holdings(draw: st.DrawFn) -> Holding:
    version = draw(versions())
    count = PieceLayout.of(version.length).count
    bitmap = Bitmap(count)
    for index in draw(st.sets(st.integers(0, count - 1))) if count else ():
        bitmap.add_piece(index)
    fetching = draw(st.lists(spans(count), max_size=2)) if count else []
    return Holding(version, bitmap, digests(len(bitmap)), tuple(fetching))


@st.composite
def wants(draw: st.DrawFn) -> Want:
    version = draw(versions())
    count = PieceLayout.of(version.length).count
    wanted = draw(st.lists(spans(count), max_size=3)) if count else []
    return Want(version, tuple(wanted), draw(st.none() | sources), draw(checksums), draw(st.integers(0, 7)))


@st.composite
def landed(draw: st.DrawFn) -> Landed:
    span = draw(spans())
    parent_id = draw(host_ids | st.just(ORIGIN))
    return Landed(span, parent_id, digests(len(span)) if parent_id == ORIGIN else ())


version_ids = versions().map(lambda version: version.id)
failures = st.builds(Failed, spans(), host_ids | st.just(ORIGIN), st.sampled_from(FailureReason), texts)
counts = st.integers(0, 2**40)
origins = st.sampled_from(["https://s3.amazonaws.com:443", "http://127.0.0.1:9000", "https://[fe80::1]:9000"])
loads = st.builds(
    OriginLoad, origins, st.integers(0, 1000), counts, counts, counts, counts, st.integers(0, 1000), counts, counts
)
hellos = st.builds(
    Hello,
    host_ids,
    st.sampled_from(["10.0.0.1:65002", "node-1.cluster:1", "[fe80::1]:65002"]),
    st.booleans(),
    st.integers(0, 1000),
    st.dictionaries(texts, texts, max_size=3),
    texts,
)
peer_messages: st.SearchStrategy[PeerMessage] = st.one_of(
    hellos,
    st.builds(Holdings, st.lists(holdings(), max_size=3).map(tuple), st.booleans()),
    wants(),
    st.builds(Unwant, version_ids),
    st.builds(
        Progress, version_ids, st.lists(landed(), max_size=3).map(tuple), st.lists(failures, max_size=3).map(tuple)
    ),
    st.builds(Dropped, version_ids, st.lists(spans(), max_size=3).map(tuple)),
    st.builds(Verdict, version_ids, st.booleans(), texts),
    st.builds(OriginUse, st.lists(loads, max_size=3).map(tuple)),
)
seed_hosts = st.builds(SeedHost, host_ids, st.sampled_from(["10.0.0.1:65002", "node-1.cluster:1"]))
addresses = st.sampled_from(["10.0.0.1:8002", "scheduler-1.cluster:1", "[fe80::1]:8002"])
rates = st.none() | st.floats(0, 1e12)
orders: st.SearchStrategy[SchedulerMessage] = st.one_of(
    st.builds(Seeds, st.lists(seed_hosts, max_size=3).map(tuple)),
    st.builds(Schedulers, addresses, st.lists(addresses, max_size=3).map(tuple)),
    st.builds(Verify, version_ids),
    st.builds(Condemned, version_ids, texts),
    st.builds(Allowance, origins, st.none() | st.integers(0, 1000), rates, rates, counts),
)


@st.composite
def assignments(draw: st.DrawFn) -> Assignment:
    version = draw(versions().filter(lambda version: version.length > 0))
    parts = []
    for span in draw(st.lists(spans(PieceLayout.of(version.length).count), max_size=3)):
        if draw(st.booleans()):
            parts.append(Part(span, ORIGIN))
        else:
            parts.append(Part(span, draw(host_ids), "10.0.0.1:65002", digests(len(span))))
    return Assignment(version, tuple(parts), draw(st.none() | sources), draw(st.booleans()), draw(st.integers(0, 7)))


@st.composite
def followings(draw: st.DrawFn) -> Following:
    version = draw(versions().filter(lambda version: version.length > 0))
    count = draw(st.integers(1, 8))
    stripes = st.sets(st.integers(0, count - 1)).map(lambda some: tuple(sorted(some)))
    parents = draw(st.lists(st.builds(Parent, host_ids, st.just("10.0.0.1:65002"), stripes, st.booleans()), max_size=3))
    some = draw(st.lists(spans(PieceLayout.of(version.length).count), max_size=3))
    known = tuple(KnownDigests(span, digests(len(span))) for span in some)
    seconds = draw(st.floats(0.5, 60.0))
    return Following(version, count, tuple(parents), known, draw(st.booleans()), seconds)


@given(peer_messages)
def test_what_hosts_say_survives_the_wire(message: PeerMessage) -> None:
    wire = peer_message_to_proto(message).SerializeToString()
    assert peer_message_from_proto(pb.PeerMessage.FromString(wire)) == message


@given(assignments())
def test_assignments_survive_the_wire(assignment: Assignment) -> None:
    wire = scheduler_message_to_proto(assignment).SerializeToString()
    assert scheduler_message_from_proto(pb.SchedulerMessage.FromString(wire)) == assignment


@given(followings())
def test_whom_to_follow_survives_the_wire(following: Following) -> None:
    wire = scheduler_message_to_proto(following).SerializeToString()
    assert scheduler_message_from_proto(pb.SchedulerMessage.FromString(wire)) == following


@given(orders)
def test_what_else_schedulers_say_survives_the_wire(message: SchedulerMessage) -> None:
    wire = scheduler_message_to_proto(message).SerializeToString()
    assert scheduler_message_from_proto(pb.SchedulerMessage.FromString(wire)) == message


def test_a_heartbeat_says_nothing() -> None:
    assert scheduler_message_from_proto(pb.SchedulerMessage(heartbeat=pb.Heartbeat())) is None
    assert peer_message_from_proto(pb.PeerMessage(heartbeat=pb.Heartbeat())) is None


@given(peer_messages, st.data())
def test_mutilated_messages_are_refused_or_understood_never_worse(message: PeerMessage, data: st.DataObject) -> None:
    wire = bytearray(peer_message_to_proto(message).SerializeToString())
    if wire:
        wire[data.draw(st.integers(0, len(wire) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    proto = pb.PeerMessage()
    try:
        proto.ParseFromString(bytes(wire))
    except Exception:  # noqa: BLE001  # protobuf's own verdict; its error type depends on the implementation
        return
    with contextlib.suppress(BadRequestError):
        peer_message_from_proto(proto)


def hello(**changes: object) -> pb.PeerMessage:
    message = peer_message_to_proto(Hello("h", "h:1"))
    for name, value in changes.items():
        setattr(message.hello, name, value)
    return message


def want(change: Callable[[pb.Want], None]) -> pb.PeerMessage:
    message = peer_message_to_proto(Want(VERSION, (Span(0, 3),), Source(SECRET_URL)))
    change(message.want)
    return message


def progress(*, landed: pb.Landed | None = None, failed: pb.Failed | None = None) -> pb.PeerMessage:
    return pb.PeerMessage(
        progress=pb.Progress(
            version_id=VERSION.id, landed=[landed] if landed else [], failed=[failed] if failed else []
        )
    )


def holding(**changes: object) -> pb.PeerMessage:
    whole = Holding(VERSION, Bitmap(11, (Span(0, 11),)), digests(11))
    message = peer_message_to_proto(Holdings((whole,)))
    for name, value in changes.items():
        setattr(message.holdings.holdings[0], name, value)
    return message


MALFORMED = {
    "without a body": pb.PeerMessage(),
    "without a host id": hello(host_id=""),
    "host id with white space": hello(host_id="a b"),
    "address without a port": hello(address="h"),
    "absurdly many slots": hello(upload_slots=1 << 31),
    "version id of other fields": want(lambda w: setattr(w.version, "version_id", "0" * 32)),
    "task id in capitals": want(lambda w: setattr(w.version, "task_id", "AB" * 32)),
    "unknown validator": want(lambda w: setattr(w.version, "validator_kind", "weak")),
    "object beyond all bounds": want(lambda w: setattr(w.version, "length", MAX_OBJECT_BYTES + 1)),
    "span beyond the object": want(lambda w: setattr(w.spans[0], "stop", 12)),
    "empty span": want(lambda w: setattr(w.spans[0], "stop", 0)),
    "source without a URL": want(lambda w: setattr(w.source, "url", "")),
    "endless URL": want(lambda w: setattr(w.source, "url", "https://a.test/" + "x" * 70_000)),
    "bitmap too long": holding(bitmap=b"\xff" * 3),
    "bits beyond the pieces": holding(bitmap=b"\xff\x0f"),
    "a digest too few": holding(digests=b"x" * 160),
    "half a digest": holding(digests=b"x" * 168),
    "unwant of nothing": pb.PeerMessage(unwant=pb.Unwant(version_id="x")),
    "dropped of nothing": pb.PeerMessage(dropped=pb.Dropped()),
    "from the origin without digests": progress(landed=pb.Landed(span=pb.Span(start=0, stop=2))),
    "a parent's bytes with digests": progress(
        landed=pb.Landed(span=pb.Span(start=0, stop=1), parent_id="p", digests=b"x" * 16)
    ),
    "failed for no reason": progress(failed=pb.Failed(span=pb.Span(start=0, stop=1), parent_id="p")),
    "failed with a novel": progress(
        failed=pb.Failed(span=pb.Span(start=0, stop=1), reason=pb.Failed.REASON_STALLED, detail="x" * 2000)
    ),
}


@pytest.mark.parametrize("message", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_messages_are_refused_without_giving_a_source_away(message: pb.PeerMessage) -> None:
    with pytest.raises(BadRequestError) as caught:
        peer_message_from_proto(message)
    assert "5ec7e7" not in str(caught.value)


def test_malformed_assignments_are_refused() -> None:
    good = scheduler_message_to_proto(Assignment(VERSION, (Part(Span(0, 2), "p", "p:1", digests(2)),)))
    for name, value in (("digests", b"x" * 16), ("parent_address", ""), ("parent_id", ORIGIN)):
        message = pb.SchedulerMessage()
        message.CopyFrom(good)
        setattr(message.assignment.parts[0], name, value)
        with pytest.raises(BadRequestError):
            scheduler_message_from_proto(message)
    with pytest.raises(BadRequestError):
        scheduler_message_from_proto(pb.SchedulerMessage(welcome=pb.Welcome()))


def test_a_long_story_of_a_failure_is_cut() -> None:
    failed = Failed(Span(0, 1), "p", FailureReason.STALLED, "x" * 5000)
    message = peer_message_from_proto(peer_message_to_proto(Progress(VERSION.id, (), (failed,))))
    assert isinstance(message, Progress)
    assert len(message.failed[0].detail) == 1024
