"""A small HTTP server, for what whip tells about itself.

h11 speaks the protocol; this is what it leaves open: sockets, deadlines and bounds. A
client that is slow, silent, or one of too many is hung up on, and costs the others nothing.
"""

from __future__ import annotations

import asyncio
import gzip
import http
import logging
import socket
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

import h11

from whip_core.acceptor import Acceptor
from whip_core.routes import BadRequest, Handler, Request, Response
from whip_core.tasks import TaskSet

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 128
"""At once: some scrapers, probes and browsers (six each), and an end for everybody else."""
MAX_HEAD = 16 * 1024
"""Octets of a request's line and headers: what most servers take."""
MAX_BODY = 4 * 1024
"""Octets of a request's body: nothing that is asked here needs one."""
HEAD_TIMEOUT = 10.0
"""Seconds for the first octet of a connection, and for a request from its first to its last."""
IDLE_TIMEOUT = 75.0
"""Seconds between requests: longer than the 15 s to 60 s that Prometheus scrapes in."""
WRITE_TIMEOUT = 10.0
"""Seconds that a client may take to read one piece of an answer."""
WORTH_PACKING = 1024
"""Octets from which an answer is compressed for clients that take it."""
READ_SIZE = 16 * 1024

ALWAYS = (
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
LOCKED = ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
"""For what is not a page: even a browser that takes it for one runs and loads nothing."""

CLOSING = (("Connection", "close"),)


class WebServer:
    """Answers on any number of sockets while it is open. An async context manager.

    `answer` is called for each request. It must not block; if it raises, the client is
    told 500 and the log why.
    """

    def __init__(self, answer: Handler) -> None:
        self._answer = answer
        self._acceptors: list[Acceptor] = []
        self._tasks = TaskSet()
        self._connections = 0
        self._idle: dict[_Conversation, None] = {}

    async def __aenter__(self) -> WebServer:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for acceptor in self._acceptors:
            acceptor.close()
            await acceptor.wait_closed()
        await self._tasks.cancel_all()

    def listen(self, sock: socket.socket) -> None:
        """Take connections on a bound socket, which is the server's from now on."""
        self._acceptors.append(Acceptor(sock, self._protocol))

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A client's end of a connection that is in no network."""
        ours, theirs = socket.socketpair()
        for sock in (ours, theirs):
            sock.setblocking(False)
        await asyncio.get_running_loop().connect_accepted_socket(self._protocol, ours)
        return await asyncio.open_connection(sock=theirs)

    def _protocol(self) -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(READ_SIZE), self._connected)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.spawn(self._serve(reader, writer), "web client")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        conversation = _Conversation(reader, writer, self._tasks)
        try:
            if self._connections > MAX_CONNECTIONS and not self._make_room():
                await conversation.refuse(f"there are {MAX_CONNECTIONS} connections already", 503)
                return
            while (request := await self._next_request(conversation)) is not None:
                await conversation.send(request, self._decide(request))
        except BadRequest as error:
            await conversation.refuse(str(error), 400)
        except h11.RemoteProtocolError as error:
            await conversation.refuse(str(error), error.error_status_hint)
        except (OSError, TimeoutError) as error:
            logger.debug("web client: %s", error)
            conversation.abort()
        finally:  # also of a cancelled task: of one whose client has gone, or of all at the end
            self._connections -= 1
            writer.close()

    async def _next_request(self, conversation: _Conversation) -> Request | None:
        self._idle[conversation] = None
        try:
            return await conversation.next_request()
        finally:
            self._idle.pop(conversation, None)

    def _make_room(self) -> bool:
        """Hang up on who has been asking for nothing the longest, if anybody is."""
        for conversation in self._idle:
            del self._idle[conversation]
            conversation.abort()
            return True
        return False

    def _decide(self, request: Request) -> Response:
        try:
            return self._answer(request)
        except Exception:
            logger.exception("%s %s failed", request.method, request.path)
            return Response.error("it failed; the log says why", 500)


class _Conversation:
    """One connection: requests and responses in turn."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tasks: TaskSet
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._tasks = tasks
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._patience = HEAD_TIMEOUT

    def abort(self) -> None:
        self._writer.transport.abort()

    async def next_request(self) -> Request | None:
        """None when the client has gone, or may not ask again."""
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            self._patience = IDLE_TIMEOUT
        if self._http.our_state is not h11.IDLE:
            return None
        if not self._http.trailing_data[0]:
            async with asyncio.timeout(self._patience):
                await self._receive()
        async with asyncio.timeout(HEAD_TIMEOUT):
            return await self._read_request()

    async def _receive(self) -> None:
        self._http.receive_data(await self._reader.read(READ_SIZE))

    async def _read_request(self) -> Request | None:
        request: Request | None = None
        taken = 0
        while True:
            event = self._http.next_event()
            match event:
                case h11.NEED_DATA:
                    await self._receive()
                case h11.Request():
                    request = _request_of(event)
                case h11.Data():
                    taken += len(event.data)
                    if taken > MAX_BODY:
                        raise h11.RemoteProtocolError("the body is too large", 413)
                case h11.EndOfMessage():
                    return request
                case _:
                    return None

    async def send(self, request: Request, response: Response) -> None:
        headers = [("Content-Type", response.content_type), *ALWAYS, *response.headers]
        if not any(name == LOCKED[0] for name, _ in response.headers):
            headers.append(LOCKED)
        body = response.body
        if isinstance(body, bytes):
            if len(body) >= WORTH_PACKING and "gzip" in request.headers.get("accept-encoding", ""):
                body = gzip.compress(body, compresslevel=1)
                headers.append(("Content-Encoding", "gzip"))
            headers.append(("Content-Length", str(len(body))))
        reason = http.HTTPStatus(response.status).phrase.encode()
        await self._write(h11.Response(status_code=response.status, headers=headers, reason=reason))
        if request.method != "HEAD":
            if isinstance(body, bytes):
                await self._write(h11.Data(data=body))
            elif response.is_endless:
                await self._send_until_gone(body)
            else:
                await self._send_pieces(body)
        await self._write(h11.EndOfMessage())

    async def _send_pieces(self, body: AsyncGenerator[bytes, None]) -> None:
        async with aclosing(body):
            async for piece in body:
                await self._write(h11.Data(data=piece))

    async def _its_end(self) -> None:
        with suppress(OSError):  # a reset is one too
            await self._reader.read(1)

    async def _send_until_gone(self, body: AsyncGenerator[bytes, None]) -> None:
        this = asyncio.current_task()
        assert this is not None
        gone = self._tasks.spawn(self._its_end(), "web client's end")
        gone.add_done_callback(lambda task: task.cancelled() or this.cancel())
        try:
            await self._send_pieces(body)
        finally:
            gone.cancel()

    async def refuse(self, why: str, status: int) -> None:
        """Say why nothing more is answered here, if that can still be said."""
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            try:
                await self.send(
                    Request("GET", "/"),
                    Response(Response.error(why, status).body, status, headers=CLOSING),
                )
            except (OSError, TimeoutError, h11.LocalProtocolError):
                self.abort()

    async def _write(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data:
            self._writer.write(data)
            async with asyncio.timeout(WRITE_TIMEOUT):
                await self._writer.drain()


def _request_of(event: h11.Request) -> Request:
    headers = {name.decode("ascii"): value.decode("latin-1") for name, value in event.headers}
    return Request.parse(event.method.decode("ascii"), event.target.decode("latin-1"), headers)
