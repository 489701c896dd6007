"""The service behind every tunnel: nginx, with a small body and a big one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from bench.processes import Program, find, free_ports, listens, running, wait_until

SMALL = 1024
"""Octets of /small: an answer of an API, where the tunnel's cost for each request shows."""

# One process: what it can serve is far above what any tunnel carries, on one core.
CONFIGURATION = """
daemon off;
master_process off;
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    sendfile on;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    client_body_temp_path temp-body;
    proxy_temp_path temp-proxy;
    fastcgi_temp_path temp-fastcgi;
    uwsgi_temp_path temp-uwsgi;
    scgi_temp_path temp-scgi;
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        root www;
    }}
}}
"""


@contextlib.contextmanager
def nginx(folder: Path, big: int) -> Iterator[tuple[Program, int]]:
    """Run nginx; gives it and its port. /small has `SMALL` octets, /big has `big`."""
    program = find("nginx")
    [port] = free_ports(1)
    www = folder / "www"
    www.mkdir()
    (www / "small").write_bytes(b"x" * SMALL)
    with (www / "big").open("wb") as file:
        file.truncate(big)  # a hole: no disk is read, and nothing on the way compresses
    (folder / "nginx.conf").write_text(CONFIGURATION.format(port=port))
    with running(
        "nginx", program, "-p", folder, "-e", "stderr", "-c", folder / "nginx.conf", folder=folder
    ) as process:
        wait_until(lambda: listens(port), "nginx listens", process)
        yield process, port
