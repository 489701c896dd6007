"""The real agent at real brokers: what it exposes, how it comes back, how it stops."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from client_agent import Agent, local, parse_exposure
from client_agent.control_client import ControlClient, ControlClosed
from client_agent.endpoints import Address
from client_agent.exposure import TCPBackend, UnixBackend
from tunnel import (
    Log,
    Watch,
    agent_settings,
    broker_settings,
    client_files,
    echo,
    exchange,
    registration,
    run,
    running,
    saying,
    scripted,
    server_files,
    service,
)
from whip_core import Broker, control, outbox
from whip_core.control_wire import decode_agent_message
from whip_core.errors import (
    AgentGone,
    PortNotExposed,
    ServiceRefused,
    SettingsError,
    StreamCut,
    UnknownName,
)
from whip_core.frames import DIAL_ID_SIZE
from whip_core.testing import Authority
from whip_core.testing.broker import ScriptedBroker, ScriptedControlStream
from whip_core.tls import server_context

DIAL_ID = bytes(DIAL_ID_SIZE)


# What it exposes


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
    ports: str, *, tls: bool = False
) -> AsyncIterator[tuple[ScriptedBroker, ScriptedControlStream]]:
    """An agent that a scripted broker of ours has let in."""
    async with ScriptedBroker(tls=server_files("localhost") if tls else None) as broker:
        settings = agent_settings(
            broker.control_port, ports=ports, tls=client_files() if tls else None
        )
        async with running(settings) as agent:
            stream = await broker.agent()
            await stream.receive()
            await stream.send(
                control.Registered(1, "broker", "session", "secret", "localhost", 1)
            )
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

    async def connect(_: object) -> None:
        connecting.set()
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        async with registered("80=1") as (broker, stream):
            monkeypatch.setattr(local, "connect", connect)
            await stream.send(control.Connect("one", "127.0.0.1", broker.reverse_port, 80))
            _, connection = await broker.framed_connection()
            dial = asyncio.get_running_loop().create_task(connection.open(80, DIAL_ID, extra={}))
            await connecting.wait()
            stream.end()
            with pytest.raises(AgentGone):
                await dial

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


# Registration


def test_the_agent_registers_at_several_brokers_and_once_where_two_endpoints_are_one() -> None:
    async def main() -> None:
        watches = Watch(), Watch()
        async with (
            service(saying(b"hello")) as port,
            Broker(broker_settings(), plugins=[watches[0]]) as one,
            Broker(broker_settings(), plugins=[watches[1]]) as two,
        ):
            endpoints = (f"127.0.0.1:{one.control_port}", one.control_port, two.control_port)
            async with running(agent_settings(*endpoints, ports=f"80={port}")) as agent:
                for watch in watches:
                    await watch.until(lambda watch=watch: len(watch.joined) == 1)
                for broker in (one, two):
                    streams = await broker.open_connection("instance1.testdom", 80)
                    assert await exchange(streams, b"") == b"hello"
                assert [len(watch.joined) for watch in watches] == [1, 1]
                assert len(agent.registered_at) == 2

    run(main())


def test_the_agent_comes_back_to_a_broker_that_was_away() -> None:
    async def main() -> None:
        async with Broker(broker_settings()) as broker:
            ports = {"grpc_listen_port": broker.control_port, "tcp_listen_port": broker.reverse_port}
        async with service(saying(b"hello")) as port:
            with Log() as log:
                settings = agent_settings(ports["grpc_listen_port"], ports=f"80={port}")
                async with running(settings):
                    await log.until("no broker at 127.0.0.1")
                    for _ in range(2):
                        async with Broker(broker_settings(**ports)) as broker:
                            streams = await broker.open_connection("testdom", 80, wait=20)
                            assert await exchange(streams, b"") == b"hello"

    run(main())


def test_a_refused_registration_is_logged_plainly_and_once_while_it_is_tried_again() -> None:
    async def main() -> None:
        watch = Watch()
        async with Broker(broker_settings(), plugins=[watch]) as broker, scripted(broker) as holder:
            await holder.expect(control.Registered)
            with Log() as log:
                async with running(agent_settings(broker.control_port, ports="80")) as agent:
                    line = await log.until("refused the registration")
                    assert line.startswith(
                        f"the broker at 127.0.0.1:{broker.control_port} refused the registration: "
                        "the name instance1.testdom is held by a live agent at 127.0.0.1 port"
                    )
                    await log.until("refused agent instance1.testdom", count=2)
                    await holder.vanish()
                    await agent.wait_registered()
            assert len(log.having("refused the registration")) == 1

    run(main())


@pytest.fixture
def strangers(tmp_path: Path) -> Authority:
    """A CA that is not ours."""
    return Authority(tmp_path / "strangers")


@pytest.mark.parametrize(
    ("broker", "agent", "said"),
    [
        ("other.example", "*.testdom", "its certificate does not prove the name localhost"),
        ("localhost", "*.otherdom", "refused the registration: instance1.testdom refused: its "),
        ("localhost", "another CA", "its certificate is not from a CA in --tls-ca-cert-path"),
        ("localhost", "no TLS", "it hangs up at once; does it want TLS?"),
        ("no TLS", "*.testdom", "it does not speak TLS"),
    ],
)
def test_without_proof_on_both_sides_there_is_no_registration_and_it_is_told_why(
    broker: str, agent: str, said: str, strangers: Authority
) -> None:
    files = {"no TLS": None, "another CA": strangers.client_files("*.testdom")}
    agent_files = files[agent] if agent in files else client_files(agent)
    broker_files = None if broker == "no TLS" else server_files(broker)

    async def main() -> None:
        async with Broker(broker_settings(tls=broker_files)) as broker:
            settings = agent_settings(broker.control_port, ports="80", tls=agent_files)
            with Log() as log:
                async with running(settings) as agent:
                    assert "\n" not in await log.until(said)
                    assert agent.registered_at == []
                    assert broker.agents == []

    run(main())


def test_what_is_no_broker_is_told_as_such() -> None:
    async def main() -> None:
        async with service(saying(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
            with Log() as log:
                async with running(agent_settings(port, ports="80")):
                    line = await log.until("no broker at 127.0.0.1")
                    assert line.endswith("what listens there does not speak gRPC")

    run(main())


def test_without_tls_no_other_machine_is_connected_to_unless_allowed() -> None:
    with pytest.raises(SettingsError, match="refusing to connect to 192.0.2.1 without TLS"):
        agent_settings("192.0.2.1:50051", ports="80")
    agent_settings("192.0.2.1:50051", ports="80", allow_plaintext=True)

    async def main() -> None:
        async with registered("80=1") as (_, stream):
            await stream.send(control.Connect("one", "192.0.2.1", 8000, 80))
            failed = await answer(stream)
            assert isinstance(failed, control.ConnectFailed)
            assert "refusing to connect to 192.0.2.1 without TLS" in failed.message

    run(main())


def test_a_control_stream_that_nobody_reads_is_given_up_as_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And not as a cancellation, by which the agent would never try again."""

    async def main() -> None:
        async with ScriptedBroker() as broker:
            address = Address("127.0.0.1", broker.control_port)
            async with ControlClient(address, "localhost", None) as client:
                client.send(registration())
                await broker.agent()
                receiving = asyncio.get_running_loop().create_task(client.receive())
                await asyncio.sleep(0)
                monkeypatch.setattr(outbox, "MAX_UNSENT", 0)
                client.send(control.Draining())
                with pytest.raises(ControlClosed, match="does not read"):
                    await receiving

    run(main())


