"""What a dialling program and a broker say to each other on a dial socket, without I/O.

The connection speaks frames (`frames`), the program being the opener. Before them it says
hello: one frame of type 0x01 whose body is JSON, `{"dial": 1}`, the version of what follows.

OPEN's name is what is dialled; behind a NUL is JSON with what the dial needs besides:
how long to wait, how long it may take, and on whose behalf it is made. An empty name asks
for the broker's *news* instead: a stream of JSON lines that goes on until it is closed. A
failed dial answers with a code for each class of `DialError`, so that the same error comes
out at the other end (the text of `Busy` is preceded by which limit it is). Whatever breaks
these forms is a `RemoteProtocolError`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from whip_core import errors, json_fields
from whip_core.agents import AgentView
from whip_core.caller import Caller, HttpRequest
from whip_core.errors import DialError, RemoteProtocolError
from whip_core.first_frame import FIRST_TYPE, first_body, first_frame
from whip_core.frames import HEADER_SIZE
from whip_core.json_fields import array, mapping, number, parsed, whole_number
from whip_core.names import AgentName, Target, printable

VERSION = 1
REFUSED = "refused: "
"""What the RESET's text begins with that answers a hello: whoever says it gets no dial."""
MAX_HELLO_SIZE = 1024
"""Octets of a hello: it says a version, and may say more one day."""
MAX_WAIT = 86_400.0
"""Seconds a dial may wait or take: a day is for ever, and a timer can hold it."""
MAX_TEXT = 1024
"""Characters of a name, a user or an id that is told of a caller."""

FAILURES: dict[int, type[DialError]] = {
    1: errors.ServiceRefused,
    2: errors.PortNotExposed,
    16: errors.UnknownName,
    17: errors.AgentGone,
    18: errors.DialTimeout,
    19: errors.NotAuthorized,
    20: errors.BrokerClosed,
    21: DialError,
    22: errors.Busy,
    23: errors.PluginError,
}
"""FAILED's code on a dial socket. 1 and 2 are what they are between broker and agent."""
_CODES = {error: code for code, error in FAILURES.items()}


def hello() -> bytes:
    return first_frame(json.dumps({"dial": VERSION}).encode())


class HelloReader:
    """Feed it bytes until it says True; what follows the hello is in `rest`."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.rest = b""

    def feed(self, data: bytes) -> bool:
        """Raises `RemoteProtocolError` as soon as it cannot be a hello that we understand."""
        self._buffer += data
        if self._buffer[:1] not in (b"", bytes([FIRST_TYPE])):
            raise RemoteProtocolError(
                f"this is not a whip dial client: the first byte is {self._buffer[:1].hex()}"
            )
        body = first_body(self._buffer, MAX_HELLO_SIZE, "a hello")
        if body is None:
            return False
        said = parsed(body, "the hello")
        if said.get("dial") != VERSION:
            raise RemoteProtocolError(
                f"it speaks version {str(said.get('dial'))[:20]} of the dial socket, "
                f"and this broker version {VERSION}"
            )
        self.rest = bytes(self._buffer[HEADER_SIZE + len(body) :])
        return True


@dataclass(frozen=True, slots=True)
class Ask:
    """A dial as it is asked for. Times are seconds; a `timeout` of None is the broker's own."""

    name: str
    port: int
    caller: Caller
    wait: float = 0.0
    timeout: float | None = None


def encode_ask(ask: Ask) -> str:
    """What OPEN has behind port and dial id."""
    facts: dict[str, Any] = {"caller": encode_caller(ask.caller)}
    if ask.wait:
        facts["wait"] = min(ask.wait, MAX_WAIT)
    if ask.timeout is not None:
        facts["timeout"] = min(ask.timeout, MAX_WAIT)
    # A name that cannot be one is the broker's to refuse, as long as it stays one line.
    name = ask.name[:MAX_TEXT].replace("\0", "\ufffd")
    return f"{name}\0{json.dumps(facts, separators=(',', ':'))}"


