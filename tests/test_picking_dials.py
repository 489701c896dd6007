"""Picking in a broker with agents: what a picker sees, and what its answers come to."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

import pytest

from tunnel import (
    Watch,
    agent_settings,
    broker_settings,
    echo,
    exchange,
    registration,
    run,
    running,
    scripted,
    service,
)
from whip_core import Broker, Caller, control, dialer, hookimpl
from whip_core.agents import AgentView
from whip_core.errors import DialError, ServiceRefused
from whip_core.testing.agent import ScriptedAgent

Pick = Callable[[Sequence[AgentView]], object]


class Asked:
    """A picker that keeps what it is asked."""

    def __init__(self, answer: Pick) -> None:
        self._answer = answer
        self.candidates: list[Sequence[AgentView]] = []

    @hookimpl
    def whip_pick(self, candidates: Sequence[AgentView]) -> object:
        self.candidates.append(candidates)
        return self._answer(candidates)


async def agents_of(stack: AsyncExitStack, broker: Broker, *hosts: str) -> list[ScriptedAgent]:
    agents = []
    for host in hosts:
        agents.append(await stack.enter_async_context(scripted(broker, registration(host))))
        await agents[-1].expect(control.Registered)
    return agents


async def refuse(agent: ScriptedAgent) -> None:
    connect = await agent.expect(control.Connect)
    await agent.send(control.ConnectFailed(connect.connection_id, "no"))


def test_dials_at_the_same_time_go_to_different_agents() -> None:
    """Those being opened count: or all would see the same agent idle."""

    async def main() -> None:
        watch = Watch()
        settings = broker_settings(picker="least-streams")
        async with Broker(settings, plugins=[watch]) as broker, AsyncExitStack() as stack:
            for number in range(4):
                port = await stack.enter_async_context(service(echo))
                agent = await stack.enter_async_context(
                    running(
                        agent_settings(
                            broker.control_port, ports=f"80={port}", hostname=f"a{number}"
                        )
                    )
                )
                await agent.wait_registered()
            streams = await asyncio.gather(
                *(broker.open_connection("testdom", 80) for _ in range(8))
            )
            assert Counter(dial.agent.name.hostname for dial in watch.dials if dial.agent) == {
                f"a{number}": 2 for number in range(4)
            }
            assert [agent.streams for agent in broker.agents] == [2] * 4
            for each in streams:
                assert await exchange(each, b"x") == b"x"
            await watch.until(lambda: len(watch.closed) == 8)
            assert [agent.streams for agent in broker.agents] == [0] * 4

    run(main())


def test_a_dial_that_fails_or_is_given_up_counts_no_more() -> None:
    async def main() -> None:
        async with Broker(broker_settings()) as broker, AsyncExitStack() as stack:
            [agent] = await agents_of(stack, broker, "a")
            dial = asyncio.get_running_loop().create_task(broker.open_connection("a.testdom", 80))
            connect = await agent.expect(control.Connect)
            assert broker.agents[0].streams == 1
            await agent.send(control.ConnectFailed(connect.connection_id, "no"))
            with pytest.raises(ServiceRefused):
                await dial
            assert broker.agents[0].streams == 0
            dial = asyncio.get_running_loop().create_task(broker.open_connection("a.testdom", 80))
            await agent.expect(control.Connect)
            dial.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await dial
            assert broker.agents[0].streams == 0

    run(main())


def test_a_picker_is_asked_again_without_those_that_failed() -> None:
    async def main() -> None:
        picker = Asked(lambda candidates: candidates[0])
        async with (
            Broker(broker_settings(), plugins=[picker]) as broker,
            AsyncExitStack() as stack,
        ):
            agents = await agents_of(stack, broker, "a", "b", "c")
            refusals = asyncio.gather(*map(refuse, agents))
            with pytest.raises(ServiceRefused):
                await broker.open_connection("testdom", 80)
            await refusals
            seen = [[agent.name.hostname for agent in each] for each in picker.candidates]
            assert seen == [["a", "b", "c"], ["b", "c"]], "of one there is no choice"

    run(main())


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda _: "somebody", "plugin Asked: whip_pick gave somebody, which was not a candidate"),
        (
            lambda found: found[0]._replace(session_id="of old"),
            "plugin Asked: whip_pick gave agent a.testdom, which was not a candidate",
        ),
    ],
)
def test_an_answer_that_was_no_candidate_is_an_error_that_names_it(answer: Pick, said: str) -> None:
    async def main() -> None:
        async with (
            Broker(broker_settings(), plugins=[Asked(answer)]) as broker,
            AsyncExitStack() as stack,
        ):
            await agents_of(stack, broker, "a", "b")
            with pytest.raises(DialError, match=said):
                await broker.open_connection("testdom", 80)

    run(main())


def test_an_agent_that_failed_in_this_dial_is_no_candidate_any_more() -> None:
    first: list[AgentView] = []

    def always_the_same(candidates: Sequence[AgentView]) -> AgentView:
        first.append(candidates[0])
        return first[0]

    async def main() -> None:
        picker = Asked(always_the_same)
        async with (
            Broker(broker_settings(), plugins=[picker]) as broker,
            AsyncExitStack() as stack,
        ):
            agents = await agents_of(stack, broker, "a", "b", "c")
            refusal = asyncio.get_running_loop().create_task(refuse(agents[0]))
            with pytest.raises(DialError, match=r"gave agent a\.testdom, which was not"):
                await broker.open_connection("testdom", 80)
            await refusal

    run(main())


def test_a_dial_does_not_try_the_whole_of_a_large_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialer, "MOST_TRIED", 2)

    async def main() -> None:
        picker = Asked(lambda candidates: candidates[0])
        async with (
            Broker(broker_settings(), plugins=[picker]) as broker,
            AsyncExitStack() as stack,
        ):
            first, second, _ = await agents_of(stack, broker, "a", "b", "c")
            for wait in (0, 60):  # nor while it waits: one that could not serve is there
                refusals = asyncio.gather(refuse(first), refuse(second))
                with pytest.raises(ServiceRefused) as raised:
                    await broker.open_connection("testdom", 80, wait=wait)
                await refusals
                tried = raised.value.dial.failed  # type: ignore[attr-defined]
                assert [attempt.agent.name.hostname for attempt in tried] == ["a", "b"]

    run(main())


def test_what_is_seen_of_an_agent_is_made_anew_only_when_it_changes() -> None:
    async def main() -> None:
        picker = Asked(lambda candidates: candidates[0])
        async with (
            Broker(broker_settings(), plugins=[picker]) as broker,
            AsyncExitStack() as stack,
        ):
            agents = await agents_of(stack, broker, "a", "b")
            before = broker.agents
            assert broker.agents[0] is before[0]
            dial = asyncio.get_running_loop().create_task(
                broker.open_connection("testdom", 80, caller=Caller())
            )
            connect = await agents[0].expect(control.Connect)
            assert [agent.streams for agent in before] == [0, 0], "a view is of its moment"
            assert [agent.streams for agent in broker.agents] == [1, 0]
            assert broker.agents[1] is before[1]
            await agents[0].send(control.ConnectFailed(connect.connection_id, "no"))
            await refuse(agents[1])
            with pytest.raises(ServiceRefused):
                await dial
            await agents[0].send(control.Draining())
            with pytest.raises(ServiceRefused):
                await asyncio.gather(broker.open_connection("testdom", 80), refuse(agents[1]))
            assert [agent.draining for agent in broker.agents] == [True, False]

    run(main())
