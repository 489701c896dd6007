"""One TLS connection without I/O: records in, bytes out, around `ssl.SSLObject`.

The cryptography, and every decision about the handshake, is OpenSSL's. What is done here is
to ask it in few calls and to leave nothing lying in its buffers:

- A record is decrypted when all of it is there. To ask for one that is not raises, which
  costs as much as the decryption; so the lengths in the records' headers are looked at.
- Memory BIOs never shrink: each is given one record at a time, or every connection would
  keep as much as it was ever given at once. What is decrypted is handed on before the call
  returns, so connections need no buffers of their own.
"""

from __future__ import annotations

import contextlib
import ssl

RECORD_SIZE = 16 * 1024
"""Octets of a stream in one TLS record, at most (RFC 8446 §5.1)."""
_HEADER_SIZE = 5
"""Octets before each record: its type, a version, and two of the length of what follows."""


class TLSRecords:
    """`over` is set once nothing more can come: `error` says why, None is close_notify.

    `outgoing`, to look at only, has something `pending` if there is something `to_send`.
    """

    def __init__(
        self, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None
    ) -> None:
        self._incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.ssl_object = context.wrap_bio(
            self._incoming, self.outgoing, server_side=server_side, server_hostname=server_hostname
        )
        self._header = b""  # of a record of which nothing else has come
        self._missing = 0  # octets of the record whose beginning has come
        self.over = False
        self.error: ssl.SSLError | None = None

    def handshake(self) -> bool:
        """Go on with it; whether it is over. Raises `ssl.SSLError` if it fails."""
        try:
            self.ssl_object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def to_send(self) -> bytes:
        """What OpenSSL has to say besides what `encrypt` gives."""
        return self.outgoing.read() if self.outgoing.pending else b""

    def encrypt(self, data: bytes | bytearray | memoryview) -> bytes:
        """The records that carry `data`."""
        write = self.ssl_object.write
        if len(data) <= RECORD_SIZE:
            write(data)
            return self.outgoing.read()
        view, records = memoryview(data), []
        for start in range(0, len(view), RECORD_SIZE):
            write(view[start : start + RECORD_SIZE])
            records.append(self.outgoing.read())
        return b"".join(records)

    def close(self) -> bytes:
        """Our close_notify."""
        with contextlib.suppress(ssl.SSLError):  # the other end's has not come yet
            self.ssl_object.unwrap()
        return self.to_send()

    # What comes in is given either to `decrypt` or, while nothing can be handed on (during the
    # handshake, while reading is paused), to `feed`; then `decrypt_fed` comes before `decrypt`.

    @property
    def holds(self) -> bool:
        """Whether something was fed, and not decrypted."""
        return self._incoming.pending > 0

    def feed(self, received: memoryview) -> None:
        """Take octets in, to be decrypted later."""
        while received:
            received = received[self._feed_record(received) :]

    def decrypt_fed(self, room: memoryview) -> bytes:
        """What the records that were fed carry, as far as there is `room`; nothing at the end."""
        filled = 0
        while self._incoming.pending and len(room) - filled >= RECORD_SIZE:
            count = self._read_into(room[filled:])
            if not count:
                break
            filled += count
        return bytes(room[:filled])

    def decrypt(self, received: memoryview, room: memoryview) -> bytes:
        """What the records carry that `received` completes.

        `room` is to decrypt in, for the time of the call: `RECORD_SIZE` more than `received`.
        """
        size = len(received)
        if (
            size > _HEADER_SIZE
            and size == _HEADER_SIZE + (received[3] << 8) + received[4]
            and not (self._missing or self._header)
        ):  # one whole record, as nearly always
            self._incoming.write(received)
            return bytes(room[: self._read_into(room)])
        filled = 0
        while received and not self.over:
            received = received[self._feed_record(received) :]
            if not (self._missing or self._header):
                filled += self._read_into(room[filled:])
        return bytes(room[:filled])

    def _feed_record(self, received: memoryview) -> int:
        """Feed octets to the end of a record; how many. Nothing is `_missing` if it is there."""
        size = len(received)
        if size > _HEADER_SIZE and not (self._missing or self._header):
            end = _HEADER_SIZE + (received[3] << 8) + received[4]
            if end <= size:
                self._incoming.write(received[:end])
                return end
        taken = 0
        if not self._missing:
            taken = min(_HEADER_SIZE - len(self._header), len(received))
            self._header += received[:taken]
            if len(self._header) < _HEADER_SIZE:
                return taken
            self._missing = int.from_bytes(self._header[3:], "big")
            self._incoming.write(self._header)
            self._header = b""
        piece = received[taken : taken + self._missing]
        self._incoming.write(piece)
        self._missing -= len(piece)
        return taken + len(piece)

    def _read_into(self, buffer: memoryview) -> int:
        """Decrypt one record; how many octets it carries, 0 for one that says something else."""
        try:
            # With a buffer to fill it gives the count; the stubs know only the other form.
            count: int = self.ssl_object.read(len(buffer), buffer)  # type: ignore[assignment]
        except ssl.SSLWantReadError:
            return 0
        except ssl.SSLZeroReturnError:
            count = 0
        except ssl.SSLError as error:
            self.error = error
            self.over = True
            return 0
        if not count:
            self.over = True
        return count
