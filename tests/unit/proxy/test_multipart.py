from __future__ import annotations

import email.parser
import email.policy

from hypothesis import given
from hypothesis import strategies as st

from p2p.ranges import ByteRange
from peer.proxy.multipart import coalesced, compose, may_be_split

FIELDS = (("ETag", '"v1"'), ("Content-Type", "model/onnx"))
CONTENT = bytes(range(256))

runs = st.tuples(st.integers(0, 255), st.integers(1, 99)).map(lambda run: ByteRange(run[0], min(256, run[0] + run[1])))


@given(st.lists(runs, min_size=1, max_size=16))
def test_coalesced_ranges_name_the_same_bytes_once(ranges: list[ByteRange]) -> None:
    joined = coalesced(ranges)
    offsets = [offset for one in joined for offset in range(one.start, one.stop)]
    assert len(offsets) == len(set(offsets))
    assert set(offsets) == {offset for one in ranges for offset in range(one.start, one.stop)}


@given(st.lists(runs, min_size=1, max_size=16))
def test_ranges_that_do_not_overlap_keep_their_order(ranges: list[ByteRange]) -> None:
    if len(coalesced(ranges)) == len(ranges):
        assert coalesced(ranges) == tuple(ranges)


def test_ranges_that_only_touch_stay_apart() -> None:
    assert coalesced([ByteRange(5, 9), ByteRange(0, 5)]) == (ByteRange(5, 9), ByteRange(0, 5))


def test_nothing_selected_is_the_whole_with_its_own_fields() -> None:
    body, fields = compose((), 256, FIELDS)
    assert ([part.wanted for part in body.parts], body.length, fields) == ([ByteRange(0, 256)], 256, FIELDS)


def test_an_empty_object_has_no_bytes() -> None:
    assert compose((), 0, FIELDS)[0].length == 0


def test_one_range_is_named_in_the_head() -> None:
    body, fields = compose([ByteRange(3, 5)], 256, FIELDS)
    assert (body.length, fields) == (2, (*FIELDS, ("Content-Range", "bytes 3-4/256")))


@given(st.lists(runs, min_size=2, max_size=16).map(coalesced).filter(lambda found: len(found) > 1))
def test_several_are_a_message_that_a_library_understands(ranges: tuple[ByteRange, ...]) -> None:
    body, fields = compose(ranges, 256, FIELDS)
    octets = b"".join(part.head + CONTENT[part.wanted.start : part.wanted.stop] for part in body.parts) + body.tail
    assert len(octets) == body.length
    assert fields[0] == ("ETag", '"v1"')
    assert len(fields) == 2
    head = f"Content-Type: {fields[1][1]}\r\nContent-Transfer-Encoding: binary\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + octets)
    parts = list(message.iter_parts())
    assert [part["Content-Range"] for part in parts] == [f"bytes {one.start}-{one.stop - 1}/256" for one in ranges]
    assert {part["Content-Type"] for part in parts} == {"model/onnx"}


def test_boundaries_cannot_be_foreseen() -> None:
    ranges = [ByteRange(0, 1), ByteRange(2, 3)]
    assert compose(ranges, 256, FIELDS)[1] != compose(ranges, 256, FIELDS)[1]


def test_what_is_encoded_is_not_split() -> None:
    assert may_be_split(FIELDS)
    assert may_be_split((*FIELDS, ("Content-Encoding", "identity")))
    assert not may_be_split((*FIELDS, ("content-encoding", "gzip")))
