"""Past a limit there is a clear refusal and a count of it, and the rest goes on."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from streams import LOOPS, Loop
from streams import run as run_on
from tunnel import Log, Watch, broker_settings, client_files, registration, run, scripted, until
from whip_core import Broker, Caller, connect, control, hookimpl
from whip_core.agents import AgentView
from whip_core.broker_options import BROKER_OPTIONS
from whip_core.broker_values import read_broker
from whip_core.dial_address import DialAddress
from whip_core.errors import Busy, NotAuthorized, ServiceRefused, SettingsError
from whip_core.limits import Limits
from whip_core.outliers import FAILURES
from whip_core.rare_log import LINES
from whip_core.testing.agent import ControlStreamEnded, ScriptedAgent

EVE = Caller(address=("192.0.2.1", 1000))


def limited(tls: bool = False, **limits: Any) -> Broker:
    return Broker(broker_settings(tls=tls or None, limits=Limits(**limits)), plugins=[Watch()])


def count(broker: Broker, name: str, **labels: str) -> float:
    return broker.metrics.registry.get_sample_value(name, labels) or 0.0


def refusals(broker: Broker, what: str, reason: str) -> float:
    return count(broker, "whip_server_refusals_total", what=what, reason=reason)


async def refused(agent: ScriptedAgent, status: str) -> str:
    with pytest.raises(ControlStreamEnded) as raised:
        await agent.expect(control.Registered)
    assert raised.value.status == status
    return raised.value.details


@contextlib.asynccontextmanager
async def opened(broker: Broker, agent: ScriptedAgent) -> Any:
    """A stream to the scripted agent's port 80."""
    dial = asyncio.get_running_loop().create_task(broker.open_connection("instance1.testdom", 80))
    reverse = await agent.connect_framed(await agent.expect(control.Connect))
    await reverse.asked()
    reverse.accept()
    _, writer = await dial
    yield writer
    writer.transport.abort()


@pytest.mark.parametrize(
    ("limits", "reason"), [({"agents": 1}, "agents"), ({"agents_per_identity": 1}, None)]
)
def test_an_agent_too_many_is_told_so_and_the_first_may_come_back(
    limits: dict[str, int], reason: str | None
) -> None:
    async def main() -> None:
        async with limited(tls=True, **limits) as broker:
            files: dict[str, Any] = {"tls": client_files()}
            async with scripted(broker, **files) as first:
                await first.expect(control.Registered)
                async with scripted(broker, registration("other"), **files) as second:
                    assert "1 agents" in await refused(second, "RESOURCE_EXHAUSTED")
                assert refusals(broker, "agent", reason or "agents-per-identity") == 1
                async with scripted(broker, **files) as again:
                    await again.expect(control.Registered)
            await until(lambda: not broker.agents)
            async with scripted(broker, registration("other"), **files) as second:
                await second.expect(control.Registered)

    run(main())


@pytest.mark.parametrize("limit", ["streams", "streams_per_agent"])
def test_a_stream_too_many_is_refused_and_the_others_go_on(limit: str) -> None:
    async def main() -> None:
        async with limited(**{limit: 1}) as broker, scripted(broker) as agent:
            await agent.expect(control.Registered)
            async with opened(broker, agent) as writer:
                with pytest.raises(Busy, match=r"testdom:80.*1 open streams"):
                    await broker.open_connection("testdom", 80)
                reason = limit.replace("_", "-")
                assert count(broker, "whip_server_dial_failures_total", reason=reason) == 1
                assert not writer.is_closing()
            async with opened(broker, agent):
                pass

    run(main())


def test_a_full_broker_is_no_agents_fault_and_no_reason_to_try_them_all() -> None:
    async def main() -> None:
        asked: list[int] = []

        class First:
            @hookimpl
            def whip_pick(self, candidates: Sequence[AgentView]) -> AgentView:
                asked.append(len(candidates))
                return candidates[0]

        watch = Watch()
        settings = broker_settings(limits=Limits(streams=1), outlier_ejection=True)
        async with (
            Broker(settings, plugins=[First(), watch]) as broker,
            scripted(broker) as agent,
            scripted(broker, registration("b")) as second,
            scripted(broker, registration("c")) as third,
        ):
            for each in (agent, second, third):
                await each.expect(control.Registered)
            async with opened(broker, agent):
                for _ in range(FAILURES):
                    with pytest.raises(Busy):
                        await broker.open_connection("testdom", 80)
                    assert watch.dials[-1].failed == ()
            assert asked == [3] * FAILURES
            assert not any(view.ejected for view in broker.agents)

    run(main())


