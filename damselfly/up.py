"""`damselfly up`: a scheduler, a seed and a peer on this machine, until Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from bench.cluster import LocalCluster
from p2p.daemon import EXIT_CONFIG
from p2p.errors import ConfigError, DamselflyError

EXIT_FAILED = 1

_DRAIN = ["--drain", "10s"]
"""Shorter than the cluster waits for its daemons, so that they end by themselves."""


@dataclass(frozen=True, slots=True)
class UpSettings:
    """Where data, logs and the cluster secret go, and how the daemons reach origins.

    The seed alone has `cloud_credentials`; `origin_ca_file` vouches for origins wherever they are asked from.
    """

    directory: Path
    cloud_credentials: Path | None = None
    origin_ca_file: Path | None = None
    log_level: str = "info"


def up(settings: UpSettings, *, say: Callable[[str], None]) -> int:
    """Run the three daemons with their data, logs and cluster secret below the directory; return the exit status.

    Blocks until SIGINT, SIGTERM or SIGHUP (status 0, everything drained and stopped; a second signal ends the draining)
    or until a daemon ends on its own (status 1, named). `say` gets what is for the person at the terminal.
    """
    told_to_stop = threading.Event()
    ended: list[str] = []
    directory = settings.directory
    level = ["--log-level", settings.log_level]
    trust = ["--origin-ca-file", str(settings.origin_ca_file)] if settings.origin_ca_file else []
    credentials = ["--cloud-credentials", str(settings.cloud_credentials)] if settings.cloud_credentials else []
    cluster = LocalCluster(
        peers=1,
        seeds=1,
        directory=directory,
        default_ports=True,
        arguments={
            "scheduler": level,
            "seed": [*level, *_DRAIN, *trust, *credentials],
            "peer": [*level, *_DRAIN, *trust],
        },
    )

    def stop(number: int, frame: FrameType | None) -> None:
        if told_to_stop.is_set():
            cluster.terminate()
        told_to_stop.set()

    def watch() -> None:
        ended.append(cluster.wait())
        told_to_stop.set()

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, stop) for number in signals}
    try:
        with cluster:
            peer = cluster["peer-1"].addresses
            say(f"proxy       http://{peer['proxy']}   (logs and data: {directory})")
            say(f'try         curl -x http://{peer["proxy"]} "$PRESIGNED_URL" -o model.bin')
            say(f"metrics     http://{peer['http']}/metrics")
            threading.Thread(target=watch, name="watch", daemon=True).start()
            told_to_stop.wait()
            if ended:
                say(f"{ended[0]} ended on its own; its log is {cluster[ended[0]].log}")
                return EXIT_FAILED
            say("stopping")
    except DamselflyError as error:
        print(f"damselfly up: {error}", file=sys.stderr)
        return EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_FAILED
    else:
        return 0
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
