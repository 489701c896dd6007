"""Registration: who gets in, and who holds a name."""

from __future__ import annotations

from pathlib import Path

import pytest

from client_agent.discovery import Resolvers
from tunnel import (
    Log,
    Watch,
    agent_settings,
    broker_settings,
    client_files,
    registration,
    run,
    running,
    scripted,
)
from whip_core import Broker, control, hookimpl
from whip_core.agents import Peer, Registration
from whip_core.control_wire import encode_agent_message

SOON = 0.05
"""Seconds for a probe that nobody is going to answer."""


def names(broker: Broker) -> list[str]:
    return [str(agent.name) for agent in broker.agents]


# Registration


def test_an_agent_is_seen_with_all_that_it_said_of_itself() -> None:
    hello = registration("Instance1", 5051, 80, instance_id="id", labels={"zone": "eu"})

    async def main() -> None:
        async with Broker(broker_settings()) as broker, scripted(broker, hello) as agent:
            registered = await agent.expect(control.Registered)
            [view] = broker.agents
            assert str(view.name) == "instance1.testdom"
            assert (view.ports, view.labels) == ((5051, 80), {"zone": "eu"})
            assert (view.instance_id, view.session_id) == ("id", registered.session_id)
            assert view.address[0] == "127.0.0.1"
            assert (view.draining, view.streams) == (False, 0)
            assert (registered.reverse_host, registered.reverse_port) == (
                "localhost",
                broker.reverse_port,
            )

    run(main())


@pytest.mark.parametrize(
    ("hello", "why"),
    [
        (registration("no such name!"), "'no such name!' is not a host name"),
        (registration(""), "is not a host name"),
        (registration("a", domain="b" * 64), "is not a host name"),
        (registration("a", 65536), "65536 is not a port"),
        (registration("a", *range(1, 1026)), "1025 ports, at most 1024"),
        (registration("a", labels={str(n): "" for n in range(33)}), "33 labels"),
        (encode_agent_message(control.Draining()), "the first message has to be a registration"),
        (b"\xff\xff\xff", "no control message"),
    ],
)
def test_a_registration_that_cannot_be_is_refused_with_the_reason(
    hello: control.Register | bytes, why: str
) -> None:
    async def main() -> None:
        async with Broker(broker_settings()) as broker, scripted(broker, hello) as agent:
            end = await agent.ended()
            assert (end.status, broker.agents) == ("INVALID_ARGUMENT", [])
            assert why in end.details
            assert "\n" not in end.details

    run(main())


def test_a_plugin_refuses_an_agent_and_the_agent_is_told_its_reason() -> None:
    class OnlyEurope:
        @hookimpl
        async def whip_authorize_agent(self, registration: Registration, peer: Peer) -> str | None:
            assert peer.address[0] == "127.0.0.1"
            return None if registration.labels.get("zone") == "eu" else "only zone=eu is served"

    async def main() -> None:
        async with Broker(broker_settings(), plugins=[OnlyEurope()]) as broker:
            async with scripted(broker) as refused:
                end = await refused.ended()
                assert end.status == "PERMISSION_DENIED"
                assert end.details == "instance1.testdom refused: only zone=eu is served"
            async with scripted(broker, registration(labels={"zone": "eu"})) as agent:
                await agent.expect(control.Registered)

    run(main())


def test_a_plugin_that_fails_lets_nobody_in_and_leaves_nobody_hanging() -> None:
    class Broken:
        @hookimpl
        def whip_authorize_agent(self) -> str | None:
            raise ZeroDivisionError

    async def main() -> None:
        async with Broker(broker_settings(), plugins=[Broken()]) as broker, scripted(broker) as one:
            end = await one.ended()
            assert (end.status, broker.agents) == ("PERMISSION_DENIED", [])
            assert "plugin Broken failed" in end.details

    run(main(), logs_errors=True)


def test_a_certificate_that_does_not_cover_the_name_is_refused_clearly() -> None:
    async def main() -> None:
        async with Broker(broker_settings(tls=True)) as broker:
            files = client_files("instance2.testdom")
            async with scripted(broker, tls=files) as agent:
                end = await agent.ended()
                assert end.status == "PERMISSION_DENIED"
                assert end.details == (
                    "instance1.testdom refused: its certificate is for instance2.testdom, "
                    "which does not cover instance1.testdom"
                )
            async with scripted(broker, registration("instance2"), tls=files) as agent:
                await agent.expect(control.Registered)
                assert broker.agents[0].certificate_names == ("instance2.testdom",)

    run(main())


def test_a_wildcard_certificate_is_for_its_own_domain_and_a_full_name_for_any_split() -> None:
    async def main() -> None:
        async with Broker(broker_settings(tls=True)) as broker:
            team = client_files("*.a.testdom")
            # `testdom` leads to all of its agents: this one must not be among them.
            async with scripted(broker, registration("x.a", domain="testdom"), tls=team) as agent:
                end = await agent.ended()
                assert end.status == "PERMISSION_DENIED"
                assert end.details.endswith("does not cover x.a.testdom in the domain testdom")
            async with scripted(broker, registration("x", domain="a.testdom"), tls=team) as agent:
                await agent.expect(control.Registered)
            own = client_files("x.a.testdom")
            for hostname, domain in (("x.a", "testdom"), ("x", "a.testdom")):
                hello = registration(hostname, domain=domain, instance_id="one")
                async with scripted(broker, hello, tls=own) as agent:
                    await agent.expect(control.Registered)

    run(main())


