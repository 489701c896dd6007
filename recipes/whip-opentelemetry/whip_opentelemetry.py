"""A plugin of whip: each dial and each stream is a span, in the trace of the request it is for.

The trace is taken from the request's W3C `traceparent`, as far as whip knows the request (HTTP
that mitmproxy sees); otherwise a dial begins a trace of its own. Spans go to the tracer provider
of the process, `opentelemetry-instrument whip proxy …` sets one up.
"""

from __future__ import annotations

import time
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, Status, StatusCode, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from whip_core import Caller, hookimpl
from whip_core.agents import DialFinished, StreamClosed

NANOSECONDS = 1_000_000_000


class OpenTelemetry:
    """`provider` is the process' unless it is given."""

    whip_name = "opentelemetry"

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer("whip", tracer_provider=provider)
        self._propagator = TraceContextTextMapPropagator()

    @hookimpl
    def whip_dial_finished(self, dial: DialFinished) -> None:
        attributes: dict[str, Any] = {
            "server.address": dial.target.name,
            "server.port": dial.target.port,
            "whip.dial_id": dial.dial_id,
            "whip.parked": dial.parked,
            "whip.resolve_seconds": dial.resolve_seconds,
        }
        if dial.agent is not None:
            attributes["whip.agent"] = dial.agent.name.full
        if dial.open_seconds is not None:
            attributes["whip.open_seconds"] = dial.open_seconds
        status = Status(StatusCode.OK)
        if dial.error is not None:
            attributes["error.type"] = dial.error.reason
            status = Status(StatusCode.ERROR, str(dial.error))
        self._span("whip dial", dial.caller, dial.total_seconds, attributes, status)

    @hookimpl
    def whip_stream_closed(self, stream: StreamClosed) -> None:
        attributes = {
            "whip.dial_id": stream.dial_id,
            "whip.agent": stream.agent.full,
            "whip.bytes_to_agent": stream.bytes_to_agent,
            "whip.bytes_from_agent": stream.bytes_from_agent,
            "whip.cause": stream.cause,
        }
        clean = stream.cause == "end"
        status = Status(StatusCode.OK) if clean else Status(StatusCode.ERROR, stream.cause)
        self._span("whip stream", stream.caller, stream.seconds, attributes, status)

    def _span(
        self, name: str, caller: Caller, seconds: float, attributes: dict[str, Any], status: Status
    ) -> None:
        """A span that ends now: whip tells what has happened when it is over."""
        end = time.time_ns()
        span = self._tracer.start_span(
            name,
            context=self._context(caller),
            kind=SpanKind.CLIENT,
            attributes=attributes,
            start_time=end - round(seconds * NANOSECONDS),
        )
        span.set_status(status)
        span.end(end)

    def _context(self, caller: Caller) -> Context:
        headers = dict(caller.request.headers) if caller.request is not None else {}
        return self._propagator.extract(headers, context=Context())


plugin = OpenTelemetry()
