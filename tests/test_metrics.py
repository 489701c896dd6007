"""What Prometheus reads: the names, the labels, and what the numbers mean."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

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
from whip_core import Broker, control, hookimpl
from whip_core.agents import RequestFinished
from whip_core.errors import UnknownName
from whip_core.metrics import LATENCY_BUCKETS, AgentMetrics, BrokerMetrics, exposition
from whip_core.monitor import pages, serving
from whip_core.routes import Routes

Samples = dict[tuple[str, tuple[str, ...]], float]


async def scrape(address: str) -> list[Metric]:
    """What is served over HTTP, read by Prometheus' own parser."""

    def get() -> str:
        with urlopen(f"http://{address}/metrics", timeout=10) as response:
            return response.read().decode()

    return list(text_string_to_metric_families(await asyncio.to_thread(get)))


def samples(metrics: Iterable[Metric]) -> Samples:
    """Values by the sample's name and the values of its labels, in the order of their names."""
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for metric in metrics
        for sample in metric.samples
    }


def site(registry: CollectorRegistry) -> Routes:
    return Routes(pages(lambda accept: exposition(registry, accept), lambda: None))


async def values(registry: CollectorRegistry) -> Samples:
    async with serving("127.0.0.1:0", site(registry), chosen=True) as address:
        assert address is not None
        return samples(await scrape(address))


def test_the_six_names_their_types_and_labels_are_exact() -> None:
    """Dashboards and alerts of existing installations are written for these."""
    broker, agent = BrokerMetrics(), AgentMetrics()
    broker.whip_request_finished(RequestFinished(200, "HTTP/1.1", ""))
    watch = Watch()

    async def main() -> dict[str, tuple[str, set[str]]]:
        async with (
            service(echo) as port,
            Broker(broker_settings(ping_interval=0.01), plugins=[broker, watch]) as running_broker,
            running(agent_settings(running_broker.control_port, ports=f"80={port}")) as real,
        ):
            await real.wait_registered()
            streams = await running_broker.open_connection("instance1.testdom", 80)
            assert await exchange(streams, b"") == b""
            await watch.until(lambda: bool(watch.closed and watch.round_trips))
            agent.connections("testdom", "5051").inc()
            found = {}
            for registry in (broker.registry, agent.registry):
                async with serving("127.0.0.1:0", site(registry), chosen=True) as address:
                    for metric in await scrape(address or ""):
                        labels = {name for sample in metric.samples for name in sample.labels}
                        found[metric.name] = (metric.type, labels - {"le"})
            return found

    found = run(main())
    assert found["whip_server_active_registrations"] == ("gauge", {"domain"})
    assert found["whip_server_active_connections"] == ("gauge", {"domain", "port"})
    assert found["whip_server_tcp_connection_latency"] == ("histogram", {"domain", "op"})
    assert found["whip_server_client_round_trip_latency"] == ("histogram", {"domain"})
    assert found["whip_client_active_connections"] == ("gauge", {"domain", "port"})
    # The parser takes the _total off a counter's name, which its sample has.
    assert found["whip_proxy_requests"] == ("counter", {"http_status", "protocol", "error"})


def test_requests_are_counted_by_status_protocol_and_error_under_the_whole_name() -> None:
    metrics = BrokerMetrics()
    for status, error in ((200, ""), (200, ""), (502, "unknown-name")):
        metrics.whip_request_finished(RequestFinished(status, "HTTP/1.1", error))

    found = run(values(metrics.registry))
    # In the order of the labels' names: error, http_status, protocol.
    assert found["whip_proxy_requests_total", ("", "200", "HTTP/1.1")] == 2
    assert found["whip_proxy_requests_total", ("unknown-name", "502", "HTTP/1.1")] == 1


def test_plugins_have_collectors_in_the_registry_of_their_broker_or_agent() -> None:
    class Temperature:
        def __init__(self) -> None:
            self.registries: list[CollectorRegistry] = []

        @hookimpl
        def whip_metrics(self, registry: CollectorRegistry) -> None:
            self.registries.append(registry)
            Gauge("my_temperature", "In kelvin", registry=registry).set(300)

    plugin = Temperature()

    async def main() -> None:
        async with (
            Broker(broker_settings(), plugins=[plugin]) as broker,
            running(agent_settings(broker.control_port, ports="80"), plugins=[plugin]) as agent,
        ):
            await agent.wait_registered()
            assert plugin.registries == [broker.metrics.registry, agent.metrics.registry]
            for registry in plugin.registries:
                assert (await values(registry))["my_temperature", ()] == 300

    run(main())


