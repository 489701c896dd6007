"""What plugins have to say in a dial: resolve, pick, allow; and what their faults come to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tunnel import (
    Log,
    agent_settings,
    broker_settings,
    exchange,
    registration,
    run,
    running,
    saying,
    scripted,
    service,
)
from whip_core import Broker, Caller, control, hookimpl
from whip_core.agents import AgentView
from whip_core.errors import DialError, DialTimeout, NotAuthorized, PluginError
from whip_core.names import Target
from whip_core.testing.agent import ControlStreamEnded

SOON = 0.05
"""Seconds for a dial that nobody is going to answer."""


def test_a_plugin_resolves_an_alias_and_picks_by_who_calls() -> None:
    class Alias:
        @hookimpl
        def whip_resolve(self, target: Target) -> Target | None:
            return Target("testdom", target.port) if target.name == "shop" else None

        @hookimpl
        def whip_pick(self, candidates: Sequence[AgentView], caller: Caller) -> AgentView:
            return next(agent for agent in candidates if agent.name.hostname == caller.proxy_user)

    async def main() -> None:
        async with (
            Broker(broker_settings(), plugins=[Alias()]) as broker,
            service(saying(b"a")) as one,
            service(saying(b"b")) as two,
            running(agent_settings(broker.control_port, ports=f"80={one}", hostname="a")) as a,
            running(agent_settings(broker.control_port, ports=f"80={two}", hostname="b")) as b,
        ):
            await a.wait_registered()
            await b.wait_registered()
            for user in "abba":
                caller = Caller(proxy_user=user)
                streams = await broker.open_connection("shop", 80, caller=caller)
                assert await exchange(streams, b"") == user.encode()

    run(main())


def test_a_plugin_vetoes_a_dial_before_anything_is_opened() -> None:
    class NotForMe:
        @hookimpl
        async def whip_authorize_dial(self, target: Target, caller: Caller) -> str | None:
            await asyncio.sleep(0)
            return f"{caller.proxy_user} may not reach {target.name}"

    async def main() -> None:
        async with (
            Broker(broker_settings(), plugins=[NotForMe()]) as broker,
            scripted(broker) as agent,
        ):
            await agent.expect(control.Registered)
            with pytest.raises(NotAuthorized) as raised:
                await broker.open_connection("testdom", 80, caller=Caller(proxy_user="eve"))
            assert str(raised.value) == ("testdom:80: not allowed: eve may not reach testdom")
            assert isinstance(raised.value, PermissionError)
            await agent.vanish()
            with pytest.raises(ControlStreamEnded):
                await agent.expect(control.Connect)

    run(main())


@pytest.mark.parametrize("hook", ["whip_resolve", "whip_pick", "whip_authorize_dial"])
def test_a_plugin_that_fails_fails_the_dial_as_a_dial_fails(hook: str) -> None:
    class Broken:
        pass

    def broken(self: Broken) -> None:
        raise ZeroDivisionError

    setattr(Broken, hook, hookimpl(broken))

    async def main() -> None:
        async with (
            Broker(broker_settings(), plugins=[Broken()]) as broker,
            scripted(broker, registration("a")) as one,
            scripted(broker, registration("b")) as two,
        ):
            await one.expect(control.Registered)
            await two.expect(control.Registered)
            with Log() as log, pytest.raises(DialError, match=r"plugin Broken"):
                await broker.open_connection("testdom", 80)
            await log.until("failed")

    run(main(), logs_errors=True)


@pytest.mark.parametrize(
    ("hook", "answer", "says"),
    [
        ("whip_pick", "instance1", "whip_pick gave instance1, which was not a candidate"),
        ("whip_resolve", "testdom", "whip_resolve gave 'testdom', which is not a Target"),
        ("whip_resolve", Target("a b", 80), "whip_resolve: 'a b' is not a host name"),
    ],
)
def test_a_wrong_answer_fails_the_dial_and_names_the_plugin(
    hook: str, answer: object, says: str
) -> None:
    class Wrong:
        pass

    setattr(Wrong, hook, hookimpl(lambda self: answer))

    async def main() -> None:
        async with (
            Broker(broker_settings(), plugins=[Wrong()]) as broker,
            scripted(broker, registration("a")) as one,
            scripted(broker, registration("b")) as two,
        ):
            await one.expect(control.Registered)
            await two.expect(control.Registered)
            with pytest.raises(PluginError) as raised:
                await broker.open_connection("testdom", 80)
            assert str(raised.value).startswith(f"testdom:80: plugin Wrong: {says}")
            assert (raised.value.reason, raised.value.http_status) == ("plugin", 502)

    run(main())


def test_a_plugin_that_does_not_decide_is_a_timeout() -> None:
    class Undecided:
        @hookimpl
        async def whip_authorize_dial(self) -> None:
            await asyncio.get_running_loop().create_future()

    async def main() -> None:
        async with (
            Broker(broker_settings(), plugins=[Undecided()]) as broker,
            scripted(broker) as agent,
        ):
            await agent.expect(control.Registered)
            with pytest.raises(DialTimeout, match="did not decide in time"):
                await broker.open_connection("instance1.testdom", 80, timeout=SOON)

    run(main())
