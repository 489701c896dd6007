"""What a flow knows of its tunnel, and where a person finds it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from mitmproxy import flowfilter, http
from mitmproxy.addons.view import View
from mitmproxy.connection import Server
from mitmproxy.io import FlowReader, FlowWriter
from mitmproxy.test import tflow

from agent_views import view
from fleet import fleet
from mitm import FakeBroker, answering, curl
from test_addon import connect_through
from tunnel import echo, run
from whip_addon import facts as keys
from whip_addon.answers import Answer
from whip_addon.facts import MEANINGS, PREFIX, facts_of, summary
from whip_addon.labels import FAILED_MARKER, Labels
from whip_addon.pins import Pins
from whip_addon.prompt import Prompt
from whip_addon.transports import place_of
from whip_core.agents import DialFinished
from whip_core.caller import NOBODY
from whip_core.errors import DialError
from whip_core.names import Target

OF_EVERY_DIAL = set(MEANINGS) - {keys.ERROR, keys.FAULT, keys.RELAYED_BY}


def test_a_request_knows_its_tunnel_and_says_so_in_its_comment() -> None:
    async def main() -> None:
        async with fleet({"instance1.testdom": answering(b"hi")}, tls=True) as it:
            await curl("--proxy", it.proxy.url, "http://instance1.testdom/")
            [flow] = it.flows
            facts = flow.metadata
            [agent] = it.broker.agents
            assert facts.keys() >= OF_EVERY_DIAL
            assert facts["whip.target"] == "instance1.testdom:80"
            assert facts["whip.instance"] == "instance1.testdom"
            assert facts["whip.agent_address"] == "{}:{}".format(*agent.address)
            assert facts["whip.port"] == agent.ports[0]
            assert facts["whip.broker"] == it.broker.broker_id
            assert re.fullmatch("[0-9a-f]{32}", facts["whip.dial"])
            assert facts["whip.certificate"] == "*.testdom"
            assert facts["whip.reused"] is False
            parts = [facts[f"whip.{part}_ms"] for part in ("resolve", "pick", "open")]
            assert 0 < sum(parts) <= facts["whip.total_ms"] + 0.002
            assert flow.comment.startswith("whip: instance1.testdom port ")
            assert facts["whip.dial"][:8] in flow.comment
            assert flow.marked == ""

    run(main())


def test_the_next_request_on_the_connection_has_the_same_facts_and_says_reused() -> None:
    async def main() -> None:
        async with fleet({"instance1.testdom": answering(b"hi")}) as it:
            url = "http://instance1.testdom/"
            await curl("--proxy", it.proxy.url, url, url)
            first, second = it.flows
            assert second.metadata == {**first.metadata, "whip.reused": True}
            assert "reused" in second.comment
            assert "reused" not in first.comment

    run(main())


def test_a_domains_request_knows_which_instance_has_served_it() -> None:
    async def main() -> None:
        names = [f"instance{number}.testdom" for number in (1, 2, 3)]
        async with fleet({name: answering(name.encode()) for name in names}) as it:
            for _ in names:
                await curl("--proxy", it.proxy.url, "http://testdom/")
            served = [flow.response.text for flow in it.flows if isinstance(flow, http.HTTPFlow)]
            assert [flow.metadata["whip.instance"] for flow in it.flows] == served
            assert {flow.metadata["whip.target"] for flow in it.flows} == {"testdom:80"}

    run(main())


@pytest.mark.parametrize("strategy", ["eager", "lazy"])
def test_a_tcp_flow_has_the_facts_too(strategy: str) -> None:
    async def main() -> None:
        async with fleet({"instance1.testdom": echo}, connection_strategy=strategy) as it:
            [agent] = it.broker.agents
            reader, writer = await connect_through(
                it.proxy.port, f"instance1.testdom:{agent.ports[0]}"
            )
            writer.write(b"\x00hello\n")
            await reader.readline()
            writer.write_eof()
            await reader.read()
            writer.close()
            await it.ended.until(1)
            [flow] = it.flows
            assert flow.type == "tcp"
            assert flow.metadata["whip.instance"] == "instance1.testdom"
            assert flow.comment.startswith("whip: instance1.testdom")

    run(main())


def test_a_failed_dial_is_a_flow_with_the_reason() -> None:
    async def main() -> None:
        async with fleet({"instance1.testdom": answering(b"hi")}) as it:
            for port, status in ((81, "502"), (80, "200")):
                head = await curl(
                    *("--proxy", it.proxy.url, "--output", "/dev/null", "--write-out"),
                    *("%{http_code}", f"http://instance1.testdom:{port}/"),
                )
                assert head.output == status
            failed, worked = it.flows
            assert failed.error is not None
            assert "does not expose port 81" in failed.error.msg
            assert failed.metadata["whip.error"] == "port-not-exposed"
            assert failed.metadata["whip.target"] == "instance1.testdom:81"
            assert "port-not-exposed" in failed.comment
            assert failed.marked == FAILED_MARKER
            assert "whip.error" not in worked.metadata

    run(main())


def test_a_tunnel_that_cannot_be_opened_is_a_flow_although_mitmproxy_shows_no_connect() -> None:
    view = View()

    async def main() -> None:
        async with fleet({"instance1.testdom": answering(b"hi")}, view) as it:
            await curl("--proxy", it.proxy.url, "https://instance2.testdom/")
            [flow] = it.flows
            assert flow.metadata["whip.error"] == "unknown-name"
            assert list(view) == [flow]
            assert flow.error is not None
            assert "no agent is registered under that name" in flow.error.msg

    run(main())


def test_a_flow_that_went_elsewhere_has_none() -> None:
    async def main() -> None:
        async with fleet({"instance1.testdom": answering(b"hi")}, whip_fallback=True) as it:
            [agent] = it.broker.agents
            await curl("--proxy", it.proxy.url, f"http://127.0.0.1:{agent.ports[0]}/")
            [flow] = it.flows
            assert (flow.metadata, flow.comment, flow.marked) == ({}, "", "")

    run(main())


def test_what_the_user_has_written_stays() -> None:
    class Script:
        def request(self, flow: http.HTTPFlow) -> None:
            flow.comment = "mine"
            flow.marked = ":heart:"

    async def main() -> None:
        async with fleet({"instance1.testdom": answering(b"hi")}, Script()) as it:
            await curl("--proxy", it.proxy.url, "http://instance1.testdom/")
            await curl("--proxy", it.proxy.url, "http://instance1.testdom:81/")
            assert {(flow.comment, flow.marked) for flow in it.flows} == {("mine", ":heart:")}

    run(main())


def test_flow_files_filters_and_har_have_the_facts(tmp_path: Path) -> None:
    async def main() -> None:
        services = {f"instance{number}.testdom": answering(b"hi") for number in (1, 2)}
        async with fleet(services) as it:
            for name in (*services, "instance3.testdom"):
                await curl("--proxy", it.proxy.url, f"http://{name}/")
            with (tmp_path / "flows").open("wb") as file:
                writer = FlowWriter(file)
                for flow in it.flows:
                    writer.add(flow)

    async def with_har() -> dict[str, object]:
        async with fleet({"instance1.testdom": answering(b"hi")}) as it:
            exporter = it.proxy.master.addons.get("savehar")
            await curl("--proxy", it.proxy.url, "http://instance1.testdom/")
            made = exporter.make_har(it.flows)
            json.dumps(made)
            entry: dict[str, object] = made["log"]["entries"][0]
            assert entry["comment"] == it.flows[0].comment
            return entry

    run(main())
    with (tmp_path / "flows").open("rb") as file:
        flows = list(FlowReader(file).stream())
    assert [flow.metadata["whip.target"] for flow in flows] == [
        f"instance{number}.testdom:80" for number in (1, 2, 3)
    ]
    for expression, matches in (
        ("~meta 'whip.instance: instance2.testdom'", [False, True, False]),
        ("~comment 'instance2.testdom port'", [False, True, False]),
        ("~comment 'dial failed'", [False, False, True]),
        ("~marked", [False, False, True]),
    ):
        matching = flowfilter.parse(expression)
        assert [bool(matching(flow)) for flow in flows] == matches, expression
    entry = run(with_har())
    assert isinstance(entry["_whip"], dict)
    assert entry["_whip"]["instance"] == "instance1.testdom"


def test_a_replayed_flow_loses_what_was_said_of_its_first_tunnel() -> None:
    labels, flow = Labels(), tflow.tflow(resp=True)
    flow.metadata = {"whip.error": "timeout", "whip.target": "a.b:80", "whip.total_ms": 1.0}
    flow.comment, flow.marked = summary(flow.metadata), FAILED_MARKER
    new = {"whip.target": "a.b:80", "whip.instance": "a.b", "whip.port": 80}
    new |= dict.fromkeys(sorted(OF_EVERY_DIAL - new.keys()), "1")
    labels.dialled(flow.server_conn, new)
    labels.responseheaders(flow)
    assert flow.metadata == {**new, "whip.reused": False}
    assert (flow.marked, flow.comment) == ("", summary(flow.metadata))


def test_the_answer_to_a_failed_dial_can_be_replayed() -> None:
    flow = tflow.tflow(err=True)
    flow.error.msg = Answer("nobody", 502, "unknown-name", {"whip.error": "unknown-name"})
    flow.backup()
    flow.comment = "changed"
    assert flow.copy().error.msg == "nobody"


def test_a_dial_that_never_found_an_agent_is_told_in_one_line() -> None:
    error = DialError("nobody")
    dial = DialFinished(
        "ab" * 16, Target("a.b", 80), NOBODY, None, None, error, False, 0.5, None, 1
    )
    facts = facts_of(dial, "broker")
    assert summary(facts) == "whip: dial failed: other after 1000 ms"
    assert facts.keys() <= MEANINGS.keys()


def test_an_agent_that_came_by_ipv6_is_told_with_its_port_apart() -> None:
    agent = view(address=("2001:db8::1", 50000))
    dial = DialFinished("ab" * 16, Target("a.b", 80), NOBODY, agent, 80, None, False, 0.5, None, 1)
    assert facts_of(dial, "broker")[keys.AGENT_ADDRESS] == "[2001:db8::1]:50000"
    _, row = Prompt(lambda: FakeBroker(agents=[agent]), Pins()).agents()
    assert "[2001:db8::1]:50000" in row


def test_a_server_that_is_reached_by_ipv6_is_told_with_its_port_apart() -> None:
    server = Server(address=("2001:db8::1", 80, 0, 0))
    assert place_of(server) == "[2001:db8::1]:80"
    assert place_of(Server(address=None)) == "the service"


def test_every_key_is_documented_once() -> None:
    constants = [value for name, value in vars(keys).items() if name.isupper()]
    assert sorted(MEANINGS) == sorted(
        value for value in constants if isinstance(value, str) and value != PREFIX
    )
