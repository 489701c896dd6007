"""What an agent exposes: which port leads to which local service. Nothing else is reached."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from whip_core.errors import SettingsError
from whip_core.names import check_port, host_port

DEFAULT_HOST = "127.0.0.1"
"""Where a service is when only its port is given: beside the agent."""


@dataclass(frozen=True, slots=True)
class TCPBackend:
    """A service at a host and port."""

    host: str
    port: int

    def __str__(self) -> str:
        return host_port(self.host, self.port)


@dataclass(frozen=True, slots=True)
class UnixBackend:
    """A service at a unix socket."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


Backend = TCPBackend | UnixBackend
Exposure = Mapping[int, Backend]
"""Exposed port to local service."""


def parse_exposure(texts: Iterable[str]) -> Exposure:
    """Read `5051`, `80=5051`, `443=10.0.0.7:8443`, `443=[::1]:8443` or `80=unix:/path`.

    Each text may hold several, separated by commas. Raises `SettingsError`, one line, if
    one is none of these, a port is given twice, or none is given.
    """
    exposure: dict[int, Backend] = {}
    for entry in (part.strip() for text in texts for part in text.split(",")):
        if not entry:
            continue
        left, equals, right = entry.partition("=")
        port = _port(entry, left)
        if port in exposure:
            raise SettingsError(f"--ports exposes port {port} twice; give it one service")
        exposure[port] = _backend(entry, right) if equals else TCPBackend(DEFAULT_HOST, port)
    if not exposure:
        raise SettingsError("--ports is empty: name at least one port to expose, e.g. --ports=80")
    return exposure


def parse_service(text: str) -> Backend:
    """Read one service: `5051`, `10.0.0.7:8443` or `unix:/path`. Raises `SettingsError`."""
    try:
        return _backend(text, text)
    except SettingsError as error:
        raise SettingsError(
            f"{text[:80]!r} is not a service; write 5051, 10.0.0.7:8443 or unix:/path"
        ) from error


def _backend(entry: str, text: str) -> Backend:
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path:
            raise _wrong(entry, "the socket's path is missing")
        return UnixBackend(path)
    host, colon, port = text.rpartition(":")
    if not colon:
        return TCPBackend(DEFAULT_HOST, _port(entry, text))
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise _wrong(entry, "an IPv6 address has brackets")
    if not host:
        raise _wrong(entry, "the host is missing")
    return TCPBackend(host, _port(entry, port))


def _port(entry: str, text: str) -> int:
    try:
        return check_port(int(text)) if text.isascii() and text.isdigit() else check_port(0)
    except ValueError:
        raise _wrong(entry, f"{text[:20]!r} is not a port (1 to 65535)") from None


def _wrong(entry: str, why: str) -> SettingsError:
    return SettingsError(
        f"--ports {entry[:80]!r}: {why}; write 5051, 80=5051, 443=10.0.0.7:8443 or 80=unix:/path"
    )
