"""The proxy's metrics."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from p2p.telemetry import REGISTRY

REQUESTS = Counter(
    "damselfly_proxy_requests_total",
    "Finished requests, by the way they went and how they ended.",
    ("route", "outcome"),
    registry=REGISTRY,
)
BODY_BYTES = Counter(
    "damselfly_proxy_response_body_bytes_total",
    "Body bytes sent to clients, by X-Cache; NONE for what is not an object's bytes by way of the cache.",
    ("cache",),
    registry=REGISTRY,
)
FIRST_BYTE_SECONDS = Histogram(
    "damselfly_proxy_time_to_first_byte_seconds",
    "From a request's head to the response's head.",
    ("route",),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    registry=REGISTRY,
)
FRESHNESS = Counter(
    "damselfly_proxy_freshness_total",
    "Answers to whether a caller may read and which version, by how they came about; stale: in spite of a failure.",
    ("standing",),
    registry=REGISTRY,
)
ACTIVE_REQUESTS = Gauge("damselfly_proxy_active_requests", "Requests being answered.", registry=REGISTRY)
