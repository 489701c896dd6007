"""Hosts of their own on this machine: network namespaces behind one switch (Linux, root)."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from programs import NEEDS_NAMESPACES, NEEDS_REDIRECTS, path_of

CLONE_NEWNET = 0x40000000
OF_NAMESPACES = Path("/etc/netns")
"""`ip netns exec` shows a program the files in here instead of those in /etc."""


@dataclass(frozen=True)
class Host:
    """One host: `ip4` and `ip6` are its addresses."""

    namespace: str
    ip4: str
    ip6: str

    def command(self, program: str) -> tuple[str, ...]:
        """What starts a program on this host."""
        return ("ip", "netns", "exec", self.namespace, path_of(program))

    def socket(self, kind: socket.SocketKind, address: str, port: int) -> socket.socket:
        """A bound socket of this host, in this process."""
        found: list[socket.socket | BaseException] = []

        def open_there() -> None:
            # A thread has its own namespace, and a socket keeps that of its birth.
            try:
                with Path(f"/var/run/netns/{self.namespace}").open("rb") as namespace:
                    libc = ctypes.CDLL(None, use_errno=True)
                    if libc.setns(namespace.fileno(), CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                sock = socket.socket(family, kind)
                sock.bind((address, port))
                sock.setblocking(False)
                found.append(sock)
            except BaseException as error:  # noqa: BLE001  # handed over to who waits
                found.append(error)

        thread = threading.Thread(target=open_there)
        thread.start()
        thread.join()
        [result] = found
        if isinstance(result, BaseException):
            raise result
        return result


class Network:
    """Hosts are added one by one; `nameserver` is where all of them ask."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._prefix = f"whip{os.getpid()}-{threading.get_ident() % 10_000}"
        self._count = 0
        self._switch = self._namespace("switch")
        _ip("-n", self._switch, "link", "add", "name", "bridge0", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "bridge0", "up")
        self.nameserver = "10.77.0.1"

    def host(self) -> Host:
        self._count += 1
        number = self._count
        namespace = self._namespace(str(number))
        host = Host(namespace, f"10.77.0.{number}", f"fd77::{number:x}")
        port = f"port{number}"
        _ip(*("-n", self._switch, "link", "add", "name", port, "type", "veth"),
            *("peer", "name", "eth0", "netns", namespace))  # fmt: skip
        _ip("-n", self._switch, "link", "set", port, "master", "bridge0", "up")
        for name in ("lo", "eth0"):
            _ip("-n", namespace, "link", "set", name, "up")
        _ip("-n", namespace, "addr", "add", f"{host.ip4}/24", "dev", "eth0")
        _ip("-n", namespace, "addr", "add", f"{host.ip6}/64", "dev", "eth0", "nodad")
        return host

    def cut(self, host: Host) -> None:
        """Pull the host's cable."""
        _ip("-n", host.namespace, "link", "set", "eth0", "down")

    def _namespace(self, suffix: str) -> str:
        name = f"{self._prefix}-{suffix}"
        _ip("netns", "add", name)
        self._stack.callback(_ip, "netns", "delete", name)
        folder = OF_NAMESPACES / name
        folder.mkdir(parents=True)
        self._stack.callback(shutil.rmtree, folder)
        (folder / "resolv.conf").write_text("nameserver 10.77.0.1\noptions timeout:1 attempts:1\n")
        return name


@contextmanager
def network() -> Iterator[Network]:
    """A switch without hosts; everything is taken down at the end."""
    with ExitStack() as stack:
        yield Network(stack)


def add_address(host: Host, address: str) -> None:
    """Give a host an address outside the network: only `add_route` leads there."""
    _ip("-n", host.namespace, "addr", "add", f"{address}/32", "dev", "lo")


def add_route(host: Host, where: str, via: Host) -> None:
    _ip("-n", host.namespace, "route", "add", where, "via", via.ip4)


def redirect(host: Host, port: int, to: int) -> None:
    """Bring TCP connections to `port` that pass over the host to its own port `to`."""
    rules = (
        "add table ip nat\n"
        "add chain ip nat prerouting { type nat hook prerouting priority -100; }\n"
        f"add rule ip nat prerouting tcp dport {port} redirect to :{to}\n"
    )
    command = [*host.command("nft"), "-f", "-"]
    subprocess.run(command, input=rules.encode(), check=True, capture_output=True, timeout=30)


def _ip(*arguments: str) -> None:
    subprocess.run([path_of("ip"), *arguments], check=True, capture_output=True, timeout=30)


@cache
def are_allowed() -> bool:
    name = f"whip{os.getpid()}-try"
    try:
        _ip("netns", "add", name)
        try:
            _ip(*("-n", name, "link", "add", "name", "try0"),
                *("type", "veth", "peer", "name", "try1"))  # fmt: skip
        finally:
            _ip("netns", "delete", name)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


@cache
def may_redirect() -> bool:
    """Whether a namespace can have its own rules that send connections elsewhere."""
    name = f"whip{os.getpid()}-nat"
    try:
        _ip("netns", "add", name)
        try:
            redirect(Host(name, "", ""), 80, 8080)
        finally:
            _ip("netns", "delete", name)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


needs_namespaces = pytest.mark.skipif(not are_allowed(), reason=NEEDS_NAMESPACES)
needs_redirects = pytest.mark.skipif(not (are_allowed() and may_redirect()), reason=NEEDS_REDIRECTS)