def decode_ask(text: str, port: int) -> Ask:
    name, _, facts_text = text.partition("\0")
    facts = parsed(facts_text, "what follows the name")
    timeout = facts.get("timeout")
    return Ask(
        name=name,
        port=port,
        caller=decode_caller(mapping(facts.get("caller", {}), "the caller")),
        wait=_seconds(facts.get("wait", 0.0), "the wait"),
        timeout=None if timeout is None else _seconds(timeout, "the timeout"),
    )


def asks_for_news(text: str) -> bool:
    return text.startswith("\0") or not text


def encode_failure(error: DialError) -> tuple[int, str]:
    """FAILED's code, of the nearest class that has one, and its text."""
    code = next(_CODES[each] for each in type(error).__mro__ if each in _CODES)
    if isinstance(error, errors.Busy):
        return code, f"{error.reason}: {error}"
    return code, str(error)


def failure(code: int, why: str) -> DialError:
    """The error that a FAILED frame stands for."""
    kind = FAILURES.get(code, DialError)
    if kind is errors.Busy:
        told, _, text = why.partition(": ")
        for reason in get_args(errors.BusyReason):
            if told == reason:
                return errors.Busy(text, reason=reason)
    return kind(why)


@dataclass(frozen=True, slots=True)
class Served:
    """Who serves a dial and how that came about, as `agents.DialFinished` has it."""

    dial: str
    """The broker's id for it."""
    asked: Target
    """What plugins made of the target."""
    agent: AgentView
    port: int
    address: tuple[str, int]
    """Where the stream comes from."""
    parked: bool
    relayed_by: str = ""
    resolve_seconds: float = 0.0
    pick_seconds: float = 0.0
    open_seconds: float = 0.0


def encode_served(served: Served) -> str:
    told = {
        "dial": served.dial,
        "asked": [served.asked.name, served.asked.port],
        "agent": encode_agent(served.agent),
        "port": served.port,
        "address": list(served.address),
        "parked": served.parked,
        "relayed_by": served.relayed_by,
        "seconds": [served.resolve_seconds, served.pick_seconds, served.open_seconds],
    }
    return json.dumps(told, separators=(",", ":"))


def decode_served(text: str) -> Served:
    told = parsed(text, "what it told of a dial")
    times = "a dial's times"
    resolve, pick, opened = (number(each, times) for each in array(told.get("seconds"), times, 3))
    try:
        asked = Target.parse(*(_address(told.get("asked"), "what was dialled") or ("", 0)))
    except ValueError as error:
        raise RemoteProtocolError(f"what was dialled: {error}") from error
    return Served(
        dial=_text(told.get("dial"), "a dial's id"),
        asked=asked,
        agent=decode_agent(told.get("agent")),
        port=whole_number(told.get("port", 0), "a dial's port"),
        address=_address(told.get("address"), "a dial's address") or ("", 0),
        parked=bool(told.get("parked")),
        relayed_by=_text(told.get("relayed_by", ""), "the broker that relays"),
        resolve_seconds=resolve,
        pick_seconds=pick,
        open_seconds=opened,
    )


# Callers


def encode_caller(caller: Caller) -> dict[str, Any]:
    request = caller.request
    told: dict[str, Any] = {
        "address": list(caller.address) if caller.address else None,
        "user": caller.proxy_user,
        "certificate": list(caller.certificate_names),
        "id": caller.request_id,
        "request": None
        if request is None
        else {
            "method": request.method,
            "scheme": request.scheme,
            "host": request.host,
            "path": request.path,
            "headers": dict(request.headers),
        },
    }
    return {key: value for key, value in told.items() if value}


def decode_caller(told: Mapping[str, Any]) -> Caller:
    """Raises `RemoteProtocolError` unless it is what `encode_caller` gave."""
    request = told.get("request")
    return Caller(
        address=_address(told.get("address"), "a caller's address"),
        proxy_user=_text_or_none(told.get("user"), "a caller's user"),
        certificate_names=_texts(told.get("certificate", []), "a caller's certificate"),
        request=None if request is None else _request_in(mapping(request, "a caller's request")),
        request_id=_text_or_none(told.get("id"), "a request's id"),
    )


