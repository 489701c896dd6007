"""Sockets: binding several addresses as one, and what asyncio's transports leave to them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
import struct
from collections.abc import Sequence
from pathlib import Path

from whip_core.errors import AddressInUse, SettingsError

PORT_CHOICES = 20
"""How often the system may choose a port that turns out to be taken on another address."""
_TCP_INFO = struct.Struct("=2xB5xI44xI")
"""Of Linux's struct tcp_info: retransmissions in a row, the current timeout for the next one
in microseconds, milliseconds since the last acknowledgement."""
_LINGER_ZERO = struct.pack("ii", 1, 0)
_MORE_THAN_LATE = 1.25
"""Timeouts without an answer: the last retransmission was not answered in its time."""
_LINGER_OFF = struct.pack("ii", 0, 0)


def abort_with_reset(transport: asyncio.BaseTransport) -> None:
    """Close at once so that the peer sees a reset: a plain close would look like an end.

    `transport.abort()` alone sends FIN when nothing unread is waiting in the socket.
    """
    _linger(transport, _LINGER_ZERO)
    duplex(transport).abort()


def reset_if_we_die(transport: asyncio.BaseTransport, wanted: bool) -> None:
    """Whether the kernel, closing the socket of a killed process, shall send a reset.

    By default it sends FIN, which the peer takes for an end. It has to be taken back
    before the transport is closed, or the last bytes may be lost.
    """
    _linger(transport, _LINGER_ZERO if wanted else _LINGER_OFF)


def accepted_reset_if_we_die(listener: socket.socket) -> None:
    """Have it so, by `reset_if_we_die`, for each connection that `listener` accepts."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)


def _linger(transport: asyncio.BaseTransport, value: bytes) -> None:
    sock = transport.get_extra_info("socket")
    if sock is None:
        return
    try:
        # As uvloop does it itself, but without the detours of Python's own class on the way:
        # this is done twice for each stream. A unix socket takes the option, and has no resets.
        plain = socket.SocketType(socket.AF_INET, socket.SOCK_STREAM, 0, sock.fileno())
    except (OSError, ValueError):  # closed already
        return
    try:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, value)
    except OSError:  # the other end was faster
        pass
    finally:
        plain.detach()  # it is the transport's


def keep_alive(transport: asyncio.BaseTransport) -> None:
    """Have the kernel find a dead path under a stream that is open and idle.

    Its probes are answered by the other kernel, so a reader that is paused is not mistaken
    for a dead one. Dead is known after 20 s of silence and 4 probes, 5 s apart.
    """
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    with contextlib.suppress(OSError, AttributeError):  # names that only some systems have
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)


def unanswered_for(transport: asyncio.BaseTransport) -> float:
    """Seconds for which the other kernel has been silent to what ours sends again and again.

    0 while it answers at all, as it does for a reader that is paused, while nothing waits
    to be acknowledged, and on systems that do not tell.
    """
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return 0.0
    try:
        told = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        retransmissions, timeout, silent = _TCP_INFO.unpack(told)
    except (OSError, AttributeError, ValueError, struct.error):
        return 0.0
    # Whoever lives has answered the last one, which was less than a timeout ago.
    answered = not retransmissions or silent * 1_000 <= timeout * _MORE_THAN_LATE
    return 0.0 if answered else float(silent) / 1_000


def duplex(transport: asyncio.BaseTransport) -> asyncio.Transport:
    """The same transport, typed as what TCP and unix connections always get.

    Not `isinstance`: uvloop's transports only behave like asyncio's.
    """
    return transport  # type: ignore[return-value]


def bind(hosts: Sequence[str], port: int, remedy: str) -> list[socket.socket]:
    """A TCP socket on each of `hosts`, all with the same port (0: one the system chooses).

    Hosts of a family that this machine lacks are passed over as long as one is left.
    Raises `SettingsError` (`AddressInUse`) that ends with `remedy`, which says what to do.
    """
    # What the system chooses for one host may be taken on the next: then it chooses again.
    for _ in range(PORT_CHOICES if port == 0 else 1):
        sockets, failure = _bind_each(hosts, port)
        if sockets and not _is_taken(failure):
            return sockets
        for sock in sockets:
            sock.close()
    reason = failure.strerror if failure else "no address to listen on"
    kind: type[SettingsError] = AddressInUse
    if not _is_taken(failure):
        kind, remedy = SettingsError, "choose another host to listen on"
    raise kind(
        f"cannot listen on port {port} of {', '.join(hosts)}: {reason}; {remedy}"
    ) from failure


def _bind_each(hosts: Sequence[str], port: int) -> tuple[list[socket.socket], OSError | None]:
    """What could be bound, up to the first port that is taken, and the last failure."""
    sockets: list[socket.socket] = []
    failure: OSError | None = None
    for host in _literal(hosts):
        try:
            sock = _bind_one(host, port)
        except OSError as error:
            failure = error
            if _is_taken(error):
                break
        else:
            sockets.append(sock)
            port = sock.getsockname()[1]
    return sockets, failure


def _literal(hosts: Sequence[str]) -> list[str]:
    """The addresses behind each host: localhost has one of each family."""
    addresses: dict[str, None] = {}
    for host in hosts:
        try:
            found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError:
            addresses[host] = None  # binding it says what is wrong
        else:
            addresses.update(dict.fromkeys(str(entry[4][0]) for entry in found))
    return list(addresses)


def _is_taken(error: OSError | None) -> bool:
    return error is not None and error.errno == errno.EADDRINUSE


def _bind_one(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def bind_unix(path: Path, remedy: str = "choose another path") -> socket.socket:
    """A unix socket at `path`, for this user only; a stale one there is replaced.

    Raises `SettingsError` (`AddressInUse`) that ends with `remedy`, which says what to do.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode) and not answers(path):
            path.unlink()
        # Linux makes the file with the socket's own mode: others never see it open.
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(str(path))
        path.chmod(0o600)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        kind = AddressInUse if _is_taken(error) else SettingsError
        raise kind(f"cannot listen on unix:{path}: {error.strerror or error}; {remedy}") from error
    return sock


def answers(path: Path) -> bool:
    """Whether somebody listens on the unix socket at `path`, whom we may talk to."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def peer_address(transport: asyncio.BaseTransport) -> tuple[str, int]:
    """Host and port of the other end; a unix socket's is its path (or "unix") and 0."""
    peer = transport.get_extra_info("peername")
    if isinstance(peer, tuple) and len(peer) >= 2:
        return str(peer[0]), int(peer[1])
    return (str(peer) or "unix") if peer else "unix", 0
