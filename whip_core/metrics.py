"""Prometheus metrics: a broker's are a plugin on its events, an agent's are counted by the agent.

The one module that knows prometheus_client. Names and labels are DESIGN §8's; labels come
from registered agents and fixed sets, never from what a caller sends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, TypeVar

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from whip_core.agents import AgentView, DialFinished, Refusal, RequestFinished, StreamClosed
from whip_core.hookspecs import hookimpl

Metric = TypeVar("Metric", Counter, Gauge, Histogram)

LATENCY_BUCKETS = (
    *(0.0001, 0.00025, 0.0005),
    *(0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0),
)
"""Seconds: from a parked dial on loopback to the longest that a dial may take by default."""


class BrokerMetrics:
    """What a broker counts, and the proxy in front of it."""

    whip_name = "metrics"

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._registrations = Gauge(
            "whip_server_active_registrations",
            "Registered agents",
            ["domain"],
            registry=registry,
        )
        self._connections = Gauge(
            "whip_server_active_connections",
            "Open streams, by the exposed port they were opened to",
            ["domain", "port"],
            registry=registry,
        )
        self._latency = Histogram(
            "whip_server_tcp_connection_latency",
            "Seconds a dial took: in all (op empty), to resolve the name, to open the stream",
            ["domain", "op"],
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self._round_trip = Histogram(
            "whip_server_client_round_trip_latency",
            "Seconds from a ping on a control stream to its answer",
            ["domain"],
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self._requests = Counter(
            "whip_proxy_requests",
            "HTTP requests through the proxy",
            ["http_status", "protocol", "error"],
            registry=registry,
        )
        self._failures = Counter(
            "whip_server_dial_failures", "Dials that failed", ["reason"], registry=registry
        )
        self._refusals = Counter(
            "whip_server_refusals",
            "Registrations and connections that were refused",
            ["what", "reason"],
            registry=registry,
        )
        self._bytes = Counter(
            "whip_server_stream_bytes",
            "Bytes of finished streams, by direction",
            ["domain", "direction"],
            registry=registry,
        )
        self._cold_dials = Counter(
            "whip_server_unparked_dials",
            "Dials that found no parked connection and had to ask for one",
            ["domain"],
            registry=registry,
        )

        self._relayed = Counter(
            "whip_server_relayed_dials",
            "Dials that another broker relays for this one (by), or this one for another (for)",
            ["domain", "direction"],
            registry=registry,
        )
        self._dropped = Counter(
            "whip_server_fabric_dropped_messages",
            "Messages of other brokers that were not let in",
            ["reason"],
            registry=registry,
        )
        self._expiry = _expiry_gauge(registry)
        self._children: dict[tuple[int, tuple[str, ...]], Any] = {}

    def watch_parked(self, parked: Callable[[], Mapping[str, int]]) -> None:
        """Have `parked` asked, at each scrape, for the parked connections of each domain."""
        self.registry.register(
            _ByDomain(
                "whip_server_parked_connections",
                "Reverse connections that are open and idle",
                parked,
            )
        )

    def watch_ejected(self, ejected: Callable[[], Mapping[str, int]]) -> None:
        """Have `ejected` asked, at each scrape, for the agents of each domain left out of it."""
        self.registry.register(
            _ByDomain(
                "whip_server_ejected_agents",
                "Agents left out of their domain for a while, as they keep failing",
                ejected,
            )
        )

    def certificate_expires(self, moment: datetime) -> None:
        self._expiry.set(moment.timestamp())

    def _of(self, metric: Metric, *labels: str) -> Metric:
        """`metric.labels(*labels)`, remembered: finding a child anew costs more than counting."""
        key = (id(metric), labels)
        child: Metric | None = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child

    @hookimpl
    def whip_agent_joined(self, agent: AgentView) -> None:
        self._of(self._registrations, agent.name.domain).inc()

    @hookimpl
    def whip_agent_left(self, agent: AgentView) -> None:
        self._of(self._registrations, agent.name.domain).dec()

    @hookimpl
    def whip_refused(self, refusal: Refusal) -> None:
        self._of(self._refusals, refusal.what, refusal.reason).inc()

    @hookimpl
    def whip_round_trip(self, agent: AgentView, seconds: float) -> None:
        self._of(self._round_trip, agent.name.domain).observe(seconds)

    @hookimpl
    def whip_dial_finished(self, dial: DialFinished) -> None:
        if dial.error is not None:
            self._of(self._failures, dial.error.reason).inc()
        if dial.agent is None:
            return
        domain = dial.agent.name.domain
        self._of(self._latency, domain, "").observe(dial.total_seconds)
        self._of(self._latency, domain, "resolve").observe(dial.resolve_seconds)
        if dial.open_seconds is not None:
            self._of(self._latency, domain, "open").observe(dial.open_seconds)
            if not dial.parked:
                self._of(self._cold_dials, domain).inc()
            if dial.relayed_by or dial.relayed_for:
                direction = "by" if dial.relayed_by else "for"
                self._of(self._relayed, domain, direction).inc()

    @hookimpl
    def whip_stream_opened(self, dial: DialFinished) -> None:
        assert dial.agent is not None
        self._of(self._connections, dial.agent.name.domain, str(dial.port)).inc()

    @hookimpl
    def whip_stream_closed(self, stream: StreamClosed) -> None:
        domain = stream.agent.domain
        self._of(self._connections, domain, str(stream.port)).dec()
        self._of(self._bytes, domain, "to_agent").inc(stream.bytes_to_agent)
        self._of(self._bytes, domain, "from_agent").inc(stream.bytes_from_agent)

    def fabric_message_dropped(self, reason: str) -> None:
        self._of(self._dropped, reason).inc()

    @hookimpl
    def whip_request_finished(self, request: RequestFinished) -> None:
        self._of(self._requests, str(request.status), request.protocol, request.error).inc()


class _ByDomain(Collector):
    """A gauge that is counted when it is asked for."""

    def __init__(
        self, name: str, documentation: str, counts: Callable[[], Mapping[str, int]]
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._counts = counts

    def describe(self) -> Iterable[prometheus_client.Metric]:
        return [self._family()]

    def collect(self) -> Iterable[prometheus_client.Metric]:
        family = self._family()
        for domain, count in self._counts().items():
            family.add_metric([domain], count)
        yield family

    def _family(self) -> GaugeMetricFamily:
        return GaugeMetricFamily(self._name, self._documentation, labels=["domain"])


def _expiry_gauge(registry: CollectorRegistry) -> Gauge:
    return Gauge(
        "whip_certificate_expiry_timestamp_seconds",
        "When our own certificate expires, in seconds since the epoch; 0 without TLS",
        registry=registry,
    )


class AgentMetrics:
    """What an agent counts."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._connections = Gauge(
            "whip_client_active_connections",
            "Open connections to the local service",
            ["domain", "port"],
            registry=registry,
        )
        self._counted: dict[tuple[str, str], Gauge] = {}
        self._sessions = Gauge(
            "whip_client_active_sessions", "Brokers this agent is registered at", registry=registry
        )
        self._reconnects = Counter(
            "whip_client_control_reconnects",
            "Control streams that ended and were opened again",
            registry=registry,
        )
        self._expiry = _expiry_gauge(registry)

    def certificate_expires(self, moment: datetime) -> None:
        self._expiry.set(moment.timestamp())

    def connections(self, domain: str, port: str) -> Gauge:
        """Counts those that are open; `port` is the service's own, "unix" for a socket."""
        key = domain, port
        found = self._counted.get(key)
        if found is None:
            found = self._counted[key] = self._connections.labels(*key)
        return found

    def registered(self, *, again: bool) -> None:
        """A session has begun; `again` if one with the same broker address had ended."""
        self._sessions.inc()
        if again:
            self._reconnects.inc()

    def unregistered(self) -> None:
        self._sessions.dec()


def exposition(registry: CollectorRegistry, accept: str) -> tuple[str, bytes]:
    """The metrics in the format that an `Accept` header asks for: content type and body."""
    encode, content_type = choose_encoder(accept)
    return content_type, encode(registry)
