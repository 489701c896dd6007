"""What the real agent exposes, and what it refuses whatever a broker asks for."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from client_agent import local, parse_exposure
from client_agent.exposure import TCPBackend, UnixBackend
from client_agent.local import Services
from tunnel import (
    Log,
    Watch,
    agent_settings,
    broker_settings,
    client_files,
    echo,
    exchange,
    run,
    running,
    saying,
    server_files,
    service,
    until,
)
from whip_core import Broker, control
from whip_core.control_wire import decode_agent_message
from whip_core.errors import (
    AgentGone,
    PortNotExposed,
    ServiceRefused,
    SettingsError,
)
from whip_core.frames import DIAL_ID_SIZE
from whip_core.settings import DIAL_TIMEOUT
from whip_core.testing.broker import ScriptedBroker, ScriptedControlStream
from whip_core.tls import server_context

DIAL_ID = bytes(DIAL_ID_SIZE)


# What it exposes


def test_a_service_that_takes_no_connection_is_blamed_before_the_broker_gives_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert local.CONNECT_TIMEOUT < DIAL_TIMEOUT
    monkeypatch.setattr(local, "CONNECT_TIMEOUT", 0.1)

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
            port = full.getsockname()[1]
            # One waits to be accepted, and no other's SYN is answered.
            with (
                socket.create_connection(("127.0.0.1", port)),
                pytest.raises(ServiceRefused, match=f"cannot connect to .*:{port} within 0.1"),
            ):
                await Services().connect(TCPBackend("127.0.0.1", port))

    run(main())


def test_a_port_a_mapped_port_a_host_and_a_unix_socket_are_reached(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"

    async def main() -> None:
        async with (
            service(saying(b"tcp")) as port,
            Broker(broker_settings()) as broker,
            running(
                agent_settings(
                    broker.control_port,
                    ports=f"{port},80={port},81=localhost:{port},82=unix:{path}",
                )
            ) as agent,
        ):
            unix = await asyncio.start_unix_server(_say_unix, path)
            await agent.wait_registered()
            for asked, text in ((port, b"tcp"), (80, b"tcp"), (81, b"tcp"), (82, b"unix")):
                streams = await broker.open_connection("instance1.testdom", asked)
                assert await exchange(streams, b"") == text
            unix.close()

    run(main())


async def _say_unix(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"unix")
    writer.close()


@pytest.mark.parametrize("tls", [False, True], ids=["plaintext", "tls"])
def test_a_service_that_speaks_first_and_hangs_up_loses_neither_first_nor_last_bytes(
    tls: bool,
) -> None:
    text = b"SSH-2.0-OpenSSH_9.2p1\r\n" + bytes(range(256)) * 4096 + b"the end"

    async def main() -> None:
        async with (
            service(saying(text)) as port,
            Broker(broker_settings(tls=tls or None)) as broker,
            running(
                agent_settings(
                    broker.control_port, ports=f"22={port}", tls=client_files() if tls else None
                )
            ) as agent,
        ):
            await agent.wait_registered()
            for _ in range(20):
                reader, writer = await broker.open_connection("instance1.testdom", 22)
                assert await reader.read() == text
                writer.close()
                await writer.wait_closed()

    run(main())


def test_a_connection_that_is_parked_serves_the_next_dial_and_half_closes_each_time() -> None:
    watch = Watch()

    async def main() -> None:
        async with (
            service(echo) as port,
            Broker(broker_settings(tls=True), plugins=[watch]) as broker,
            running(
                agent_settings(broker.control_port, ports=f"80={port}", tls=client_files())
            ) as agent,
        ):
            await agent.wait_registered()
            for number in range(5):
                streams = await broker.open_connection("instance1.testdom", 80)
                assert await exchange(streams, b"%d" % number) == b"%d" % number
                await watch.until(lambda: len(watch.closed) == len(watch.dials))
            assert [dial.parked for dial in watch.dials][1:] == [True] * 4
            assert {stream.cause for stream in watch.closed} == {"end"}

    run(main())


def test_a_service_that_is_down_is_named_to_the_caller_and_does_not_hurt_the_next_dial() -> None:
    async def main() -> None:
        async with service(echo) as down:
            pass
        async with (
            service(saying(b"up")) as up,
            Broker(broker_settings()) as broker,
            running(agent_settings(broker.control_port, ports=f"80={down},81={up}")) as agent,
        ):
            await agent.wait_registered()
            for _ in range(2):
                with pytest.raises(ServiceRefused) as raised:
                    await broker.open_connection("instance1.testdom", 80)
                text = f"instance1.testdom:80: the agent cannot reach its service 127.0.0.1:{down}"
                assert str(raised.value).startswith(text)
                streams = await broker.open_connection("instance1.testdom", 81)
                assert await exchange(streams, b"") == b"up"

    run(main())


def test_a_missing_unix_socket_is_named_to_the_caller(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            Broker(broker_settings()) as broker,
            running(agent_settings(broker.control_port, ports=f"80=unix:{tmp_path}/no")) as agent,
        ):
            await agent.wait_registered()
            with pytest.raises(ServiceRefused, match=f"its service unix:{tmp_path}/no"):
                await broker.open_connection("instance1.testdom", 80)

    run(main())


@pytest.mark.parametrize(
    ("text", "backend"),
    [
        ("5051", (5051, TCPBackend("127.0.0.1", 5051))),
        ("80=5051", (80, TCPBackend("127.0.0.1", 5051))),
        ("443=10.0.0.7:8443", (443, TCPBackend("10.0.0.7", 8443))),
        ("443=[::1]:8443", (443, TCPBackend("::1", 8443))),
        ("80=db.internal:1", (80, TCPBackend("db.internal", 1))),
        ("80=unix:/run/app.sock", (80, UnixBackend("/run/app.sock"))),
    ],
)
def test_each_way_of_writing_a_port_is_understood(
    text: str, backend: tuple[int, TCPBackend | UnixBackend]
) -> None:
    assert parse_exposure([text]) == dict([backend])
    assert parse_exposure([f"1, {text}", "2"]).keys() == {1, 2, backend[0]}


@pytest.mark.parametrize(
    "text", ["", ",", "http", "0", "65536", "80=", "=80", "80=a:b", "80=:1", "80=::1:1", "80=unix:"]
)
def test_a_wrong_port_is_told_in_one_line_what_to_write(text: str) -> None:
    with pytest.raises(SettingsError) as raised:
        parse_exposure([text])
    assert "--ports" in str(raised.value)
    assert "\n" not in str(raised.value)


# A broker that asks for what it should not


@asynccontextmanager
async def registered(
    ports: str, *, tls: bool = False, reverse_host: str = "localhost"
) -> AsyncIterator[tuple[ScriptedBroker, ScriptedControlStream]]:
    """An agent that a scripted broker of ours has let in."""
    async with ScriptedBroker(tls=server_files("localhost") if tls else None) as broker:
        settings = agent_settings(
            broker.control_port, ports=ports, tls=client_files() if tls else None
        )
        async with running(settings) as agent:
            stream = await broker.agent()
            await stream.receive()
            await stream.send(control.Registered(1, "broker", "session", "secret", reverse_host, 1))
            await agent.wait_registered()
            yield broker, stream


async def answer(stream: ScriptedControlStream) -> control.AgentMessage | None:
    return decode_agent_message(await stream.receive() or b"")


def test_the_agent_itself_refuses_a_port_that_it_does_not_expose() -> None:
    async def main() -> None:
        async with service(saying(b"hello")) as port, registered(f"80={port}") as (broker, stream):
            refused = control.Connect("one", "127.0.0.1", broker.reverse_port, port)
            await stream.send(refused)
            why = f"this agent does not expose port {port}"
            assert await answer(stream) == control.ConnectFailed("one", why)

            # A broker that asked for a good port may ask for another on the connection.
            await stream.send(control.Connect("two", "127.0.0.1", broker.reverse_port, 80))
            introduction, connection = await broker.framed_connection()
            assert (introduction.secret, introduction.connection_id) == ("secret", "two")
            for asked in (port, 81, 0):
                with pytest.raises(PortNotExposed, match="this agent does not expose port"):
                    await connection.open(asked, DIAL_ID, extra={})
            opened = await connection.open(80, DIAL_ID, extra={})
            opened.abort()
            connection.close()

    run(main())


def test_a_dial_fails_at_once_when_the_agent_loses_its_session_before_it_has_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connecting = asyncio.Event()

    async def connect(*_: object) -> None:
        connecting.set()
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        async with registered("80=1") as (broker, stream):
            monkeypatch.setattr(Services, "connect", connect)
            await stream.send(control.Connect("one", "127.0.0.1", broker.reverse_port, 80))
            _, connection = await broker.framed_connection()
            dial = asyncio.get_running_loop().create_task(connection.open(80, DIAL_ID, extra={}))
            await connecting.wait()
            stream.end()
            with pytest.raises(AgentGone):
                await dial

    run(main())


def test_a_burst_of_requests_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    connecting: list[object] = []

    async def connect(_: Services, backend: object) -> None:
        connecting.append(backend)
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        async with (
            ScriptedBroker() as broker,
            running(agent_settings(broker.control_port, ports="80")),
        ):
            monkeypatch.setattr(Services, "connect", connect)
            stream = await broker.agent()
            await stream.receive()
            for number in range(2000):
                await stream.send(control.Connect(str(number), "127.0.0.1", 1, 80))
            await stream.send(control.Ping(1, 0))
            assert isinstance(await answer(stream), control.Pong)
            await until(lambda: len(connecting) == 2000)

    run(main())


@pytest.mark.parametrize("listener", ["another name", "no TLS"])
def test_a_reverse_listener_that_does_not_prove_the_name_is_not_spoken_to(listener: str) -> None:
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            heard.append(await reader.read(1024))
        except (ssl.SSLError, ConnectionError):
            pass
        finally:
            writer.close()

    async def main() -> None:
        async with registered("80=1", tls=True) as (_, stream):
            context = server_context(server_files("other.example"))
            server = await asyncio.start_server(
                listen, "127.0.0.1", 0, ssl=context if listener == "another name" else None
            )
            port = server.sockets[0].getsockname()[1]
            await stream.send(control.Connect("one", "127.0.0.1", port, 80))
            failed = await answer(stream)
            assert isinstance(failed, control.ConnectFailed)
            assert failed.connection_id == "one"
            assert f"127.0.0.1:{port}" in failed.message
            if listener == "another name":
                assert "proves neither that name nor localhost" in failed.message
            server.close()

    run(main())
    assert b"secret" not in b"".join(heard)


def test_without_tls_no_other_machine_is_connected_to_unless_allowed() -> None:
    with pytest.raises(SettingsError, match=r"refusing to connect to 192\.0\.2\.1 without TLS"):
        agent_settings("192.0.2.1:50051", ports="80")
    agent_settings("192.0.2.1:50051", ports="80", allow_plaintext=True)

    async def main() -> None:
        with Log() as log:
            async with registered("80=1", reverse_host="192.0.2.1") as (_, stream):
                await stream.send(control.Connect("one", "192.0.2.1", 1, 80))
                assert isinstance(await answer(stream), control.ConnectFailed)
                await log.until("dial one: the agent cannot connect back to 192.0.2.1:1: refusing")

    run(main())


# Where a broker may have it connect back to


def test_a_broker_of_ours_can_name_its_own_hosts_and_the_place_it_told_and_no_other() -> None:
    heard: list[str] = []

    async def listen(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append("a connection")
        writer.close()

    async def main() -> None:
        async with (
            service(listen, "127.0.0.2") as port,
            registered("80=1", reverse_host="127.0.0.3") as (_, stream),
        ):
            await stream.send(control.Connect("one", "127.0.0.2", port, 80))
            assert await answer(stream) == control.ConnectFailed(
                "one", f"127.0.0.2:{port} is not where this broker said that it listens"
            )
            # What happened at the place it told is for the agent's operator to know.
            await stream.send(control.Connect("two", "127.0.0.3", 1, 80))
            assert await answer(stream) == control.ConnectFailed(
                "two", "the agent cannot connect back to 127.0.0.3:1; its log says why"
            )
            await stream.send(control.Connect("three", "127.0.0.1", 1, 80))
            failed = await answer(stream)
            assert isinstance(failed, control.ConnectFailed)
            assert "Connect call failed" in failed.message

    run(main())
    assert heard == []


def test_an_old_broker_can_name_one_place_only() -> None:
    async def main() -> None:
        async with service(saying(b"hello")) as port, ScriptedBroker() as broker:
            settings = agent_settings(broker.control_port, ports=f"80={port}")
            async with running(settings):
                stream = await broker.agent()
                await stream.receive()
                for number, (host, works) in enumerate(
                    [("127.0.0.2", True), ("127.0.0.3", False), ("127.0.0.2", True)]
                ):
                    await stream.send(control.Connect(str(number), host, 1, 80))
                    failed = await answer(stream)
                    assert isinstance(failed, control.ConnectFailed)
                    assert ("cannot connect back" in failed.message) is works, failed

    run(main())
