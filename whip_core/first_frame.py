"""What a connection begins with, whoever opens it: one frame (`frames`) of a type of its own.

No frame after it has that type, and no text that people or other protocols begin with does.
"""

from __future__ import annotations

from whip_core.errors import RemoteProtocolError
from whip_core.frames import HEADER_SIZE

FIRST_TYPE = 0x01


def first_frame(body: bytes) -> bytes:
    return bytes([FIRST_TYPE]) + len(body).to_bytes(3, "big") + body


def first_body(received: bytes | bytearray, most: int, what: str) -> bytes | None:
    """The body of the frame that `received` begins with; None until all of it has come.

    Raises `RemoteProtocolError` for `what` is longer than `most`, as soon as it says so.
    """
    size = int.from_bytes(received[1:HEADER_SIZE], "big") if len(received) >= HEADER_SIZE else 0
    if size > most:
        raise RemoteProtocolError(f"{what} of {size} bytes (at most {most})")
    whole = HEADER_SIZE + size
    return bytes(received[HEADER_SIZE:whole]) if len(received) >= whole else None
