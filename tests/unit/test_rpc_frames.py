"""Frames: several messages at once, in order and within bounds."""

from __future__ import annotations

import pytest

from p2p.control import Condemned, Holding, Holdings, PeerMessage, SchedulerMessage, Unwant, Verify
from p2p.errors import BadRequestError
from p2p.pieces import MIB, Bitmap, PieceLayout
from p2p.rpc.convert import peer_message_to_proto
from p2p.rpc.frames import (
    FRAME_BYTES,
    FRAME_MESSAGES,
    peer_frames,
    peer_messages,
    scheduler_frames,
    scheduler_messages,
)
from p2p.v1 import scheduler_pb2 as pb
from p2p.versions import ValidatorKind, Version


def unwants(count: int) -> list[PeerMessage]:
    return [Unwant(f"{number:032x}") for number in range(count)]


def long_holdings() -> Holdings:
    pieces = FRAME_BYTES // 16
    version = Version("0" * 64, pieces * 16 * MIB, ValidatorKind.ETAG, '"a"')
    held = Bitmap(pieces, PieceLayout.of(version.length).everything())
    return Holdings((Holding(version, held, (bytes(16),) * pieces),))


@pytest.mark.parametrize(
    ("count", "frames"), [(0, 0), (1, 1), (2, 1), (FRAME_MESSAGES, 1), (2 * FRAME_MESSAGES + 1, 3)]
)
def test_a_hosts_messages_come_in_order_in_few_frames(count: int, frames: int) -> None:
    said = unwants(count)
    sent = list(peer_frames(said))
    assert len(sent) == frames
    assert [message for frame in sent for message in peer_messages(frame)] == said


def test_a_schedulers_messages_come_in_order_in_few_frames() -> None:
    said: list[SchedulerMessage] = [Verify("0" * 32), Condemned("1" * 32, "wrong"), Verify("2" * 32)]
    (frame,) = scheduler_frames(said)
    assert list(scheduler_messages(frame)) == said
    (alone,) = scheduler_frames(said[:1])
    assert alone.WhichOneof("body") == "verify"


def test_long_messages_share_no_frame() -> None:
    said = [long_holdings(), *unwants(2), long_holdings()]
    sent = list(peer_frames(said))
    assert [message for frame in sent for message in peer_messages(frame)] == said
    assert len(sent) == 3


def test_heartbeats_say_nothing() -> None:
    assert peer_messages(pb.PeerMessage(heartbeat=pb.Heartbeat())) == ()
    assert scheduler_messages(pb.SchedulerMessage(heartbeat=pb.Heartbeat())) == ()


def test_what_must_not_be_in_a_batch_is_refused() -> None:
    inner = pb.PeerMessage(batch=pb.PeerBatch())
    welcome = pb.SchedulerMessage(welcome=pb.Welcome())
    for wrong in (
        pb.PeerMessage(batch=pb.PeerBatch(messages=[inner])),
        pb.PeerMessage(batch=pb.PeerBatch(messages=[pb.PeerMessage()] * 2)),
        pb.PeerMessage(batch=pb.PeerBatch(messages=map(peer_message_to_proto, unwants(FRAME_MESSAGES + 1)))),
    ):
        with pytest.raises(BadRequestError):
            peer_messages(wrong)
    for also_wrong in (
        pb.SchedulerMessage(batch=pb.SchedulerBatch(messages=[welcome])),
        pb.SchedulerMessage(batch=pb.SchedulerBatch(messages=[pb.SchedulerMessage(batch=pb.SchedulerBatch())])),
    ):
        with pytest.raises(BadRequestError):
            scheduler_messages(also_wrong)
