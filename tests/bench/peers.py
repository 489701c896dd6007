"""What a user would pick instead, each as it would be run beside whip."""

from __future__ import annotations

import contextlib
import functools
import getpass
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.contender import Contender
from bench.load import Place
from bench.processes import Missing, Program, find, free_ports, listens, running, wait_until

DIRECT = "direct"
MITMDUMP = "mitmdump alone"
SSH = "OpenSSH -R"
SSH_FAST = "OpenSSH -R -tt aes128-gcm"
ASYNCSSH = "asyncssh aes128-gcm"

CIPHER = "aes128-gcm@openssh.com"
PRIVILEGE_SEPARATION = Path("/run/sshd")
SSHD_CONFIGURATION = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/ssh-key
AuthorizedKeysFile {folder}/ssh-key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AllowTcpForwarding yes
PrintMotd no
PrintLastLog no
"""


@contextlib.contextmanager
def direct(folder: Path, service_port: int) -> Iterator[tuple[Contender, ...]]:
    """Nothing in between."""
    yield (Contender(DIRECT, Place(service_port)).wait_ready(),)


@contextlib.contextmanager
def mitmdump(folder: Path, service_port: int) -> Iterator[tuple[Contender, ...]]:
    """mitmdump without whip, streaming large bodies as `whip proxy` does."""
    [port] = free_ports(1)
    with running(
        "mitmdump",
        find("mitmdump"),
        "--listen-host=127.0.0.1",
        f"--listen-port={port}",
        "--set=stream_large_bodies=1m",
        f"--set=confdir={folder / 'mitmproxy'}",
        folder=folder,
    ) as program:
        wait_until(lambda: listens(port), "mitmdump listens", program)
        place = Place(port, "127.0.0.1", f"http://127.0.0.1:{service_port}")
        yield (Contender(MITMDUMP, place, {"mitmproxy": program}).wait_ready(),)


# OpenSSH


@functools.cache
def _ssh_key(folder: Path) -> Path:
    key = folder / "ssh-key"
    make = (find("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    subprocess.run(make, check=True)
    return key


@contextlib.contextmanager
def _sshd(folder: Path, name: str) -> Iterator[tuple[Program, int]]:
    """An sshd of our own, for this user alone."""
    program = find("sshd")
    if os.geteuid() == 0:
        PRIVILEGE_SEPARATION.mkdir(exist_ok=True)  # without it a root's sshd does not start
    _ssh_key(folder)
    [port] = free_ports(1)
    configuration = folder / f"{name}.conf"
    configuration.write_text(SSHD_CONFIGURATION.format(port=port, folder=folder))
    with running(name, program, "-D", "-e", "-f", configuration, folder=folder) as sshd:
        wait_until(lambda: listens(port), "sshd listens", sshd)
        yield sshd, port


@contextlib.contextmanager
def _openssh(
    name: str, log_name: str, folder: Path, service_port: int, *options: str, command: str = ""
) -> Iterator[tuple[Contender, ...]]:
    ssh = find("ssh")
    [port] = free_ports(1)
    with (
        _sshd(folder, f"sshd-{log_name}") as (sshd, sshd_port),
        running(
            f"ssh-{log_name}",
            *(ssh, "-F", "none", "-i", _ssh_key(folder), "-p", str(sshd_port)),
            *("-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no"),
            *("-o", f"UserKnownHostsFile={folder}/known-hosts-{log_name}"),
            *("-o", "ExitOnForwardFailure=yes", *options),
            *("-R", f"127.0.0.1:{port}:127.0.0.1:{service_port}"),
            *(f"{getpass.getuser()}@127.0.0.1", *command.split()),
            folder=folder,
        ) as client,
    ):
        programs = {"sshd": sshd, "ssh": client}
        yield (Contender(name, Place(port), programs).wait_ready(),)


def ssh(
    folder: Path, service_port: int
) -> contextlib.AbstractContextManager[tuple[Contender, ...]]:
    """`ssh -N -R`, everything else at its default."""
    return _openssh(SSH, "default", folder, service_port, "-N")


def ssh_fast(
    folder: Path, service_port: int
) -> contextlib.AbstractContextManager[tuple[Contender, ...]]:
    """With a terminal, without which sshd never sets TCP_NODELAY, and the fastest cipher."""
    return _openssh(
        SSH_FAST, "fast", folder, service_port, "-tt", "-c", CIPHER, command="exec sleep 1d"
    )


# asyncssh


@contextlib.contextmanager
def asyncssh(folder: Path, service_port: int) -> Iterator[tuple[Contender, ...]]:
    """asyncssh at both ends, each on uvloop."""
    for module in ("asyncssh", "uvloop"):
        if importlib.util.find_spec(module) is None:
            raise Missing(f"{module} is not installed")
    script = Path(__file__).with_name("asyncssh_end.py")
    server_port, port = free_ports(2)
    with running(
        "asyncssh-server", sys.executable, script, "server", str(server_port), folder=folder
    ) as server:
        wait_until(lambda: listens(server_port), "asyncssh listens", server)
        arguments = ("client", str(server_port), str(port), str(service_port))
        with running(
            "asyncssh-client", sys.executable, script, *arguments, folder=folder
        ) as client:
            programs = {"server": server, "client": client}
            yield (Contender(ASYNCSSH, Place(port), programs).wait_ready(),)