def test_an_agent_that_is_full_is_passed_over_and_that_is_not_its_failure() -> None:
    async def main() -> None:
        watch = Watch()
        settings = broker_settings(limits=Limits(streams_per_agent=1))
        async with (
            Broker(settings, plugins=[watch]) as broker,
            scripted(broker) as agent,
            scripted(broker, registration("b")) as second,
        ):
            for each in (agent, second):
                await each.expect(control.Registered)
            async with opened(broker, agent):
                for _ in range(FAILURES):
                    coroutine = broker.open_connection("testdom", 80)
                    dial = asyncio.get_running_loop().create_task(coroutine)
                    connect = await second.expect(control.Connect)
                    await second.send(control.ConnectFailed(connect.connection_id, "no"))
                    with pytest.raises((Busy, ServiceRefused)):
                        await dial
                    names = [attempt.agent.name.hostname for attempt in watch.dials[-1].failed]
                    assert names == ["b"]

    run(main())


def test_a_caller_that_dials_too_often_is_refused() -> None:
    async def main() -> None:
        async with limited(dial_rate=0.001) as broker, scripted(broker) as agent:
            await agent.expect(control.Registered)
            for _ in range(2):
                with pytest.raises(OSError, match="testdom:81: ") as raised:
                    await broker.open_connection("testdom", 81, caller=EVE)
            assert isinstance(raised.value, Busy)
            assert "192.0.2.1 dials more than 0.001 times a second" in str(raised.value)

    run(main())


def test_a_dial_too_many_that_waits_for_an_agent_is_refused() -> None:
    async def main() -> None:
        async with limited(pending_dials=1) as broker:
            waiting = asyncio.get_running_loop().create_task(
                broker.open_connection("testdom", 80, wait=60)
            )
            await asyncio.sleep(0)
            with pytest.raises(Busy, match="1 dials are under way"):
                await broker.open_connection("testdom", 80)
            waiting.cancel()
            await asyncio.wait([waiting])

    run(main())


def test_sizes_and_deadlines_are_those_that_were_set() -> None:
    async def main() -> None:
        async with limited(preamble_size=1024, message_size=2048) as broker:
            wordy = registration(labels={f"a{number}": "x" * 200 for number in range(20)})
            async with scripted(broker, wordy) as agent:
                await refused(agent, "RESOURCE_EXHAUSTED")
            reader, writer = await asyncio.open_connection("127.0.0.1", broker.reverse_port)
            writer.write(b"{" + b" " * 1024)
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
            await until(lambda: refusals(broker, "connection", "preamble") == 1)
        settings = broker_settings(handshake_timeout=0.1)
        async with Broker(settings) as broker:
            async with scripted(broker, b"") as agent:
                # An empty message is of a later version: it is passed over.
                assert "no registration came in time" in await refused(agent, "INVALID_ARGUMENT")
            await until(lambda: refusals(broker, "agent", "invalid") == 1)

    run(main())


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "mtls"])
def test_who_says_nothing_makes_room_for_who_comes(tls: bool, loop: Loop) -> None:
    async def main() -> None:
        async with limited(tls, unauthenticated=3) as broker:
            silent = [
                await asyncio.open_connection("127.0.0.1", broker.reverse_port) for _ in range(5)
            ]
            for reader, _ in silent[:2]:
                with contextlib.suppress(ConnectionResetError):
                    assert await reader.read() == b""
            await until(lambda: refusals(broker, "connection", "unauthenticated") == 2)
            options: dict[str, Any] = {"tls": client_files()} if tls else {}
            async with scripted(broker, **options) as agent:
                await agent.expect(control.Registered)
                async with opened(broker, agent):
                    pass
            for _, writer in silent:
                writer.close()

    run_on(main(), loop)


def test_at_the_dial_socket_too_who_says_nothing_makes_room_for_who_comes() -> None:
    async def main() -> None:
        settings = broker_settings(
            tls=True,
            limits=Limits(unauthenticated=3),
            dial_listen=(DialAddress(host="127.0.0.1"),),
            dial_allow=("a.dialers",),
        )
        async with Broker(settings) as broker:
            port = broker.dial_addresses[0].port
            silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
            for reader, _ in silent[:2]:
                with contextlib.suppress(ConnectionResetError):
                    assert await reader.read() == b""
            await until(lambda: refusals(broker, "connection", "unauthenticated") == 2)
            async with await connect(f"localhost:{port}", tls=client_files("a.dialers")):
                pass
            for _, writer in silent:
                writer.close()

    run(main())


def test_who_may_not_dial_is_counted_and_cannot_fill_the_log(tmp_path: Path) -> None:
    async def main() -> None:
        settings = broker_settings(
            tls=True,
            dial_listen=(
                DialAddress(host="127.0.0.1"),
                DialAddress(path=tmp_path / "dial.sock"),
            ),
            dial_allow=("a.dialers",),
        )
        watch = Watch()
        async with Broker(settings, plugins=[watch]) as broker:
            port = broker.dial_addresses[0].port
            with pytest.raises(NotAuthorized):
                await connect(f"localhost:{port}", tls=client_files())
            [refusal] = watch.refused
            assert (refusal.what, refusal.reason) == ("connection", "not-authorized")
            assert "*.testdom, which may not dial here" in refusal.text
            with Log() as log:
                for _ in range(LINES + 5):
                    reader, writer = await asyncio.open_unix_connection(tmp_path / "dial.sock")
                    writer.write(b"GET / HTTP/1.1\r\n\r\n")
                    with contextlib.suppress(ConnectionResetError):
                        await reader.read()
                    writer.close()
                assert len(log.having("dial socket: refused")) == LINES
            assert refusals(broker, "connection", "hello") == LINES + 5

    run(main())


