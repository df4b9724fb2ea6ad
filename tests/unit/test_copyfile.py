from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2p.copyfile import copy_file
from p2p.errors import StoreError
from p2p.pagecache import BUFFER_BYTES, ShortFileError

CONTENT = random.Random(9).randbytes(3 * BUFFER_BYTES + 77)


class Receiver:
    """Keeps what it is given, as a transport that cannot send yet would: the very objects."""

    def __init__(self) -> None:
        self.blocks: list[bytes] = []

    async def write(self, block: bytes) -> None:
        self.blocks.append(block)

    @property
    def received(self) -> bytes:
        return b"".join(self.blocks)


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    descriptor = os.open(path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize(
    ("offset", "count"), [(0, len(CONTENT)), (5, 7), (BUFFER_BYTES - 1, BUFFER_BYTES + 2), (len(CONTENT), 0)]
)
async def test_the_bytes_asked_for_are_passed_on(receiver: Receiver, fd: int, offset: int, count: int) -> None:
    await copy_file(receiver.write, fd, offset, count)
    assert receiver.received == CONTENT[offset : offset + count]


async def test_a_file_system_that_does_not_say_what_it_has_is_read_by_a_thread(receiver: Receiver) -> None:
    memory = os.memfd_create("file")
    try:
        os.write(memory, CONTENT)
        await copy_file(receiver.write, memory, 3, len(CONTENT) - 3)
    finally:
        os.close(memory)
    assert receiver.received == CONTENT[3:]


async def test_a_file_that_ends_early_is_told(receiver: Receiver, fd: int) -> None:
    with pytest.raises(ShortFileError):
        await copy_file(receiver.write, fd, 0, len(CONTENT) + 1)
    assert receiver.received == CONTENT


async def test_what_cannot_be_read_is_told(receiver: Receiver, tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(StoreError, match="check the disk"):
            await copy_file(receiver.write, directory, 0, 1)
    finally:
        os.close(directory)