def test_a_wildcard_certificate_covers_one_label_and_no_more() -> None:
    async def main() -> None:
        async with Broker(broker_settings(tls=True)) as broker:
            files = client_files("*.testdom")
            async with scripted(broker, registration("a.b"), tls=files) as agent:
                assert (await agent.ended()).status == "PERMISSION_DENIED"
            async with scripted(broker, registration("a"), tls=files) as agent:
                await agent.expect(control.Registered)

    run(main())


# Who holds a name


def test_the_same_instance_replaces_its_old_session_which_does_not_take_it_along() -> None:
    watch = Watch()

    async def main() -> None:
        async with Broker(broker_settings(), plugins=[watch]) as broker, scripted(broker) as old:
            await old.expect(control.Registered)
            async with scripted(broker) as new:
                successor = await new.expect(control.Registered)
                end = await old.ended()
                assert (end.status, end.details) == ("ABORTED", "replaced by a newer session")
                await watch.until(lambda: len(watch.left) == 1)
                [view] = broker.agents
                assert view.session_id == successor.session_id
                await old.vanish()
                async with scripted(broker, registration("other")) as other:
                    await other.expect(control.Registered)  # the broker has gone on
                    assert names(broker) == ["instance1.testdom", "other.testdom"]
            await watch.until(lambda: len(watch.left) == 3)
            assert broker.agents == []

    run(main())


def test_another_instance_is_refused_with_who_holds_the_name_while_that_one_answers() -> None:
    watch = Watch()

    async def main() -> None:
        async with (
            Broker(broker_settings(), plugins=[watch]) as broker,
            scripted(broker) as holder,
        ):
            mine = await holder.expect(control.Registered)
            async with scripted(broker, registration(instance_id="another")) as second:
                end = await second.ended()
                assert [(refusal.what, refusal.reason) for refusal in watch.refused] == [
                    ("agent", "name-taken")
                ]
                assert end.status == "ALREADY_EXISTS"
                assert "instance1.testdom is held by a live agent at 127.0.0.1 port" in end.details
            assert [view.session_id for view in broker.agents] == [mine.session_id]

    run(main())


def test_another_instance_takes_over_when_the_holder_does_not_answer() -> None:
    watch = Watch()

    async def main() -> None:
        settings = broker_settings(probe_timeout=SOON)
        async with (
            Broker(settings, plugins=[watch]) as broker,
            scripted(broker, answers_pings=False) as holder,
        ):
            await holder.expect(control.Registered)
            async with scripted(broker, registration(instance_id="another")) as second:
                await second.expect(control.Registered)
                [(old, new)] = watch.taken_over
                assert (old.instance_id, new.instance_id) == ("instance1", "another")
                assert (await holder.ended()).status == "ABORTED"
                assert [view.instance_id for view in broker.agents] == ["another"]

    run(main())


def test_two_that_want_a_name_at_once_are_both_refused_while_its_holder_answers() -> None:
    async def main() -> None:
        async with (
            Broker(broker_settings(probe_timeout=1.0)) as broker,
            scripted(broker, answers_pings=False) as holder,
        ):
            await holder.expect(control.Registered)
            async with (
                scripted(broker, registration(instance_id="second")) as second,
                scripted(broker, registration(instance_id="third")) as third,
            ):
                await holder.expect(control.Ping)
                await holder.pong(await holder.expect(control.Ping))
                for rival in (second, third):
                    assert (await rival.ended()).status == "ALREADY_EXISTS"
                assert [view.instance_id for view in broker.agents] == ["instance1"]

    run(main())


def test_an_old_agent_that_comes_back_has_its_name_once_the_old_session_is_silent() -> None:
    hello = registration(protocol_version=0, instance_id="")

    async def main() -> None:
        watch = Watch()
        settings = broker_settings(probe_timeout=SOON)
        async with (
            Broker(settings, plugins=[watch]) as broker,
            scripted(broker, hello, answers_pings=False),
        ):
            await watch.until(lambda: len(watch.joined) == 1)
            async with scripted(broker, hello):
                await watch.until(lambda: len(watch.joined) == 2)
                assert names(broker) == ["instance1.testdom"]

    run(main())


def test_localhost_with_two_addresses_gives_one_registration_and_no_ghost(
    tmp_path: Path,
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n::1 localhost\n")
    watch = Watch()

    async def main() -> None:
        async with Broker(broker_settings(listen_host=None), plugins=[watch]) as broker:
            settings = agent_settings(broker.control_port, ports="80")
            with Log() as log:
                async with running(settings, Resolvers(hosts_file=hosts)) as agent:
                    await agent.wait_registered()
                    await log.until("is a broker that we are registered at already")
                    assert names(broker) == ["instance1.testdom"]
                    assert len(agent.registered_at) == 1
                    assert len(watch.joined) - len(watch.left) == 1
            await watch.until(lambda: len(watch.joined) == len(watch.left))
            assert broker.agents == []

    run(main())
