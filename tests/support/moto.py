"""moto's S3 server in a thread of the test process: quick, but it takes any signature."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from moto.server import ThreadedMotoServer

from tests.support.servers import S3Server, s3_client


@contextmanager
def running_moto() -> Iterator[S3Server]:
    """Run the server on a free port of 127.0.0.1 while the context lasts."""
    # Its access log would fill the report of every failed test.
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        yield S3Server("moto", endpoint, s3_client(endpoint, "test", "test"), checks_signatures=False)
    finally:
        server.stop()
