"""What a response with a version's bytes is made of: all of them, one range, or several (RFC 9110 §14.6, §15.3.7)."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from p2p.fields import single
from p2p.ranges import ByteRange, format_content_range
from peer.source.fields import Fields


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of the object, and what is written before them."""

    wanted: ByteRange
    head: bytes = b""


@dataclass(frozen=True, slots=True)
class Body:
    """Parts in the order in which they are sent, and what is written after them."""

    parts: tuple[Part, ...]
    tail: bytes = b""

    @property
    def length(self) -> int:
        """The number of bytes on the wire."""
        return sum(len(part.head) + len(part.wanted) for part in self.parts) + len(self.tail)


def coalesced(ranges: Sequence[ByteRange]) -> tuple[ByteRange, ...]:
    """Return ranges that name no byte twice: as they are if they do not overlap, else joined and ascending.

    Sending a byte as often as it is named is what an attacker would want (RFC 9110 §17.15).
    """
    joined: list[ByteRange] = []
    for one in sorted(ranges):
        if joined and one.start < joined[-1].stop:
            joined[-1] = ByteRange(joined[-1].start, max(joined[-1].stop, one.stop))
        else:
            joined.append(one)
    return tuple(ranges) if len(joined) == len(ranges) else tuple(joined)


def may_be_split(answer: Fields) -> bool:
    """Tell whether several ranges of the object can be sent in one response.

    `Content-Encoding` would be said of the envelope, which a client would then try to decode.
    """
    return (single(answer, "content-encoding") or "identity").lower() == "identity"


def compose(sent: Sequence[ByteRange], length: int, fields: Fields) -> tuple[Body, Fields]:
    """Return the body that sends these ranges of an object of `length` bytes (none: all of it), and its fields.

    `fields` are the object's own; what a 206 says of its body takes the place of what they say.
    """
    if not sent:
        return Body((Part(ByteRange(0, length)),)), fields
    if len(sent) == 1:
        return Body((Part(sent[0]),)), (*fields, ("Content-Range", format_content_range(sent[0], length)))
    boundary = secrets.token_hex(16)
    kind = single(fields, "content-type")
    named = f"Content-Type: {kind}\r\n" if kind else ""
    parts = tuple(
        Part(
            one,
            f"\r\n--{boundary}\r\n{named}Content-Range: {format_content_range(one, length)}\r\n\r\n".encode("latin-1"),
        )
        for one in sent
    )
    others = tuple((name, value) for name, value in fields if name.lower() != "content-type")
    body = Body(parts, f"\r\n--{boundary}--\r\n".encode("ascii"))
    return body, (*others, ("Content-Type", f"multipart/byteranges; boundary={boundary}"))
