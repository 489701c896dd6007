"""Where a broker's dial socket is: a unix socket's path, or a host and port."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from whip_core.errors import SettingsError
from whip_core.names import check_port, host_port


@dataclass(frozen=True, slots=True)
class DialAddress:
    """A unix socket at `path`, or else TCP at `host` (no brackets) and `port`."""

    path: Path | None = None
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str, *, listen: bool = False) -> DialAddress:
        """Read `unix:/path`, `/path`, `host:port` or `[::1]:port`; to listen on, port 0 too.

        Raises `SettingsError`, one line that says what to write instead.
        """
        if text.startswith(("unix:", "/")):
            path = text.removeprefix("unix:")
            if not path:
                raise _wrong(text, "the socket's path is missing")
            try:
                return cls(path=Path(path).expanduser())
            except RuntimeError as error:
                raise _wrong(text, f"there is no such home: {error}") from error
        host, colon, port = text.rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        if not (colon and bare):
            raise _wrong(text, "it is neither a path nor host:port")
        if ":" in bare and bare == host:
            raise _wrong(text, "an IPv6 address has brackets")
        try:
            number = int(port) if port.isascii() and port.isdigit() else -1
            return cls(host=bare, port=0 if listen and number == 0 else check_port(number))
        except ValueError:
            raise _wrong(text, f"{port[:20]!r} is not a port (1 to 65535)") from None

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return host_port(self.host, self.port)


def _wrong(text: str, why: str) -> SettingsError:
    return SettingsError(
        f"{text[:80]!r} is not a dial socket ({why}); write unix:/run/whip/dial.sock or "
        "broker.example.com:50052"
    )
