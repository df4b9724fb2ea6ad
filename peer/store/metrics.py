"""What the store counts; gauges are of the store that this process has open."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from p2p.telemetry import REGISTRY

HELD_BYTES = Gauge("damselfly_store_bytes", "Bytes of all pieces held.", registry=REGISTRY)
HELD_PIECES = Gauge("damselfly_store_pieces", "Pieces held.", registry=REGISTRY)
HELD_VERSIONS = Gauge("damselfly_store_versions", "Versions held, whole or in part.", registry=REGISTRY)
OPEN_ENTRIES = Gauge("damselfly_store_open_entries", "Versions in memory, with an open file.", registry=REGISTRY)
EVICTED = Counter("damselfly_store_evicted", "Versions evicted to make room.", registry=REGISTRY)
EVICTED_BYTES = Counter("damselfly_store_evicted_bytes", "Bytes evicted to make room.", registry=REGISTRY)
DISK_FULL = Counter(
    "damselfly_store_disk_full", "Times that versions had to go because the disk was full.", registry=REGISTRY
)
DAMAGED = Counter(
    "damselfly_store_pieces_damaged", "Pieces dropped because their bytes were not those recorded.", registry=REGISTRY
)
EXPIRED = Counter("damselfly_store_expired", "Versions that went because nobody used them.", registry=REGISTRY)
SCRUBBED_BYTES = Counter(
    "damselfly_store_scrubbed_bytes", "Bytes of pieces read in the background to verify them.", registry=REGISTRY
)
SCRUB_DAMAGED = Counter(
    "damselfly_store_scrub_damaged", "Pieces found damaged in the background, and dropped.", registry=REGISTRY
)
COMMIT_SECONDS = Histogram(
    "damselfly_store_commit_seconds",
    "Time that a transaction of the index took.",
    registry=REGISTRY,
    buckets=(0.0001, 0.001, 0.01, 0.1, 1, 10),
)
