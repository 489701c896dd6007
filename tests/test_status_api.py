"""What the status page is made of: agents and events as JSON, live, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from mitm import FakeBroker
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
    until,
)
from web import Events, ask
from whip_core import Broker, control, status
from whip_core.agent_table import Query, Row, select
from whip_core.agents import AgentView
from whip_core.errors import UnknownName
from whip_core.monitor import serving
from whip_core.names import AgentName


@asynccontextmanager
async def watched(**changes: object) -> AsyncIterator[tuple[Broker, Watch, str]]:
    """A broker, what it is told, and the address of its status page."""
    watch = Watch()
    async with Broker(broker_settings(**changes), plugins=[watch]) as broker:
        routes = status.Status(broker).routes()
        async with serving("127.0.0.1:0", routes, chosen=True) as address:
            assert address is not None
            yield broker, watch, address


def test_an_agent_is_told_with_its_labels_ports_streams_bytes_and_round_trips() -> None:
    async def main() -> None:
        async with (
            service(echo) as port,
            watched(ping_interval=0.01) as (broker, watch, address),
            running(
                agent_settings(broker.control_port, ports=f"80={port}", labels={"zone": "eu"})
            ) as agent,
        ):
            await agent.wait_registered()
            await watch.until(lambda: len(watch.round_trips) >= 3)
            await exchange(await broker.open_connection("testdom", 80), b"12345")
            reader, writer = await broker.open_connection("testdom", 80)
            writer.write(b"123")
            assert await reader.readexactly(3) == b"123"
            await watch.until(lambda: len(watch.closed) == 1)

            told = (await ask(address, "/api/agents")).json
            assert (told["total"], told["matching"], told["offset"]) == (1, 1, 0)
            [row] = told["agents"]
            assert (row["name"], row["domain"]) == ("instance1.testdom", "testdom")
            assert (row["labels"], row["ports"]) == ({"zone": "eu"}, [80])
            assert (row["streams"], row["draining"]) == (1, False)
            # The stream that has ended and the one that runs.
            assert (row["bytes_to_agent"], row["bytes_from_agent"]) == (8, 8)
            assert row["round_trip_ms"] > 0
            assert len(row["round_trips_ms"]) >= 3
            assert row["broker"] == broker.broker_id
            # What a session is proved by is nobody's business.
            assert not {"instance_id", "session_id", "secret"} & row.keys()
            writer.close()
            await writer.wait_closed()

    run(main())


def test_dials_failures_and_who_came_and_went_are_told_in_order() -> None:
    async def main() -> None:
        async with service(echo) as port, watched() as (broker, watch, address):
            async with running(agent_settings(broker.control_port, ports=f"80={port}")) as agent:
                await agent.wait_registered()
                await exchange(await broker.open_connection("testdom", 80), b"")
                with pytest.raises(UnknownName):
                    await broker.open_connection("instance2.testdom", 80)
            await watch.until(lambda: bool(watch.left))

            told = (await ask(address, "/api/events")).json
            assert [event["kind"] for event in told["events"]] == [
                *("joined", "dial", "failure", "left")
            ]
            numbers = [event["number"] for event in told["events"]]
            assert numbers == sorted(numbers)
            assert told["latest"] == numbers[-1]
            _, dial, failure, _ = told["events"]
            assert (dial["agent"], dial["target"]) == ("instance1.testdom", "testdom:80")
            assert (failure["reason"], failure["agent"]) == ("unknown-name", None)
            assert "no agent is registered under that name" in failure["error"]
            after = (await ask(address, f"/api/events?after={numbers[1]}")).json["events"]
            assert [event["number"] for event in after] == numbers[2:]
            only = (await ask(address, "/api/events?kind=failure&limit=1")).json["events"]
            assert only == [failure]

    run(main())


def test_a_listener_sees_an_agent_come_and_go_and_goes_on_where_it_was() -> None:
    async def main() -> None:
        async with watched() as (broker, _, address):
            listener = await Events.listen(address, "/api/live")
            assert (await listener.next("agents"))["agents"] == []
            async with scripted(broker) as agent:
                await agent.expect(control.Registered)
                [row] = (await listener.next("agents"))["agents"]
                assert row["name"] == "instance1.testdom"
                [joined] = (await listener.next("events"))["events"]
                assert joined["kind"] == "joined"
            assert (await listener.next("agents"))["agents"] == []
            [left] = (await listener.next("events"))["events"]
            assert left["kind"] == "left"
            listener.close()
            last = f"{broker.broker_id} {joined['number']}"
            again = await Events.listen(address, "/api/live", Last_Event_ID=last)
            assert (await again.next("events"))["events"] == [left]
            again.close()
            # One of another broker, or of this one before it was started anew.
            other = await Events.listen(address, "/api/live", Last_Event_ID="other 999")
            assert len((await other.next("events"))["events"]) == 2
            other.close()

    run(main())


def test_only_so_many_pages_are_open_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "MAX_LISTENERS", 1)
    monkeypatch.setattr(status, "TICK", 0.01)

    async def main() -> None:
        async with watched() as (_, _, address):
            listener = await Events.listen(address, "/api/live")
            await listener.next("broker")
            refused = await ask(address, "/api/live")
            assert (refused.status, "close one" in refused.error) == (503, True)
            listener.close()
            while (await ask(address, "/api/live", method="HEAD")).status == 503:
                pass

    run(main())


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (
            "/api/agents?page=2",
            "there is no argument 'page'; there are search, sort, offset, limit",
        ),
        ("/api/agents?sort=colour", "sort='colour' is not one of name, address"),
        ("/api/agents?limit=0", "limit='0' is not a whole number from 1 to 10000"),
        ("/api/agents?limit=many", "limit='many' is not a whole number"),
        ("/api/agents?offset=-1", "offset='-1' is not a whole number from 0"),
        ("/api/agents?offset=%D9%A3", "is not a whole number"),
        ("/api/agents?limit=" + "9" * 5000, "is not a whole number"),
        ("/api/agents?search=" + "x" * 201, "search is longer than 200 characters"),
        ("/api/agents?sort=%1b%5b31m", "sort='?[31m' is not one of"),
        ("/api/events?kind=stream", "kind='stream' is not one of joined, left, dial, failure"),
        ("/api/events?after=yesterday", "after='yesterday' is not a whole number"),
        ("/api/broker?x=1", "there is no argument 'x'"),
        ("/api/live?limit=x", "limit='x' is not a whole number"),
        ("/?x=1", "there is no argument 'x'"),
    ],
)
def test_wrong_arguments_are_answered_400_with_a_reason(target: str, said: str) -> None:
    async def main() -> None:
        async with watched() as (_, _, address):
            answered = await ask(address, target)
            assert answered.status == 400
            assert said in answered.error
            assert answered.error.isprintable()

    run(main())


def test_a_name_of_somebody_elses_for_this_machine_sees_no_page_but_metrics() -> None:
    """Or any web page could read it, through the browser of who looks at that page."""

    async def main() -> None:
        async with watched() as (_, _, address):
            for host in ("localhost", "LOCALHOST:9464", address, "[::1]:80", "whip.internal"):
                assert (await ask(address, "/api/broker", Host=host)).status == 200, host
            for host in ("evil.example", "evil.example:9464", "10.0.0.1", "", "localhost.evil"):
                assert (await ask(address, "/api/broker", Host=host)).status == 403, host
                for path in ("/metrics", "/healthz", "/readyz"):
                    assert (await ask(address, path, Host=host)).status == 200

    run(main())


def test_the_page_may_load_nothing_from_outside_and_nobody_may_frame_it() -> None:
    async def main() -> None:
        async with watched() as (_, _, address):
            for path in ("/", "/page.css", "/page.js", "/icon.svg"):
                answered = await ask(address, path)
                policy = answered.headers["content-security-policy"]
                assert "default-src 'none'" in policy
                assert "frame-ancestors 'none'" in policy
                assert "unsafe" not in policy
                assert answered.headers["x-content-type-options"] == "nosniff"
                assert b"//cdn" not in answered.body
            assert (
                "default-src 'none'"
                in (await ask(address, "/api/agents")).headers["content-security-policy"]
            )

    run(main())


def test_what_agents_choose_is_told_without_control_characters_and_bounded() -> None:
    hostile = "1.0\x1b[2J\u202e\n<script>" + "x" * 10_000
    labels = {"<b>": "<script>alert(1)</script>", "k": "&\"'"}

    async def main() -> None:
        async with watched() as (broker, _, address):
            hello = registration(software_version=hostile, labels=labels)
            async with scripted(broker, hello) as agent:
                await agent.expect(control.Registered)
                [row] = (await ask(address, "/api/agents")).json["agents"]
                assert row["version"].isprintable()
                assert len(row["version"]) < 300
                # Whoever shows it as text shows it as it is.
                assert row["labels"] == labels

    run(main())


def test_certificates_are_told_with_their_names_and_end_and_read_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with watched(tls=True) as (broker, _, address):
            told = (await ask(address, "/api/broker")).json
            own, authority = told["certificates"]
            assert (own["use"], own["names"], authority["use"]) == ("broker", ["localhost"], "CA")
            assert own["expires"] > told["since"]
            assert told["tls"] is True
            files = broker.settings.tls
            assert files is not None
            moved = replace(files, cert=tmp_path / "cert.pem")
            object.__setattr__(broker.settings, "tls", moved)
            assert (
                "does not exist"
                in (await ask(address, "/api/broker")).json["certificates"][0]["problem"]
            )
            moved.cert.write_bytes(files.cert.read_bytes())
            assert (await ask(address, "/api/broker")).json["certificates"][0] == {
                **own,
                "path": str(moved.cert),
            }

    run(main())


# Searching, sorting, pages


def view(number: int, **changes: object) -> AgentView:
    found = AgentView(
        name=AgentName(f"i{number:04}", "testdom"),
        ports=(80,),
        labels={"zone": "eu" if number % 2 else "us"},
        session_id="",
        instance_id="",
        address=("10.0.0.1", 1000 + number),
        certificate_names=(),
        protocol_version=1,
        software_version="0.1.0",
        streams=number % 7,
        parked=1,
        round_trip=None if number % 3 else number / 1000,
        registered_at=float(number),
        draining=False,
    )
    return found._replace(**changes)


def test_five_thousand_agents_are_searched_sorted_and_given_in_pages() -> None:
    rows = [Row(view(number), "b", to_agent=number) for number in range(5000)]

    def names(query: Query) -> list[str]:
        return [row.agent.name.hostname for row in select(rows, query)[0]]

    assert select(rows, Query(limit=50))[1] == 5000
    assert names(Query(limit=2, offset=4998)) == ["i4998", "i4999"]
    assert names(Query(limit=1, sort="to_agent", descending=True)) == ["i4999"]
    assert names(Query(words=("zone=eu", "i0003"))) == ["i0003"]
    assert names(Query(words=("zone=us", "i0003"))) == []
    # Equals stay in the order of their names, so that pages do not overlap.
    busiest = names(Query(sort="streams", descending=True, limit=3))
    assert busiest == ["i0006", "i0013", "i0020"]
    assert names(Query(sort="round_trip", limit=1)) == ["i0001"]


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 1000])
def test_many_agents_are_told_in_pieces_that_make_one_whole(count: int) -> None:
    broker = FakeBroker(agents=[view(number) for number in range(count)])

    async def main() -> None:
        routes = status.Status(broker).routes()
        async with serving("127.0.0.1:0", routes, chosen=True) as address:
            told = (await ask(address or "", "/api/agents")).json
            assert told["total"] == told["matching"] == count
            names = [agent["name"] for agent in told["agents"]]
            assert names == [f"i{number:04}.testdom" for number in range(count)]

    run(main())


def test_whether_an_agent_is_ejected_or_draining_is_told_and_found() -> None:
    rows = [Row(view(1), "b"), Row(view(2, ejected=True), "b"), Row(view(3, draining=True), "b")]
    told = [(row.as_dict()["ejected"], row.as_dict()["draining"]) for row in rows]
    assert told == [(False, False), (True, False), (False, True)]
    assert select(rows, Query(words=("ejected",)))[0] == [rows[1]]
    assert select(rows, Query(words=("draining",)))[0] == [rows[2]]


def test_a_kicked_agents_session_ends_and_its_name_is_free() -> None:
    async def main() -> None:
        async with watched() as (broker, watch, _), scripted(broker) as agent:
            await agent.expect(control.Registered)
            broker.kick("Instance1.testdom.")
            ended = await agent.ended()
            assert (ended.status, ended.details) == ("ABORTED", "ended by the operator")
            assert broker.agents == []
            assert watch.left[0][1] == "ended by the operator"
            with pytest.raises(UnknownName):
                broker.kick("instance1.testdom")
            with pytest.raises(UnknownName):
                broker.kick("no host name")
            async with scripted(broker, registration(instance_id="another")) as next_one:
                await next_one.expect(control.Registered)

    run(main())


def test_a_kicked_agent_comes_back_and_its_streams_go_on() -> None:
    async def main() -> None:
        async with (
            service(echo) as port,
            watched() as (broker, watch, _),
            running(agent_settings(broker.control_port, ports=f"80={port}")) as agent,
        ):
            await agent.wait_registered()
            reader, writer = await broker.open_connection("testdom", 80)
            broker.kick("instance1.testdom")
            writer.write(b"still here")
            assert await reader.readexactly(10) == b"still here"
            await watch.until(lambda: len(watch.joined) == 2)
            writer.close()
            await writer.wait_closed()
            await until(lambda: agent.why_not_ready() is None)

    run(main())
