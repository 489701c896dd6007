"""What a broker shows of itself: a page for people, the same as JSON, events as they come.

Everything here reads. What changes something is `control_routes`, for the control socket.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from whip_core import monitor
from whip_core.activity import KINDS, Activity
from whip_core.agent_table import Query, Row, select, whole_number
from whip_core.agents import AgentView
from whip_core.certificates import certificates_in, names_of
from whip_core.errors import SettingsError, UnknownName
from whip_core.metrics import exposition
from whip_core.names import printable
from whip_core.pem_files import read_pem_file, signature
from whip_core.routes import JSON, BadRequest, Handler, Request, Response, Routes, as_json
from whip_core.settings import BrokerSettings, RemoteSettings, is_loopback

INTERNAL_HOST = "whip.internal"
"""Where the page is for clients of the proxy; no DNS is asked for it."""
TICK = 1.0
"""Seconds between two looks at what has changed, for all who listen."""
STILL_HERE = 15.0
"""Seconds after which a listener hears something, so that a dead one is noticed."""
MAX_LISTENERS = 32
"""Pages that are open at once: each has its own search and sorting to be done for it."""
ROWS_AT_ONCE = 100
"""Agents that are written in one go: 2 ms of work, while 5,000 would hold up streams for 100."""
EVENTS_AT_ONCE = 50
"""Events of one kind that a listener is sent in one tick: what it shows."""

PAGE_POLICY = (
    "Content-Security-Policy",
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
)
PAGE_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
OPEN_TO_ALL = frozenset({"/metrics", "/healthz", "/readyz"})
"""Asked for by Prometheus and orchestrators under any name that the machine has."""


class Watched(Protocol):
    """What is looked at: `whip_core.Broker`, or a test's own."""

    @property
    def settings(self) -> BrokerSettings | RemoteSettings: ...

    activity: Activity

    @property
    def broker_id(self) -> str: ...
    @property
    def agents(self) -> list[AgentView]: ...
    @property
    def control_port(self) -> int: ...
    @property
    def reverse_port(self) -> int: ...
    @property
    def metrics(self) -> Any: ...
    def running_bytes(self) -> Mapping[str, tuple[int, int]]: ...
    def why_not_ready(self) -> str | None: ...
    def kick(self, name: str) -> None: ...


