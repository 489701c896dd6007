"""`whip pki`: make a CA, and certificates for brokers and agents."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from whip_core.day import day
from whip_core.errors import SettingsError
from whip_core.host_patterns import IPAddress, dns_pattern, literal_address
from whip_core.options import Command, Failure, log_level_option, option
from whip_core.pem_files import read_pem_file
from whip_core.pki import Authority, Issued, Subject, check_validity, client_name

LOOPBACK_NAMES = ("localhost",)
LOOPBACK_ADDRESSES = ("127.0.0.1", "::1")

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "y": 365 * 86400}
_DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)([smhdy])", re.ASCII)


def parse_duration(text: str) -> timedelta:
    """A duration as Go writes it (`720h`, `1h30m0s`, `1.5h`), also in days, and years of 365.

    Raises `ValueError` for anything else, a sign among it, and for what is too long to count.
    """
    parts = list(_DURATION_PART.finditer(text))
    if not parts or "".join(part[0] for part in parts) != text:
        raise ValueError(f"{text[:80]!r} is not a duration such as 720h, 1h30m, 30d or 10y")
    try:
        return timedelta(seconds=sum(float(part[1]) * _SECONDS[part[2]] for part in parts))
    except OverflowError as error:
        raise ValueError(f"{text[:80]!r} is too long") from error


def _validity(_: click.Context, __: click.Parameter, text: str) -> timedelta:
    try:
        return check_validity(parse_duration(text))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _each(parse: Callable[[str], str | IPAddress]) -> Callable[..., list[str | IPAddress]]:
    """An option's callback: one list of what was given in several options and with commas."""

    def callback(_: click.Context, __: click.Parameter, texts: Sequence[str]) -> Any:
        parts = [part for text in texts for part in text.split(",") if part.strip()]
        try:
            return [parse(part) for part in parts]
        except ValueError as error:
            raise click.BadParameter(str(error)) from error

    return callback


