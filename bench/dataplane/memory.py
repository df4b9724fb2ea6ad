"""Memory: RssAnon while many read a huge object at once, and beside one that reads a kilobyte a second."""

from __future__ import annotations

import contextlib
import select
import selectors
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from bench.cluster import Daemon
from bench.dataplane.figures import Figure, by_name
from bench.dataplane.plan import Field, Plan, Progress, running
from bench.load import Connection, LoadError
from bench.origin_client import RemoteObject
from bench.process import Meter
from bench.proxy import request_for
from bench.reader import parse_head
from p2p.config import parse_address
from p2p.pieces import MIB, PieceLayout

SECTION = "memory"
_MOST_MIB = 150.0
_STALL_SECONDS = 120.0
_RECEIVE_BYTES = 64 * 1024
"""A reader's receive buffer: small, so that most of its answer waits in the peer, or in the store."""
_SLOW_SECONDS = 2.0
_SLOW_BYTES = 1024


def measure(plan: Plan, progress: Progress) -> Iterator[Figure]:
    """Open many connections, all at once, that each read a piece of a huge object that nobody has any of."""
    rounds: list[dict[str, float]] = []
    with running("unlimited", plan, peers=1, seeds=1) as field, ExitStack() as stack:
        made = field.origin.create("models/huge/1/model.bin", plan.huge)
        hosts = {name: field.cluster[name].child for name in ("peer-1", "seed-1")}
        meter = stack.enter_context(Meter(hosts))
        for number in range(plan.rounds):
            progress(f"{SECTION}, {plan.readers} readers, round {number + 1}")
            rounds.append(many(field, meter, made, plan.readers, number))
        progress(f"{SECTION}, a slow reader")
        beside = [beside_a_slow_one(field, made, _SLOW_SECONDS) for _ in range(plan.rounds)]
    values, slow = by_name(rounds), by_name(beside)
    for state in ("wait", "read"):
        name = f"{plan.readers} readers {state}"
        yield Figure(SECTION, f"{name}: peer", "rss_anon_bytes", values[f"peer-1 {state}"], most=_MOST_MIB)
        yield Figure(SECTION, f"{name}: seed", "rss_anon_bytes", values[f"seed-1 {state}"])
    yield Figure(SECTION, "reader of 1 KB/s: more", "rss_anon_bytes", slow["more"])
    yield Figure(SECTION, "beside it, over alone", "ratio", slow["slower"])


def many(field: Field, meter: Meter, made: RemoteObject, readers: int, number: int) -> dict[str, float]:
    """Have readers of pieces far apart wait until all have an answer, and then read; return peaks of RssAnon in bytes.

    Equal numbers mean equal pieces. Raises LoadError and OSError.
    """
    layout = PieceLayout.of(made.length)
    found: dict[str, float] = {}
    with ExitStack() as stack, field.writing(2 * readers * layout.piece_length):
        meter.take_peaks()
        connections = []
        for reader in range(readers):
            # Bit by bit through the object: neighbours in time are far apart in it.
            index = (reader * (layout.count // readers) + number) % (layout.count - 1)
            connection = _ask(field.cluster["peer-1"], made, index * layout.piece_length, layout.piece_length)
            stack.callback(connection.sock.close)
            connections.append(connection)
        for connection in connections:
            if not select.select([connection.sock], [], [], _STALL_SECONDS)[0]:
                raise LoadError(f"nothing arrived for {_STALL_SECONDS:g} s")
        found |= {f"{name} wait": float(peak) for name, peak in meter.take_peaks().items()}
        _read_all(connections)
        found |= {f"{name} read": float(peak) for name, peak in meter.take_peaks().items()}
        task_id = parse_head(connections[0].head)[1]["x-dragonfly-task-id"]
    # What all rounds brought would not fit into memory, and the last rounds would be about the disk.
    field.cluster.delete_task(task_id)
    return found


def _ask(peer: Daemon, made: RemoteObject, start: int, length: int) -> Connection:
    address = parse_address(peer.addresses["proxy"])
    connection = Connection(
        (address.host, address.port),
        length,
        status=206,
        stall_seconds=_STALL_SECONDS,
        receive_bytes=_RECEIVE_BYTES,
    )
    connection.ask(request_for(made.url, (("Range", f"bytes={start}-{start + length - 1}"),)))
    return connection


def _read_all(connections: Sequence[Connection]) -> None:
    buffer = memoryview(bytearray(_RECEIVE_BYTES))
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection.sock, selectors.EVENT_READ, connection)
        while selector.get_map():
            ready = selector.select(_STALL_SECONDS)
            if not ready:
                raise LoadError(f"nothing arrived for {_STALL_SECONDS:g} s")
            for key, _ in ready:
                if key.data.take(buffer):
                    selector.unregister(key.fileobj)


def beside_a_slow_one(field: Field, made: RemoteObject, seconds: float) -> dict[str, float]:
    """Read beside a client that takes 1 KB/s, and let that one go on for `seconds`; return what became of the host.

    That is `more`, by how many bytes its RssAnon grew, and `slower`, the seconds of the read over those that it took
    alone. Raises LoadError and OSError.
    """
    peer = field.cluster["peer-1"]
    layout = PieceLayout.of(made.length)
    length = min(layout.length, 64 * MIB)
    _timed(peer, made, length)
    alone = _timed(peer, made, length)
    before = peer.child.rss_anon_bytes()
    over = threading.Event()
    with contextlib.closing(_ask(peer, made, 0, length).sock) as slow:

        def read() -> None:
            while not over.wait(1.0):
                slow.recv(_SLOW_BYTES)

        thread = threading.Thread(target=read, name="slow reader", daemon=True)
        thread.start()
        try:
            beside = _timed(peer, made, length)
            over.wait(seconds)
            more = peer.child.rss_anon_bytes() - before
        finally:
            over.set()
            thread.join()
    return {"more": float(more), "slower": beside / alone}


def _timed(peer: Daemon, made: RemoteObject, length: int) -> float:
    connection = _ask(peer, made, 0, length)
    began = time.perf_counter()
    with contextlib.closing(connection.sock):
        _read_all([connection])
    return time.perf_counter() - began
