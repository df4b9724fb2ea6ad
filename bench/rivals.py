"""Caching proxies to be measured against: nginx with proxy_cache, and squid, as Debian packages them.

Each runs as one process with one worker, keeps what it is asked for as long as the run lasts, and writes no access log.
Squid keeps its objects in memory, nginx in files. Beside them nginx as a plain server of files, with and without TLS,
and with a worker a CPU, as Debian sets it up.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.process import Child, ChildError

_READY_SECONDS = 15.0
_STOP_SECONDS = 10.0

_NGINX = """\
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  sendfile on;
  keepalive_requests 1000000000;
  client_body_temp_path {directory}/nginx-body;
  proxy_temp_path {directory}/nginx-temp;
  fastcgi_temp_path {directory}/nginx-fastcgi;
  scgi_temp_path {directory}/nginx-scgi;
  uwsgi_temp_path {directory}/nginx-uwsgi;
  proxy_cache_path {directory}/nginx-cache levels=1:2 keys_zone=objects:10m inactive=60m use_temp_path=off;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://$http_host;
      proxy_cache objects;
      proxy_cache_key $http_host$request_uri;
      proxy_cache_valid 200 60m;
    }}
  }}
}}
"""

_NGINX_FILES = """\
daemon off;
user root root;
worker_processes auto;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 1000000000;
  client_body_temp_path {directory}/nginx-body;
  proxy_temp_path {directory}/nginx-temp;
  fastcgi_temp_path {directory}/nginx-fastcgi;
  scgi_temp_path {directory}/nginx-scgi;
  uwsgi_temp_path {directory}/nginx-uwsgi;
  server {{
    listen 127.0.0.1:{port}%s;
    root {directory}/files;
  }}
}}
"""

_TLS = """ ssl;
    ssl_certificate {directory}/leaf.pem;
    ssl_certificate_key {directory}/leaf.pem;
    ssl_session_tickets on"""

_SQUID = """\
http_port 127.0.0.1:{port}
http_access allow all
cache_mem 64 MB
maximum_object_size_in_memory 1 MB
refresh_pattern . 60 100% 60
access_log none
cache_log /dev/null
cache_store_log none
pid_filename none
netdb_filename none
coredump_dir {directory}
visible_hostname localhost
shutdown_lifetime 0 seconds
"""


@dataclass(frozen=True, slots=True)
class Rival:
    """A proxy's name, how its configuration is written, and how it is started with it and asked for its version."""

    name: str
    program: str
    template: str
    command: Callable[[str, Path], list[str]]
    version: str

    def find(self) -> str | None:
        """Return the path of the program, or None where it is not installed; Debian keeps both in /usr/sbin."""
        return shutil.which(self.program, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))

    @contextlib.contextmanager
    def running(self, directory: Path) -> Iterator[RunningRival]:
        """Run it on a free port while the context lasts; raises ChildError if it does not come up."""
        program = self.find()
        if program is None:
            raise ChildError(f"{self.name} is not installed")
        port = _free_port()
        configuration = directory / f"{self.program}.conf"
        configuration.write_text(self.template.format(directory=directory, port=port))
        child = Child(self.name, self.command(program, configuration), directory / f"{self.program}.log")
        try:
            _wait_until_it_listens(child, port)
            yield RunningRival(f"127.0.0.1:{port}", child, self._version(program))
        finally:
            child.terminate()
            child.join(time.monotonic() + _STOP_SECONDS)

    def _version(self, program: str) -> str:
        # nginx writes its version to standard error, squid to standard output.
        said = subprocess.run([program, "-v"], capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
        found = re.search(self.version, said.stdout + said.stderr)
        return found[1] if found else "?"


@dataclass(frozen=True, slots=True)
class RunningRival:
    """A proxy at `address` ("host:port") that runs as `child`."""

    address: str
    child: Child
    version: str


def _nginx_command(program: str, file: Path) -> list[str]:
    return [program, "-e", "stderr", "-p", str(file.parent), "-c", str(file)]


_NGINX_VERSION = r"nginx/(\S+)"

RIVALS: Mapping[str, Rival] = {
    rival.name: rival
    for rival in (
        Rival("nginx proxy_cache", "nginx", _NGINX, _nginx_command, _NGINX_VERSION),
        Rival("squid", "squid", _SQUID, lambda program, file: [program, "-N", "-f", str(file)], r"Version (\S+)"),
    )
}

NGINX_FILES = Rival("nginx", "nginx", _NGINX_FILES % "", _nginx_command, _NGINX_VERSION)
"""A plain server of what is in `files` of its directory, with Debian's sendfile, tcp_nopush and worker_processes.

Its workers keep the rights of whoever starts it, for the directory is not for others."""

NGINX_TLS_FILES = Rival("nginx with TLS", "nginx", _NGINX_FILES % _TLS, _nginx_command, _NGINX_VERSION)
"""The same over TLS, with the certificate and the key in `leaf.pem` of its directory."""


def _free_port() -> int:
    """Return a port that was free a moment ago: neither program can be told to choose one and say which."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _wait_until_it_listens(child: Child, port: int) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return
        if not child.is_running() or time.monotonic() > deadline:
            raise ChildError(f"{child.name} does not listen; its log {child.log} ends with:\n{child.tail()}")
        time.sleep(0.02)
