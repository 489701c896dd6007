"""Flows are labelled with the facts of their tunnel, before anybody sees their answer.

The facts go into the metadata (`~meta`), as a line into the comment where the user has
written none (`~comment`), and with flow files to whoever opens them; a failed dial and a
fault get a marker too. HAR files have no place for metadata, so the entry is given the
comment, and the facts under `_whip`.
"""

# mypy: allow-untyped-calls
# (mitmproxy is typed in part.)

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

from mitmproxy import ctx
from mitmproxy.connection import Server
from mitmproxy.flow import Flow
from mitmproxy.http import HTTPFlow
from mitmproxy.proxy.server_hooks import ServerConnectionHookData
from mitmproxy.tcp import TCPFlow

from whip_addon.answers import Answer
from whip_addon.facts import ERROR, FAULT, INSTANCE, PREFIX, REUSED, Facts, summary

FAILED_MARKER = ":x:"
FAULT_MARKER = ":zap:"
SINKS = ("save", "savehar", "dumper")
"""mitmproxy's addons that take in an HTTP flow that ended in an error."""


@dataclass(slots=True)
class _Tunnel:
    facts: Facts
    first: str = ""
    """The id of the flow that had it first."""


class Labels:
    """`dialled` tells of a new connection; the hooks label the flows that use it."""

    name = "whip.labels"

    def __init__(self) -> None:
        self._tunnels: weakref.WeakKeyDictionary[Server, _Tunnel] = weakref.WeakKeyDictionary()
        # Weak, as a flow holds its server.
        self._tcp: weakref.WeakKeyDictionary[Server, weakref.ref[TCPFlow]] = (
            weakref.WeakKeyDictionary()
        )

    def dialled(self, server: Server, facts: Facts) -> None:
        self._tunnels[server] = _Tunnel(facts)

    def facts_of(self, server: Server) -> Facts | None:
        """The facts of the connection, if it was opened through whip."""
        tunnel = self._tunnels.get(server)
        return tunnel.facts if tunnel is not None else None

    def faulted(self, flow: Flow, fault: str) -> None:
        """Note on the flow that it met a fault."""
        _write(flow, {**_of(flow), FAULT: fault}, FAULT_MARKER)

    # mitmproxy's hooks

    def running(self) -> None:
        _teach_har()

    def responseheaders(self, flow: HTTPFlow) -> None:
        self._label(flow)

    def tcp_start(self, flow: TCPFlow) -> None:
        self._tcp[flow.server_conn] = weakref.ref(flow)
        self._label(flow)

    def server_connected(self, data: ServerConnectionHookData) -> None:
        """For TCP, where the flow may be older than its connection."""
        noted = self._tcp.get(data.server)
        if noted is not None and (flow := noted()) is not None:
            self._label(flow)

    def error(self, flow: HTTPFlow) -> None:
        self._label_error(flow)

    def tcp_error(self, flow: TCPFlow) -> None:
        self._label_error(flow)

    def http_connect_error(self, flow: HTTPFlow) -> None:
        if self._label_error(flow):
            _show(flow)

    def _label(self, flow: Flow) -> None:
        tunnel = self._tunnels.get(flow.server_conn)
        if tunnel is not None:
            tunnel.first = tunnel.first or flow.id
            _write(flow, {**tunnel.facts, REUSED: tunnel.first != flow.id})

    def _label_error(self, flow: Flow) -> bool:
        """Whether it was a failed dial of ours."""
        message = flow.error.msg if flow.error is not None else None
        if isinstance(message, Answer) and message.facts is not None:
            _write(flow, message.facts, FAILED_MARKER)
            return True
        if INSTANCE not in flow.metadata:
            self._label(flow)
        return False


def forget(flow: Flow) -> None:
    """Take off what an earlier answer to this flow has left on it."""
    before = _of(flow)
    if before and flow.comment == _line(before):
        flow.comment = ""
    for key in before:
        del flow.metadata[key]


def _of(flow: Flow) -> dict[str, Any]:
    return {key: value for key, value in flow.metadata.items() if key.startswith(PREFIX)}


def _write(flow: Flow, facts: Facts, marker: str = "") -> None:
    """Let `facts` be all that is said of the tunnel: a replayed flow comes with old ones."""
    before = _of(flow)
    if not flow.comment or (before and flow.comment == _line(before)):
        flow.comment = _line(facts)
    for key in before:
        del flow.metadata[key]
    flow.metadata.update(facts)
    if not flow.marked or flow.marked in (FAILED_MARKER, FAULT_MARKER):
        flow.marked = marker


def _line(facts: Facts) -> str:
    return summary(facts) if INSTANCE in facts or ERROR in facts else f"whip: {facts.get(FAULT)}"


def _show(flow: HTTPFlow) -> None:
    """Let a tunnel that could not be opened be a flow: mitmproxy shows a CONNECT nowhere."""
    view = ctx.master.addons.get("view")
    if view is not None:
        view.add([flow])
    for name in SINKS:
        sink = ctx.master.addons.get(name)
        if sink is not None:
            sink.error(flow)


def _teach_har() -> None:
    """Let mitmproxy's HAR entries have the comment and the facts; once for a mitmproxy."""
    exporter = ctx.master.addons.get("savehar")
    flow_entry = getattr(exporter, "flow_entry", None)
    if flow_entry is None or getattr(flow_entry, "has_facts", False):
        return

    def entry_with_facts(flow: HTTPFlow, servers_seen: set[Server]) -> dict[str, Any]:
        entry: dict[str, Any] = flow_entry(flow, servers_seen)
        if flow.comment:
            entry["comment"] = flow.comment
        if facts := _of(flow):
            entry["_whip"] = {key.removeprefix(PREFIX): value for key, value in facts.items()}
        return entry

    entry_with_facts.has_facts = True  # type: ignore[attr-defined]
    exporter.flow_entry = entry_with_facts
