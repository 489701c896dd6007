"""`whip pki`: files, their modes, what is in the way, and one line for every mistake."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from programs import needs_program, path_of
from whip_core import cli
from whip_core.certificates import certificate_names_pem, check_files, expires_at
from whip_core.commands.pki import own_names, parse_duration
from whip_core.pki import Authority
from whip_core.settings import Role, TLSFiles

CA_FILES = {"ca-cert.pem", "ca-key.pem"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands run, with no WHIP_ variable set."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("WHIP_")]:
        monkeypatch.delenv(name)
    return tmp_path


def run(*arguments: str | Path, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli.main, ["pki", *map(str, arguments)], env=env)


def succeed(*arguments: str | Path, env: dict[str, str] | None = None) -> Result:
    result = run(*arguments, env=env)
    assert result.exit_code == 0, result.output
    return result


def fail(status: int, text: str, *arguments: str | Path) -> None:
    """The command ends with this status, one line that has this text, and no traceback."""
    result = run(*arguments)
    assert result.exit_code == status, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    assert text in line
    if status == 1:
        assert line == result.stderr.strip()


@pytest.fixture
def ca(folder: Path) -> Path:
    succeed("genselfsignedca")
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def addresses(path: Path) -> list[str]:
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(address) for address in names.get_values_for_type(x509.IPAddress)]


# What is made


@needs_program("openssl")
def test_the_defaults_make_files_that_fit_together(folder: Path) -> None:
    succeed("genselfsignedca")
    succeed("createandsign", "server")
    succeed("createandsign", "client", "--domain", "testdom")
    for kind, role in (("server", Role.BROKER), ("client", Role.AGENT)):
        key, cert = folder / f"{kind}-key.pem", folder / f"{kind}-cert.pem"
        assert check_files(TLSFiles(key, cert, folder / "ca-cert.pem"), role) == []
        arguments = ["-purpose", f"ssl{kind}", "-CAfile", "ca-cert.pem", cert.name]
        subprocess.run(
            [path_of("openssl"), "verify", "-x509_strict", *arguments],
            cwd=folder,
            check=True,
            capture_output=True,
        )
    assert set(snapshot(folder)) == CA_FILES | {
        *("server-cert.pem", "server-key.pem", "client-cert.pem", "client-key.pem")
    }


def test_whiphack_has_the_same_commands(folder: Path) -> None:
    result = CliRunner().invoke(cli.whiphack, ["pki", "genselfsignedca"])
    assert result.exit_code == 0, result.output
    assert set(snapshot(folder)) == CA_FILES


def test_each_file_written_is_told_in_a_line(ca: Path) -> None:
    lines = succeed("createandsign", "client", "--domain", "testdom").stdout.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["client-key.pem", "client-cert.pem"]
    assert "for *.testdom, until 20" in lines[1]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
@pytest.mark.parametrize("force", [False, True])
def test_keys_are_for_their_owner_alone_whatever_the_umask(
    folder: Path, umask: int, force: bool
) -> None:
    before = os.umask(umask)
    try:
        succeed("genselfsignedca", *["--force"] * force)
    finally:
        os.umask(before)
    assert mode(folder / "ca-key.pem") == 0o600
    assert mode(folder / "ca-cert.pem") == 0o644


def test_a_key_is_private_from_its_first_byte(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can open it in the moment before its mode is set."""
    seen: list[int] = []
    plain_open = os.open

    def watch(path: Path, flags: int, create_mode: int) -> int:
        descriptor = plain_open(path, flags, create_mode)
        assert flags & os.O_EXCL
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        return descriptor

    before = os.umask(0)
    try:
        monkeypatch.setattr(os, "open", watch)
        succeed("genselfsignedca")
    finally:
        os.umask(before)
    assert seen == [0o600, 0o644]


def test_a_ca_lasts_ten_years_and_a_certificate_thirty_days(ca: Path) -> None:
    succeed("createandsign", "server")
    now = datetime.now(UTC)
    for name, days in (("ca-cert.pem", 3650), ("server-cert.pem", 30)):
        left = expires_at((ca / name).read_bytes()) - now
        assert timedelta(days=days, minutes=-2) < left <= timedelta(days=days)


def test_a_certificate_that_would_outlive_its_ca_is_shortened_with_a_note(folder: Path) -> None:
    succeed("genselfsignedca", "--validity-duration", "1h")
    result = succeed("createandsign", "server")
    assert "it ends on" in result.stderr
    ends = {expires_at((folder / name).read_bytes()) for name in ("ca-cert.pem", "server-cert.pem")}
    assert len(ends) == 1


