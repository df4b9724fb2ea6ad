"""The messages of `p2p.control` to protobuf and back.

To protobuf always works. From protobuf everything is checked, since it comes from another process: whatever passes is
well-formed and of bounded size, and anything else is a BadRequestError that names the field and never a source's URL.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice

from p2p.control import (
    LAZY_REPORT_SECONDS,
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
    Lagging,
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
    Unwant,
    Verdict,
    Verify,
    Want,
)
from p2p.errors import BadRequestError
from p2p.pieces import Bitmap, PieceLayout
from p2p.rpc.values import (
    HOST_ID,
    MAX_HEADERS,
    MAX_PIECES,
    MAX_TEXT,
    bounded,
    digests_from_proto,
    matching,
    parent_id,
    short,
    source_from_proto,
    source_to_proto,
    span_from_proto,
    span_to_proto,
    spans_from_proto,
    version_from_proto,
    version_to_proto,
)
from p2p.urgency import HIGHEST_PRIORITY
from p2p.v1 import scheduler_pb2 as pb

_MAX_SLOTS = 65_536

MAX_STRIPES = 64
MAX_REPORT_SECONDS = 60.0

_VERSION_ID = re.compile(r"[0-9a-f]{32}")
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.:_~%!$&'()*+,;=\[\]-]{1,300}:[0-9]{1,5}")
_CHECKSUM = re.compile(r"|[a-z0-9-]{1,32}:[0-9A-Za-z+/=:.,-]{1,512}")
_ADDRESS = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9a-fA-F:.]{2,45}\]):[0-9]{1,5}")


def peer_message_to_proto(message: PeerMessage) -> pb.PeerMessage:
    """Return the protobuf of what a host says."""
    match message:
        case Hello():
            return pb.PeerMessage(hello=_hello_to_proto(message))
        case Holdings(holdings, last):
            return pb.PeerMessage(holdings=pb.Holdings(holdings=map(_holding_to_proto, holdings), last=last))
        case Want(version, spans, source, checksum, priority):
            return pb.PeerMessage(
                want=pb.Want(
                    version=version_to_proto(version),
                    spans=map(span_to_proto, spans),
                    source=source_to_proto(source) if source else None,
                    checksum=checksum,
                    priority=priority,
                )
            )
        case Unwant(version_id):
            return pb.PeerMessage(unwant=pb.Unwant(version_id=version_id))
        case Progress(version_id, landed, failed):
            return pb.PeerMessage(
                progress=pb.Progress(
                    version_id=version_id, landed=map(_landed_to_proto, landed), failed=map(_failed_to_proto, failed)
                )
            )
        case Lagging(version_id, stripes):
            return pb.PeerMessage(lagging=pb.Lagging(version_id=version_id, stripes=stripes))
        case Dropped(version_id, spans):
            return pb.PeerMessage(dropped=pb.Dropped(version_id=version_id, spans=map(span_to_proto, spans)))
        case Verdict(version_id, sound, detail):
            return pb.PeerMessage(verdict=pb.Verdict(version_id=version_id, sound=sound, detail=detail[:MAX_TEXT]))
        case OriginUse(loads):
            return pb.PeerMessage(origin_use=pb.OriginUse(loads=map(_load_to_proto, loads)))


def peer_message_from_proto(message: pb.PeerMessage) -> PeerMessage | None:
    """Return what a host says, or None for a heartbeat. Raises BadRequestError."""
    match message.WhichOneof("body"):
        case "hello":
            return _hello_from_proto(message.hello)
        case "holdings":
            entries = bounded(message.holdings.holdings, "holdings")
            return Holdings(tuple(map(_holding_from_proto, entries)), message.holdings.last)
        case "want":
            return _want_from_proto(message.want)
        case "unwant":
            return Unwant(matching(_VERSION_ID, message.unwant.version_id, "unwant.version_id"))
        case "progress":
            return _progress_from_proto(message.progress)
        case "lagging":
            version_id = matching(_VERSION_ID, message.lagging.version_id, "lagging.version_id")
            return Lagging(version_id, _stripes(message.lagging.stripes, MAX_STRIPES, "lagging.stripes"))
        case "dropped":
            version_id = matching(_VERSION_ID, message.dropped.version_id, "dropped.version_id")
            return Dropped(version_id, spans_from_proto(message.dropped.spans, MAX_PIECES, "dropped.spans"))
        case "verdict":
            version_id = matching(_VERSION_ID, message.verdict.version_id, "verdict.version_id")
            detail = short(message.verdict.detail, "verdict.detail", MAX_TEXT)
            return Verdict(version_id, message.verdict.sound, detail)
        case "origin_use":
            return OriginUse(tuple(map(_load_from_proto, bounded(message.origin_use.loads, "origin_use.loads"))))
        case "heartbeat":
            return None
        case "batch":
            raise BadRequestError("a batch within a batch")
        case None:
            raise BadRequestError("a message without a body this version knows; hosts and schedulers must match")


def scheduler_message_to_proto(message: SchedulerMessage) -> pb.SchedulerMessage:
    """Return the protobuf of what a scheduler says."""
    match message:
        case Assignment():
            return pb.SchedulerMessage(assignment=_assignment_to_proto(message))
        case Following():
            return pb.SchedulerMessage(following=_following_to_proto(message))
        case Seeds(hosts):
            seeds = [pb.SeedHost(host_id=seed.host_id, address=seed.address) for seed in hosts]
            return pb.SchedulerMessage(seeds=pb.Seeds(hosts=seeds))
        case Schedulers():
            return pb.SchedulerMessage(schedulers=schedulers_to_proto(message))
        case Verify(version_id):
            return pb.SchedulerMessage(verify=pb.Verify(version_id=version_id))
        case Condemned(version_id, reason):
            return pb.SchedulerMessage(condemned=pb.Condemned(version_id=version_id, reason=reason[:MAX_TEXT]))
        case Allowance():
            return pb.SchedulerMessage(
                allowance=pb.Allowance(
                    origin=message.origin,
                    connections=message.connections,
                    requests_per_second=message.requests_per_second,
                    bytes_per_second=message.bytes_per_second,
                    answers=message.answers,
                )
            )


def scheduler_message_from_proto(message: pb.SchedulerMessage) -> SchedulerMessage | None:
    """Return what a scheduler says, or None for a heartbeat. Raises BadRequestError, also for a second welcome."""
    match message.WhichOneof("body"):
        case "assignment":
            return _assignment_from_proto(message.assignment)
        case "following":
            return _following_from_proto(message.following)
        case "seeds":
            return Seeds(tuple(map(_seed_from_proto, bounded(message.seeds.hosts, "seeds.hosts"))))
        case "schedulers":
            return schedulers_from_proto(message.schedulers)
        case "verify":
            return Verify(matching(_VERSION_ID, message.verify.version_id, "verify.version_id"))
        case "condemned":
            version_id = matching(_VERSION_ID, message.condemned.version_id, "condemned.version_id")
            return Condemned(version_id, short(message.condemned.reason, "condemned.reason", MAX_TEXT))
        case "allowance":
            return _allowance_from_proto(message.allowance)
        case "heartbeat":
            return None
        case body:
            raise BadRequestError(f"a scheduler's message with the body {body!r} in the middle of a session")


def schedulers_to_proto(schedulers: Schedulers) -> pb.Schedulers:
    """Return the protobuf of who schedules; it stands in a Welcome as well."""
    return pb.Schedulers(own=schedulers.own, addresses=schedulers.addresses)


def schedulers_from_proto(schedulers: pb.Schedulers) -> Schedulers:
    """Return who schedules. Raises BadRequestError."""
    own = matching(_ADDRESS, schedulers.own, "schedulers.own")
    addresses = bounded(schedulers.addresses, "schedulers.addresses")
    return Schedulers(own, tuple(matching(_ADDRESS, each, "schedulers.addresses") for each in addresses))


def _assignment_to_proto(assignment: Assignment) -> pb.Assignment:
    return pb.Assignment(
        version=version_to_proto(assignment.version),
        parts=[
            pb.Part(
                span=span_to_proto(part.span),
                parent_id=part.parent_id,
                parent_address=part.parent_address,
                digests=b"".join(part.digests),
            )
            for part in assignment.parts
        ],
        source=source_to_proto(assignment.source) if assignment.source else None,
        cold=assignment.cold,
        priority=assignment.priority,
    )


def _assignment_from_proto(assignment: pb.Assignment) -> Assignment:
    version = version_from_proto(assignment.version)
    pieces = PieceLayout.of(version.length).count
    parts = []
    for part in bounded(assignment.parts, "assignment.parts"):
        span = span_from_proto(part.span, pieces, "part.span")
        if part.parent_id == ORIGIN:
            if part.digests or part.parent_address:
                raise BadRequestError("a part from the origin has neither digests nor an address")
            parts.append(Part(span, ORIGIN))
            continue
        parts.append(
            Part(
                span,
                matching(HOST_ID, part.parent_id, "part.parent_id"),
                matching(_ADDRESS, part.parent_address, "part.parent_address"),
                digests_from_proto(part.digests, len(span), "part.digests"),
            )
        )
    source = source_from_proto(assignment.source) if assignment.HasField("source") else None
    priority = _priority(assignment.priority, "assignment.priority")
    return Assignment(version, tuple(parts), source, assignment.cold, priority)


def _priority(priority: int, field: str) -> int:
    if priority > HIGHEST_PRIORITY:
        raise BadRequestError(f"{field} is {priority}; priorities are 0 to {HIGHEST_PRIORITY}")
    return priority


def _following_to_proto(following: Following) -> pb.Following:
    return pb.Following(
        version=version_to_proto(following.version),
        stripes=following.stripes,
        parents=[
            pb.Parent(parent_id=p.parent_id, address=p.address, stripes=p.stripes, seed=p.seed)
            for p in following.parents
        ],
        known=[pb.KnownDigests(span=span_to_proto(k.span), digests=b"".join(k.digests)) for k in following.known],
        cold=following.cold,
        report_seconds=following.report_seconds,
    )


def _following_from_proto(following: pb.Following) -> Following:
    version = version_from_proto(following.version)
    pieces = PieceLayout.of(version.length).count
    count = following.stripes
    if not 1 <= count <= MAX_STRIPES:
        raise BadRequestError(f"following.stripes is {count}, not 1 to {MAX_STRIPES}")
    parents = tuple(
        Parent(
            matching(HOST_ID, parent.parent_id, "parent.parent_id"),
            matching(_ADDRESS, parent.address, "parent.address"),
            _stripes(parent.stripes, count, "parent.stripes"),
            parent.seed,
        )
        for parent in bounded(following.parents, "following.parents")
    )
    known = []
    for each in bounded(following.known, "following.known"):
        span = span_from_proto(each.span, pieces, "known.span")
        known.append(KnownDigests(span, digests_from_proto(each.digests, len(span), "known.digests")))
    seconds = following.report_seconds or LAZY_REPORT_SECONDS
    if not 0 < seconds <= MAX_REPORT_SECONDS:
        raise BadRequestError(f"following.report_seconds is {seconds}, not up to {MAX_REPORT_SECONDS}")
    return Following(version, count, parents, tuple(known), following.cold, seconds)


def _stripes(stripes: Iterable[int], count: int, what: str) -> tuple[int, ...]:
    """Return stripes below `count`, at most MAX_STRIPES of them."""
    given = tuple(islice(stripes, MAX_STRIPES + 1))
    if len(given) > MAX_STRIPES or any(stripe >= count for stripe in given):
        raise BadRequestError(f"{what} names more stripes than the {count} there are")
    return given


def _seed_from_proto(seed: pb.SeedHost) -> SeedHost:
    return SeedHost(matching(HOST_ID, seed.host_id, "seed.host_id"), matching(_ADDRESS, seed.address, "seed.address"))


def _load_to_proto(load: OriginLoad) -> pb.OriginLoad:
    return pb.OriginLoad(
        origin=load.origin,
        connections=load.connections,
        requests=load.requests,
        checks=load.checks,
        refused=load.refused,
        bytes=load.bytes,
        under_way=load.under_way,
        serial=load.serial,
        heard=load.heard,
    )


def _load_from_proto(load: pb.OriginLoad) -> OriginLoad:
    origin = matching(_ORIGIN, load.origin, "load.origin")
    return OriginLoad(
        origin,
        load.connections,
        load.requests,
        load.checks,
        load.refused,
        load.bytes,
        under_way=load.under_way,
        serial=load.serial,
        heard=load.heard,
    )


def _allowance_from_proto(allowance: pb.Allowance) -> Allowance:
    return Allowance(
        matching(_ORIGIN, allowance.origin, "allowance.origin"),
        allowance.connections if allowance.HasField("connections") else None,
        allowance.requests_per_second if allowance.HasField("requests_per_second") else None,
        allowance.bytes_per_second if allowance.HasField("bytes_per_second") else None,
        allowance.answers,
    )


def _hello_to_proto(hello: Hello) -> pb.Hello:
    return pb.Hello(
        host_id=hello.host_id,
        address=hello.address,
        seed=hello.seed,
        upload_slots=hello.upload_slots,
        labels=hello.labels,
        software=hello.software,
    )


def _hello_from_proto(hello: pb.Hello) -> Hello:
    if hello.upload_slots > _MAX_SLOTS:
        raise BadRequestError(f"hello.upload_slots is {hello.upload_slots}; at most {_MAX_SLOTS} make sense")
    if len(hello.labels) > MAX_HEADERS:
        raise BadRequestError(f"hello.labels has {len(hello.labels)} entries, more than {MAX_HEADERS}")
    labels = {
        short(name, "a label's name", MAX_TEXT): short(value, "a label's value", MAX_TEXT)
        for name, value in hello.labels.items()
    }
    return Hello(
        host_id=matching(HOST_ID, hello.host_id, "hello.host_id"),
        address=matching(_ADDRESS, hello.address, "hello.address"),
        seed=hello.seed,
        upload_slots=hello.upload_slots,
        labels=labels,
        software=short(hello.software, "hello.software", MAX_TEXT),
    )


def _holding_to_proto(holding: Holding) -> pb.Holding:
    return pb.Holding(
        version=version_to_proto(holding.version),
        bitmap=holding.bitmap.to_bytes(),
        digests=b"".join(holding.digests),
        fetching=map(span_to_proto, holding.fetching),
    )


def _holding_from_proto(holding: pb.Holding) -> Holding:
    version = version_from_proto(holding.version)
    pieces = PieceLayout.of(version.length).count
    if len(holding.bitmap) > -(-pieces // 8):
        raise BadRequestError(f"holding.bitmap has {len(holding.bitmap)} bytes for {pieces} pieces")
    try:
        bitmap = Bitmap.from_bytes(holding.bitmap, pieces)
    except ValueError as error:
        raise BadRequestError(f"holding.bitmap: {error}") from error
    digests = digests_from_proto(holding.digests, len(bitmap), "holding.digests")
    return Holding(version, bitmap, digests, spans_from_proto(holding.fetching, pieces, "holding.fetching"))


def _want_from_proto(want: pb.Want) -> Want:
    version = version_from_proto(want.version)
    spans = spans_from_proto(want.spans, PieceLayout.of(version.length).count, "want.spans")
    source = source_from_proto(want.source) if want.HasField("source") else None
    checksum = matching(_CHECKSUM, want.checksum, "want.checksum")
    return Want(version, spans, source, checksum, _priority(want.priority, "want.priority"))


def _progress_from_proto(progress: pb.Progress) -> Progress:
    version_id = matching(_VERSION_ID, progress.version_id, "progress.version_id")
    landed = tuple(map(_landed_from_proto, bounded(progress.landed, "progress.landed")))
    failed = tuple(map(_failed_from_proto, bounded(progress.failed, "progress.failed")))
    return Progress(version_id, landed, failed)


def _landed_to_proto(landed: Landed) -> pb.Landed:
    return pb.Landed(
        span=span_to_proto(landed.span),
        parent_id=landed.parent_id,
        digests=b"".join(landed.digests),
        proof=landed.proof,
    )


def _landed_from_proto(landed: pb.Landed) -> Landed:
    span = span_from_proto(landed.span, MAX_PIECES, "landed.span")
    # A holder's word for bytes that came from another host is of no use: digests come from the origin's fetcher only.
    expected = len(span) if landed.parent_id == ORIGIN else 0
    return Landed(
        span,
        parent_id(landed.parent_id, "landed.parent_id"),
        digests_from_proto(landed.digests, expected, "landed.digests"),
        b"".join(digests_from_proto(landed.proof, 1 if landed.proof else 0, "landed.proof")),
    )


def _failed_to_proto(failed: Failed) -> pb.Failed:
    return pb.Failed(
        span=span_to_proto(failed.span),
        parent_id=failed.parent_id,
        reason=pb.Failed.Reason.Value(f"REASON_{failed.reason.name}"),
        detail=failed.detail[:MAX_TEXT],
    )


def _failed_from_proto(failed: pb.Failed) -> Failed:
    try:
        reason = FailureReason(failed.reason)
    except ValueError as error:
        raise BadRequestError(f"failed.reason {failed.reason} is not known") from error
    return Failed(
        span_from_proto(failed.span, MAX_PIECES, "failed.span"),
        parent_id(failed.parent_id, "failed.parent_id"),
        reason,
        short(failed.detail, "failed.detail", MAX_TEXT),
    )