# Stopping


def test_a_stopped_agent_lets_its_streams_finish_and_takes_no_new_ones() -> None:
    async def main() -> None:
        async with service(echo) as port, Broker(broker_settings()) as broker:
            agent = Agent(agent_settings(broker.control_port, ports=f"80={port}"))
            task = asyncio.get_running_loop().create_task(agent.run())
            await agent.wait_registered()
            reader, writer = await broker.open_connection("instance1.testdom", 80)
            agent.stop()
            while not broker.agents[0].draining:
                await asyncio.sleep(0)
            with pytest.raises(UnknownName, match="draining"):
                await broker.open_connection("instance1.testdom", 80)
            writer.write(b"still here")
            assert await reader.readexactly(10) == b"still here"
            assert not task.done()
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
            await task
            assert agent.registered_at == []

    run(main())


@pytest.mark.parametrize("how", ["time is up", "cancelled"])
def test_streams_that_do_not_finish_are_cut_and_seen_as_cut(how: str) -> None:
    async def main() -> None:
        async with service(echo) as port, Broker(broker_settings()) as broker:
            settings = agent_settings(
                broker.control_port,
                ports=f"80={port}",
                drain_timeout=0.05 if how == "time is up" else 60.0,
            )
            agent = Agent(settings)
            task = asyncio.get_running_loop().create_task(agent.run())
            await agent.wait_registered()
            reader, writer = await broker.open_connection("instance1.testdom", 80)
            agent.stop()
            if how == "cancelled":
                await asyncio.sleep(0)
                task.cancel()
            with pytest.raises(StreamCut):
                await reader.read()
            writer.close()
            await asyncio.wait([task])

    run(main())


def test_a_stopping_agent_does_not_register_again() -> None:
    async def main() -> None:
        async with service(echo) as port, Broker(broker_settings()) as other:
            async with Broker(broker_settings()) as broker:
                agent = Agent(
                    agent_settings(broker.control_port, other.control_port, ports=f"80={port}")
                )
                task = asyncio.get_running_loop().create_task(agent.run())
                while len(agent.registered_at) < 2:
                    await asyncio.sleep(0)
                streams = await broker.open_connection("instance1.testdom", 80)
                with Log() as log:
                    agent.stop()
                    # It has left the broker where no stream runs, for good.
                    while other.agents:
                        await asyncio.sleep(0)
                    assert await exchange(streams, b"hello") == b"hello"
                    await task
                assert not log.having("registered instance1")
                assert not log.having("closed the control stream")

    run(main())


def test_an_agent_that_no_broker_answers_stops_at_once() -> None:
    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        async with service(silent) as port:
            agent = Agent(agent_settings(port, ports="80"))
            with Log() as log:
                task = asyncio.get_running_loop().create_task(agent.run())
                await log.until("joining the broker")
                agent.stop()
                async with asyncio.timeout(5):
                    await task

    run(main())
