"""What a flow knows of its tunnel: the keys in `flow.metadata`, and the line in its comment.

Every value is of a type that mitmproxy saves in flow files.
"""

from __future__ import annotations

from collections.abc import Mapping

from whip_core.agents import DialFinished
from whip_core.names import host_port

Fact = str | int | float | bool
Facts = Mapping[str, Fact]

PREFIX = "whip."
TARGET = "whip.target"
INSTANCE = "whip.instance"
AGENT_ADDRESS = "whip.agent_address"
PORT = "whip.port"
BROKER = "whip.broker"
DIAL = "whip.dial"
PARKED = "whip.parked"
RELAYED_BY = "whip.relayed_by"
CERTIFICATE = "whip.certificate"
RESOLVE_MS = "whip.resolve_ms"
PICK_MS = "whip.pick_ms"
OPEN_MS = "whip.open_ms"
TOTAL_MS = "whip.total_ms"
REUSED = "whip.reused"
ERROR = "whip.error"
FAULT = "whip.fault"

MEANINGS = {
    TARGET: "what was asked for: a name and a port",
    INSTANCE: "the instance that serves the flow; of a failed dial, the last one tried",
    AGENT_ADDRESS: "where that instance's agent registered from",
    PORT: "the exposed port that was opened",
    BROKER: "the broker's id",
    DIAL: "the connection's id, as in the logs of broker and agent",
    PARKED: "whether a parked reverse connection served, so that the dial took one round trip",
    RELAYED_BY: "the id of the broker that relays it, as the agent cannot reach ours",
    CERTIFICATE: "the names that the agent's certificate proves",
    RESOLVE_MS: "milliseconds to find the name, with any wait for it to appear",
    PICK_MS: "milliseconds to choose the instance, and to ask whether it is allowed",
    OPEN_MS: "milliseconds to open the stream to the service",
    TOTAL_MS: "milliseconds of the whole dial, failed attempts included",
    REUSED: "whether an earlier flow had the connection before this one (keep-alive, HTTP/2)",
    ERROR: "the short name of why the dial failed",
    FAULT: "the fault that `whip.fault` put on the instance, if it was on",
}
"""The documentation of each key, in the order in which mitmproxy shows them."""


def facts_of(dial: DialFinished, broker_id: str) -> dict[str, Fact]:
    """The facts of a dial, whether it succeeded or failed. `REUSED` is each flow's own."""
    facts: dict[str, Fact] = {TARGET: str(dial.target)}
    if dial.agent is not None:
        facts[INSTANCE] = dial.agent.name.full
        facts[AGENT_ADDRESS] = host_port(*dial.agent.address)
        if dial.port is not None:
            facts[PORT] = dial.port
        if dial.agent.certificate_names:
            facts[CERTIFICATE] = ", ".join(dial.agent.certificate_names)
    facts[BROKER] = broker_id
    facts[DIAL] = dial.dial_id
    facts[PARKED] = dial.parked
    if dial.relayed_by:
        facts[RELAYED_BY] = dial.relayed_by
    facts[RESOLVE_MS] = _milliseconds(dial.resolve_seconds)
    facts[PICK_MS] = _milliseconds(dial.pick_seconds)
    if dial.open_seconds is not None:
        facts[OPEN_MS] = _milliseconds(dial.open_seconds)
    facts[TOTAL_MS] = _milliseconds(dial.total_seconds)
    if dial.error is not None:
        facts[ERROR] = dial.error.reason
    return facts


def summary(facts: Facts) -> str:
    """The facts in one line, for a person."""
    if ERROR in facts:
        at = f" at {facts[INSTANCE]}" if INSTANCE in facts else ""
        return f"whip: dial failed{at}: {facts[ERROR]} after {facts[TOTAL_MS]} ms"
    words = [f"whip: {facts[INSTANCE]} port {facts[PORT]}"]
    if facts.get(REUSED):
        words.append("reused")
    else:
        way = "parked" if facts[PARKED] else "new connection"
        split = f"resolve {facts[RESOLVE_MS]}, pick {facts[PICK_MS]}, open {facts[OPEN_MS]}"
        words.append(f"{way}, {facts[TOTAL_MS]} ms ({split})")
    words.append(f"agent {facts[AGENT_ADDRESS]}")
    words.append(f"dial {str(facts[DIAL])[:8]}")
    if FAULT in facts:
        words.append(f"FAULT {facts[FAULT]}")
    return ", ".join(words)


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
