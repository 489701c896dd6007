"""A forward whose agent has a connection parked: asked at once, whatever it answers then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from tunnel import Watch, broker_settings, registration, run, scripted, until
from whip_core import Broker, control, hookimpl
from whip_core import session as sessions
from whip_core.session import Session
from whip_core.testing.agent import FramedReverse, ScriptedAgent


@dataclass
class Forwarded:
    broker: Broker
    watch: Watch
    agent: ScriptedAgent
    parked: FramedReverse
    address: tuple[str, int]

    @property
    def session(self) -> Session:
        [session] = self.broker._registrar.registry
        return session


@asynccontextmanager
async def forwarded(*plugins: object) -> AsyncIterator[Forwarded]:
    """A forward to an agent of the test's own, which has one connection parked."""
    watch = Watch()
    async with (
        Broker(broker_settings(), plugins=[watch, *plugins]) as broker,
        scripted(broker, registration()) as agent,
    ):
        await agent.expect(control.Registered)
        parked = await agent.connect_framed()
        await until(lambda: broker.agents[0].parked == 1)
        async with broker.forward("instance1.testdom", 80) as address:
            assert isinstance(address, tuple)
            yield Forwarded(broker, watch, agent, parked, address)


async def greeted(reader: asyncio.StreamReader, service: asyncio.StreamWriter) -> None:
    """The client hears what the service says."""
    service.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    service.transport.abort()


def test_no_task_waits_for_the_answer_and_what_the_client_said_first_arrives() -> None:
    async def main() -> None:
        async with forwarded() as made:
            reader, writer = await asyncio.open_connection(*made.address)
            writer.write(b"early")
            await made.parked.asked()
            assert not [task for task in asyncio.all_tasks() if "forward to" in task.get_name()]
            from_client, to_client = made.parked.accept()
            assert await from_client.readexactly(5) == b"early"
            [dial] = made.watch.dials
            assert dial.parked and dial.open_seconds is not None and dial.error is None
            assert [opened.dial_id for opened in made.watch.opened] == [dial.dial_id]
            await greeted(reader, to_client)
            await made.watch.until(lambda: len(made.watch.closed) == 1)
            writer.close()

    run(main())


def test_a_service_that_refuses_resets_the_client_and_the_connection_is_parked_again() -> None:
    async def main() -> None:
        async with forwarded() as made:
            reader, writer = await asyncio.open_connection(*made.address)
            await made.parked.asked()
            made.parked.refuse("no such table")
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()
            [dial] = made.watch.dials
            assert "no such table" in str(dial.error)
            assert len(dial.failed) == 1
            assert (made.session.streams, made.session.parked) == (0, 1)

    run(main())


@pytest.mark.parametrize("how", ["is lost", "says nothing"])
def test_a_parked_connection_that_fails_is_replaced_and_the_client_notices_nothing(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "PARKED_PATIENCE", 60.0 if how == "is lost" else 0.05)

    async def main() -> None:
        async with forwarded() as made:
            reader, writer = await asyncio.open_connection(*made.address)
            await made.parked.asked()
            if how == "is lost":
                made.parked.drop()
            request = await made.agent.expect(control.Connect)
            fresh = await made.agent.connect_framed(request)
            await fresh.asked()
            _, to_client = fresh.accept()
            await greeted(reader, to_client)
            [dial] = made.watch.dials
            assert not dial.parked and dial.error is None and not dial.failed
            await made.watch.until(lambda: len(made.watch.closed) == 1)
            assert made.session.streams == 0
            writer.close()

    run(main())


def test_a_forward_that_ends_before_the_answer_leaves_nothing_behind() -> None:
    async def main() -> None:
        async with forwarded() as made:
            reader, writer = await asyncio.open_connection(*made.address)
            await made.parked.asked()
            assert made.session.streams == 1
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        await made.parked.lost()
        assert (made.watch.opened, made.watch.closed, made.watch.dials) == ([], [], [])

    run(main())


def test_a_plugin_that_takes_its_time_is_asked_first() -> None:
    class Judge:
        @hookimpl
        async def whip_authorize_dial(self) -> str:
            await asyncio.sleep(0)
            return "not today"

    async def main() -> None:
        async with forwarded(Judge()) as made:
            reader, writer = await asyncio.open_connection(*made.address)
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()
            assert "not today" in str(made.watch.dials[0].error)
            assert made.session.parked == 1

    run(main())
