"""Agents that keep failing are left out for a while, and never too many of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from mitmproxy import http
from prometheus_client import generate_latest

from agent_views import view, views
from http_tunnel import asking, tunnel
from mitm import Handler, read_head, service
from tunnel import Log, broker_settings, registration, run, scripted, until
from whip_core import Broker, control, outliers
from whip_core.agents import AgentView, DialFinished, FailedAttempt
from whip_core.caller import NOBODY
from whip_core.errors import DialError, ServiceRefused
from whip_core.names import Target
from whip_core.outliers import FAILURES, FIRST_TIME, LONGEST_TIME, OutlierEjection
from whip_core.testing.agent import ScriptedAgent


class Domain:
    """What the plugin watches, and what it has ejected for how long."""

    def __init__(self, *agents: AgentView) -> None:
        self.ejected: list[tuple[str, float]] = []
        self.now = 1000.0
        self.plugin = OutlierEjection(self._eject, lambda: self.now)
        for agent in agents:
            self.plugin.whip_agent_joined(agent)

    def _eject(self, agent: AgentView, seconds: float) -> None:
        self.ejected.append((agent.name.hostname, seconds))

    def dial(self, *failing: AgentView, opened: AgentView | None = None, count: int = 1) -> None:
        error = ServiceRefused("refused")
        for _ in range(count):
            self.plugin.whip_dial_finished(
                DialFinished(
                    dial_id="",
                    target=Target("testdom", 80),
                    caller=NOBODY,
                    agent=opened or failing[-1],
                    port=80,
                    error=None if opened else error,
                    parked=True,
                    resolve_seconds=0.0,
                    open_seconds=None,
                    total_seconds=0.0,
                    failed=tuple(FailedAttempt(agent, error) for agent in failing),
                )
            )

    def respond(self, agent: AgentView, status: int, count: int = 1) -> None:
        for _ in range(count):
            self.plugin.whip_response_seen(agent, status)


def test_so_many_failed_dials_in_a_row_and_no_fewer() -> None:
    bad, good = view("bad"), view("good")
    domain = Domain(bad, good)
    domain.dial(bad, opened=good, count=FAILURES - 1)
    assert domain.ejected == []
    domain.dial(opened=bad)
    domain.dial(bad, opened=good, count=FAILURES - 1)
    assert domain.ejected == [], "one that was opened in between begins the row anew"
    domain.dial(bad)
    assert domain.ejected == [("bad", FIRST_TIME)]


def test_so_many_server_errors_in_a_row() -> None:
    bad, good = view("bad"), view("good")
    domain = Domain(bad, good)
    domain.respond(bad, 503, FAILURES - 1)
    domain.respond(bad, 404)
    domain.respond(bad, 500, FAILURES - 1)
    assert domain.ejected == []
    domain.dial(opened=bad)
    domain.respond(bad, 500)
    assert domain.ejected == [("bad", FIRST_TIME)], "that it can be opened is no answer"


def test_each_time_is_longer_than_the_last_up_to_a_bound() -> None:
    bad, good = view("bad"), view("good")
    domain = Domain(bad, good)
    for _ in range(6):
        domain.respond(bad, 500, FAILURES)
        domain.now += domain.ejected[-1][1]
        domain.plugin.readmitted(bad)
    assert [seconds for _, seconds in domain.ejected] == [30.0, 60.0, 120.0, 240.0, 300.0, 300.0]
    domain.now += LONGEST_TIME + 1
    domain.respond(bad, 500, FAILURES)
    assert domain.ejected[-1] == ("bad", FIRST_TIME), "it had been well for long enough"


@pytest.mark.parametrize(("agents", "at_most"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2)])
def test_never_more_than_half_of_a_domain(agents: int, at_most: int) -> None:
    members = views(agents)
    domain = Domain(*members, *views(10, domain="otherdom"))
    for agent in members:
        domain.respond(agent, 500, FAILURES * 2)
    assert len(domain.ejected) == at_most


def test_who_leaves_makes_no_room_for_others_to_be_left_out() -> None:
    first, second, third, _ = members = views(4)
    domain = Domain(*members)
    domain.respond(first, 500, FAILURES)
    domain.plugin.whip_agent_left(third)
    domain.respond(second, 500, FAILURES)
    assert [name for name, _ in domain.ejected] == ["instance0"], "one of three is out already"
    domain.plugin.whip_agent_left(first)
    domain.respond(second, 500)
    assert [name for name, _ in domain.ejected] == ["instance0", "instance1"]
    domain.respond(first, 500, FAILURES)
    domain.dial(first)
    domain.plugin.readmitted(first)
    assert len(domain.ejected) == 2, "who has left is nobody's concern"


# In a broker


def gauge(broker: Broker) -> float | None:
    return broker.metrics.registry.get_sample_value(
        "whip_server_ejected_agents", {"domain": "testdom"}
    )


async def refuse_always(agent: ScriptedAgent) -> None:
    while True:
        connect = await agent.expect(control.Connect)
        await agent.send(control.ConnectFailed(connect.connection_id, "no"))


async def fail(broker: Broker, name: str, times: int = FAILURES) -> None:
    for _ in range(times):
        with pytest.raises(DialError):
            await broker.open_connection(name, 80)


def in_broker(main: Callable[[Broker], Any], *hosts: str, **changes: Any) -> None:
    """Run `main` beside agents that refuse every dial."""

    async def all_of_it() -> None:
        async with Broker(broker_settings(**changes)) as broker, AsyncExitStack() as stack:
            refusing = []
            for host in hosts:
                agent = await stack.enter_async_context(scripted(broker, registration(host)))
                await agent.expect(control.Registered)
                refusing.append(asyncio.get_running_loop().create_task(refuse_always(agent)))
            try:
                await main(broker)
            finally:
                for task in refusing:
                    task.cancel()
                await asyncio.gather(*refusing, return_exceptions=True)

    run(all_of_it())


def test_an_ejected_agent_is_seen_as_such_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outliers, "FIRST_TIME", 0.05)

    async def main(broker: Broker) -> None:
        with Log() as log:
            await fail(broker, "bad.testdom")
            assert await log.until("agent bad.testdom is left out of its domain for 0 s: it failed")
            assert {agent.name.hostname: agent.ejected for agent in broker.agents} == {
                "bad": True,
                "good": False,
            }
            assert gauge(broker) == 1
            assert b'whip_server_ejected_agents{domain="testdom"} 1.0' in generate_latest(
                broker.metrics.registry
            )
            await log.until("agent bad.testdom is a candidate of its domain again")
        assert [agent.ejected for agent in broker.agents] == [False, False]
        assert gauge(broker) is None

    in_broker(main, "bad", "good", outlier_ejection=True)


def test_an_attempt_that_another_agent_made_good_counts_as_well() -> None:
    async def main(broker: Broker) -> None:
        await fail(broker, "testdom", FAILURES)
        assert sum(agent.ejected for agent in broker.agents) == 1, "each dial tried them all"
        await fail(broker, "testdom", FAILURES)
        assert sum(agent.ejected for agent in broker.agents) == 1, "never more than half"

    in_broker(main, "one", "two", "three", outlier_ejection=True)


def test_the_end_of_an_ejected_agent_and_of_the_broker_leave_no_timer() -> None:
    async def main(broker: Broker) -> None:
        await fail(broker, "one.testdom")
        [one] = [session for session in broker._registrar.registry if session.ejected]
        assert one.readmission is not None
        broker._registrar.left(one, "it is over")
        assert one.readmission.cancelled()
        assert gauge(broker) is None

    in_broker(main, "one", "two", outlier_ejection=True)


def test_it_is_off_unless_it_is_asked_for() -> None:
    async def main(broker: Broker) -> None:
        await fail(broker, "one.testdom", FAILURES * 2)
        assert not any(agent.ejected for agent in broker.agents)

    in_broker(main, "one", "two")


def test_responses_that_mitmproxy_sees_count() -> None:
    async def fails(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                await read_head(reader)
            except asyncio.IncompleteReadError:
                return
            writer.write(b"HTTP/1.1 503 No\r\ncontent-length: 4\r\n\r\nbad\n")

    async def works(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                await read_head(reader)
            except asyncio.IncompleteReadError:
                return
            writer.write(b"HTTP/1.1 200 Yes\r\ncontent-length: 5\r\n\r\ngood\n")

    handlers: dict[str, Handler] = {"bad": fails, "good": works}

    class Script:
        """Its own answer says nothing about the agent, also where a connection is open."""

        def request(self, flow: http.HTTPFlow) -> None:
            if flow.request.path == "/mine":
                flow.response = http.Response.make(500)

    async def main() -> None:
        async with tunnel(
            *handlers,
            serve=lambda name: service(handlers[name]),
            scripts=[Script()],
            whip_outlier_ejection=True,
        ) as t:
            url = "http://bad.testdom/"
            await t.curl(*asking(url, *[["x: y"]] * (FAILURES - 1)), "--next", f"{url}mine")
            assert t.watch.responses == [("bad", 503)] * (FAILURES - 1)
            assert not any(agent.ejected for agent in t.broker.agents)
            await t.curl(*asking("http://bad.testdom/", ["x: y"]))
            await until(lambda: any(agent.ejected for agent in t.broker.agents))
            served: Counter[str] = Counter()
            for _ in range(10):
                finished = await t.curl("http://testdom/")
                served[finished.output.strip()] += 1
            assert served == {"good": 10}
            assert (await t.curl("http://bad.testdom/")).output == "bad\n"

    run(main())