def test_a_server_without_names_gets_this_hosts_and_loopback(
    ca: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Box")
    monkeypatch.setattr(socket, "getfqdn", lambda: "box.example.org")
    succeed("createandsign", "server")
    cert = ca / "server-cert.pem"
    assert certificate_names_pem(cert.read_bytes()) == ("box.example.org", "box", "localhost")
    assert addresses(cert) == ["127.0.0.1", "::1"]


@pytest.mark.parametrize(
    ("fqdn", "hostname", "names"),
    [
        ("localhost", "localhost", ["localhost"]),
        ("box", "box", ["box", "localhost"]),
        ("localhost.localdomain", "box", ["box", "localhost"]),
        ("1.0.0.127.in-addr.arpa", "box", ["box", "localhost"]),
        ("1.0.0.0.0.0.0.0.ip6.arpa", "box", ["box", "localhost"]),
        ("10.0.0.7", "not a name", ["localhost"]),
        ("", "", ["localhost"]),
    ],
)
def test_what_the_resolver_makes_up_is_no_name_of_this_host(
    monkeypatch: pytest.MonkeyPatch, fqdn: str, hostname: str, names: list[str]
) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda: fqdn)
    monkeypatch.setattr(socket, "gethostname", lambda: hostname)
    assert own_names() == names


def test_names_and_addresses_may_be_repeated_and_have_commas(ca: Path) -> None:
    succeed(
        *("createandsign", "server", "--dns-names", "a.example, B.example.", "--ip-address", "::1"),
        *("--dns-names", "*.c.example", "--ip-address", "10.0.0.1,10.0.0.2"),
    )
    cert = ca / "server-cert.pem"
    assert certificate_names_pem(cert.read_bytes()) == ("a.example", "b.example", "*.c.example")
    assert addresses(cert) == ["::1", "10.0.0.1", "10.0.0.2"]


@pytest.mark.parametrize("given", [["--dns-names", "a.example"], ["--ip-address", "10.0.0.1"]])
def test_a_server_with_a_name_gets_no_other(ca: Path, given: list[str]) -> None:
    succeed("createandsign", "server", *given)
    cert = x509.load_pem_x509_certificate((ca / "server-cert.pem").read_bytes())
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert len(list(names)) == 1


@pytest.mark.parametrize("given", [(), ("--relay",)])
def test_only_a_broker_that_relays_gets_a_certificate_for_a_client_too(
    ca: Path, given: tuple[str, ...]
) -> None:
    succeed("createandsign", "server", "--dns-names", "a.test", *given)
    cert = x509.load_pem_x509_certificate((ca / "server-cert.pem").read_bytes())
    usages = cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert ExtendedKeyUsageOID.SERVER_AUTH in usages
    assert (ExtendedKeyUsageOID.CLIENT_AUTH in usages) is bool(given)


def test_a_wildcard_that_no_tls_client_takes_gets_a_note(ca: Path) -> None:
    result = succeed("createandsign", "server", "--dns-names", "*.testdom,*.a.testdom")
    assert result.stderr == "note: TLS clients accept no wildcard as wide as *.testdom\n"


@pytest.mark.parametrize(
    ("hostname", "name"),
    [([], "*.testdom"), (["--hostname", "One.EU"], "one.eu.testdom")],
)
def test_a_client_is_named_by_hostname_and_domain(ca: Path, hostname: list[str], name: str) -> None:
    succeed("createandsign", "client", "--domain", "TestDom", *hostname)
    assert certificate_names_pem((ca / "client-cert.pem").read_bytes()) == (name,)


def test_every_option_can_come_from_the_environment(folder: Path) -> None:
    (folder / "sub").mkdir()
    environment = {
        "WHIP_CA_CERT_PATH": "sub/c.pem",
        "WHIP_CA_KEY_PATH": "sub/k.pem",
        "WHIP_ORGANIZATION": "Example",
        "WHIP_DNS_NAMES": "a.example,b.example c.example",
        "WHIP_DOMAIN": "testdom",
        "WHIP_HOSTNAME": "one",
        "WHIP_VALIDITY_DURATION": "2h",
    }
    succeed("genselfsignedca", env=environment)
    succeed("createandsign", "server", env=environment)
    succeed("createandsign", "client", env=environment)
    ca = x509.load_pem_x509_certificate((folder / "sub/c.pem").read_bytes())
    assert ca.subject.rfc4514_string() == "CN=whip CA,O=Example"
    server = (folder / "server-cert.pem").read_bytes()
    assert certificate_names_pem(server) == ("a.example", "b.example", "c.example")
    assert certificate_names_pem((folder / "client-cert.pem").read_bytes()) == ("one.testdom",)
    assert expires_at(server) < datetime.now(UTC) + timedelta(hours=2, minutes=1)


