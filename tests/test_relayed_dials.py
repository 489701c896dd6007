"""Agents that cannot reach the broker that dials are reached by way of the one that holds them."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from client_agent.reverse import ReverseConnector
from fabrics import Kind, Local, joined
from test_fabric import Judge, MakeKind, each_kind
from tunnel import (
    Handler,
    Log,
    Watch,
    agent_settings,
    client_files,
    echo,
    exchange,
    run,
    running,
    scripted,
    server_files,
    service,
    until,
)
from whip_core import Broker, Caller, control, guests
from whip_core.errors import (
    AgentGone,
    Busy,
    DialError,
    NotAuthorized,
    ServiceRefused,
    SettingsError,
    StreamReset,
)
from whip_core.fabric_wire import Gate, encode_target
from whip_core.framed import FramedConnection
from whip_core.frames import Side
from whip_core.limits import Limits
from whip_core.names import Target
from whip_core.preamble import Preamble
from whip_core.sockets import abort_with_reset
from whip_core.tls import client_context

NAME = "instance1.testdom"
NOWHERE: dict[str, Any] = {"external_port": 1}
"""Nobody listens there, so no agent can connect back."""


async def refusal(broker: Broker, **options: Any) -> DialError:
    with pytest.raises(DialError) as caught:
        await broker.open_connection(NAME, 80, **options)
    return caught.value


@asynccontextmanager
async def apart(
    kind: Kind, handler: Handler = echo, *plugins: Any, tls: bool = False, **changes: Any
) -> AsyncIterator[tuple[Broker, Broker]]:
    """A broker that holds an agent, and one that the agent cannot reach; both relay."""
    files = server_files("localhost", relay=True) if tls else None
    settings = {"relay": True, "tls": files, **changes}
    given = [*plugins, None, None]
    async with (
        service(handler) as port,
        joined(kind, 1, given[0], **settings) as (holder,),
        joined(kind, 1, given[1], **settings, **NOWHERE) as (other,),
        running(
            agent_settings(
                holder.control_port, ports=f"80={port}", tls=client_files() if tls else None
            )
        ) as agent,
    ):
        await agent.wait_registered()
        yield holder, other


def relayed(broker: Broker, direction: str) -> float | None:
    return broker.metrics.registry.get_sample_value(
        "whip_server_relayed_dials_total", {"domain": "testdom", "direction": direction}
    )


@each_kind
def test_a_stream_goes_by_the_holder_where_the_agent_cannot_reach_the_dialler(
    make_kind: MakeKind,
) -> None:
    async def main() -> None:
        at_holder, at_other = Watch(), Watch()
        with Log() as log:
            async with (
                make_kind() as kind,
                apart(kind, echo, at_holder, at_other, tls=True) as (holder, other),
            ):
                data = os.urandom(1_000_000)
                for _ in range(2):
                    streams = await other.open_connection(
                        NAME, 80, wait=10, caller=Caller(proxy_user="ann")
                    )
                    assert await exchange(streams, data) == data
                # The second dial has not tried the straight way again.
                tried = [line for line in log.having("cannot connect back") if "dial" in line]
                assert len(tried) == 1
                for mine, theirs in zip(at_other.dials, at_holder.dials, strict=True):
                    assert (mine.relayed_by, mine.relayed_for) == (holder.broker_id, "")
                    assert (theirs.relayed_by, theirs.relayed_for) == ("", other.broker_id)
                    assert theirs.target == mine.target
                    assert theirs.caller.proxy_user == "ann"
                assert relayed(other, "by") == relayed(holder, "for") == 2
                await at_holder.until(lambda: len(at_holder.closed) == 2)
                assert [stream.bytes_to_agent for stream in at_holder.closed] == [len(data)] * 2
                assert {event.as_dict()["relayed_by"] for event in other.activity.events(["dial"])}

    run(main())


async def half_closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Ends its direction first, then tells what came after that."""
    writer.write(b"I have said all")
    writer.write_eof()
    answers.put_nowait(await reader.read())


answers: asyncio.Queue[bytes] = asyncio.Queue()


def test_directions_end_separately_through_the_relay() -> None:
    async def main() -> None:
        async with apart(Local(), half_closing, tls=True) as (_, other):
            reader, writer = await other.open_connection(NAME, 80)
            assert await reader.read() == b"I have said all"
            writer.write(b"and I go on")
            writer.write_eof()
            assert await answers.get() == b"and I go on"
            writer.close()

    run(main())


