"""The store against a model: for each version the set of pieces that it must hold."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from p2p.errors import StoreError
from p2p.pieces import Bitmap, PieceLayout, Span
from p2p.versions import Version
from peer.store import Entry, Store
from tests.support.pieces import PIECE
from tests.unit.store.support import a_task, a_version, content, flip_byte, on_disk, put, ticking

T = TypeVar("T")

# What is tested is the logic: in memory, opening and closing hundreds of stores waits for no disk.
MEMORY = Path("/dev/shm")

TASKS = [a_task("a"), a_task("b")]
VERSIONS = [a_version(TASKS[0], 5), a_version(TASKS[0], 2 * PIECE + 7), a_version(TASKS[1], 3 * PIECE)]
versions_ = st.sampled_from(VERSIONS)
indices_ = st.sets(st.integers(0, 2), min_size=1)


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.directory = Path(tempfile.mkdtemp(prefix="damselfly-store-", dir=MEMORY if MEMORY.is_dir() else None))
        self.clock = ticking()
        self.dropped: list[str] = []
        self.held: dict[Version, set[int]] = {}
        self.suspect: set[tuple[Version, int]] = set()
        self.damaged: set[tuple[Version, int]] = set()
        self.references: list[Entry] = []
        self.open(verify_on_use=None)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 30))

    def open(self, *, verify_on_use: bool | None) -> None:
        self.store = self.run(
            Store.open(
                self.directory,
                verify_on_use=verify_on_use,
                clock=self.clock,
                on_dropped=self.dropped.append,
                idle_entries=1,
            )
        )

    def forget(self, version: Version) -> None:
        self.held.pop(version, None)
        self.suspect = {(other, index) for other, index in self.suspect if other != version}
        self.damaged = {(other, index) for other, index in self.damaged if other != version}

    @rule(version=versions_)
    def take(self, version: Version) -> None:
        [task] = [task for task in TASKS if task.id == version.task_id]
        self.references.append(self.run(self.store.entry(task, version)))

    @rule(version=versions_)
    def find(self, version: Version) -> None:
        entry = self.run(self.store.find(version.id))
        assert (entry is not None) == bool(self.held.get(version))
        if entry is not None:
            self.references.append(entry)

    @precondition(lambda self: self.references)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.references) - 1))
        self.references.pop(number).release()

    @precondition(lambda self: self.references)
    @rule(data=st.data(), indices=indices_)
    def land(self, data: st.DataObject, indices: set[int]) -> None:
        entry = data.draw(st.sampled_from(self.references))
        fresh = {index for index in indices if index < entry.layout.count}
        if entry.retired:
            with pytest.raises(StoreError):
                self.run(put(entry, fresh))
            return
        repaired = {index for index in fresh if index not in entry.landed}
        self.run(put(entry, fresh))
        if fresh:
            self.held.setdefault(entry.version, set()).update(fresh)
        self.suspect -= {(entry.version, index) for index in fresh}
        self.damaged -= {(entry.version, index) for index in repaired}

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        version, index = data.draw(
            st.sampled_from([(version, index) for version in VERSIONS for index in sorted(self.held.get(version, ()))])
        )
        if (version, index) not in self.damaged:
            layout = PieceLayout.of(version.length)
            flip_byte(self.directory, version, layout.offset(index) + data.draw(st.integers(0, layout.size(index) - 1)))
            self.damaged.add((version, index))

    @precondition(lambda self: self.references)
    @rule(data=st.data(), lazily=st.booleans())
    def verify(self, data: st.DataObject, lazily: bool) -> None:
        entry = data.draw(st.sampled_from(self.references))
        if entry.retired:
            return
        stop = data.draw(st.integers(1, entry.layout.count))
        span = Span(data.draw(st.integers(0, stop - 1)), stop)
        seen = {
            index
            for index in self.held.get(entry.version, set()) & set(span)
            if not lazily or (entry.version, index) in self.suspect
        }
        lost = {index for index in seen if (entry.version, index) in self.damaged}
        if lazily:
            self.run(entry.ensure_verified(span))
        else:
            found = self.run(entry.verify(span))
            assert found == Bitmap(entry.layout.count, [Span(index, index + 1) for index in lost])
        if lost:
            self.held[entry.version] -= lost
        self.suspect -= {(entry.version, index) for index in seen}
        self.damaged -= {(entry.version, index) for index in lost}

    @rule(task=st.sampled_from(TASKS))
    def remove(self, task: Any) -> None:
        removed = set(self.run(self.store.remove(task.id)))
        assert removed >= {version.id for version in self.held if version.task_id == task.id and self.held[version]}
        for version in VERSIONS:
            if version.task_id == task.id:
                self.forget(version)

    @rule(size=st.integers(0, 6 * PIECE))
    def evict(self, size: int) -> None:
        self.dropped.clear()
        self.run(self.store.evict(size))
        used = {entry.version for entry in self.references if not entry.retired}
        assert not {version.id for version in used} & set(self.dropped)
        for version in [version for version in self.held if version.id in self.dropped]:
            self.forget(version)
        assert self.store.stats().bytes <= size or not any(
            pieces for version, pieces in self.held.items() if version not in used
        )

    @rule(crashed=st.booleans())
    def reopen(self, crashed: bool) -> None:
        self.run(self.store.close())
        for entry in self.references:
            entry.release()
        self.references.clear()
        self.open(verify_on_use=True if crashed else None)
        if crashed:
            self.suspect = {(version, index) for version, pieces in self.held.items() for index in pieces}

    @invariant()
    def the_store_holds_what_the_model_holds(self) -> None:
        stats = self.store.stats()
        sizes = [
            PieceLayout.of(version.length).size(index) for version, pieces in self.held.items() for index in pieces
        ]
        assert (stats.pieces, stats.bytes) == (len(sizes), sum(sizes))
        served = {holding.version: set(holding.bitmap) for holding in self.run(self.holdings())}
        expected = {
            version: {index for index in pieces if (version, index) not in self.suspect}
            for version, pieces in self.held.items()
        }
        assert served == {version: pieces for version, pieces in expected.items() if pieces}

    async def holdings(self) -> list[Any]:
        return [holding async for holding in self.store.holdings()]

    @invariant()
    def entries_serve_right_bytes_only(self) -> None:
        for entry in {id(entry): entry for entry in self.references}.values():
            if not entry.retired:
                held = self.held.get(entry.version, set())
                assert set(entry.landed) | set(entry.suspect) == held
                assert set(entry.suspect) == {index for index in held if (entry.version, index) in self.suspect}
                for index in entry.landed:
                    sound = on_disk(entry, index) == content(entry, index)[0]
                    assert sound == ((entry.version, index) not in self.damaged)

    def teardown(self) -> None:
        self.run(self.store.close())
        for entry in self.references:
            entry.release()
        self.loop.close()
        shutil.rmtree(self.directory)


TestStoreStates = StoreMachine.TestCase
TestStoreStates.settings = settings(max_examples=60, stateful_step_count=30)