# What is in the way

MAKE = {
    "ca": (["genselfsignedca"], "ca-key.pem", "ca-cert.pem"),
    "server": (["createandsign", "server"], "server-key.pem", "server-cert.pem"),
    "client": (
        ["createandsign", "client", "--domain", "testdom"],
        "client-key.pem",
        "client-cert.pem",
    ),
}


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("which", [0, 1])
def test_an_existing_file_is_kept_and_nothing_is_written(
    folder: Path, kind: str, which: int
) -> None:
    if kind != "ca":
        succeed("genselfsignedca")
    arguments, *names = MAKE[kind]
    (folder / names[which]).write_bytes(b"precious")
    before = snapshot(folder)
    fail(1, f"{names[which]} exists: choose another path, or give --force", *arguments)
    assert snapshot(folder) == before


@pytest.mark.parametrize("kind", MAKE)
def test_force_replaces_both_files(folder: Path, kind: str) -> None:
    succeed("genselfsignedca")
    arguments, *names = MAKE[kind]
    for name in names:
        (folder / name).write_bytes(b"old")
        (folder / name).chmod(0o666)
    if kind != "ca":
        succeed("genselfsignedca", "--force")
    succeed(*arguments, "--force")
    assert set(snapshot(folder)) == CA_FILES | set(names)
    key = load_pem_private_key((folder / names[0]).read_bytes(), None)
    cert = x509.load_pem_x509_certificate((folder / names[1]).read_bytes())
    assert key.public_key() == cert.public_key()
    assert mode(folder / names[0]) == 0o600
    assert mode(folder / names[1]) == 0o644


def test_a_link_is_in_the_way_even_if_it_leads_nowhere(folder: Path) -> None:
    (folder / "ca-key.pem").symlink_to("elsewhere")
    fail(1, "ca-key.pem exists", "genselfsignedca")
    fail(1, "ca-key.pem is a link or not a regular file", "genselfsignedca", "--force")
    assert snapshot(folder) == {}