def _options(*declarations: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for declare in reversed(declarations):
            command = declare(command)
        return command

    return decorate


class _File(click.Path):
    """click's, but for the empty value, which stands for the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty; give a file, or leave the option out", param, ctx)
        return super().convert(value, param, ctx)


def _file_option(name: str, default: str, what: str) -> Callable[[Command], Command]:
    # What is wrong with a file is told by whoever reads or writes it.
    path = _File(path_type=Path, dir_okay=False, readable=False)
    return option(name, type=path, default=default, help=what)


_subject_options = _options(
    option("--organization", help="The subject's O."),
    option("--organizational-unit", help="The subject's OU."),
    option("--country", help="The subject's C, two letters."),
    option("--province", help="The subject's ST."),
    option("--locality", help="The subject's L."),
    option("--street-address", help="The subject's street."),
    option("--postal-code", help="The subject's postal code."),
    option("--common-name", help="The subject's CN, if not the first name that fits."),
)
_ca_options = _options(
    _file_option("--ca-cert-path", "ca-cert.pem", "The CA's certificate (PEM)."),
    _file_option("--ca-key-path", "ca-key.pem", "The CA's private key (PEM)."),
)
_force_option = option("--force", type=bool, default=False, help="Replace files that exist.")


def _validity_option(default: str) -> Callable[[Command], Command]:
    return option(
        "--validity-duration",
        callback=_validity,
        default=default,
        metavar="DURATION",
        help="How long it is valid from now on, such as 720h, 1h30m, 30d or 10y.",
    )


@click.group()
def pki() -> None:
    """Make a CA, and certificates for brokers and agents."""


@pki.command()
@_ca_options
@_subject_options
@_validity_option("10y")
@_force_option
@log_level_option
def genselfsignedca(
    ca_cert_path: Path,
    ca_key_path: Path,
    validity_duration: timedelta,
    force: bool,
    **subject: str | None,
) -> None:
    """Make a certificate authority: what brokers and agents trust each other by."""
    about = _subject(subject)
    _require_free([ca_cert_path, ca_key_path], force, inputs=())
    authority = Authority.create(about, validity_duration)
    _write(
        _Output(
            ca_key_path,
            authority.key_pem,
            0o600,
            "private key of the CA: signs certificates, neither brokers nor agents need it",
        ),
        _Output(
            ca_cert_path,
            authority.cert_pem,
            0o644,
            f"certificate of the CA, until {day(authority.not_after)}: "
            "--tls-ca-cert-path of every broker and agent",
        ),
        force=force,
    )


@pki.group()
def createandsign() -> None:
    """Make a key and a certificate for it, signed by the CA."""


@createandsign.command()
@option(
    "--dns-names",
    callback=_each(dns_pattern),
    multiple=True,
    metavar="NAMES",
    help="Names that agents connect to; repeatable, or separated by commas. Without any name or "
    "address: this host's names and loopback.",
)
@option(
    "--ip-address",
    callback=_each(literal_address),
    multiple=True,
    metavar="ADDRESSES",
    help="Addresses that agents connect to; repeatable, or separated by commas.",
)
@option(
    "--relay",
    type=bool,
    default=False,
    help="For a broker that relays (`whip broker --relay`): good for connecting to others, too.",
)
@_file_option("--cert-path", "server-cert.pem", "The new certificate (PEM).")
@_file_option("--key-path", "server-key.pem", "The new private key (PEM).")
@_ca_options
@_subject_options
@_validity_option("720h")
@_force_option
@log_level_option
def server(
    dns_names: list[str],
    ip_address: list[str | IPAddress],
    relay: bool,
    cert_path: Path,
    key_path: Path,
    ca_cert_path: Path,
    ca_key_path: Path,
    validity_duration: timedelta,
    force: bool,
    **subject: str | None,
) -> None:
    """Make a broker's key and certificate."""
    about = _subject(subject)
    _require_free([cert_path, key_path], force, inputs=[ca_cert_path, ca_key_path])
    if not dns_names and not ip_address:
        dns_names, ip_address = own_names(), list(LOOPBACK_ADDRESSES)
    with _failures_in_one_line():
        authority = _load_authority(ca_cert_path, ca_key_path)
        issued = authority.issue_server(
            dns_names, ip_address, relay=relay, subject=about, valid_for=validity_duration
        )
    _write_issued(issued, "a broker", cert_path, key_path, force)
    for name in issued.names:
        if name.startswith("*.") and name.count(".") == 1:
            click.echo(f"note: TLS clients accept no wildcard as wide as {name}", err=True)


@createandsign.command()
@option(
    "--hostname",
    default="*",
    help="The agent's hostname; * lets it register any (one label) of its domain.",
)
@option("--domain", required=True, help="The agent's domain.")
@_file_option("--cert-path", "client-cert.pem", "The new certificate (PEM).")
@_file_option("--key-path", "client-key.pem", "The new private key (PEM).")
@_ca_options
@_subject_options
@_validity_option("720h")
@_force_option
@log_level_option
def client(
    hostname: str,
    domain: str,
    cert_path: Path,
    key_path: Path,
    ca_cert_path: Path,
    ca_key_path: Path,
    validity_duration: timedelta,
    force: bool,
    **subject: str | None,
) -> None:
    """Make an agent's key and certificate."""
    about = _subject(subject)
    try:
        client_name(hostname, domain)
    except ValueError as error:
        raise click.UsageError(f"--hostname or --domain: {error}") from error
    _require_free([cert_path, key_path], force, inputs=[ca_cert_path, ca_key_path])
    with _failures_in_one_line():
        authority = _load_authority(ca_cert_path, ca_key_path)
        issued = authority.issue_client(
            hostname, domain, subject=about, valid_for=validity_duration
        )
    _write_issued(issued, "an agent or a dialer", cert_path, key_path, force)


def own_names() -> list[str]:
    """The names under which this host may be known, `localhost` last."""
    names = []
    for name in (socket.getfqdn(), socket.gethostname()):
        # Without a proper name the resolver gives localhost in disguise, or a reverse entry.
        if not name.lower().endswith((".arpa", ".localdomain", ".localdomain4", ".localdomain6")):
            with contextlib.suppress(ValueError):
                names.append(dns_pattern(name))
    return list(dict.fromkeys([*(name for name in names if name != "localhost"), *LOOPBACK_NAMES]))


def _subject(values: dict[str, str | None]) -> Subject:
    try:
        return Subject(**{attribute: value or "" for attribute, value in values.items()})
    except SettingsError as error:
        raise click.UsageError(str(error)) from error


def _load_authority(cert_path: Path, key_path: Path) -> Authority:
    cert_source, key_source = f"--ca-cert-path {cert_path}", f"--ca-key-path {key_path}"
    return Authority.load(
        read_pem_file(cert_path, cert_source),
        read_pem_file(key_path, key_source),
        cert_source=cert_source,
        key_source=key_source,
    )


def _write_issued(issued: Issued, whose: str, cert_path: Path, key_path: Path, force: bool) -> None:
    until = day(issued.not_after)
    _write(
        _Output(key_path, issued.key_pem, 0o600, f"private key of {whose}: --tls-key-path"),
        _Output(
            cert_path,
            issued.cert_pem,
            0o644,
            f"certificate of {whose}, for {', '.join(issued.names)}, until {until}: "
            "--tls-cert-path",
        ),
        force=force,
    )
    if issued.shortened:
        click.echo(f"note: it ends on {until} with its CA, before the time asked for", err=True)


@dataclass(frozen=True, slots=True)
class _Output:
    path: Path
    data: bytes
    mode: int
    purpose: str


def _require_free(paths: Sequence[Path], force: bool, inputs: Iterable[Path]) -> None:
    """Find what is in the way before anything is made."""
    taken = {os.path.realpath(path) for path in inputs}
    for path in paths:
        if os.path.realpath(path) in taken:
            raise click.UsageError(f"{path} is given for two different files")
        taken.add(os.path.realpath(path))
    with _failures_in_one_line():
        for path in paths:
            if not path.parent.is_dir():
                raise Failure(f"{path}: there is no directory {path.parent}: make it first")
            if not os.path.lexists(path):
                continue
            if not force:
                raise Failure(f"{path} exists: choose another path, or give --force to replace it")
            if not stat.S_ISREG(path.lstat().st_mode):
                raise Failure(f"{path} is a link or not a regular file: remove it yourself")


def _write(*outputs: _Output, force: bool) -> None:
    with _failures_in_one_line():
        (_replace if force else _create)(outputs)
    for output in outputs:
        click.echo(f"{output.path}: {output.purpose}")


def _create(outputs: Sequence[_Output]) -> None:
    """Write files that do not exist yet, all or none."""
    with contextlib.ExitStack() as undo:
        for output in outputs:
            _write_new(output.path, output.data, output.mode, undo)
        undo.pop_all()


def _replace(outputs: Sequence[_Output]) -> None:
    """Write files where others may be, all or none: on a failure the old ones are back."""
    with contextlib.ExitStack() as clean_up, contextlib.ExitStack() as undo:
        staged = [_stage(output.path, output.data, output.mode, clean_up) for output in outputs]
        for output, new in zip(outputs, staged, strict=True):
            path = output.path
            if path.exists():
                mode = stat.S_IMODE(path.stat().st_mode)
                old = _stage(path, path.read_bytes(), mode, clean_up)
                undo.callback(os.replace, old, path)
            else:
                undo.callback(path.unlink, missing_ok=True)
            new.replace(path)
        undo.pop_all()


def _stage(path: Path, data: bytes, mode: int, clean_up: contextlib.ExitStack) -> Path:
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}.tmp")
    _write_new(temporary, data, mode, clean_up)
    return temporary


def _write_new(path: Path, data: bytes, mode: int, undo: contextlib.ExitStack) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    undo.callback(path.unlink, missing_ok=True)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)  # whatever the umask took away
        file.write(data)
        file.flush()
        os.fsync(descriptor)


@contextlib.contextmanager
def _failures_in_one_line() -> Iterator[None]:
    try:
        yield
    except SettingsError as error:
        raise Failure(str(error)) from error
    except OSError as error:
        raise Failure(f"cannot write {error.filename}: {error.strerror}") from error
