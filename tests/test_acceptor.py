"""Connections as the acceptor hands them over, on both event loops."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

import pytest

from whip_core import process
from whip_core.acceptor import Acceptor
from whip_core.sockets import bind

LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, process.new_loop])


class Made(asyncio.Protocol):
    def __init__(self, made: asyncio.Future[asyncio.BaseTransport]) -> None:
        self._made = made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._made.set_result(transport)


@LOOPS
def test_what_is_accepted_is_sent_at_once_and_blocks_nobody(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def main() -> None:
        made: asyncio.Future[asyncio.BaseTransport] = asyncio.get_running_loop().create_future()
        [sock] = bind(["127.0.0.1"], 0, "")
        address = sock.getsockname()
        acceptor = Acceptor(sock, lambda: Made(made))
        with socket.create_connection(address):
            transport = await made
            accepted = transport.get_extra_info("socket")
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert not os.get_blocking(accepted.fileno())
            acceptor.close()
            await acceptor.wait_closed()
            transport.abort()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
