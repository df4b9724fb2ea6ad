"""Logs and metrics, set up once by each daemon's main.

Logs are JSON lines on standard error, one event each, named in lower case ("download finished"); the `ready` event
carries the addresses that were really bound. Metrics are Prometheus', in a registry of the process' own.
"""

from __future__ import annotations

import logging
import sys

import structlog
from prometheus_client import CollectorRegistry

from p2p.errors import ConfigError

REGISTRY = CollectorRegistry()
"""The registry behind /metrics. Modules register their metrics in it when they are imported."""

Logger = structlog.stdlib.BoundLogger


def configure_logging(*, level: str, daemon: str, as_json: bool = True) -> None:
    """Send this process' logs to standard error; every line carries `daemon`. Raises ConfigError for a bad level."""
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ConfigError(f"log level {level!r} is not one of debug, info, warning, error")
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        # Without the frames' variables: some hold URLs that are secrets.
        structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,  # first: a line that nobody will see costs nothing
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    # aiohttp's access log would print presigned URLs; Damselfly writes its own line a download instead.
    logging.getLogger("aiohttp.access").disabled = True
    structlog.contextvars.bind_contextvars(daemon=daemon)


def logger(name: str) -> Logger:
    """Return the logger of one module."""
    found: Logger = structlog.stdlib.get_logger(name)
    return found
