"""What goes over a session at one time: one message as it is, several as a batch.

A frame costs either side some fifty microseconds, whatever is in it, so all that is to be said at one time shares one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from p2p.control import PeerMessage, SchedulerMessage
from p2p.errors import BadRequestError
from p2p.rpc.convert import (
    peer_message_from_proto,
    peer_message_to_proto,
    scheduler_message_from_proto,
    scheduler_message_to_proto,
)
from p2p.v1 import scheduler_pb2 as pb

FRAME_MESSAGES = 256
"""So many messages share a frame at the most."""

FRAME_BYTES = 1024 * 1024
"""Messages share a frame of so many bytes at the most, well below what either side takes; a longer one goes alone."""

_Proto = TypeVar("_Proto", pb.PeerMessage, pb.SchedulerMessage)


def peer_frames(messages: Iterable[PeerMessage]) -> Iterator[pb.PeerMessage]:
    """Yield the frames in which a host says these messages, in order."""
    for group in _groups(map(peer_message_to_proto, messages)):
        yield group[0] if len(group) == 1 else pb.PeerMessage(batch=pb.PeerBatch(messages=group))


def peer_messages(frame: pb.PeerMessage) -> tuple[PeerMessage, ...]:
    """Return what a host says in a frame; nothing in a heartbeat. Raises BadRequestError."""
    if frame.WhichOneof("body") != "batch":
        message = peer_message_from_proto(frame)
        return () if message is None else (message,)
    _check(len(frame.batch.messages))
    return tuple(message for each in frame.batch.messages if (message := peer_message_from_proto(each)) is not None)


def scheduler_frames(messages: Iterable[SchedulerMessage]) -> Iterator[pb.SchedulerMessage]:
    """Yield the frames in which a scheduler says these messages, in order."""
    for group in _groups(map(scheduler_message_to_proto, messages)):
        yield group[0] if len(group) == 1 else pb.SchedulerMessage(batch=pb.SchedulerBatch(messages=group))


def scheduler_messages(frame: pb.SchedulerMessage) -> tuple[SchedulerMessage, ...]:
    """Return what a scheduler says in a frame; nothing in a heartbeat. Raises BadRequestError, also for a welcome."""
    if frame.WhichOneof("body") != "batch":
        message = scheduler_message_from_proto(frame)
        return () if message is None else (message,)
    _check(len(frame.batch.messages))
    return tuple(
        message for each in frame.batch.messages if (message := scheduler_message_from_proto(each)) is not None
    )


def _groups(protos: Iterable[_Proto]) -> Iterator[list[_Proto]]:
    group: list[_Proto] = []
    size = 0
    for proto in protos:
        length = proto.ByteSize()
        if group and (len(group) == FRAME_MESSAGES or size + length > FRAME_BYTES):
            yield group
            group, size = [], 0
        group.append(proto)
        size += length
    if group:
        yield group


def _check(count: int) -> None:
    if count > FRAME_MESSAGES:
        raise BadRequestError(f"a batch of {count} messages, more than {FRAME_MESSAGES}")
