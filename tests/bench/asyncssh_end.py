"""A program: one end of an asyncssh tunnel with remote forwarding, on uvloop.

asyncssh_end.py server PORT
asyncssh_end.py client SERVER_PORT LISTEN_PORT SERVICE_PORT
"""

from __future__ import annotations

import asyncio
import sys

import asyncssh
import uvloop

CIPHERS = ["aes128-gcm@openssh.com"]


class Server(asyncssh.SSHServer):
    """Lets everybody in and forwards for them: it listens on loopback, for a minute."""

    def begin_auth(self, username: str) -> bool:
        return False

    def server_requested(self, listen_host: str, listen_port: int) -> bool:
        return True


async def server(port: int) -> None:
    await asyncssh.listen(
        "127.0.0.1",
        port,
        server_factory=Server,
        server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
        encryption_algs=CIPHERS,
    )
    await asyncio.Event().wait()


async def client(server_port: int, listen_port: int, service_port: int) -> None:
    async with asyncssh.connect(
        "127.0.0.1", server_port, known_hosts=None, username="bench", encryption_algs=CIPHERS
    ) as connection:
        listener = await connection.forward_remote_port(
            "127.0.0.1", listen_port, "127.0.0.1", service_port
        )
        await listener.wait_closed()


if __name__ == "__main__":
    role, *ports = sys.argv[1:]
    uvloop.run({"server": server, "client": client}[role](*map(int, ports)))
