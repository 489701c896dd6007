"""Our own TLS files are tried out without the library that says what is wrong with them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from whip_core.certificates import check_files, expires_at
from whip_core.errors import SettingsError
from whip_core.pki import Authority
from whip_core.settings import Role, TLSFiles
from whip_core.tls_trial import shown_to_ourselves, try_out

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)


@pytest.fixture
def ca() -> Authority:
    return Authority.create(valid_for=99 * DAY, now=NOW - 9 * DAY)


@pytest.fixture
def files(tmp_path: Path, ca: Authority) -> TLSFiles:
    files = TLSFiles(tmp_path / "key.pem", tmp_path / "cert.pem", tmp_path / "ca.pem")
    issued = ca.issue_client("*", "testdom")
    files.key.write_bytes(issued.key_pem)
    files.cert.write_bytes(issued.cert_pem)
    files.ca.write_bytes(ca.cert_pem)
    return files


def verdict(judge: Callable[[], object]) -> object:
    try:
        return judge()
    except SettingsError as error:
        return str(error)


def test_files_that_fit_are_taken_by_openssl_alone(files: TLSFiles) -> None:
    assert shown_to_ourselves(files) is not None
    assert try_out(files, Role.AGENT) == ([], expires_at(files.cert.read_bytes()))


def test_the_library_that_explains_is_not_imported_for_files_that_fit(files: TLSFiles) -> None:
    program = (
        "import sys\n"
        "from client_agent.command import try_out, Role\n"
        "from whip_core.settings import TLSFiles\n"
        "try_out(TLSFiles.of(*sys.argv[1:]), Role.AGENT)\n"
        "print(*(name for name in sys.modules if name.partition('.')[0] == 'cryptography'))"
    )
    arguments = [sys.executable, "-c", program, files.key, files.cert, files.ca]
    result = subprocess.run(arguments, capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr


def encrypted(files: TLSFiles, _: Authority) -> None:
    key = load_pem_private_key(files.key.read_bytes(), None)
    with_passphrase = BestAvailableEncryption(b"secret")
    files.key.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, with_passphrase)  # nobody is asked
    )


def from_the_past(files: TLSFiles, ca: Authority) -> None:
    issued = ca.issue_client("*", "testdom", valid_for=DAY, now=NOW - 3 * DAY)
    files.key.write_bytes(issued.key_pem)
    files.cert.write_bytes(issued.cert_pem)


def from_the_future(files: TLSFiles, ca: Authority) -> None:
    issued = ca.issue_client("*", "testdom", valid_for=DAY, now=NOW + 2 * DAY)
    files.key.write_bytes(issued.key_pem)
    files.cert.write_bytes(issued.cert_pem)


def of_a_server(files: TLSFiles, ca: Authority) -> None:
    issued = ca.issue_server(["localhost"])
    files.key.write_bytes(issued.key_pem)
    files.cert.write_bytes(issued.cert_pem)


def of_another_ca(files: TLSFiles, _: Authority) -> None:
    files.ca.write_bytes(Authority.create().cert_pem)


def of_an_expired_ca(files: TLSFiles, _: Authority) -> None:
    old = Authority.create(valid_for=DAY, now=NOW - 9 * DAY)
    files.ca.write_bytes(old.cert_pem)


def with_another_key(files: TLSFiles, ca: Authority) -> None:
    files.key.write_bytes(ca.issue_client("*", "testdom").key_pem)


def swapped(files: TLSFiles, _: Authority) -> None:
    key, cert = files.key.read_bytes(), files.cert.read_bytes()
    files.key.write_bytes(cert)
    files.cert.write_bytes(key)


def without_ca(files: TLSFiles, _: Authority) -> None:
    files.ca.unlink()


def with_a_damaged_ca_behind_a_good_one(files: TLSFiles, ca: Authority) -> None:
    damaged = b"-----BEGIN CERTIFICATE-----\nTUE=\n-----END CERTIFICATE-----\n"
    files.ca.write_bytes(ca.cert_pem + damaged)


def good_for_anything(files: TLSFiles, ca: Authority) -> None:
    """OpenSSL does not take this one to be a client's."""
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(ca.certificate.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(usage, critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("a.testdom")]), critical=True)
        .sign(ca.key, hashes.SHA256())
    )
    files.cert.write_bytes(certificate.public_bytes(Encoding.PEM))
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    files.key.write_bytes(pem)


@pytest.mark.parametrize(
    "spoil",
    [
        encrypted,
        from_the_past,
        from_the_future,
        of_a_server,
        of_another_ca,
        of_an_expired_ca,
        with_another_key,
        swapped,
        without_ca,
        with_a_damaged_ca_behind_a_good_one,
        good_for_anything,
    ],
)
def test_what_openssl_does_not_take_is_told_as_by_the_check_of_the_files(
    files: TLSFiles, ca: Authority, spoil: Callable[[TLSFiles, Authority], None]
) -> None:
    spoil(files, ca)
    assert shown_to_ourselves(files) is None
    told = verdict(lambda: check_files(files, Role.AGENT))
    found = verdict(lambda: try_out(files, Role.AGENT)[0])
    assert found == told


def test_a_key_of_another_kind_is_taken_too(files: TLSFiles, ca: Authority) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(ca.certificate.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("a.testdom")]), critical=True)
        .sign(ca.key, hashes.SHA256())
    )
    files.cert.write_bytes(certificate.public_bytes(Encoding.PEM))
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    files.key.write_bytes(pem)
    assert try_out(files, Role.AGENT) == ([], NOW + DAY)


def test_a_brokers_files_are_judged_as_a_servers(files: TLSFiles, ca: Authority) -> None:
    with pytest.raises(SettingsError, match="the certificate of a client"):
        try_out(files, Role.BROKER)
    of_a_server(files, ca)
    assert try_out(files, Role.BROKER) == ([], expires_at(files.cert.read_bytes()))
