"""Real servers as the services behind an agent, as root or not, on free ports."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from processes import free_ports, output_of, started

CONNECTIONS = 2048
"""What nginx may have open: more than any test asks for."""


@asynccontextmanager
async def nginx(folder: Path) -> AsyncIterator[tuple[int, Path]]:
    """A web server that takes PUTs; gives its port and its root folder."""
    [port] = free_ports(1)
    root = folder / "www"
    root.mkdir()
    (root / "index.html").write_text("It works.")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "\n".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    config = folder / "nginx.conf"
    config.write_text(f"""
        {"user root;" if os.geteuid() == 0 else ""}
        daemon off;
        pid {folder}/nginx.pid;
        error_log stderr notice;
        events {{ worker_connections {CONNECTIONS}; }}
        http {{
            {temporary}
            access_log off;
            client_max_body_size 0;
            server {{ listen 127.0.0.1:{port}; root {root}; location / {{ dav_methods PUT; }} }}
        }}
    """)
    async with started("nginx", "-p", folder, "-c", config, "-e", "stderr") as server:
        await server.says("start worker process")
        yield port, root


@asynccontextmanager
async def sshd(folder: Path) -> AsyncIterator[tuple[int, Path]]:
    """An SSH server for this user; gives its port and the key that it lets in."""
    [port] = free_ports(1)
    for name in ("host", "user"):
        await output_of("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / f"{name}_key")
    config = folder / "sshd_config"
    config.write_text(f"""
        ListenAddress 127.0.0.1:{port}
        HostKey {folder}/host_key
        AuthorizedKeysFile {folder}/user_key.pub
        PidFile none
        StrictModes no
        UsePAM no
        PermitRootLogin yes
    """)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # what its service unit makes
    async with started("sshd", "-D", "-e", "-f", config) as server:
        await server.says("Server listening on 127.0.0.1")
        yield port, folder / "user_key"
