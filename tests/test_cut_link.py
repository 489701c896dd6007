"""Hosts of their own whose cable is pulled: nothing is reset, and TCP says nothing for long.

With the timers that a user has. This test takes its time, nearly all of it waiting.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess

import pytest

from client_agent.backoff import MAX_BOUND
from faulty import tls_options
from namespaces import Host, needs_namespaces, network
from processes import started
from programs import needs_program, path_of
from tunnel import authority, client_files, run
from whip_core import heartbeat
from whip_core.channel import CONNECT_TIMEOUT
from whip_core.errors import StreamCut
from whip_core.raw import RawConnection
from whip_core.sockets import unanswered_for

pytestmark = pytest.mark.once

NOTICED_WITHIN = 45.0
"""Seconds, by both ends (docs/faults.md)."""
BACK_WITHIN = MAX_BOUND + 2 * CONNECT_TIMEOUT
"""Seconds after which an agent whose path is back is registered, at the very latest."""
CONTROL = 50051


def plug_in(host: Host) -> None:
    subprocess.run(
        [path_of("ip"), "-n", host.namespace, "link", "set", "eth0", "up"], check=True, timeout=30
    )


@needs_namespaces
@needs_program("ip", "whip")
@pytest.mark.timeout(200)
@pytest.mark.parametrize("whose", ["the broker's", "the agent's"])
def test_a_cable_that_is_pulled_is_noticed_by_both_ends_and_the_agent_comes_back(
    whose: str,
) -> None:
    async def main() -> None:
        with network() as there:
            one, other = there.host(), there.host()
            files = authority().server_files(("localhost",), (one.ip4,))
            async with (
                started(
                    *one.command("whip"),
                    *("forward", "8080:instance1.testdom:80", "--metrics-listen="),
                    *("--control-socket=", f"--whip-external-tcp-address={one.ip4}"),
                    *("--whip-listen-host=0.0.0.0", *tls_options(files)),
                ) as broker,
                started(
                    *other.command("whip"),
                    *("client", "--hostname=instance1", "--domain=testdom", "--ports=80"),
                    *("--metrics-listen=", *tls_options(client_files())),
                    f"{one.ip4}:{CONTROL}",
                ) as agent,
            ):
                await broker.says("instance1.testdom registered")
                cut = one if whose == "the broker's" else other
                there.cut(cut)
                async with asyncio.timeout(NOTICED_WITHIN):
                    await broker.says("agent instance1.testdom left")
                    await agent.says("lost the broker")
                plug_in(cut)
                async with asyncio.timeout(BACK_WITHIN):
                    await broker.says_often("instance1.testdom registered", 2)

    run(main(), patience=NOTICED_WITHIN + BACK_WITHIN + 30)


LONG = 1.5
"""Seconds: several retransmissions, of which the first comes after a fifth of one."""


@needs_namespaces
@needs_program("ip")
@pytest.mark.parametrize("cut", [True, False])
def test_the_kernel_tells_a_dead_path_from_a_reader_that_is_paused(cut: bool) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with network() as there:
            one, other = there.host(), there.host()
            with (
                one.socket(socket.SOCK_STREAM, one.ip4, CONTROL) as listener,
                other.socket(socket.SOCK_STREAM, other.ip4, 0) as sock,
            ):
                listener.listen()
                await loop.sock_connect(sock, (one.ip4, CONTROL))
                accepted, _ = await loop.sock_accept(listener)
                with accepted:
                    transport, _ = await loop.create_connection(asyncio.Protocol, sock=sock)
                    if cut:
                        there.cut(one)
                    transport.write(bytes(32 << 20))  # nobody reads it
                    longest, began = 0.0, loop.time()
                    while longest < LONG and (cut or loop.time() - began < 2 * LONG):
                        await asyncio.sleep(0.05)
                        longest = max(longest, unanswered_for(transport))
                    assert longest >= LONG if cut else longest == 0.0
                    transport.abort()

    run(main())


@needs_namespaces
@needs_program("ip")
def test_an_old_peers_stream_that_sends_into_a_cut_path_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heartbeat, "SILENCE_LIMIT", LONG)
    monkeypatch.setattr(heartbeat, "PING_INTERVAL", LONG / 5)
    finished = asyncio.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with network() as there:
            one, other = there.host(), there.host()
            with (
                one.socket(socket.SOCK_STREAM, one.ip4, CONTROL) as listener,
                other.socket(socket.SOCK_STREAM, other.ip4, 0) as sock,
            ):
                listener.listen()
                await loop.sock_connect(sock, (one.ip4, CONTROL))
                accepted, _ = await loop.sock_accept(listener)
                with accepted:
                    raw = RawConnection("dial", extra={}, on_finished=lambda _: finished.set())
                    await loop.create_connection(lambda: raw, sock=sock)
                    there.cut(one)
                    raw.stream.write(b"into the dark")
                    await finished.wait()
                    assert raw.stream.cause == "cut"
                    with pytest.raises(StreamCut, match="not acknowledged"):
                        raise raw.stream._error or AssertionError

    run(main())