def test_a_flood_of_half_open_control_connections_ends_and_agents_get_in() -> None:
    """gRPC counts connections, and drops those whose handshake does not come to an end."""

    async def main() -> None:
        files = broker_settings(tls=True).tls
        settings = broker_settings(
            tls=files, handshake_timeout=1.0, limits=Limits(agents=10, unauthenticated=10)
        )
        async with Broker(settings) as broker:
            streams = []
            for _ in range(60):
                with contextlib.suppress(OSError):
                    streams.append(await asyncio.open_connection("127.0.0.1", broker.control_port))
            for reader, writer in streams:
                with contextlib.suppress(OSError):
                    await reader.read()
                writer.close()
            async with scripted(broker, tls=client_files()) as agent:
                await agent.expect(control.Registered)

    run(main())


WHILE_SHORT = 0.5
"""Seconds without a descriptor. What spins takes half a core and more, what waits nothing."""

SHORTAGE = """
import asyncio, resource, socket, sys, time
sys.path.insert(0, {tests!r})
from tunnel import Log, broker_settings, client_files, scripted
from whip_core import Broker, control
from whip_core.monitor import serving
from whip_core.routes import Response

async def main():
    async with (
        Broker(broker_settings(tls=True)) as broker,
        broker.forward("instance1.testdom", 80) as (_, forwarded),
        serving("127.0.0.1:0", lambda _: Response.text("ok"), chosen=True) as monitored,
    ):
        ports = (broker.reverse_port, broker.control_port, forwarded, int(monitored.split(":")[1]))
        client_files()
        async def agent_gets_in(name):
            async with scripted(broker, tls=client_files()) as agent:
                registered = await agent.expect(control.Registered)
                dial = asyncio.create_task(broker.open_connection("instance1.testdom", 80))
                reverse = await agent.connect_framed(await agent.expect(control.Connect))
                await reverse.asked()
                reverse.accept()
                (await dial)[1].transport.abort()
        await agent_gets_in("before")
        waiting = []
        for port in ports:
            for _ in range(3):
                waiting.append((port, socket.socket()))
                waiting[-1][1].setblocking(False)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        with Log() as log:
            for port, sock in waiting:
                await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
            # Reverse port, forward and monitor; gRPC's own listener says nothing.
            await log.until("cannot accept connections", 3)
        # It is short for a while, which must not keep a core busy.
        began = time.process_time()
        await asyncio.sleep({while_short})
        used = time.process_time() - began
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        async with asyncio.timeout(30):
            await agent_gets_in("after")
            streams = await asyncio.open_connection(sock=waiting[-1][1])
            streams[1].write(b"GET / HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
            assert b" 200 " in await streams[0].readline()
            reader, _ = await asyncio.open_connection("127.0.0.1", forwarded)
            try:
                assert not await reader.read()
            except ConnectionResetError:  # nobody has the name any more
                pass
    assert used < {while_short} / 5, f"{{used:.2f}} s of processor time"
    print("resumed")

with asyncio.Runner(loop_factory={factory}) as runner:
    runner.run(main())
"""


@pytest.mark.parametrize(
    "factory", ["asyncio.new_event_loop", "__import__('uvloop').new_event_loop"]
)
def test_accepting_goes_on_when_a_shortage_of_descriptors_is_over(factory: str) -> None:
    program = SHORTAGE.format(
        tests=str(Path(__file__).parent), factory=factory, while_short=WHILE_SHORT
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "resumed", done.stderr
    assert "Traceback" not in done.stderr


# As options


def values(**changes: Any) -> dict[str, Any]:
    defaults = {option.name: option.default for option in BROKER_OPTIONS}
    return defaults | {"whip_external_tcp_address": "localhost", "whip_tls": False} | changes


def test_every_limit_is_an_option_whose_default_is_the_limits_own() -> None:
    settings = read_broker(values())
    assert settings.limits == Limits()
    names = {option.name for option in BROKER_OPTIONS}
    for each in dataclasses.fields(Limits):
        assert f"whip_max_{each.name}" in names
    changed = values(whip_max_streams=7, whip_max_dial_rate="0.5", whip_handshake_timeout="3")
    settings = read_broker(changed)
    assert settings.limits == Limits(streams=7, dial_rate=0.5)
    assert settings.handshake_timeout == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("whip_max_streams", -1),
        ("whip_max_agents", 2**31),
        ("whip_max_preamble_size", 10),
        ("whip_max_dial_rate", "fast"),
        ("whip_preamble_timeout", "0"),
    ],
)
def test_a_limit_that_is_none_is_refused_by_its_name(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=name):
        read_broker(values(**{name: value}))
