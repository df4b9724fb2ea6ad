"""Stands in for `python -m damselfly`: binds what it is told to, says so, answers DELETE, ends on SIGTERM."""

import http.server
import json
import signal
import socket
import sys
from pathlib import Path
from types import FrameType

KINDS = {"--grpc-listen": "grpc", "--http-listen": "http", "--proxy-listen": "proxy", "--piece-listen": "pieces"}
SCHEDULER_KINDS = {"--grpc-listen", "--http-listen"}


class Admin(http.server.BaseHTTPRequestHandler):
    def do_DELETE(self) -> None:  # the name http.server asks for
        with (Path(directory) / "deleted").open("a") as file:
            file.write(f"{self.path} {self.headers['Authorization']}\n")
        status = {"/v1/tasks/known": 200, "/v1/tasks/bad": 500}.get(self.path, 404)
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name http.server uses
        pass


def stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


signal.signal(signal.SIGTERM, stop)
flags = dict(zip(sys.argv[1:], sys.argv[2:], strict=False))
directory = flags.get("--data-dir") or flags["--state-dir"]
(Path(directory) / "argv").write_text(json.dumps(sys.argv[1:]))
if "--fail" in sys.argv:
    sys.exit("told to fail")
bound: dict[str, str] = {}
sockets = []
for flag, kind in KINDS.items():
    if flag not in flags:
        continue
    host, _, port = flags[flag].rpartition(":")
    if kind == "http":
        server = http.server.HTTPServer((host, int(port)), Admin)
        address = server.server_address[1]
    else:
        sockets.append(socket.create_server((host, int(port))))
        address = sockets[-1].getsockname()[1]
    bound[kind] = f"{host}:{address}"
print(json.dumps({"event": "ready", **bound}), file=sys.stderr, flush=True)
server.serve_forever()
