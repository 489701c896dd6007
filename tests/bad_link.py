"""A link that can go bad: a TCP relay that loses everything without a word, or resets.

What a connection sends while the link is silent is gone, so that connection never works
again, as behind a NAT that forgot it. Connections made after `heal` do.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

PIECE = 64 * 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class _Pair:
    """One relayed connection: the end that connected to us and the one that we connected."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter, silent: bool) -> None:
        self.ends = (near, far)
        self.silent = silent

    def reset(self) -> None:
        for writer in self.ends:
            _reset(writer)


class BadLink:
    """An async context manager: listens on `host` and `port`, leads to 127.0.0.1 `target_port`."""

    def __init__(self, target_port: int = 0, port: int = 0, host: str = "127.0.0.1") -> None:
        self.target_port = target_port
        self._host = host
        self.port = port
        self._silent = False
        self._pairs: set[_Pair] = set()
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()

    async def __aenter__(self) -> BadLink:
        self._server = await asyncio.start_server(self._accept, self._host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def silence(self) -> None:
        """From now on everything vanishes, ends and resets included."""
        self._silent = True
        for pair in self._pairs:
            pair.silent = True

    def heal(self) -> None:
        """New connections work again."""
        self._silent = False

    def reset(self) -> None:
        """Reset every connection, at both ends."""
        for pair in tuple(self._pairs):
            pair.reset()

    async def until_ends(self, count: int) -> None:
        """Wait until so many ends of connections are still open, of both sides together."""
        while len(self._open) != count:
            await self._news.wait()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def _accept(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            far_reader, far = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            _reset(near)
            return
        pair = _Pair(near, far, self._silent)
        self._pairs.add(pair)
        self._open |= set(pair.ends)
        self._tell()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(pair, reader, near, far), name="outwards")
                group.create_task(self._carry(pair, far_reader, far, near), name="inwards")
        except asyncio.CancelledError:
            pair.reset()  # the server makes an error of a handler that is cancelled
        finally:
            self._pairs.discard(pair)
            for writer in pair.ends:
                self._open.discard(writer)
                writer.close()
            self._tell()

    async def _carry(
        self,
        pair: _Pair,
        reader: asyncio.StreamReader,
        source: asyncio.StreamWriter,
        sink: asyncio.StreamWriter,
    ) -> None:
        try:
            while data := await reader.read(PIECE):
                if not pair.silent:
                    sink.write(data)
                    await sink.drain()
            if not pair.silent:
                sink.write_eof()
                return
        except OSError:
            if not pair.silent:
                pair.reset()
        self._open.discard(source)
        self._tell()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):  # closed already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()
