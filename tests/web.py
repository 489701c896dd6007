"""HTTP as a test asks it: over a port, a unix socket, or octet by octet."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h11

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Answered:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json", self
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return self.json["error"]


async def opened(where: str | Path) -> Streams:
    """A connection to "host:port", or to a unix socket."""
    if isinstance(where, Path):
        return await asyncio.open_unix_connection(str(where))
    host, _, port = where.rpartition(":")
    return await asyncio.open_connection(host.strip("[]"), int(port))


async def ask(
    where: str | Path,
    target: str,
    *,
    method: str = "GET",
    streams: Streams | None = None,
    **headers: str,
) -> Answered:
    """One request; on a connection of its own unless `streams` is given."""
    reader, writer = streams or await opened(where)
    try:
        return await _ask(reader, writer, target, method, headers)
    finally:
        if streams is None:
            writer.close()


async def _ask(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    target: str,
    method: str,
    headers: dict[str, str],
) -> Answered:
    told = {"Host": "localhost"} | {name.replace("_", "-"): text for name, text in headers.items()}
    client = h11.Connection(h11.CLIENT)
    writer.write(client.send(h11.Request(method=method, target=target, headers=list(told.items()))))
    writer.write(client.send(h11.EndOfMessage()))
    head, body = None, b""
    while True:
        event = client.next_event()
        if event is h11.NEED_DATA:
            client.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        else:
            assert head is not None and isinstance(event, h11.EndOfMessage), (head, event)
            found = {name.decode(): value.decode() for name, value in head.headers}
            return Answered(head.status_code, found, body)


class Events:
    """A stream of server-sent events, read one by one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer

    @classmethod
    async def listen(cls, where: str, target: str, **headers: str) -> Events:
        reader, writer = await opened(where)
        lines = [f"GET {target} HTTP/1.0", "Host: localhost"]
        lines += [f"{name.replace('_', '-')}: {text}" for name, text in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        assert b"text/event-stream" in head
        return cls(reader, writer)

    async def next(self, name: str) -> Any:
        """The data of the next event of that name."""
        while True:
            text = (await self._reader.readuntil(b"\n\n")).decode()
            fields = dict(line.split(": ", 1) for line in text.strip().splitlines())
            if fields.get("event") == name:
                return json.loads(fields["data"])

    def close(self) -> None:
        self.writer.close()