class Status:
    """The answers about one broker."""

    def __init__(self, broker: Watched) -> None:
        self._broker = broker
        self._started = time.time()
        self._listeners = 0
        self._rows: tuple[float, list[Row]] = (-TICK, [])
        self._looked_at = self._started
        self._certificates: tuple[object, list[dict[str, Any]]] = (None, [])

    def routes(self, listen_host: str = "127.0.0.1") -> Routes:
        """What whoever reaches `listen_host` may see."""
        pages = {
            **monitor.pages(
                lambda accept: exposition(self._broker.metrics.registry, accept),
                self._broker.why_not_ready,
            ),
            **{path: _file(*file) for path, file in PAGE_FILES.items()},
            "/api/agents": self.agents,
            "/api/events": self.events,
            "/api/broker": self.broker,
            "/api/live": self.live,
        }
        return Routes(pages, checks=[known_host_only(listen_host)])

    def control_routes(self) -> Routes:
        """What the operator may do, over the control socket."""
        pages = {"/v1/agents": self.agents, "/v1/events": self.events, "/v1/broker": self.broker}
        return Routes(pages, {"/v1/kick": self.kick})

    # Answers

    def agents(self, request: Request) -> Response:
        request.only(*Query.ARGUMENTS)
        rows, head = self._select(Query.parse(request.arguments))
        return Response(self._pieces({"at": self._looked_at, **head}, rows), content_type=JSON)

    def events(self, request: Request) -> Response:
        request.only("kind", "after", "limit")
        kind = request.arguments.get("kind")
        if kind is not None and kind not in KINDS:
            raise BadRequest(f"kind={printable(kind, 80)!r} is not one of {', '.join(KINDS)}")
        after = whole_number(request.arguments, "after", 0, 0, 10**18)
        limit = whole_number(request.arguments, "limit", 200, 1, 200)
        found = self._broker.activity.events([kind] if kind else KINDS, after=after, limit=limit)
        return Response.json(self._told(found))

    def broker(self, request: Request) -> Response:
        request.only()
        return Response.json(self._state())

    def live(self, request: Request) -> Response:
        """Server-sent events: `broker`, `agents` (the page of the query), and `events`."""
        request.only(*Query.ARGUMENTS)
        query = Query.parse(request.arguments)
        if self._listeners >= MAX_LISTENERS:
            return Response.error(f"{MAX_LISTENERS} pages are open already: close one", 503)
        broker, _, number = request.headers.get("last-event-id", "").partition(" ")
        is_again = broker == self._broker.broker_id and number.isascii() and number.isdigit()
        after = int(number[:20]) if is_again else 0
        changes = self._changes(query, after)
        return Response(changes, content_type="text/event-stream", is_endless=True)

    def kick(self, request: Request) -> Response:
        request.only("name")
        name = request.arguments.get("name", "")
        try:
            self._broker.kick(name)
        except UnknownName as error:
            return Response.error(str(error), 404)
        return Response.json({"kicked": name})

    async def _changes(self, query: Query, after: int) -> AsyncGenerator[bytes, None]:
        self._listeners += 1
        loop = asyncio.get_running_loop()
        try:
            yield b"retry: 2000\n\n"
            told: dict[str, bytes] = {}
            heard = loop.time()
            while True:
                for name, value in (("broker", self._state()), ("agents", self._table(query))):
                    data = as_json(value)
                    if told.get(name) != data:
                        told[name] = data
                        heard = loop.time()
                        yield b"event: %s\ndata: %s\n\n" % (name.encode(), data)
                activity = self._broker.activity
                if activity.latest > after:
                    found = activity.events(after=after, limit=EVENTS_AT_ONCE)
                    after = activity.latest
                    heard = loop.time()
                    last = f"{self._broker.broker_id} {after}".encode()
                    data = as_json(self._told(found))
                    yield b"event: events\nid: %s\ndata: %s\n\n" % (last, data)
                if loop.time() - heard >= STILL_HERE:
                    heard = loop.time()
                    yield b": still here\n\n"
                await asyncio.sleep(TICK)
        finally:
            self._listeners -= 1

    # What there is to tell

    def _all(self) -> list[Row]:
        """Every agent, looked at once for all who ask at about the same time."""
        now = time.monotonic()
        taken, rows = self._rows
        if now - taken < TICK / 2:
            return rows
        broker, activity = self._broker, self._broker.activity
        running = broker.running_bytes()
        rows = []
        for agent in broker.agents:
            name = agent.name.full
            to_agent, from_agent = activity.finished_bytes(name)
            if name in running:
                to_agent += running[name][0]
                from_agent += running[name][1]
            rows.append(Row(agent, broker.broker_id, to_agent, from_agent))
        self._rows = (now, rows)
        self._looked_at = round(time.time(), 3)
        return rows

    def _select(self, query: Query) -> tuple[list[Row], dict[str, int]]:
        rows = self._all()
        page, matching = select(rows, query)
        return page, {"total": len(rows), "matching": matching, "offset": query.offset}

    def _table(self, query: Query) -> dict[str, Any]:
        rows, head = self._select(query)
        return {**head, "agents": self._dicts(rows)}

    def _dicts(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        activity = self._broker.activity
        return [row.as_dict(activity.round_trips(row.agent.name.full)) for row in rows]

    async def _pieces(
        self, head: Mapping[str, Any], rows: Sequence[Row]
    ) -> AsyncGenerator[bytes, None]:
        """`_table` as JSON, in pieces between which the streams have their turn."""
        yield as_json(head)[:-1] + b',"agents":['
        for start in range(0, len(rows), ROWS_AT_ONCE):
            piece = as_json(self._dicts(rows[start : start + ROWS_AT_ONCE]))[1:-1]
            yield b"," + piece if start else piece
            await asyncio.sleep(0)
        yield b"]}"

    def _told(self, events: Collection[Any]) -> dict[str, Any]:
        return {
            "broker": self._broker.broker_id,
            "latest": self._broker.activity.latest,
            "events": [event.as_dict() for event in events],
        }

    def _state(self) -> dict[str, Any]:
        broker, rows = self._broker, self._all()
        settings = broker.settings
        return {
            "broker": broker.broker_id,
            "version": version("whip-tunnel"),
            "since": round(self._started, 3),
            "not_ready": broker.why_not_ready(),
            "control_port": broker.control_port,
            "reverse_address": [
                settings.external_host,
                settings.external_port or broker.reverse_port,
            ],
            "agents": len(rows),
            "domains": len({row.agent.name.domain for row in rows}),
            "streams": sum(row.agent.streams for row in rows),
            "parked": sum(row.agent.parked for row in rows),
            "bytes_to_agents": sum(row.to_agent for row in rows),
            "bytes_from_agents": sum(row.from_agent for row in rows),
            "tls": settings.tls is not None,
            "certificates": self._certificate_files(),
        }

    def _certificate_files(self) -> list[dict[str, Any]]:
        """What the certificate files hold, read again when they have changed."""
        tls = self._broker.settings.tls
        if tls is None:
            return []
        seen = signature(tls.cert, tls.ca)
        if seen != self._certificates[0]:
            found = [*_certificates("broker", tls.cert)[:1], *_certificates("CA", tls.ca)]
            self._certificates = (seen, found)
        return self._certificates[1]


def _certificates(use: str, path: Path) -> list[dict[str, Any]]:
    try:
        found = certificates_in(read_pem_file(path, str(path)), str(path))
    except SettingsError as error:
        return [{"use": use, "path": str(path), "problem": str(error)}]
    return [
        {
            "use": use,
            "path": str(path),
            "subject": printable(certificate.subject.rfc4514_string(), 256),
            "names": [printable(name, 256) for name in names_of(certificate)],
            "expires": _seconds(certificate.not_valid_after_utc),
        }
        for certificate in found
    ]


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())


def _file(name: str, content_type: str) -> Handler:
    def answer(request: Request) -> Response:
        request.only()
        body = (files("whip_core") / "page" / name).read_bytes()
        return Response(body, content_type=content_type, headers=(PAGE_POLICY,))

    return answer


def known_host_only(listen_host: str) -> Callable[[Request], Response | None]:
    """Refuses pages to whoever came by a name that is not this machine's own.

    A page of somebody else's can have its name point to loopback (DNS rebinding), and so
    read through its visitor's browser what listens here. An address, unlike a name, is
    nobody else's. Who listens beyond loopback has names that are not known here.
    """

    def check(request: Request) -> Response | None:
        if request.path in OPEN_TO_ALL or not is_loopback(listen_host):
            return None
        host = request.headers.get("host", "").strip().lower()
        name = host.rpartition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
        name = name.removesuffix(".")
        if name in (INTERNAL_HOST, listen_host.lower()) or is_loopback(name):
            return None
        return Response.error(
            f"this is not {printable(name, 80)}: ask for localhost, or for {INTERNAL_HOST} "
            "through the proxy",
            403,
        )

    return check
