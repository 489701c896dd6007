"""The first bytes of a reverse connection: who it is from, and what for.

Ours is one frame (`frames`: a type byte, three bytes of length) whose body is JSON:

    {"session": "…", "secret": "…", "connection": "…"}

`session` and `secret` are those of the registration. `connection` is the id of the
request it answers, or empty: the connection is to be parked.

An old peer sends the bare JSON object `{"connectionID":"…"}` and its application's bytes
right behind it. Its first byte, `{`, is not a frame type, so one byte tells them apart; the
reader stops exactly at the closing brace and gives back what came after.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from whip_core import json_fields, limits
from whip_core.errors import RemoteProtocolError
from whip_core.first_frame import FIRST_TYPE, first_body, first_frame
from whip_core.frames import HEADER_SIZE

MAX_PREAMBLE_SIZE = limits.DEFAULT.preamble_size
"""Octets, unless a broker is set otherwise; ours needs about 200, the old one about 60."""


@dataclass(frozen=True, slots=True)
class Preamble:
    """What a peer of ours says of the reverse connection it opened."""

    session_id: str
    secret: str
    connection_id: str = ""

    def __repr__(self) -> str:
        return f"Preamble(session_id={self.session_id!r}, connection_id={self.connection_id!r})"


@dataclass(frozen=True, slots=True)
class OldPreamble:
    """What an old peer says: nothing but whose answer it is."""

    connection_id: str


def encode(preamble: Preamble | OldPreamble) -> bytes:
    if isinstance(preamble, OldPreamble):
        return json.dumps({"connectionID": preamble.connection_id}, separators=(",", ":")).encode()
    body = json.dumps(
        {
            "session": preamble.session_id,
            "secret": preamble.secret,
            "connection": preamble.connection_id,
        },
        separators=(",", ":"),
    ).encode()
    return first_frame(body)


class PreambleReader:
    """Feed it bytes until it gives a preamble; what follows that is in `rest`."""

    def __init__(self, max_size: int = MAX_PREAMBLE_SIZE) -> None:
        self._max_size = max_size
        self._buffer = bytearray()
        self._scanned = 0
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._framed_first_byte = False
        self.rest = b""

    @property
    def is_framed(self) -> bool:
        """Whether the peer speaks frames, as far as its first byte tells."""
        return self._framed_first_byte

    def feed(self, data: bytes) -> Preamble | OldPreamble | None:
        """None until it is complete. Raises `RemoteProtocolError` as soon as it cannot be one."""
        self._buffer += data
        if not self._buffer:
            return None
        if self._buffer[0] == ord("{"):
            return self._old()
        if self._buffer[0] == FIRST_TYPE:
            self._framed_first_byte = True
            return self._framed()
        raise RemoteProtocolError(
            f"this is not a whip agent: the first byte is {self._buffer[:1].hex()}"
        )

    def _framed(self) -> Preamble | None:
        said = first_body(self._buffer, self._max_size, "a preamble")
        if said is None:
            return None
        self._take(HEADER_SIZE + len(said))
        body = json_fields.parsed(said, "the preamble")
        return Preamble(
            session_id=_text(body, "session"),
            secret=_text(body, "secret"),
            connection_id=_text(body, "connection"),
        )

    def _old(self) -> OldPreamble | None:
        end = self._closing_brace()
        if end is None:
            if len(self._buffer) > self._max_size:
                raise RemoteProtocolError(f"a preamble of over {self._max_size} bytes")
            return None
        body = json_fields.parsed(self._take(end), "the preamble")
        # The existing agents' JSON decoder does not mind the case of a key.
        named = {key.lower(): value for key, value in body.items()}
        return OldPreamble(_text(named, "connectionid"))

    def _closing_brace(self) -> int | None:
        """The offset behind the brace that closes the object, once it has come."""
        for offset in range(self._scanned, min(len(self._buffer), self._max_size)):
            byte = self._buffer[offset]
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif byte == ord("\\"):
                    self._escaped = True
                elif byte == ord('"'):
                    self._in_string = False
            elif byte == ord('"'):
                self._in_string = True
            elif byte == ord("{"):
                self._depth += 1
            elif byte == ord("}"):
                self._depth -= 1
                if self._depth == 0:
                    return offset + 1
        self._scanned = min(len(self._buffer), self._max_size)
        return None

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        self.rest = bytes(self._buffer[size:])
        self._buffer.clear()
        return taken


def _text(body: dict[str, object], key: str) -> str:
    return json_fields.line(body.get(key, ""), f"the preamble's {key!r}")
