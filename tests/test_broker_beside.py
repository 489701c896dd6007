"""A proxy that uses a broker in another process has the same face as one that is a broker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from mitmproxy.exceptions import CommandError

from fleet import Ended
from http_tunnel import Tunnel, asking
from mitm import answering, proxy, service
from test_request_picking import Canary
from tunnel import Watch, agent_settings, broker_settings, run, running, until
from whip_addon import facts
from whip_addon.lifecycle import WhipAddon
from whip_core import Broker, Caller, hookimpl
from whip_core.agents import AgentView
from whip_core.cli import main as whip
from whip_core.dial_address import DialAddress


@asynccontextmanager
async def beside(
    folder: Path,
    *names: str,
    plugins: Sequence[object] = (),
    scripts: Sequence[object] = (),
    picker: str = "random",
    **options: Any,
) -> AsyncIterator[Tunnel]:
    """mitmproxy that dials through a broker's socket; instances of testdom say who they are."""
    watch, socket = Watch(), DialAddress(path=folder / "dial.sock")
    settings = broker_settings(dial_listen=(socket,), picker=picker)
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(Broker(settings, plugins=[watch, *plugins]))
        for name in names:
            port = await stack.enter_async_context(service(answering(name.encode() + b"\n")))
            agent = await stack.enter_async_context(
                running(
                    agent_settings(
                        broker.control_port,
                        ports=f"80={port}",
                        hostname=name,
                        labels={"canary": str(name == "canary")},
                    )
                )
            )
            await agent.wait_registered()
        addon = WhipAddon()
        it = await stack.enter_async_context(
            proxy(
                *(None, *scripts),
                addon=addon,
                whip_broker=str(socket),
                whip_external_tcp_address=None,
                **options,
            )
        )
        yield Tunnel(it, broker, watch)


def test_each_request_goes_where_the_brokers_plugins_want_it(tmp_path: Path) -> None:
    seen: list[Caller] = []

    class Seeing:
        @hookimpl
        def whip_authorize_dial(self, caller: Caller) -> None:
            seen.append(caller)

    async def main() -> None:
        async with beside(tmp_path, "stable", "canary", plugins=[Canary(), Seeing()]) as t:
            canary, plain = ["x-canary: 1"], ["x-canary: 0"]
            finished = await t.curl(
                *asking("http://testdom/some?thing", plain, canary, canary, plain, canary)
            )
            assert finished.output.split() == ["stable", "canary", "canary", "stable", "canary"]
            request = seen[1].request
            assert request is not None
            assert (request.method, request.host, request.path) == ("GET", "testdom", "/some?thing")
            assert request.headers["x-canary"] == "1"
            assert seen[1].address is not None
            assert seen[1].address[0] == "127.0.0.1"

    run(main())


def test_a_sticky_picker_of_the_broker_keeps_a_user_at_an_instance(tmp_path: Path) -> None:
    async def main() -> None:
        async with beside(tmp_path, "a", "b", "c", picker="sticky:header=x-user") as t:
            users = [[f"x-user: {number % 10}"] for number in range(20)]
            served = (await t.curl(*asking("http://testdom/", *users))).output.split()
            assert served[:10] == served[10:]
            assert set(served) == {"a", "b", "c"}

    run(main())


def test_where_its_picking_does_not_go_by_the_caller_connections_are_kept(tmp_path: Path) -> None:
    async def main() -> None:
        async with beside(tmp_path, "a", "b") as t:
            await t.curl(*asking("http://testdom/", *[["x: y"]] * 5))
            assert len(t.dialled) == 1

    run(main())


def test_another_user_of_a_clients_connection_is_judged_by_himself(tmp_path: Path) -> None:
    class NoEves:
        @hookimpl
        def whip_authorize_dial(self, agent: AgentView, caller: Caller) -> str | None:
            return "no eves" if caller.proxy_user == "eve" else None

    async def main() -> None:
        async with beside(tmp_path, "instance1", plugins=[NoEves()], proxyauth="any") as t:
            ann, eve = (
                ["proxy-authorization: Basic " + given] for given in ("YW5uOng=", "ZXZlOng=")
            )
            finished = await t.curl(*asking("http://instance1.testdom/", ann, eve, ann))
            assert finished.output.count("instance1\n") == 2
            assert "no eves" in finished.output

    run(main())


def test_flows_know_their_tunnel(tmp_path: Path) -> None:
    async def main() -> None:
        ended = Ended()
        async with beside(tmp_path, "instance1", scripts=[ended]) as t:
            await t.curl("http://instance1.testdom/")
            await ended.until(1)
            told = ended.flows[0].metadata
            assert told[facts.INSTANCE] == "instance1.testdom"
            assert told[facts.BROKER] == t.broker.broker_id
            assert told[facts.DIAL] == t.watch.dials[0].dial_id
            assert told[facts.PORT] == 80

    run(main())


@pytest.mark.parametrize(
    "given",
    [
        *("--picker=sticky", "--policy=/x", "--audit-log=/x", "--plugin=x", "--no-plugin=x"),
        *("--plugin-set=a.b=c", "--outlier-ejection=true", "--relay=true", "--fabric=nats://x"),
        *("--max-dial-rate=5", "--whip-grpc-listen-port=1"),
    ],
)
def test_what_is_the_brokers_to_decide_is_refused_at_the_start(given: str) -> None:
    result = CliRunner().invoke(whip, ["forward", "--broker=unix:/x", given, "1:a.b:1"])
    assert result.exit_code == 2
    option = given.partition("=")[0]
    assert f"{option} is for a broker: give it to the one at --broker unix:/x" in result.output


def test_agents_are_kicked_where_they_are_registered(tmp_path: Path) -> None:
    async def main() -> None:
        async with beside(tmp_path, "a") as t:
            command = t.proxy.master.commands.call_strings
            await until(lambda: command("whip.names", []))
            with pytest.raises(CommandError, match=r"a\.testdom is registered at .*: kick"):
                command("whip.kick", ["a.testdom"])

    run(main())
