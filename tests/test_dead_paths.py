"""Packets that vanish without a word: both ends notice, and the agent comes back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from bad_link import BadLink
from client_agent import control_client
from client_agent.backoff import MAX_BOUND, RETURN_BOUND, Backoff
from client_agent.worker import UNANSWERED
from tunnel import (
    Log,
    Watch,
    agent_settings,
    broker_settings,
    client_files,
    exchange,
    registration,
    run,
    running,
    saying,
    service,
)
from whip_core import Broker, channel, control, heartbeat, settings
from whip_core.testing.agent import ScriptedAgent

NOTICED_WITHIN = 45.0
"""Seconds, by both ends (docs/faults.md)."""
KEEPALIVE = 1.0
PINGS = 0.4
"""Seconds: the intervals of these tests, where a user has 20 and 15."""


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that notices a dead path does so in a second or two."""
    times = {
        "grpc.keepalive_time_ms": KEEPALIVE,
        "grpc.keepalive_timeout_ms": KEEPALIVE,
        "grpc.http2.ping_timeout_ms": KEEPALIVE,
        "grpc.min_reconnect_backoff_ms": KEEPALIVE,
    }
    options = [
        (name, int(times[name] * 1000) if name in times else value)
        for name, value in channel.CHANNEL_OPTIONS
    ]
    monkeypatch.setattr(control_client, "CHANNEL_OPTIONS", options)
    monkeypatch.setattr(heartbeat, "PING_INTERVAL", PINGS)
    monkeypatch.setattr(heartbeat, "SILENCE_LIMIT", 3 * PINGS)


class Tunnel:
    """A broker, an agent, and a link for each of the agent's two ways to it."""

    def __init__(
        self, broker: Broker, watch: Watch, control: BadLink, reverse: BadLink, log: Log
    ) -> None:
        self.broker = broker
        self.watch = watch
        self.control = control
        self.reverse = reverse
        self.log = log

    async def answers(self) -> None:
        """A dial gets through, now or when the agent is back."""
        streams = await self.broker.open_connection("instance1.testdom", 80, wait=MAX_BOUND)
        assert await exchange(streams, b"") == b"hello"


@asynccontextmanager
async def tunnel(*, tls: bool = True) -> AsyncIterator[Tunnel]:
    watch = Watch()
    async with AsyncExitStack() as stack:
        control, reverse = BadLink(), BadLink()
        for link in (control, reverse):
            await stack.enter_async_context(link)
        broker = await stack.enter_async_context(
            Broker(
                broker_settings(
                    tls=tls or None,
                    external_port=reverse.port,
                    ping_interval=PINGS,
                    ping_timeout=PINGS / 2,
                    preamble_timeout=KEEPALIVE,
                ),
                plugins=[watch],
            )
        )
        control.target_port, reverse.target_port = broker.control_port, broker.reverse_port
        port = await stack.enter_async_context(service(saying(b"hello")))
        log = stack.enter_context(Log())
        await stack.enter_async_context(
            running(
                agent_settings(
                    f"localhost:{control.port}",
                    ports=f"80={port}",
                    tls=client_files() if tls else None,
                )
            )
        )
        await watch.until(lambda: bool(watch.joined))
        yield Tunnel(broker, watch, control, reverse, log)


@pytest.mark.parametrize("tls", [True, False])
def test_a_path_that_goes_silent_is_noticed_by_both_ends_and_the_agent_comes_back(
    tls: bool,
) -> None:
    async def main() -> None:
        async with tunnel(tls=tls) as there:
            await there.answers()
            for link in (there.control, there.reverse):
                link.silence()

            await there.watch.until(lambda: bool(there.watch.left))
            assert "has not answered" in there.watch.left[0][1]
            assert UNANSWERED in await there.log.until("lost the broker at")
            await there.reverse.until_ends(0)

            for link in (there.control, there.reverse):
                link.heal()
            await there.answers()
            assert len(there.watch.joined) == 2

    run(main())


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("leaves", "it closed its control stream"),
        ("drains and leaves", "it closed its control stream"),
        ("breaks off", "its control stream was lost"),
        ("is reset", "its control stream was lost"),
    ],
)
def test_the_broker_tells_a_lost_control_stream_from_one_that_was_closed(
    way: str, reason: str
) -> None:
    watch = Watch()

    async def main() -> None:
        async with (
            Broker(broker_settings(), plugins=[watch]) as broker,
            BadLink(broker.control_port) as link,
            ScriptedAgent(("127.0.0.1", link.port), registration()) as agent,
        ):
            await agent.expect(control.Registered)
            if way == "is reset":
                link.reset()
            elif way == "breaks off":
                await agent.vanish()
            else:
                if way.startswith("drains"):
                    await agent.send(control.Draining("it stops"))
                await agent.leave()
            await watch.until(lambda: bool(watch.left))
            [(_, why)] = watch.left
            assert why.startswith(reason)

    run(main())


def test_parked_connections_whose_path_goes_silent_are_closed_by_both_ends_and_replaced() -> None:
    async def main() -> None:
        async with tunnel() as there:
            await there.reverse.until_ends(2)
            there.reverse.silence()
            await there.reverse.until_ends(0)
            there.reverse.heal()

            await there.reverse.until_ends(2)
            await there.answers()
            assert there.watch.left == [], "the control stream was never in doubt"

    run(main())


def test_an_attempt_to_connect_that_is_never_answered_is_given_up_for_another() -> None:
    async def main() -> None:
        async with tunnel() as there:
            there.control.silence()
            await there.watch.until(lambda: bool(there.watch.left))
            await there.log.until("no broker at")
            there.control.heal()
            await there.answers()

    run(main())


def test_the_defaults_of_both_ends_and_of_both_connections_are_within_the_promise() -> None:
    limits = settings.BrokerSettings()
    assert channel.KEEPALIVE_TIME + channel.KEEPALIVE_TIMEOUT <= NOTICED_WITHIN
    # The first ping without an answer is up to one interval away, and judged by the next.
    assert limits.ping_timeout <= limits.ping_interval
    assert 2 * limits.ping_interval <= NOTICED_WITHIN
    assert channel.CONNECT_TIMEOUT <= MAX_BOUND


def test_agents_that_lose_their_broker_together_come_back_over_several_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count = 40
    delays: list[float] = []
    told = asyncio.Event()
    really_next = Backoff.next_delay

    def next_delay(backoff: Backoff) -> float:
        is_workers = backoff._lost  # others wait for what they never had
        delay = really_next(backoff)
        if is_workers:
            delays.append(delay)
        if len(delays) == count:
            told.set()
        return delay

    async def main() -> None:
        async with AsyncExitStack() as stack:
            log = stack.enter_context(Log())
            link = await stack.enter_async_context(BadLink())
            broker = await stack.enter_async_context(Broker(broker_settings()))
            link.target_port = broker.control_port
            for number in range(count):
                agent = agent_settings(f"127.0.0.1:{link.port}", ports="80", hostname=f"a{number}")
                await stack.enter_async_context(running(agent))
            await log.until("testdom at the broker", count)
            monkeypatch.setattr(Backoff, "next_delay", next_delay)
            link.silence()  # nobody comes back, so that each has had its first delay only
            link.reset()
            await told.wait()

    random.seed(7)
    run(main())
    busiest = max(sum(start <= delay < start + 1 for delay in delays) for start in delays)
    assert busiest <= count / RETURN_BOUND * 2
    assert max(delays) < RETURN_BOUND
