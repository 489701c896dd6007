"""What `whip doctor` finds: one line for each check, in plain words, with what to do."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import platform
import resource
import ssl
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import click

from whip_core import progress
from whip_core.certificates import (
    certificate_names_pem,
    certificates_in,
    check_files,
    expires_at,
    proves_host,
)
from whip_core.credentials import WARN_BEFORE
from whip_core.day import day
from whip_core.errors import SettingsError
from whip_core.pem_files import read_pem_file
from whip_core.revocation import Revocations
from whip_core.settings import Role, TLSFiles

FEW_FILES = 4096
"""Open files under which a busy agent or broker comes to an end: two for each stream."""
CONNECT_TIMEOUT = 5.0
"""Seconds for a connection and its handshake: more is as good as not reachable."""
ALERT_TIMEOUT = 0.5
"""Seconds for the other end to say that it does not accept our certificate (TLS 1.3 tells it
after the handshake)."""
LIBRARIES = ("whip-tunnel", "grpcio", "cryptography", "dnspython")

OK, WARNING, PROBLEM = "ok", "warning", "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    status: str
    text: str
    remedy: str = ""


class Checkup:
    """Collects findings."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def doing(self, text: str) -> None:
        """What is waited for now; for somebody at a terminal."""
        progress.say(f"{text} ...")

    def ok(self, check: str, text: str) -> None:
        self.findings.append(Finding(check, OK, text))

    def warning(self, check: str, text: str, remedy: str = "") -> None:
        self.findings.append(Finding(check, WARNING, text, remedy))

    def problem(self, check: str, text: str, remedy: str = "") -> None:
        self.findings.append(Finding(check, PROBLEM, text, remedy))

    @property
    def is_well(self) -> bool:
        return all(finding.status != PROBLEM for finding in self.findings)

    def show(self, *, as_json: bool) -> None:
        """Print all, and end the command: with status 1 if there is a problem."""
        progress.say("")
        if as_json:
            click.echo(json.dumps([dataclasses.asdict(each) for each in self.findings], indent=1))
        else:
            for each in self.findings:
                remedy = f"; {each.remedy}" if each.remedy else ""
                click.echo(f"{each.status:8} {each.check}: {each.text}{remedy}")
        raise SystemExit(0 if self.is_well else 1)


# This machine


def check_machine(checkup: Checkup) -> None:
    """Versions and the limit of open files."""
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    checkup.ok(
        "versions", f"{libraries}, Python {platform.python_version()}, {ssl.OPENSSL_VERSION}"
    )
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{most} files may be open at once"
    if 0 <= most < FEW_FILES:
        checkup.warning("open files", text, "raise the hard limit (LimitNOFILE, ulimit -Hn)")
    else:
        checkup.ok("open files", text)


# Certificates


def check_certificates(checkup: Checkup, files: TLSFiles, role: Role) -> bool:
    """Whether they can be used at all."""
    try:
        warnings = check_files(files, role)
        pem = read_pem_file(files.cert, f"--tls-cert-path {files.cert}")
        if files.crl is not None:
            _check_revocations(checkup, files, files.crl)
    except SettingsError as error:
        checkup.problem("certificate", str(error))
        return False
    for warning in warnings:
        checkup.warning("certificate", warning)
    _check_mode(checkup, files.key)
    names = ", ".join(certificate_names_pem(pem)) or "no name at all"
    expires = expires_at(pem)
    text = f"{files.cert} is for {names}, valid until {day(expires)}"
    if expires - datetime.now(UTC) < WARN_BEFORE:
        checkup.warning("certificate", text, "renew it")
    else:
        checkup.ok("certificate", text)
    return True


def _check_revocations(checkup: Checkup, files: TLSFiles, path: Path) -> None:
    source = f"--tls-crl-path {path}"
    authorities = certificates_in(read_pem_file(files.ca, f"--tls-ca-cert-path {files.ca}"), "")
    found = Revocations(read_pem_file(path, source), authorities, source)
    until = f"{path} is good until {day(found.valid_until)}"
    if found.valid_until < datetime.now(UTC):
        checkup.problem("revocation list", until, "no peer is trusted until it is renewed")
    else:
        checkup.ok("revocation list", until)


def _check_mode(checkup: Checkup, key: Path) -> None:
    mode = stat.S_IMODE(key.stat().st_mode)
    if mode & 0o077:
        checkup.warning(
            "private key", f"others on this machine can read {key} ({mode:04o})", f"chmod 600 {key}"
        )
    else:
        checkup.ok("private key", f"only its owner can read {key}")


# Ports

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], Awaitable[Streams]]


async def check_port(
    checkup: Checkup,
    check: str,
    where: str,
    connect: Connect,
    names: tuple[str, ...],
    remedy: str,
    *,
    is_client: bool = True,
) -> bool:
    """Connect, over TLS too, and see that one of `names` is proved (none: plaintext).

    Unless it `is_client`, our certificate is one that may well be refused.
    """
    checkup.doing(f"connecting to {where}")
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            reader, writer = await connect()
    except (OSError, ValueError) as error:
        checkup.problem(check, f"{where}: {explain(error)}", remedy)
        return False
    try:
        ssl_object = writer.get_extra_info("ssl_object")
        if ssl_object is None:
            checkup.ok(check, f"{where} is reachable")
            return True
        if is_client:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ALERT_TIMEOUT):
                    if not await reader.read(1):
                        raise ConnectionResetError("it hangs up after the handshake")
        der = ssl_object.getpeercert(binary_form=True)
        if not any(proves_host(der, name) for name in names):
            checkup.problem(
                check,
                f"{where} is reachable, but its certificate is not for {' or '.join(names)}",
                "issue it a certificate for the name that agents use",
            )
            return False
        checkup.ok(check, f"{where} is reachable, and proves its name over {ssl_object.version()}")
        return True
    except (OSError, ValueError) as error:
        checkup.problem(
            check, f"{where} does not accept our certificate: {explain(error)}", "compare both CAs"
        )
        return False
    finally:
        writer.transport.abort()


def explain(error: Exception) -> str:
    """What went wrong with a connection, in plain words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        clock = " (is the clock right, here and there?)" if "valid" in error.verify_message else ""
        return f"its certificate is not trusted: {error.verify_message}{clock}"
    if isinstance(error, ssl.SSLError):
        if error.reason == "WRONG_VERSION_NUMBER":
            return "what listens there does not speak TLS"
        return f"TLS failed: {(error.reason or str(error)).replace('_', ' ').lower()}"
    if isinstance(error, TimeoutError):
        return "no answer: a firewall drops it, or the address is wrong"
    if isinstance(error, ConnectionRefusedError) and not str(error).startswith("the egress"):
        return "connection refused: nothing listens there"
    return getattr(error, "strerror", None) or str(error)