@pytest.fixture
def failing_write(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The disk is full when the second file has been written."""
    calls = iter([None, OSError(28, "No space left on device", "disk")])
    plain = os.fsync

    def fsync(descriptor: int) -> None:
        if error := next(calls, None):
            raise error
        plain(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


@pytest.mark.usefixtures("failing_write")
def test_a_failure_half_way_leaves_no_half(folder: Path) -> None:
    fail(1, "No space left on device", "genselfsignedca")
    assert snapshot(folder) == {}


@pytest.mark.parametrize("old", [["ca-key.pem", "ca-cert.pem"], ["ca-key.pem"], ["ca-cert.pem"]])
@pytest.mark.usefixtures("failing_write")
def test_a_failure_half_way_leaves_the_old_files(folder: Path, old: list[str]) -> None:
    for name in old:
        (folder / name).write_text(f"old {name}")
    fail(1, "No space left on device", "genselfsignedca", "--force")
    assert snapshot(folder) == {name: f"old {name}".encode() for name in old}


@pytest.mark.parametrize("old", [["ca-key.pem", "ca-cert.pem"], ["ca-key.pem"], ["ca-cert.pem"]])
def test_when_only_one_file_can_be_replaced_neither_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, old: list[str]
) -> None:
    for name in old:
        (folder / name).write_text(f"old {name}")
        (folder / name).chmod(0o640)
    plain = Path.replace

    def replace(path: Path, target: Path) -> Path:
        if target.name == "ca-cert.pem":
            raise PermissionError(1, "Operation not permitted", str(target))
        return plain(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        fail(1, "cannot write ca-cert.pem: Operation not permitted", "genselfsignedca", "--force")
    assert snapshot(folder) == {name: f"old {name}".encode() for name in old}
    assert {mode(folder / name) for name in old} == {0o640}


def test_a_file_that_appears_in_the_last_moment_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Authority.create

    def meanwhile(*arguments: object) -> Authority:
        (folder / "ca-cert.pem").write_bytes(b"precious")
        return plain(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Authority, "create", meanwhile)
    fail(1, "ca-cert.pem: File exists", "genselfsignedca")
    assert snapshot(folder) == {"ca-cert.pem": b"precious"}


def test_a_missing_directory_is_told(ca: Path) -> None:
    before = snapshot(ca)
    for arguments, text in (
        (["createandsign", "server", "--key-path", "no/where/k.pem"], "no/where: make it first"),
        (["genselfsignedca", "--ca-cert-path", "ca-key.pem/x"], "no directory ca-key.pem"),
    ):
        fail(1, text, *arguments, "--force")
    assert snapshot(ca) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["genselfsignedca", "--ca-cert-path", "x.pem", "--ca-key-path", "./x.pem"],
        ["createandsign", "server", "--cert-path", "x.pem", "--key-path", "x.pem"],
        ["createandsign", "server", "--cert-path", "ca-cert.pem"],
        ["createandsign", "client", "--domain", "d", "--key-path", "../{here}/ca-key.pem"],
    ],
)
def test_one_path_for_two_files_is_a_wrong_call_even_with_force(
    ca: Path, arguments: list[str]
) -> None:
    before = snapshot(ca)
    arguments = [argument.format(here=ca.name) for argument in arguments]
    fail(2, "is given for two different files", *arguments, "--force")
    assert snapshot(ca) == before


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["createandsign", "client"], "Missing option '--domain'"),
        (["createandsign", "client", "--domain", "test dom"], "is not a host name"),
        (["createandsign", "client", "--domain", "*"], "is not a host name"),
        (["createandsign", "client", "--domain", "d", "--hostname", ""], "is not a host name"),
        (["createandsign", "client", "--domain", "d", "--hostname", "a*"], "is not a host name"),
        (["createandsign", "server", "--dns-names", "a,b c"], "'b c' is not a host name"),
        (["createandsign", "server", "--dns-names", "10.0.0.1"], "is an IP address"),
        (["createandsign", "server", "--ip-address", "10.0.0"], "'10.0.0' is not an IP address"),
        (["createandsign", "server", "--validity-duration", "10"], "is not a duration such as"),
        (["createandsign", "server", "--validity-duration", "0s"], "between 1 second and"),
        (["genselfsignedca", "--validity-duration", "101y"], "and 100 years"),
        (["genselfsignedca", "--common-name", "x" * 65], "takes 64 octets"),
        (["genselfsignedca", "--country", "Germany"], "country 'Germany'"),
        (["genselfsignedca", "--ca-key-path", "."], "is a directory"),
    ],
)
def test_a_wrong_call_ends_with_status_2(folder: Path, arguments: list[str], text: str) -> None:
    fail(2, text, *arguments)
    assert snapshot(folder) == {}


def test_a_missing_ca_is_told(folder: Path) -> None:
    fail(1, "--ca-cert-path ca-cert.pem does not exist", "createandsign", "server")
    assert snapshot(folder) == {}


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("ca-key.pem", b"junk", "--ca-key-path ca-key.pem holds no private key"),
        ("ca-cert.pem", b"junk", "--ca-cert-path ca-cert.pem holds no certificate"),
        ("ca-cert.pem", None, "--ca-cert-path ca-cert.pem is not a CA certificate"),
    ],
)
def test_a_ca_that_cannot_sign_is_told(
    ca: Path, name: str, content: bytes | None, text: str
) -> None:
    if content is None:
        succeed("createandsign", "server")
        (ca / "ca-key.pem").write_bytes((ca / "server-key.pem").read_bytes())
        content = (ca / "server-cert.pem").read_bytes()
    (ca / name).write_bytes(content)
    before = snapshot(ca)
    fail(1, text, "createandsign", "client", "--domain", "testdom")
    assert snapshot(ca) == before


def test_a_key_of_another_ca_is_told_with_both_paths(ca: Path) -> None:
    succeed("genselfsignedca", "--ca-cert-path", "other.pem", "--ca-key-path", "other-key.pem")
    text = "--ca-key-path other-key.pem does not belong to --ca-cert-path ca-cert.pem"
    fail(1, text, "createandsign", "server", "--ca-key-path", "other-key.pem")


# Durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("720h", 720 * 3600),
        ("1h30m", 5400),
        ("720h0m0s", 720 * 3600),
        ("30m", 1800),
        ("90s", 90),
        ("1.5h", 5400),
        (".5m", 30),
        ("30d", 30 * 86400),
        ("10y", 3650 * 86400),
        ("1y2d3h", (367 * 24 + 3) * 3600),
    ],
)
def test_a_duration_is_read(text: str, seconds: int) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10",
        "h",
        "1w",
        "-1h",
        "+1h",
        "1h 30m",
        " 1h",
        "1h,",
        "1H",
        "1e3h",
        "٣h",
        "9" * 400 + "y",
    ],
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a duration|is too long"):
        parse_duration(text)


def test_the_help_of_every_command_can_be_read(folder: Path) -> None:
    for arguments in ([], ["genselfsignedca"], ["createandsign"], ["createandsign", "server"]):
        assert "Usage:" in succeed(*arguments, "--help").stdout
