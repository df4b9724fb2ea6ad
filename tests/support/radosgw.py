"""A real radosgw on loopback, with the smallest Ceph cluster that can carry it, in about a second.

One monitor, one OSD that keeps its objects in memory, and the gateway; cephx is on. There is no manager: the gateway
needs none. Everything that usually takes commands and elections (the monitor map, the OSD map, the keys) is written by
tools before the first daemon starts. It needs no root and no systemd, and nothing outside of the one directory.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.secrets import secret
from tests.support.servers import S3Server, ServerError, free_port, require_programs, s3_client, tail, wait_listening

_PROGRAMS = ("ceph-authtool", "monmaptool", "osdmaptool", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "setpriv")
_PACKAGES = ("ceph-mon", "ceph-osd", "radosgw")
_START_SECONDS = 60.0
_GATEWAY = "client.rgw.test"

# Short intervals where Ceph's defaults cost seconds: the monitor holds a proposal back for one to batch it with others,
# and a client whose request met an OSD that was not up yet looks again after five.
_CONFIGURATION = """\
[global]
fsid = {fsid}
mon_host = v2:127.0.0.1:{monitor_port}
public_addr = 127.0.0.1
ms_bind_msgr1 = false
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
keyring = {directory}/keyring
run_dir = {directory}
admin_socket =
log_file = {directory}/$name.log
log_to_stderr = false
mon_data = {directory}/mon
osd_data = {directory}/osd
rgw_data = {directory}/rgw
osd_objectstore = memstore
memstore_device_bytes = 4294967296
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
rgw_rados_pool_pg_num_min = 1
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_data_avail_crit = 0
mon_data_avail_warn = 0
objecter_tick_interval = 0.1
paxos_propose_interval = 0.01
rgw_frontends = beast endpoint=127.0.0.1:{gateway_port}
"""

_CAPABILITIES = {
    "mon.": {"mon": "allow *"},
    "osd.0": {"mon": "allow profile osd", "osd": "allow *"},
    _GATEWAY: {"mon": "allow rw", "osd": "allow rwx"},
}


@contextmanager
def running_radosgw(directory: Path) -> Iterator[S3Server]:
    """Run a gateway with one user in `directory` while the context lasts; skips the test where Ceph is missing.

    The daemons' logs stay in the directory. Raises ServerError if a part does not start.
    """
    require_programs("radosgw", _PROGRAMS, _PACKAGES)
    cluster = _Cluster(directory, monitor_port=free_port(), gateway_port=free_port())
    cluster.prepare()
    with ExitStack() as stack:
        for daemon in (["ceph-mon", "--id", "a"], ["ceph-osd", "--id", "0"]):
            stack.enter_context(cluster.daemon(daemon))
        access_key = secrets.token_hex(10).upper()
        secret_key = secret("the key of radosgw's user", secrets.token_hex(20))
        # Blocks until the monitor and the OSD can serve it, so it is their readiness check as well.
        user = ["--uid", "test", "--display-name", "test", "--access-key", access_key, "--secret-key", secret_key]
        cluster.run("radosgw-admin", "--name", _GATEWAY, "user", "create", *user)
        gateway = stack.enter_context(cluster.daemon(["radosgw", "--name", _GATEWAY]))
        log = directory / f"{_GATEWAY}.log"
        wait_listening(gateway, cluster.gateway_port, log, seconds=_START_SECONDS)
        endpoint = f"http://127.0.0.1:{cluster.gateway_port}"
        client = s3_client(endpoint, access_key, secret_key)
        yield S3Server("radosgw", endpoint, client, checks_signatures=True, logs=(log,))


class _Cluster:
    def __init__(self, directory: Path, *, monitor_port: int, gateway_port: int) -> None:
        self.directory = directory
        self.monitor_port = monitor_port
        self.gateway_port = gateway_port
        self.fsid = str(uuid.uuid4())
        # CEPH_ARGS of the developer's own cluster must not leak in.
        self.environment = {"PATH": os.environ["PATH"], "CEPH_CONF": str(directory / "ceph.conf")}

    def prepare(self) -> None:
        """Write the configuration, the keys and the first maps, and make the stores of the monitor and the OSD."""
        for name in ("osd", "rgw"):
            (self.directory / name).mkdir()
        configuration = _CONFIGURATION.format(
            directory=self.directory, fsid=self.fsid, monitor_port=self.monitor_port, gateway_port=self.gateway_port
        )
        (self.directory / "ceph.conf").write_text(configuration)
        keyring, monitor_map, osd_map = (str(self.directory / name) for name in ("keyring", "monmap", "osdmap"))
        self.run("ceph-authtool", "--create-keyring", keyring)
        for entity, capabilities in _CAPABILITIES.items():
            caps = [word for service, grant in capabilities.items() for word in ("--cap", service, grant)]
            self.run("ceph-authtool", keyring, "--gen-key", "--name", entity, *caps)
        address = f"[v2:127.0.0.1:{self.monitor_port}]"
        release = ("--set-min-mon-release", "pacific")
        self.run("monmaptool", "--create", "--fsid", self.fsid, *release, "--addv", "a", address, monitor_map)
        self.run("osdmaptool", "--createsimple", "1", osd_map)
        maps = ("--monmap", monitor_map, "--osdmap", osd_map)
        self.run("ceph-mon", "--mkfs", "--id", "a", "--keyring", keyring, *maps)
        self.run("ceph-osd", "--mkfs", "--no-mon-config", "--id", "0", "--osd-uuid", str(uuid.uuid4()))

    def run(self, *command: str) -> None:
        """Run a command to its end; raises ServerError, with what it said, if it fails or takes too long."""
        output = self.directory / f"{command[0]}.out"
        with output.open("ab") as file:
            try:
                subprocess.run(
                    command,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    check=True,
                    timeout=_START_SECONDS,
                )
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                raise ServerError(f"{command[0]}: {type(error).__name__}; it said:\n{tail(output)}") from error

    @contextmanager
    def daemon(self, command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
        """Run a daemon while the context lasts; what it holds is in memory and not worth an orderly end.

        It dies with this process too, however that ends.
        """
        with (self.directory / f"{command[0]}.out").open("ab") as file:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command, "--foreground"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