def test_a_reset_goes_through_the_relay_both_ways() -> None:
    heard: asyncio.Queue[BaseException] = asyncio.Queue()

    async def until_broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x")
        if await reader.read(1) == b"!":
            abort_with_reset(writer.transport)
        else:
            with pytest.raises(OSError) as caught:
                await reader.read()
            heard.put_nowait(caught.value)

    async def main() -> None:
        async with apart(Local(), until_broken) as (_, other):
            reader, writer = await other.open_connection(NAME, 80)
            writer.write(b"!")
            assert await reader.readexactly(1) == b"x"
            with pytest.raises(StreamReset):
                await reader.read()
            reader, writer = await other.open_connection(NAME, 80)
            assert await reader.readexactly(1) == b"x"
            writer.write(b"?")
            await writer.drain()
            writer.transport.abort()
            assert isinstance(await heard.get(), ConnectionResetError)

    run(main())


def test_an_agent_that_says_nothing_is_relayed_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where packets are dropped on the way, no error comes."""
    monkeypatch.setattr(guests, "STRAIGHT_PATIENCE", 0.05)

    async def main() -> None:
        kind = Local()
        async with (
            joined(kind, 2, relay=True) as (holder, other),
            scripted(holder) as agent,
            asyncio.TaskGroup() as group,
        ):
            await agent.expect(control.Registered)
            dial = group.create_task(other.open_connection(NAME, 80))
            visit = await agent.expect(control.Visit)
            request = await agent.expect(control.Connect)
            assert request.port == holder.reverse_port
            assert request.connection_id != visit.connection_id
            # What comes too late of the straight way does not touch the other.
            await agent.send(control.ConnectFailed(visit.connection_id, "at last"))
            reverse = await agent.connect_framed(request)
            await reverse.asked()
            reader, writer = reverse.accept()
            _, theirs = await dial
            theirs.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            theirs.close()
            writer.close()

    run(main())


def test_both_brokers_have_to_allow_it_and_the_error_says_what_is_wrong() -> None:
    async def main() -> None:
        for holder_relays, other_relays in ((False, True), (True, False)):
            kind = Local()
            async with (
                service(echo) as port,
                joined(kind, 1, relay=holder_relays) as (holder,),
                joined(kind, 1, relay=other_relays, **NOWHERE) as (other,),
                running(agent_settings(holder.control_port, ports=f"80={port}")) as agent,
            ):
                await agent.wait_registered()
                error = await refusal(other)
                assert type(error) is AgentGone
                assert "the agent cannot connect back to localhost:1: " in str(error)
                relays_nothing = f"its broker {holder.broker_id} relays nothing (--relay)"
                assert (relays_nothing in str(error)) is other_relays
                assert relayed(holder, "for") is None

    run(main())


def test_the_next_broker_that_holds_the_agent_relays_if_the_first_does_not() -> None:
    async def main() -> None:
        kind = Local()
        async with (
            service(echo) as port,
            joined(kind, 1) as (first,),
            joined(kind, 1, relay=True) as (second,),
            joined(kind, 1, relay=True, **NOWHERE) as (other,),
            running(
                agent_settings(first.control_port, second.control_port, ports=f"80={port}")
            ) as agent,
        ):
            await until(lambda: bool(first.agents and second.agents))
            assert agent is not None
            for _ in range(3):
                assert await exchange(await other.open_connection(NAME, 80), b"hi") == b"hi"
            assert relayed(second, "for") == 3

    run(main())


def test_the_holders_policy_is_asked_once_for_each_dial() -> None:
    async def main() -> None:
        judge = Judge("ann")
        async with apart(Local(), echo, judge) as (_, other):
            ann, bob = Caller(proxy_user="ann"), Caller(proxy_user="bob")
            for dials in (1, 2):
                streams = await other.open_connection(NAME, 80, caller=ann)
                assert await exchange(streams, b"hello") == b"hello"
                assert len(judge.asked) == dials
            assert type(await refusal(other, caller=bob)) is NotAuthorized
            assert {target for target, _ in judge.asked} == {Target(NAME, 80)}

    run(main())


def test_an_error_of_the_service_comes_through_as_it_is() -> None:
    async def main() -> None:
        kind = Local()
        async with (
            joined(kind, 1, relay=True) as (holder,),
            joined(kind, 1, relay=True, **NOWHERE) as (other,),
        ):
            async with service(echo) as port:
                pass
            async with running(agent_settings(holder.control_port, ports=f"80={port}")) as agent:
                await agent.wait_registered()
                error = await refusal(other)
                assert type(error) is ServiceRefused
                assert str(error).count(f"{NAME}:80") == 1

    run(main())


def test_a_holder_that_is_busy_says_so_with_its_reason() -> None:
    async def main() -> None:
        async with apart(Local()) as (holder, other):
            _, writer = await other.open_connection(NAME, 80)
            holder._dialer._admission._limits = Limits(streams=1)
            error = await refusal(other)
            assert isinstance(error, Busy)
            assert error.reason == "streams"
            assert error.dial.failed == ()  # type: ignore[attr-defined]
            assert str(error).startswith(f"{NAME}:80: ")
            writer.close()

    run(main())


def test_a_holder_that_ends_breaks_what_it_relays() -> None:
    async def main() -> None:
        kind = Local()
        async with (
            service(echo) as port,
            joined(kind, 1, relay=True, **NOWHERE) as (other,),
        ):
            async with (
                joined(kind, 1, relay=True) as (holder,),
                running(agent_settings(holder.control_port, ports=f"80={port}")) as agent,
            ):
                await agent.wait_registered()
                reader, writer = await other.open_connection(NAME, 80)
                writer.write(b"hello")
                assert await reader.readexactly(5) == b"hello"
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()

    run(main())


# Who is let in


async def given_pass(kind: Local, holder: Broker, other: Broker) -> dict[str, Any]:
    """What `other` is given when it asks for a pass."""
    question = Gate("test", other.broker_id).seal(
        "relay",
        time.time(),
        session=holder.agents[0].session_id,
        target=encode_target(Target(NAME, 80)),
        caller={},
        dial="0" * 32,
        local_port=80,
    )
    [member] = [
        member for member in kind.exchange.members if f"broker.{other.broker_id}" in member._held
    ]
    key = f"broker.{holder.broker_id}"
    [answer] = [json.loads(answer) async for answer in member.ask(key, question, 5.0)]
    assert answer["kind"] == "relaying"
    return dict(answer)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("certificate", "a peer without a broker's certificate"),
        ("secret", "with a wrong secret"),
    ],
)
def test_a_pass_is_for_one_broker_with_its_secret_once(wrong: str, said: str) -> None:
    async def main() -> None:
        kind = Local()
        with Log() as log:
            async with apart(kind, tls=True) as (holder, other):
                one = await given_pass(kind, holder, other)
                files = (
                    client_files("instance1.testdom")
                    if wrong == "certificate"
                    else server_files("localhost", relay=True)
                )
                context = client_context(files)
                thief = ReverseConnector(lambda: context, "localhost", allow_plaintext=False)
                secret = one["secret"] if wrong != "secret" else "guessed"

                async def come() -> None:
                    lost = asyncio.Event()
                    await thief.open(
                        FramedConnection(Side.OPENER, on_lost=lambda _: lost.set()),
                        one["host"],
                        one["port"],
                        Preamble(one["pass"], secret),
                    )
                    await lost.wait()

                await come()
                assert len(log.having(said)) == 1
                await come()
                await log.until("it belongs to no session or dial (any more)")
                assert relayed(holder, "for") is None

    run(main())


def test_a_certificate_that_is_for_a_server_only_is_said_at_the_start() -> None:
    async def main() -> None:
        kind = Local()
        with pytest.raises(SettingsError, match=r"pki createandsign server --relay"):
            async with joined(kind, 1, relay=True, tls=server_files("localhost")):
                raise AssertionError("it started")
        assert kind.exchange.members == []

    run(main())


def test_a_holder_that_does_not_prove_its_name_gets_no_word() -> None:
    async def main() -> None:
        kind = Local()
        ours, theirs = (server_files(name, relay=True) for name in ("other.test", "localhost"))
        async with (
            service(echo) as port,
            joined(kind, 1, relay=True, tls=theirs, external_host="127.0.0.1") as (holder,),
            joined(kind, 1, relay=True, tls=ours, **NOWHERE) as (other,),
            running(
                agent_settings(holder.control_port, ports=f"80={port}", tls=client_files())
            ) as agent,
        ):
            await agent.wait_registered()
            error = await refusal(other)
            assert type(error) is AgentGone
            assert "proves neither that name nor one of ours" in str(error)

    run(main())
