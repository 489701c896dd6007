"""Dialling through a broker's dial socket: the same as dialling with a broker of one's own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, get_args

import pytest

from tunnel import (
    Log,
    Streams,
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
    service,
    until,
)
from whip_core import Broker, Caller, HttpRequest, connect, control, dial_client, hookimpl
from whip_core.agents import AgentView
from whip_core.dial_address import DialAddress
from whip_core.dial_client import DialClient
from whip_core.dial_wire import decode_agent, encode_agent, hello
from whip_core.errors import (
    AgentGone,
    BrokerClosed,
    Busy,
    BusyReason,
    DialError,
    DialTimeout,
    NotAuthorized,
    PortNotExposed,
    ServiceRefused,
    SettingsError,
    StreamReset,
    UnknownName,
)
from whip_core.framed import FramedConnection
from whip_core.frames import FrameCodec, FrameType, ResetReceived, Side
from whip_core.names import AgentName, Target
from whip_core.remote import RemoteBroker
from whip_core.settings import RemoteSettings
from whip_core.stream import Stream


def at(path: Path) -> DialAddress:
    return DialAddress(path=path / "dial.sock")


@asynccontextmanager
async def both(
    folder: Path, *plugins: object, **changes: Any
) -> AsyncIterator[tuple[Broker, RemoteBroker]]:
    """A broker with a unix dial socket, and the same broker as another process sees it."""
    settings = broker_settings(dial_listen=(at(folder),), **changes)
    async with (
        Broker(settings, plugins=plugins) as broker,
        await connect(str(at(folder))) as remote,
    ):
        yield broker, remote


SOON = 0.05
"""Seconds for an answer that nobody is going to give."""


def spawn(dial: Coroutine[Any, Any, Streams]) -> asyncio.Task[Streams]:
    return asyncio.get_running_loop().create_task(dial)


class Who:
    """Keeps who dialled."""

    def __init__(self, veto: str | None = None) -> None:
        self.callers: list[Caller] = []
        self._veto = veto

    @hookimpl
    def whip_authorize_dial(self, target: Target, agent: AgentView, caller: Caller) -> str | None:
        self.callers.append(caller)
        return self._veto


def test_what_is_sent_comes_back_and_the_next_dial_uses_the_connection_again(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with (
            service(echo) as port,
            both(tmp_path) as (broker, remote),
            running(agent_settings(broker.control_port, ports=f"80={port}")) as agent,
        ):
            await agent.wait_registered()
            data = os.urandom(2_000_000)
            for _ in range(3):
                streams = await remote.open_connection("instance1.testdom", 80)
                assert streams[1].get_extra_info("peername")[0] == "127.0.0.1"
                assert str(streams[1].get_extra_info("whip").agent.name) == "instance1.testdom"
                assert await exchange(streams, data) == data
            assert repr(remote._client).endswith("connections=2 idle=1>")  # the news is the other

    run(main())


def test_a_service_that_speaks_first_loses_nothing_and_a_forward_works(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            service(saying(b"220 hello")) as port,
            both(tmp_path) as (broker, remote),
            running(agent_settings(broker.control_port, ports=f"25={port}")) as agent,
            remote.forward("instance1.testdom", 25) as address,
        ):
            await agent.wait_registered()
            assert isinstance(address, tuple)
            assert await exchange(await asyncio.open_connection(*address), b"") == b"220 hello"

    run(main())


def test_each_error_is_the_one_of_an_embedded_broker(tmp_path: Path) -> None:
    async def failing(dials: Broker | RemoteBroker, host: str, port: int) -> DialError:
        with pytest.raises(DialError) as caught:
            await dials.open_connection(host, port, timeout=0.2)
        return caught.value

    class Vetoing:
        @hookimpl
        def whip_authorize_dial(self, target: Target) -> str | None:
            return "not today" if target.port == 22 else None

    async def main() -> None:
        async with (
            both(tmp_path, Vetoing()) as (broker, remote),
            scripted(broker, registration("instance1", 80, 22)) as agent,
        ):
            await agent.expect(control.Registered)
            for host, port, kind in (
                ("nobody.nowhere", 80, UnknownName),
                ("no name", 80, UnknownName),
                ("instance1.testdom", 99999, UnknownName),
                ("instance1.testdom", 65536, UnknownName),
                ("instance1.testdom", 0, UnknownName),
                ("instance1.testdom", -1, UnknownName),
                ("instance1.testdom", 443, PortNotExposed),
                ("instance1.testdom", 22, NotAuthorized),
                ("instance1.testdom", 80, DialTimeout),
            ):
                here, there = await failing(broker, host, port), await failing(remote, host, port)
                assert type(here) is type(there) is kind
                assert str(there) == str(here)

    run(main())


def every(kind: type[DialError]) -> Iterator[DialError]:
    """One of each class of the tree; of `Busy` one of each reason."""
    if kind is Busy:
        yield from (Busy("text: of it", reason=reason) for reason in get_args(BusyReason))
    else:
        yield kind("text: of it")
    for below in kind.__subclasses__():
        if below.__module__ == DialError.__module__:
            yield from every(below)


def test_a_class_of_errors_is_the_same_at_the_other_end(tmp_path: Path) -> None:
    async def main() -> None:
        async with both(tmp_path) as (broker, remote):
            for error in every(DialError):

                async def fail(*_: object, error: DialError = error, **__: object) -> Stream:
                    raise error

                broker._dialer.dial = fail  # type: ignore[method-assign]
                with pytest.raises(DialError) as caught:
                    await remote.open_connection("instance1.testdom", 80)
                there = caught.value
                assert type(there) is type(error)
                assert (str(there), there.reason) == (str(error), error.reason)

    run(main())


def test_an_agent_is_told_of_in_full() -> None:
    here = AgentView(
        *(AgentName.parse("a", "b"), (80, 22), {"zone": "eu"}, "session", "instance"),
        *(("192.0.2.1", 5), ("a.b",), 1, "1.0", 3, 2, 0.5, 1.5, True, True),
    )
    assert all(here)
    assert decode_agent(json.loads(json.dumps(encode_agent(here)))) == here


def test_a_refusal_by_the_service_and_an_agent_that_goes_are_told_apart(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            both(tmp_path) as (broker, remote),
            scripted(broker) as agent,
            asyncio.TaskGroup() as group,
        ):
            await agent.expect(control.Registered)
            refused = group.create_task(outcome(remote))
            request = await agent.expect(control.Connect)
            await agent.send(control.ConnectFailed(request.connection_id, "no such service"))
            error = await refused
            assert type(error) is ServiceRefused
            assert "no such service" in str(error)

            gone = group.create_task(outcome(remote))
            await agent.expect(control.Connect)
            await agent.vanish()
            assert type(await gone) is AgentGone

    async def outcome(remote: RemoteBroker) -> DialError:
        with pytest.raises(DialError) as caught:
            await remote.open_connection("instance1.testdom", 80)
        return caught.value

    run(main())


def test_a_dial_waits_for_its_agent_to_appear(tmp_path: Path) -> None:
    async def main() -> None:
        watch = Watch()
        async with (
            service(echo) as port,
            both(tmp_path, watch) as (broker, remote),
            asyncio.TaskGroup() as group,
        ):
            dial = group.create_task(remote.open_connection("instance1.testdom", 80, wait=30))
            async with running(agent_settings(broker.control_port, ports=f"80={port}")):
                assert await exchange(await dial, b"hello") == b"hello"

    run(main())


def test_whom_a_proxy_dials_for_reaches_the_brokers_plugins(tmp_path: Path) -> None:
    caller = Caller(
        address=("10.0.0.9", 4711),
        proxy_user="ann",
        certificate_names=("ann.people",),
        request=HttpRequest("GET", "http", "instance1.testdom", "/x?y", {"cookie": "é" * 20_000}),
        request_id="id-1",
    )

    async def main() -> None:
        who = Who("seen")
        async with both(tmp_path, who) as (broker, remote), scripted(broker) as agent:
            await agent.expect(control.Registered)
            with pytest.raises(NotAuthorized):
                await remote.open_connection("instance1.testdom", 80, caller=caller)
            assert who.callers == [caller]

            headers = {"cookie": "x" * 200_000}
            huge = Caller(request=HttpRequest("GET", "http", "a", "/", headers))
            with pytest.raises(DialError, match="a dial's facts take 200"):
                await remote.open_connection("instance1.testdom", 80, caller=huge)
            with pytest.raises(NotAuthorized):  # nothing is broken by it
                await remote.open_connection("instance1.testdom", 80)

    run(main())


def test_a_dial_that_is_given_up_is_given_up_at_the_broker_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with both(tmp_path) as (broker, remote), scripted(broker) as agent:
            await agent.expect(control.Registered)
            dial = spawn(remote.open_connection("instance1.testdom", 80))
            await agent.expect(control.Connect)
            assert len(broker._registrar.awaited) == 1
            dial.cancel()
            await asyncio.wait([dial])
            await until(lambda: len(broker._registrar.awaited) == 0)

    run(main())


def test_a_stream_that_breaks_is_seen_as_broken(tmp_path: Path) -> None:
    async def main() -> None:
        async with both(tmp_path) as (broker, remote), scripted(broker) as agent:
            await agent.expect(control.Registered)
            dial = spawn(remote.open_connection("instance1.testdom", 80))
            reverse = await agent.connect_framed(await agent.expect(control.Connect))
            await reverse.asked()
            _, writer = reverse.accept()
            reader, ours = await dial
            writer.write(b"half")
            assert await reader.readexactly(4) == b"half"
            reverse.drop()
            with pytest.raises(StreamReset):
                await reader.read()
            ours.close()

    run(main())


def test_a_broker_that_was_connected_to_is_let_go_of_behind_the_block(tmp_path: Path) -> None:
    async def main() -> None:
        async with Broker(broker_settings(dial_listen=(at(tmp_path),))) as broker:
            assert broker._dial_socket is not None
            connections = broker._dial_socket._connections
            async with await connect(str(at(tmp_path))) as remote:
                assert len(connections) == 1  # its news
                with pytest.raises(UnknownName):
                    await remote.open_connection("nobody.testdom", 80)
                assert len(connections) == 2
            await until(lambda: not connections)

    run(main())


def test_a_connection_that_comes_about_behind_the_block_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected = DialClient._connected

    async def main() -> None:
        there, go_on = asyncio.Event(), asyncio.Event()

        async def late(client: DialClient, connection: FramedConnection) -> asyncio.Transport:
            transport = await connected(client, connection)
            there.set()
            await go_on.wait()
            return transport

        watch = Watch()
        async with both(tmp_path, watch) as (_, remote):
            client = remote._client
            assert client is not None
            monkeypatch.setattr(DialClient, "_connected", late)
            dial = spawn(remote.open_connection("instance1.testdom", 80))
            await there.wait()
            await remote.close()
            go_on.set()
            with pytest.raises(BrokerClosed, match="was closed here"):
                await dial
            assert not client._all
        assert not watch.dials

    run(main())


def test_agents_and_domains_are_known_where_the_dials_are_made(tmp_path: Path) -> None:
    async def main() -> None:
        async with both(tmp_path, domains=("listed.test",)) as (broker, remote):
            assert remote.agents == []
            assert remote.routes("x.listed.test")
            assert not remote.routes("instance1.testdom")
            async with scripted(broker, registration("instance1", 80, 22)) as agent:
                await agent.expect(control.Registered)
                await until(lambda: len(remote.agents) == 1)
                [there], [here] = remote.agents, broker.agents
                assert (there.name, there.ports, there.session_id, there.registered_at) == (
                    *(here.name, here.ports),
                    *(here.session_id, here.registered_at),
                )
                assert remote.routes("Instance2.Testdom.")
            await until(lambda: remote.agents == [])
            assert remote.routes("instance1.testdom")

    run(main())


def test_a_broker_that_restarts_is_used_again_and_a_dial_may_wait_for_it(tmp_path: Path) -> None:
    async def main() -> None:
        settings = broker_settings(dial_listen=(at(tmp_path),))
        async with contextlib.AsyncExitStack() as stack:
            async with Broker(settings) as first:
                remote = await stack.enter_async_context(await connect(str(at(tmp_path))))
                async with scripted(first) as agent:
                    await agent.expect(control.Registered)
                    await until(lambda: len(remote.agents) == 1)
                    port = first.control_port
            with pytest.raises(BrokerClosed, match=r"is `whip broker` running"):
                await remote.open_connection("instance1.testdom", 80)
            assert remote.routes("instance1.testdom")  # whatever becomes of the broker
            dial = spawn(remote.open_connection("instance1.testdom", 80, wait=30))
            again = broker_settings(dial_listen=(at(tmp_path),), grpc_listen_port=port)
            async with (
                service(echo) as echo_port,
                Broker(again) as second,
                running(agent_settings(second.control_port, ports=f"80={echo_port}")),
            ):
                assert await exchange(await dial, b"hello") == b"hello"

    run(main())


def test_a_broker_that_says_nothing_is_told_of_by_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial_client, "NEWS_TIMEOUT", SOON)
    said = f"the broker at unix:{tmp_path}/dial.sock did not answer within {SOON:g} s"

    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as hanging:  # the kernel takes connections for it
            hanging.bind(str(tmp_path / "dial.sock"))
            hanging.listen()
            with pytest.raises(BrokerClosed) as raised:
                await connect(str(at(tmp_path)))
            assert str(raised.value) == said
            with Log() as log:
                async with RemoteBroker(RemoteSettings(address=at(tmp_path))) as remote:
                    assert await log.until("did not answer") == f"{said} (will keep trying)"
                    assert remote.why_not_ready() == said

    run(main())


def test_until_the_broker_has_been_heard_every_name_is_whips(tmp_path: Path) -> None:
    async def main() -> None:
        async with RemoteBroker(RemoteSettings(address=at(tmp_path))) as remote:
            assert remote.routes("www.example.com")
            with pytest.raises(BrokerClosed):
                await remote.open_connection("www.example.com", 80)
        with pytest.raises(BrokerClosed):
            await remote.open_connection("www.example.com", 80)
        with pytest.raises(BrokerClosed, match="no broker can be reached"):
            await connect(str(at(tmp_path)))

    run(main())


# Who may dial


def test_a_unix_dial_socket_is_for_its_user_alone(tmp_path: Path) -> None:
    async def main() -> None:
        async with both(tmp_path):
            path = tmp_path / "dial.sock"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert not path.exists()

    run(main())


@pytest.mark.parametrize(
    ("certificate", "refused"),
    [
        ("program.dialers", None),
        ("proxy.dialers", None),
        ("instance1.testdom", "instance1.testdom, which may not dial here"),
        ("*.dialers", r"\*.dialers, which may not dial here"),
    ],
)
def test_over_tcp_only_named_certificates_may_dial(certificate: str, refused: str | None) -> None:
    said = Caller(("10.0.0.9", 1), "ann", ("ann.people",), request_id="id-1")

    async def main() -> None:
        who = Who("seen")
        settings = broker_settings(
            tls=True,
            dial_listen=(DialAddress(host="127.0.0.1"),),
            dial_allow=("program.dialers",),
            dial_trust=("proxy.dialers",),
        )
        async with Broker(settings, plugins=[who]) as broker:
            address = f"localhost:{broker.dial_addresses[0].port}"
            if refused:
                with pytest.raises(NotAuthorized, match=refused):
                    await connect(address, tls=client_files(certificate))
                return
            agent = scripted(broker, tls=client_files(), tls_name="localhost")
            async with agent, await connect(address, tls=client_files(certificate)) as remote:
                await agent.expect(control.Registered)
                with pytest.raises(NotAuthorized, match="seen"):
                    await remote.open_connection("instance1.testdom", 80, caller=said)
            [caller] = who.callers
            assert caller.dialled_by == (certificate,)
            assert caller.request_id == "id-1"
            if certificate == "proxy.dialers":
                assert (caller.address, caller.proxy_user) == (said.address, "ann")
                assert caller.certificate_names == ("ann.people",)
            else:  # it dials as itself
                assert caller.address is not None
                assert (caller.address[0], caller.proxy_user) == ("127.0.0.1", None)
                assert caller.certificate_names == (certificate,)

    run(main())


@pytest.mark.parametrize(
    ("why", "kind"),
    [("refused: not you", NotAuthorized), ("the service refused: it is full", BrokerClosed)],
)
def test_only_an_answer_to_the_hello_says_that_we_may_not_dial(
    tmp_path: Path, why: str, kind: type[DialError]
) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(FrameCodec(Side.ACCEPTOR).reset(why))
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()

    async def main() -> None:
        async with await asyncio.start_unix_server(refuse, tmp_path / "dial.sock"):
            with pytest.raises(DialError, match=why) as caught:
                await connect(str(at(tmp_path)))
            assert type(caught.value) is kind

    run(main())


def test_a_broker_that_does_not_prove_its_name_gets_no_dial() -> None:
    async def main() -> None:
        settings = broker_settings(
            tls=True, dial_listen=(DialAddress(host="127.0.0.1"),), dial_allow=("a.dialers",)
        )
        async with Broker(settings) as broker:
            [address] = broker.dial_addresses
            with pytest.raises(BrokerClosed, match=r"for other names, not for 127\.0\.0\.1"):
                await connect(str(address), tls=client_files("a.dialers"))

    run(main())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "needs TLS: without it, use unix:/path"),
        ({"tls": True}, "say who may dial at 127.0.0.1:0: --dial-allow or --dial-trust NAME"),
    ],
)
def test_a_tcp_dial_socket_for_anybody_is_refused(changes: dict[str, Any], said: str) -> None:
    async def main() -> None:
        settings = broker_settings(dial_listen=(DialAddress(host="127.0.0.1"),), **changes)
        with pytest.raises(SettingsError, match=said):
            async with Broker(settings):
                raise AssertionError("it listens")

    run(main())


# What is not a dial


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"GET / HTTP/1.1\r\n", "the first byte is 47"),
        (b"\x01\0\0\x0e" + b'{"dial": 1000}', "version 1000 of the dial socket"),
        (b"\x01\xff\xff\xff", "a hello of 16777215 bytes"),
        (b"\x01\0\0\x02[]", "not a JSON object"),
    ],
)
def test_who_says_no_hello_is_told_so_and_closed(tmp_path: Path, said: bytes, why: str) -> None:
    async def main() -> None:
        with Log() as log:
            async with both(tmp_path) as (_, remote):
                reader, writer = await asyncio.open_unix_connection(tmp_path / "dial.sock")
                writer.write(said)
                [event] = FrameCodec(Side.OPENER).receive(await reader.read())
                assert isinstance(event, ResetReceived)
                assert why in event.why
                writer.close()
                with pytest.raises(UnknownName):
                    await remote.open_connection("instance1.testdom", 80)
            assert why in await log.until("dial socket: refused")

    run(main())


@pytest.mark.parametrize(
    "asked",
    [
        *("x", "x\0", "x\0[]", 'x\0{"wait": -1}', 'x\0{"timeout": "1"}', 'x\0{"caller": 5}'),
        'x\0{"wait": 1%s}' % ("0" * 400),
    ],
)
def test_an_odd_question_gets_an_error_and_the_connection_lives(tmp_path: Path, asked: str) -> None:
    async def main() -> None:
        async with both(tmp_path):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "dial.sock")
            codec = FrameCodec(Side.OPENER, dial_socket=True)
            writer.write(hello())
            for _ in range(2):
                writer.write(codec.open(80, os.urandom(16), asked))
                header = await reader.readexactly(4)
                assert header[0] == FrameType.FAILED
                body = await reader.readexactly(int.from_bytes(header[1:], "big"))
                assert b"malformed dial request" in body
                codec.receive(header + body)
            writer.close()

    run(main())


def test_a_path_that_somebody_listens_on_is_said_in_one_line(tmp_path: Path) -> None:
    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as taken:
            taken.bind(str(tmp_path / "dial.sock"))
            taken.listen()
            with pytest.raises(SettingsError, match=r"in use; choose another --dial-listen"):
                async with Broker(broker_settings(dial_listen=(at(tmp_path),))):
                    raise AssertionError("it listens")

    run(main())


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/a.sock", DialAddress(path=Path("/run/a.sock"))),
        ("/run/a.sock", DialAddress(path=Path("/run/a.sock"))),
        ("broker.test:50052", DialAddress(host="broker.test", port=50052)),
        ("[::1]:1", DialAddress(host="::1", port=1)),
    ],
)
def test_an_address_is_a_path_or_host_and_port(text: str, address: DialAddress) -> None:
    assert DialAddress.parse(text) == address
    assert DialAddress.parse(str(address)) == address


@pytest.mark.parametrize(
    "text", ["", "unix:", "host", ":1", "host:0", "host:x", "::1:5", "h:99999"]
)
def test_what_is_no_address_is_said_in_one_line(text: str) -> None:
    with pytest.raises(SettingsError, match=r"is not a dial socket .*write unix:/run") as caught:
        DialAddress.parse(text)
    assert "\n" not in str(caught.value)
