"""What arrives at the broker's ports: whose connection it is, and what strangers come to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tunnel import (
    Log,
    agent_settings,
    asked,
    broker_settings,
    client_files,
    exchange,
    registration,
    run,
    running,
    saying,
    scripted,
    service,
    until,
)
from whip_core import Broker, control, preamble
from whip_core.frames import FrameType
from whip_core.preamble import OldPreamble, Preamble
from whip_core.testing.agent import ScriptedAgent

SOON = 0.05
"""Seconds that a peer has that is not going to say anything."""


@asynccontextmanager
async def dialled(
    *, tls: bool = False
) -> AsyncIterator[tuple[Broker, ScriptedAgent, control.Connect]]:
    """An agent that has been asked for a connection; at the end it gives the right one."""
    async with asked(tls=tls) as (broker, agent, request, dial):
        try:
            yield broker, agent, request
        except BaseException:
            dial.cancel()
            raise
        assert not dial.done(), "the dial was given a connection that is not its own"
        reverse = await agent.connect_framed(request)
        await reverse.asked()
        reverse.accept()[1].write_eof()
        assert await exchange(await dial, b"") == b""


async def refusal(agent: ScriptedAgent, request: control.Connect, *args: object) -> str:
    """What the broker says to an introduction before it closes."""
    [introduction] = args
    assert isinstance(introduction, Preamble | OldPreamble | bytes)
    reader, _ = await agent.connect_back(request, introduce=introduction)
    return (await reader.read()).decode(errors="replace")


def test_a_connection_with_a_wrong_secret_is_refused() -> None:
    async def main() -> None:
        async with dialled() as (_, agent, request):
            assert agent.registered is not None
            session = agent.registered.session_id
            for secret in ("", "0" * 32, agent.registered.secret[:-1], "é"):
                wrong = Preamble(session, secret, request.connection_id)
                assert "wrong secret" in await refusal(agent, request, wrong)

    run(main())


def test_a_connection_for_another_session_gets_none_of_this_ones_dials() -> None:
    async def main() -> None:
        async with dialled() as (broker, agent, request):
            async with scripted(broker, registration("instance2")) as other:
                mine = await other.expect(control.Registered)
                wrong = Preamble(mine.session_id, mine.secret, request.connection_id)
                assert "nobody waits for this connection" in await refusal(agent, request, wrong)
            unknown = Preamble("0" * 32, mine.secret, request.connection_id)
            assert "no session or dial" in await refusal(agent, request, unknown)

    run(main())


def test_a_connection_of_an_ended_session_is_refused() -> None:
    async def main() -> None:
        async with dialled() as (broker, agent, request):
            async with scripted(broker, registration("instance2")) as other:
                mine = await other.expect(control.Registered)
            await until(lambda: len(broker.agents) == 1)
            late = Preamble(mine.session_id, mine.secret)
            assert "no session or dial" in await refusal(agent, request, late)

    run(main())


def test_an_answer_is_taken_once_and_its_replay_is_refused() -> None:
    async def main() -> None:
        async with asked() as (_broker, agent, request, dial):
            reverse = await agent.connect_framed(request)
            await reverse.asked()
            again = agent.introduction(request)
            assert "nobody waits for this connection" in await refusal(agent, request, again)
            reverse.accept()[1].write_eof()
            streams = await dial
            assert "nobody waits for this connection" in await refusal(agent, request, again)
            assert await exchange(streams, b"") == b""

    run(main())


def test_of_two_that_answer_a_dial_in_the_same_moment_one_is_taken() -> None:
    async def main() -> None:
        async with asked() as (_broker, agent, request, dial):
            answers = [await agent.connect_back(request, introduce=b"\x01") for _ in range(2)]
            for _, writer in answers:
                writer.write(preamble.encode(agent.introduction(request))[1:])
            heard = [await reader.read(4) for reader, _ in answers]
            assert sorted(frame[0] for frame in heard) == [FrameType.OPEN, FrameType.RESET]
            dial.cancel()
            await asyncio.wait([dial])

    run(main())


def test_over_tls_another_certificates_connection_is_refused_even_with_the_secret() -> None:
    async def main() -> None:
        async with dialled(tls=True) as (_, agent, request):
            for name in ("instance2.testdom", "*.testdom"):
                reader, _ = await agent.connect_back(request, tls=client_files(name))
                assert b"another certificate's names" in await reader.read()

    run(main())


def test_over_tls_a_renewed_certificate_for_the_same_name_is_the_same_identity() -> None:
    async def main() -> None:
        client_files.cache_clear()
        async with dialled(tls=True) as (_, agent, request):
            client_files.cache_clear()
            renewed = client_files("instance1.testdom")
            reader, writer = await agent.connect_back(
                request, introduce=agent.introduction(None), tls=renewed
            )
            writer.close()
            assert await reader.read() == b""  # it was parked; nothing was said against it

    run(main())


def test_over_tls_a_peer_without_a_certificate_of_the_ca_says_nothing_to_anybody() -> None:
    async def main() -> None:
        async with dialled(tls=True) as (broker, agent, request):
            reader, writer = await asyncio.open_connection("localhost", broker.reverse_port)
            with Log() as log:
                writer.write(preamble.encode(agent.introduction(request)))
                await log.until("no TLS handshake with")
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()

    run(main())


# Strangers


@pytest.mark.parametrize("tls", [False, True], ids=["plaintext", "tls"])
@pytest.mark.parametrize("port", ["reverse_port", "control_port"])
def test_a_silent_client_delays_nobody(port: str, tls: bool) -> None:
    files = client_files() if tls else None

    async def main() -> None:
        settings = broker_settings(tls=tls or None, preamble_timeout=600.0, handshake_timeout=600.0)
        async with Broker(settings) as broker:
            silent = [
                await asyncio.open_connection("127.0.0.1", getattr(broker, port)) for _ in range(50)
            ]
            async with (
                service(saying(b"hello")) as local,
                running(
                    agent_settings(broker.control_port, ports=f"80={local}", tls=files)
                ) as agent,
            ):
                await agent.wait_registered()
                streams = await broker.open_connection("instance1.testdom", 80)
                assert await exchange(streams, b"") == b"hello"
            for _, writer in silent:
                writer.close()

    run(main())


@pytest.mark.parametrize("first", [b"", b"{", b"\x01", b'\x01\x00\x00\x40{"session":"'])
def test_who_does_not_say_who_it_is_is_sent_away_in_time(first: bytes) -> None:
    async def main() -> None:
        async with Broker(broker_settings(preamble_timeout=SOON)) as broker:
            reader, writer = await asyncio.open_connection("127.0.0.1", broker.reverse_port)
            with Log() as log:
                writer.write(first)
                said = await reader.read()
                assert (b"did not identify itself" in said) is first.startswith(b"\x01")
                assert "did not identify itself" in await log.until(
                    "reverse port: refused 127.0.0.1"
                )
            writer.close()

    run(main())


def test_over_tls_a_handshake_that_does_not_end_is_given_up() -> None:
    async def main() -> None:
        settings = broker_settings(tls=True, handshake_timeout=SOON)
        async with Broker(settings) as broker:
            reader, writer = await asyncio.open_connection("127.0.0.1", broker.reverse_port)
            assert await reader.read() == b""
            writer.close()

    run(main())


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x01\xff\xff\xff",
        b"\x01\x00\x00\x02[]",
        b"\x01\x00\x00\x02\xff\xff",
        b'\x01\x00\x00\x0f{"session": 12}',
        b'\x01\x00\x00\x13{"secret":"\\ud800"}',
        b"{" * 5000,
        b"{]}",
        b'{"connectionID": 5}',
        b'{"connectionID":"' + b"x" * 5000 + b'"}',
    ],
)
def test_garbage_on_the_reverse_port_is_one_line_in_the_log_and_disturbs_nobody(
    garbage: bytes,
) -> None:
    async def main() -> None:
        async with dialled() as (broker, _, __):
            reader, writer = await asyncio.open_connection("127.0.0.1", broker.reverse_port)
            with Log() as log:
                writer.write(garbage)
                with contextlib.suppress(ConnectionError):
                    await reader.read()
                line = await log.until("reverse port: refused 127.0.0.1")
                assert "\n" not in line
            writer.close()

    run(main())


@pytest.mark.parametrize("tls", [False, True], ids=["plaintext", "tls"])
@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 64, b"PRI * HTTP/2.0\r\n\r\nSM"]
)
def test_garbage_on_the_control_port_disturbs_nobody(garbage: bytes, tls: bool) -> None:
    async def main() -> None:
        async with dialled(tls=tls) as (broker, _, __):
            reader, writer = await asyncio.open_connection("127.0.0.1", broker.control_port)
            writer.write(garbage)
            with contextlib.suppress(OSError):  # refused already
                writer.write_eof()
                await reader.read()
            writer.close()

    run(main())