def _request_in(told: Mapping[str, Any]) -> HttpRequest:
    headers = mapping(told.get("headers", {}), "a request's headers")
    method, scheme, host, path = (
        json_fields.text(told.get(name, ""), f"a request's {name}")
        for name in ("method", "scheme", "host", "path")
    )
    return HttpRequest(
        method,
        scheme,
        host,
        path,
        {name: json_fields.text(value, "a request's header") for name, value in headers.items()},
    )


# News: JSON lines


def encode_news(kind: str, **facts: Any) -> bytes:
    """`broker` (its id, whether its plugins `by_caller` decide where a dial leads, whether it
    is `draining`), `domain` (a name that is whip's), `agent` (as it is now), `left`,
    `complete`."""
    return json.dumps({"news": kind, **facts}, separators=(",", ":")).encode() + b"\n"


def decode_news(line: bytes) -> tuple[str, dict[str, Any]]:
    told = parsed(line, "a line of news")
    return _text(told.get("news", ""), "the kind of news"), told


def encode_agent(view: AgentView) -> dict[str, Any]:
    return {
        "hostname": view.name.hostname,
        "domain": view.name.domain,
        "ports": list(view.ports),
        "labels": dict(view.labels),
        "session": view.session_id,
        "instance": view.instance_id,
        "address": list(view.address),
        "certificate": list(view.certificate_names),
        "protocol": view.protocol_version,
        "software": view.software_version,
        "streams": view.streams,
        "parked": view.parked,
        "round_trip": view.round_trip,
        "registered_at": view.registered_at,
        "draining": view.draining,
        "ejected": view.ejected,
    }


def decode_agent(told: Any) -> AgentView:
    """Raises `RemoteProtocolError` unless it is what `encode_agent` gave."""
    told = mapping(told, "an agent")
    labels = mapping(told.get("labels", {}), "an agent's labels")
    round_trip = told.get("round_trip")
    try:
        name = AgentName.parse(
            _text(told.get("hostname"), "an agent's hostname"),
            _text(told.get("domain"), "an agent's domain"),
        )
    except ValueError as error:
        raise RemoteProtocolError(f"an agent's name: {error}") from error
    ports = array(told.get("ports"), "the list of an agent's ports")
    return AgentView(
        name=name,
        ports=tuple(whole_number(port, "an agent's port") for port in ports),
        labels={
            _text(key, "a label"): _text(value, "a label's value") for key, value in labels.items()
        },
        session_id=_text(told.get("session", ""), "an agent's session"),
        instance_id=_text(told.get("instance", ""), "an agent's instance"),
        address=_address(told.get("address"), "an agent's address") or ("", 0),
        certificate_names=_texts(told.get("certificate", []), "an agent's certificate"),
        protocol_version=whole_number(told.get("protocol", 0), "an agent's protocol version"),
        software_version=_text(told.get("software", ""), "an agent's software version"),
        streams=whole_number(told.get("streams", 0), "an agent's streams"),
        parked=whole_number(told.get("parked", 0), "an agent's parked connections"),
        round_trip=None if round_trip is None else _seconds(round_trip, "an agent's round trip"),
        registered_at=number(told.get("registered_at", 0.0), "when an agent registered"),
        draining=bool(told.get("draining")),
        ejected=bool(told.get("ejected")),
    )


# Fields


def _text(value: Any, what: str) -> str:
    return printable(json_fields.text(value, what), MAX_TEXT)


def _text_or_none(value: Any, what: str) -> str | None:
    return None if value is None else _text(value, what)


def _texts(value: Any, what: str) -> tuple[str, ...]:
    return tuple(_text(each, what) for each in array(value, what))


def _seconds(value: Any, what: str) -> float:
    seconds = number(value, what)
    if not 0 <= seconds <= MAX_WAIT:
        raise RemoteProtocolError(f"{what} is not a number of seconds from 0 to {MAX_WAIT:g}")
    return seconds


def _address(value: Any, what: str) -> tuple[str, int] | None:
    if value is None:
        return None
    host, port = array(value, what, 2)
    return _text(host, what), whole_number(port, what)
