"""What a fault does: to the bytes of an instance's connections, and to its HTTP answers.

The reader and writer that mitmproxy gets ask at each use whether the instance has a fault,
so that one put on later hits connections that are open already. Connections that were
handed to the relay (passthrough) are out of reach.
"""

# mypy: allow-untyped-calls
# (mitmproxy is typed in part.)

from __future__ import annotations

import asyncio
from typing import Any

from mitmproxy import http
from mitmproxy.flow import Flow
from mitmproxy.tcp import TCPFlow

from whip_addon.answers import plain_response
from whip_addon.facts import INSTANCE
from whip_addon.faults import Fault, Faults
from whip_addon.labels import Labels
from whip_core.errors import StreamReset
from whip_core.names import normalize

TICKS = 10
"""In how many pieces a second's worth of throttled bytes comes."""


class FaultyStream:
    """Both ends of one connection to `instance`: `reader` and `writer` are as given, faulty."""

    def __init__(
        self,
        faults: Faults,
        instance: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._faults = faults
        self._instance = instance
        self._inner = reader
        self._transport = writer.transport
        self._asked = True
        """Whether the other side has spoken since the instance did; true of a new connection."""
        self.reader: Any = _FaultyReader(self, reader)
        self.writer: Any = _FaultyWriter(self, writer)

    async def read(self, n: int = -1) -> bytes:
        fault = self._faults.on(self._instance)
        if fault is not None and fault.kind == "throttle" and n != 0:
            piece = max(int(fault.amount) // TICKS, 1)
            n = piece if n < 0 else min(n, piece)
        data = await self._inner.read(n)
        fault = self._faults.on(self._instance)
        asked, self._asked = self._asked, False
        if fault is None or not data:
            return data
        if fault.kind == "reset":
            raise self._break()
        if fault.kind == "delay" and asked:
            await asyncio.sleep(fault.amount)
        elif fault.kind == "throttle":
            await asyncio.sleep(len(data) / fault.amount)
        return data

    def write(self, data: bytes) -> bool:
        """Whether the bytes may go."""
        self._asked = True
        fault = self._faults.on(self._instance)
        if fault is not None and fault.kind == "reset":
            self._inner.set_exception(self._break())
            return False
        return True

    def _break(self) -> StreamReset:
        self._transport.abort()
        return StreamReset(f"reset by a fault that whip.fault put on {self._instance}")


class _FaultyReader:
    def __init__(self, stream: FaultyStream, reader: asyncio.StreamReader) -> None:
        self.read = stream.read
        self._reader = reader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)


class _FaultyWriter:
    def __init__(self, stream: FaultyStream, writer: asyncio.StreamWriter) -> None:
        self._stream = stream
        self._writer = writer
        # What mitmproxy calls at every request, found at once.
        self.drain, self.is_closing = writer.drain, writer.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def write(self, data: bytes) -> None:
        if self._stream.write(data):
            self._writer.write(data)


class FaultyAnswers:
    """The hooks: they answer with a fault's status, and note on each flow which fault it met."""

    name = "whip.faults"

    def __init__(self, faults: Faults, labels: Labels) -> None:
        self._faults = faults
        self._labels = labels

    def done(self) -> None:
        self._faults.lift_all()

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        """The instance itself was asked for: it gets to see nothing of the request."""
        if not self._faults.any_on:
            return
        instance = _normalized(flow.request.host)
        fault = self._faults.on(instance)
        if fault is not None and fault.kind == "status" and flow.response is None:
            flow.response = plain_response(int(fault.amount), _text(instance, fault))
            self._labels.faulted(flow, str(fault))

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        fault = self._note(flow)
        if fault is None or fault.kind != "status" or flow.response is None:
            return
        answer = plain_response(int(fault.amount), _text(flow.metadata[INSTANCE], fault))
        response = flow.response
        response.status_code, response.reason = answer.status_code, answer.reason
        response.headers = answer.headers
        body = b"" if flow.request.method == "HEAD" else answer.raw_content or b""
        response.stream = _Instead(body)

    def response(self, flow: http.HTTPFlow) -> None:
        """What was sent in the place of the body is to be seen in the flow."""
        instead = flow.response.stream if flow.response is not None else None
        if flow.response is not None and isinstance(instead, _Instead):
            flow.response.raw_content = instead.body

    def error(self, flow: http.HTTPFlow) -> None:
        self._note(flow)

    def tcp_message(self, flow: TCPFlow) -> None:
        self._note(flow)

    def tcp_error(self, flow: TCPFlow) -> None:
        self._note(flow)

    def tcp_end(self, flow: TCPFlow) -> None:
        self._note(flow)

    def _note(self, flow: Flow) -> Fault | None:
        fault = self._faults.on(flow.metadata.get(INSTANCE))
        if fault is not None:
            self._labels.faulted(flow, str(fault))
        return fault


class _Instead:
    """What mitmproxy streams in the place of a response's body, whatever that brings."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self._sent = False

    def __call__(self, _: bytes) -> bytes:
        if self._sent:
            return b""
        self._sent = True
        return self.body


def _text(instance: str | None, fault: Fault) -> str:
    return f"whip.fault is on for {instance}: {fault}"


def _normalized(host: str) -> str | None:
    try:
        return normalize(host)
    except ValueError:
        return None
