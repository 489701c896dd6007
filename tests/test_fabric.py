"""Agents that another broker holds, dialled over a fabric of each kind."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from client_agent.reverse import ReverseConnector
from fabrics import KINDS, Kind, Local, eventually, joined
from processes import free_ports
from programs import needs_program
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
    scripted,
    server_files,
    service,
    until,
)
from whip_core import Broker, Caller, control, hookimpl
from whip_core.agents import AgentView
from whip_core.caller import NOBODY
from whip_core.errors import (
    AgentGone,
    DialError,
    NotAuthorized,
    PortNotExposed,
    ServiceRefused,
    SettingsError,
    UnknownName,
)
from whip_core.fabric import Answer
from whip_core.fabric_local import Exchange, LocalFabric
from whip_core.fabric_wire import MAX_AGE, Gate, Unwelcome, domain_key
from whip_core.framed import FramedConnection
from whip_core.frames import Side
from whip_core.guests import MAX_OFFERS
from whip_core.names import AgentName, Target
from whip_core.preamble import Preamble
from whip_core.testing.agent import ScriptedAgent
from whip_core.tls import client_context

MakeKind = Callable[[], AbstractAsyncContextManager[Kind]]
each_kind = pytest.mark.parametrize(
    "make_kind",
    [
        pytest.param(make, id=name, marks=[needs_program("nats-server")] if name == "nats" else [])
        for name, make in KINDS.items()
    ],
)
NAME = "instance1.testdom"


async def reached(broker: Broker, name: str = NAME, port: int = 80, **options: Any) -> bool:
    streams = await broker.open_connection(name, port, **options)
    return await exchange(streams, b"hello") == b"hello"


async def refusal(broker: Broker, name: str = NAME, port: int = 80, **options: Any) -> DialError:
    with pytest.raises(DialError) as caught:
        await broker.open_connection(name, port, **options)
    return caught.value


@each_kind
def test_a_name_of_another_broker_is_dialled_straight_and_the_second_dial_asks_nobody(
    make_kind: MakeKind,
) -> None:
    async def main() -> None:
        watch = Watch()
        async with (
            make_kind() as kind,
            service(echo) as port,
            joined(kind, 2, None, watch) as (holder, other),
            running(agent_settings(holder.control_port, ports=f"80={port}")) as agent,
        ):
            await agent.wait_registered()
            data = os.urandom(1_000_000)
            streams = await other.open_connection(NAME, 80, wait=10)
            assert await exchange(streams, data) == data
            assert holder.agents[0].streams == 0  # nothing went through it
            assert not watch.dials[-1].parked

            await kind.down()
            streams = await other.open_connection(NAME, 80)
            assert await exchange(streams, data) == data
            assert watch.dials[-1].parked
            assert await reached(holder)
            await kind.up()

    run(main())


@each_kind
def test_over_mtls_and_by_the_domain_too(make_kind: MakeKind) -> None:
    async def main() -> None:
        async with (
            make_kind() as kind,
            service(echo) as port,
            joined(kind, 3, tls=server_files("localhost")) as (holder, second, third),
            running(
                agent_settings(holder.control_port, ports=f"80={port}", tls=client_files())
            ) as agent,
        ):
            await agent.wait_registered()
            assert await reached(second, wait=10)
            assert await reached(third, "testdom", wait=10)

    run(main())


@each_kind
def test_the_fabric_may_go_and_come_back(make_kind: MakeKind) -> None:
    async def main() -> None:
        async with (
            make_kind() as kind,
            service(echo) as port,
            joined(kind, 2) as (holder, other),
            running(agent_settings(holder.control_port, ports=f"80={port}")) as agent,
        ):
            await agent.wait_registered()
            reader, writer = await other.open_connection(NAME, 80, wait=10)
            await kind.down()
            writer.write(b"goes on")
            assert await reader.readexactly(7) == b"goes on"
            assert await reached(holder)  # what is local is not touched
            assert type(await refusal(other, "instance2.testdom")) is UnknownName
            async with running(
                agent_settings(holder.control_port, ports=f"80={port}", hostname="instance2")
            ) as late:
                await late.wait_registered()
                await kind.up()
                assert await reached(other, "instance2.testdom", wait=20)
            writer.close()

    run(main())


def test_a_broker_whose_agents_all_drain_is_not_asked_for_their_domain() -> None:
    def holders(kind: Local) -> int:
        return sum(domain_key("testdom") in member._held for member in kind.exchange.members)

    async def main() -> None:
        kind = Local()
        async with joined(kind, 3) as (first, second, third), contextlib.AsyncExitStack() as stack:

            async def joins(broker: Broker, name: str) -> ScriptedAgent:
                agent = await stack.enter_async_context(scripted(broker, registration(name)))
                await agent.expect(control.Registered)
                return agent

            one, two, _ = await joins(first, "a"), await joins(first, "b"), await joins(second, "c")
            for _ in range(2):  # it may say so again
                await one.send(control.Draining())
            await until(lambda: sum(agent.draining for agent in first.agents) == 1)
            await one.vanish()
            await until(lambda: len(first.agents) == 1)
            assert holders(kind) == 2
            await two.send(control.Draining())
            await until(lambda: holders(kind) == 1)
            for _ in range(5):
                found = await third._dialer.elsewhere.find(Target("testdom", 80), NOBODY, ())
                assert [each.session.name.hostname for each in found] == ["c"]
            await joins(first, "d")
            assert holders(kind) == 2
            await two.vanish()
            await until(lambda: len(first.agents) == 1)
            assert holders(kind) == 2

    run(main())


@each_kind
def test_errors_are_those_of_an_agent_of_ones_own(make_kind: MakeKind) -> None:
    async def main() -> None:
        async with (
            make_kind() as kind,
            joined(kind, 2) as (holder, other),
            scripted(holder) as agent,
        ):
            await agent.expect(control.Registered)
            assert type(await refusal(other, "nobody.nowhere")) is UnknownName
            error = await refusal(other, port=22, wait=10)
            assert type(error) is PortNotExposed
            assert "does not expose port 22 (exposed: 80)" in str(error)

    run(main())


@each_kind
def test_an_agent_that_left_is_known_nowhere(make_kind: MakeKind) -> None:
    async def main() -> None:
        async with make_kind() as kind, service(echo) as port, joined(kind, 2) as (holder, other):
            async with running(agent_settings(holder.control_port, ports=f"80={port}")) as agent:
                await agent.wait_registered()
                assert await reached(other, wait=10)
            await eventually(lambda: not holder.agents)
            assert type(await refusal(other)) in (UnknownName, AgentGone)
            while type(await refusal(other)) is not UnknownName:
                pass

    run(main())


# Whose policy


class Judge:
    """Lets only `allowed` users dial."""

    def __init__(self, *allowed: str) -> None:
        self._allowed = allowed
        self.asked: list[tuple[Target, Caller]] = []

    @hookimpl
    def whip_authorize_dial(self, target: Target, agent: AgentView, caller: Caller) -> str | None:
        self.asked.append((target, caller))
        return None if caller.proxy_user in self._allowed else f"{caller.proxy_user} may not"


@each_kind
def test_the_holders_policy_holds_for_each_dial_the_parked_ones_too(make_kind: MakeKind) -> None:
    async def main() -> None:
        ann, bob = Caller(proxy_user="ann"), Caller(proxy_user="bob")
        judge = Judge("ann")
        async with (
            make_kind() as kind,
            service(echo) as port,
            joined(kind, 2, judge) as (holder, other),
            running(agent_settings(holder.control_port, ports=f"80={port}")) as agent,
        ):
            await agent.wait_registered()
            for _ in range(2):
                assert await reached(other, caller=ann, wait=10)
                error = await refusal(other, caller=bob)
                assert type(error) is NotAuthorized
                assert "bob may not" in str(error)
            assert {target for target, _ in judge.asked} == {Target(NAME, 80)}

    run(main())


def test_ones_own_policy_holds_before_anybody_is_told() -> None:
    async def main() -> None:
        kind = Local()
        async with (
            joined(kind, 2, None, Judge()) as (holder, other),
            scripted(holder) as agent,
        ):
            await agent.expect(control.Registered)
            assert type(await refusal(other)) is NotAuthorized
            assert [
                message for message in agent._received if isinstance(message, control.Visit)
            ] == []

    run(main())


def test_a_broker_without_an_allowed_dial_cannot_have_connections_parked() -> None:
    async def main() -> None:
        kind = Local()
        async with joined(kind, 2) as (holder, other), scripted(holder) as agent:
            await agent.expect(control.Registered)
            gate = Gate("test", other.broker_id)
            body = {"session": holder.agents[0].session_id, "guest": "a", "secret": "b"}
            place = {"host": "evil.test", "port": 1, "connections": 9}
            question = gate.seal("visit", time.time(), **body, **place)
            answers = [
                json.loads(answer)
                async for answer in kind.exchange.members[1].ask(
                    f"broker.{holder.broker_id}", question, 5.0
                )
            ]
            assert [answer["kind"] for answer in answers] == ["refused"]
            assert "no dial of this broker was allowed" in answers[0]["why"]

    run(main())


def test_the_secret_for_one_broker_is_no_good_at_another() -> None:
    async def main() -> None:
        kind = Local()
        async with (
            joined(kind, 3) as (holder, one, two),
            scripted(holder) as agent,
            asyncio.TaskGroup() as group,
        ):
            await agent.expect(control.Registered)
            visits = []
            for broker in (one, two):
                dial = group.create_task(refusal(broker))
                visit = await agent.expect(control.Visit)
                visits.append(visit)
                await agent.send(control.ConnectFailed(visit.connection_id, "cannot connect"))
                assert type(await dial) is AgentGone
            assert len({visit.secret for visit in visits}) == 2
            assert len({visit.session_id for visit in visits}) == 2
            assert visits[0].broker_id == one.broker_id
            assert visits[0].reverse_port == one.reverse_port

    run(main())


def test_a_broker_that_the_agent_cannot_reach_is_told_exactly_that() -> None:
    async def main() -> None:
        kind = Local()
        async with (
            service(echo) as port,
            joined(kind, 2, external_port=1) as (holder, other),
            running(agent_settings(holder.control_port, ports=f"80={port}")) as agent,
        ):
            await agent.wait_registered()
            error = await refusal(other)
            assert type(error) is AgentGone
            assert "the agent cannot connect back to localhost:1: " in str(error)

    run(main())


def test_a_service_that_refuses_is_told_as_always() -> None:
    async def main() -> None:
        kind = Local()
        async with joined(kind, 2) as (holder, other):
            async with service(echo) as port:
                pass
            async with running(agent_settings(holder.control_port, ports=f"80={port}")) as agent:
                await agent.wait_registered()
                assert type(await refusal(other)) is ServiceRefused

    run(main())


def test_an_old_agent_is_reached_from_another_broker_too() -> None:
    async def main() -> None:
        kind = Local()
        async with (
            joined(kind, 2) as (holder, other),
            scripted(holder, registration(protocol_version=0)) as agent,
            asyncio.TaskGroup() as group,
        ):
            await eventually(lambda: len(holder.agents) == 1)
            dial = group.create_task(other.open_connection(NAME, 80))
            request = await agent.expect(control.Connect)
            assert request.port == other.reverse_port
            reader, writer = await agent.connect_back(request)
            _, theirs = await dial
            theirs.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            writer.close()
            theirs.close()

    run(main())


# Messages that are not let in


def gate(cluster: str = "test", broker: str = "other") -> Gate:
    return Gate(cluster, broker)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff", "malformed"),
        (b"[]", "malformed"),
        (b"{}", "malformed"),
        (b'{"v": 2}', "malformed"),
        (b'{"v": 1, "cluster": "test", "from": "a", "id": "b", "kind": "seek"}', "malformed"),
        (gate().seal("seek", 10**400), "malformed"),
        (gate("foreign").seal("seek", 1000.0), "other-cluster"),
        (gate().seal("seek", 1000.0 - MAX_AGE - 1), "late"),
        (gate().seal("seek", 1000.0 + MAX_AGE + 1), "late"),
    ],
    ids=[
        "no JSON",
        "list",
        "empty",
        "version",
        "no time",
        "no such time",
        "foreign",
        "late",
        "early",
    ],
)
def test_a_message_that_is_not_ours_now_is_dropped(data: bytes, reason: str) -> None:
    with pytest.raises(Unwelcome) as caught:
        gate(broker="me").admit(data, 1000.0)
    assert caught.value.reason == reason


def test_a_message_is_taken_once() -> None:
    mine, data = gate(broker="me"), gate().seal("seek", 1000.0, name="a.b")
    assert mine.admit(data, 1001.0).body["name"] == "a.b"
    with pytest.raises(Unwelcome, match="it came before"):
        mine.admit(data, 1002.0)


def test_dropped_messages_are_counted_and_told_of_once_a_minute() -> None:
    async def main() -> None:
        kind = Local()
        with Log() as log:
            async with joined(kind, 2) as (one, two):
                for data in (b"x", b"{}", gate().seal("odd", time.time())):
                    async for _ in kind.exchange.members[0].ask(
                        f"broker.{two.broker_id}", data, 5.0
                    ):
                        raise AssertionError("it was answered")
                metrics = two.metrics.registry
                name = "whip_server_fabric_dropped_messages_total"
                assert metrics.get_sample_value(name, {"reason": "malformed"}) == 3
                assert one.metrics.registry.get_sample_value(name, {"reason": "malformed"}) is None
            assert len(log.having("fabric: dropped messages")) == 1

    run(main())


@each_kind
def test_two_brokers_with_one_id_are_refused_loudly(make_kind: MakeKind) -> None:
    async def main() -> None:
        async with make_kind() as kind, joined(kind, 1) as (first,):
            with Log() as log:
                with pytest.raises(SettingsError, match="has our id"):
                    async with joined(kind, 0):
                        second = Broker(first.settings, plugins=kind.plugins)
                        second.broker_id = first.broker_id
                        while True:  # NATS may have heard of the first one or not
                            async with second:
                                pass
                assert log.having("another broker with our id")

    run(main(), logs_errors=True)


def test_the_agent_verifies_whom_it_visits() -> None:
    async def main() -> None:
        kind = Local()
        async with (
            service(echo) as port,
            joined(kind, 1, tls=server_files("localhost")) as (holder,),
            joined(kind, 1, tls=server_files("other.test")) as (other,),
            running(
                agent_settings(holder.control_port, ports=f"80={port}", tls=client_files())
            ) as agent,
        ):
            await agent.wait_registered()
            error = await refusal(other)
            assert type(error) is AgentGone
            assert "proves neither that name nor localhost" in str(error)

    run(main())


def test_another_agents_certificate_is_no_good_for_a_guests_secret() -> None:
    async def main() -> None:
        kind = Local()
        with Log() as log:
            async with (
                joined(kind, 2, tls=server_files("localhost")) as (holder, other),
                scripted(holder, tls=client_files("instance1.testdom")) as agent,
                asyncio.TaskGroup() as group,
            ):
                await agent.expect(control.Registered)
                dial = group.create_task(refusal(other, timeout=5))
                visit = await agent.expect(control.Visit)
                context = client_context(client_files("thief.testdom"))
                thief = ReverseConnector(lambda: context, "localhost", allow_plaintext=False)
                await thief.open(
                    FramedConnection(Side.ACCEPTOR),
                    visit.reverse_host,
                    visit.reverse_port,
                    Preamble(visit.session_id, visit.secret, visit.connection_id),
                )
                await log.until("with another certificate's names")
                await agent.send(control.ConnectFailed(visit.connection_id, "not me"))
                assert type(await dial) is AgentGone

    run(main())


def test_a_name_is_offered_only_with_a_certificate_that_covers_it() -> None:
    async def main() -> None:
        kind = Local()
        async with (
            joined(kind, 2, tls=server_files("localhost")) as (holder, other),
            scripted(holder, tls=client_files("instance1.testdom")) as agent,
        ):
            await agent.expect(control.Registered)
            session = next(iter(holder._registry))
            session.registration = dataclasses.replace(
                session.registration, name=AgentName.parse("bank", "testdom")
            )
            session._view = None
            holder._registry.named = lambda name: [session]
            holder._registrar.neighbours._mail.fabric.hold("agent.bank.testdom", shared=False)
            assert type(await refusal(other, "bank.testdom")) is UnknownName
            metrics, name = other.metrics.registry, "whip_server_fabric_dropped_messages_total"
            assert metrics.get_sample_value(name, {"reason": "malformed"}) == 1

    run(main())


def test_of_many_agents_at_a_holder_each_is_offered_at_some_time() -> None:
    async def main() -> None:
        kind = Local()
        async with (
            joined(kind, 2) as (holder, other),
            contextlib.AsyncExitStack() as stack,
        ):
            for number in range(MAX_OFFERS + 4):
                message = registration(f"instance{number}")
                agent = await stack.enter_async_context(scripted(holder, message))
                await agent.expect(control.Registered)
            offered: set[str] = set()
            while len(offered) < MAX_OFFERS + 4:
                found = await other._registrar.neighbours.find(Target("testdom", 80), Caller(), ())
                assert len(found) == MAX_OFFERS
                offered |= {view.name.hostname for view in found.views}

    run(main())


def test_a_dial_that_waits_outlasts_a_fabric_that_goes_in_the_middle_of_it() -> None:
    async def main() -> None:
        kind, gone = Local(), asyncio.Event()

        class Going:
            """Between the search for an agent and the request to it."""

            @hookimpl
            def whip_authorize_dial(self) -> None:
                kind.exchange.up = gone.is_set()
                gone.set()

        async with (
            joined(kind, 2, None, Going()) as (holder, other),
            scripted(holder) as agent,
            asyncio.TaskGroup() as group,
        ):
            await agent.expect(control.Registered)
            with Log() as log:
                dial = group.create_task(refusal(other, wait=10))
                await log.until("waiting for it to come back")
            await kind.up()
            visit = await agent.expect(control.Visit)
            await agent.send(control.ConnectFailed(visit.connection_id, "reached, and refused"))
            assert "reached, and refused" in str(await dial)

    run(main())


def test_no_agent_can_come_before_the_fabric_is_there_to_tell_of_it() -> None:
    [port] = free_ports(1)
    reachable: list[bool] = []

    class Slow(LocalFabric):
        async def open(self, answer: Answer) -> None:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                reachable.append(True)
            except ConnectionRefusedError:
                reachable.append(False)
            await super().open(answer)

    class Kind:
        @hookimpl
        def whip_fabric(self) -> Slow:
            return Slow(Exchange())

    async def main() -> None:
        settings = broker_settings(fabric=Local.settings, grpc_listen_port=port)
        async with Broker(settings, plugins=[Kind()]) as broker, scripted(broker) as agent:
            await agent.expect(control.Registered)
            [fabric] = broker._registrar.neighbours._mail.fabric._exchange.members
            assert "agent.instance1.testdom" in fabric._held

    run(main())
    assert reachable == [False]