def test_a_finished_request_is_told_to_plugins_of_which_the_metrics_are_one() -> None:
    told: list[RequestFinished] = []

    class Requests:
        @hookimpl
        def whip_request_finished(self, request: RequestFinished) -> None:
            told.append(request)

    broker = Broker(broker_settings(), plugins=[Requests()])
    broker.request_finished(RequestFinished(200, "HTTP/2.0", ""))
    assert told == [RequestFinished(200, "HTTP/2.0", "")]
    found = run(values(broker.metrics.registry))
    assert found["whip_proxy_requests_total", ("", "200", "HTTP/2.0")] == 1


def test_agents_are_counted_and_not_domains() -> None:
    async def main() -> None:
        async with Broker(broker_settings()) as broker:

            async def registrations(domain: str) -> float:
                found = await values(broker.metrics.registry)
                return found["whip_server_active_registrations", (domain,)]

            async with (
                scripted(broker, registration("a")) as one,
                scripted(broker, registration("b")) as two,
                scripted(broker, registration("a", domain="other")) as three,
            ):
                for agent in (one, two, three):
                    await agent.expect(control.Registered)
                assert await registrations("testdom") == 2
                assert await registrations("other") == 1
                async with scripted(broker, registration("a")) as again:
                    await again.expect(control.Registered)
                    assert await registrations("testdom") == 2
            await until(lambda: not broker.agents)
            assert await registrations("testdom") == 0

    run(main())


def test_open_streams_are_counted_by_domain_and_port_at_both_ends() -> None:
    watch = Watch()

    async def main() -> None:
        async with (
            service(echo) as one,
            service(echo) as two,
            Broker(broker_settings(), plugins=[watch]) as broker,
            running(agent_settings(broker.control_port, ports=f"80={one},81={two}")) as agent,
        ):
            await agent.wait_registered()

            async def connections(registry: CollectorRegistry, end: str) -> dict[str, float]:
                name = f"whip_{end}_active_connections"
                return {
                    key[1]: value
                    for (sample, key), value in (await values(registry)).items()
                    if sample == name and key[0] == "testdom"
                }

            streams = [
                await broker.open_connection(name, port)
                for name, port in (("instance1.testdom", 80), ("testdom", 80), ("testdom", 81))
            ]
            # The broker tells the exposed ports, the agent the services' own.
            assert await connections(broker.metrics.registry, "server") == {"80": 2, "81": 1}
            at_agent = {str(one): 2, str(two): 1}
            assert await connections(agent.metrics.registry, "client") == at_agent
            for stream in streams:
                await exchange(stream, b"12345")
            await watch.until(lambda: len(watch.closed) == 3)
            assert await connections(broker.metrics.registry, "server") == {"80": 0, "81": 0}
            none = dict.fromkeys(at_agent, 0)
            while await connections(agent.metrics.registry, "client") != none:
                pass
            found = await values(broker.metrics.registry)
            for direction in ("to_agent", "from_agent"):
                assert found["whip_server_stream_bytes_total", (direction, "testdom")] == 15

    run(main())


def test_the_latency_of_a_dial_is_told_as_a_whole_and_in_its_steps() -> None:
    async def main() -> None:
        async with (
            service(echo) as port,
            Broker(broker_settings()) as broker,
            running(agent_settings(broker.control_port, ports=f"80={port}")) as agent,
        ):
            await agent.wait_registered()
            for _ in range(3):
                await exchange(await broker.open_connection("instance1.testdom", 80), b"")
            with pytest.raises(UnknownName):
                await broker.open_connection("elsewhere.example", 80)
            found = await values(broker.metrics.registry)
            name = "whip_server_tcp_connection_latency"
            seconds = {}
            for op in ("", "resolve", "open"):
                assert found[f"{name}_count", ("testdom", op)] == 3
                seconds[op] = found[f"{name}_sum", ("testdom", op)]
            assert 0 < seconds["resolve"] < seconds["open"] < seconds[""] < 3 * 10
            assert found["whip_server_dial_failures_total", ("unknown-name",)] == 1
            assert not any("elsewhere.example" in labels for _, labels in found)

    run(main())


def test_the_buckets_reach_from_100_microseconds_to_10_seconds() -> None:
    assert (min(LATENCY_BUCKETS), max(LATENCY_BUCKETS)) == (0.0001, 10.0)


def test_the_round_trip_of_each_ping_is_told() -> None:
    watch = Watch()

    async def main() -> None:
        async with (
            Broker(broker_settings(ping_interval=0.01), plugins=[watch]) as broker,
            scripted(broker),
        ):
            await watch.until(lambda: len(watch.round_trips) >= 3)
            found = await values(broker.metrics.registry)
            assert found["whip_server_client_round_trip_latency_count", ("testdom",)] >= 3

    run(main())
