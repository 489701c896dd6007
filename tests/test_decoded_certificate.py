"""What a certificate proves, by what the ssl module tells of it: the same as by its DER."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from whip_core import certificates
from whip_core.decoded_certificate import proves_host
from whip_core.settings import TLSFiles
from whip_core.tls_trial import shown_to_ourselves

NOW = datetime.now(UTC)
DAY = timedelta(days=1)

ADDRESSES = ("10.0.0.1", "::1", "2001:db8::a", "::ffff:10.0.0.1")
NAMES = ("one.testdom", "Two.TestDom", "*.testdom", "*.0.0.1", "10.0.0.1", "xn--bcher-kva.testdom")
HOSTS = (
    "one.testdom",
    "TWO.testdom.",
    "a.b.testdom",
    "testdom",
    "bücher.testdom",
    "",
    "10.0.0.1",
    "10.0.0.2",
    "[::1]",
    "0:0:0:0:0:0:0:1",
    "2001:DB8:0::A%eth0",
    "Jane Doe",
)


def written(
    folder: Path, names: list[x509.GeneralName], common: list[str]
) -> tuple[bytes, TLSFiles]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text) for text in common])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not common)
    certificate = builder.sign(key, hashes.SHA256())
    files = TLSFiles(folder / "key.pem", folder / "cert.pem", folder / "cert.pem")
    files.cert.write_bytes(certificate.public_bytes(Encoding.PEM))
    files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return certificate.public_bytes(Encoding.DER), files


ALTERNATIVES: list[list[x509.GeneralName]] = [
    [],
    *([x509.DNSName(name)] for name in NAMES),
    *([x509.IPAddress(ipaddress.ip_address(text))] for text in ADDRESSES),
    [x509.RFC822Name("one@testdom"), x509.UniformResourceIdentifier("https://one.testdom/")],
    [x509.IPAddress(ipaddress.ip_address("::1")), x509.DNSName("other.testdom")],
]
COMMON: list[list[str]] = [
    *([], ["one.testdom"], ["10.0.0.1"], ["Jane Doe"], ["one.testdom", "two.testdom"])
]


@pytest.mark.parametrize(
    ("names", "common"),
    [(names, common) for names in ALTERNATIVES for common in COMMON if names or common],
    ids=str,
)
def test_both_readers_say_the_same(
    tmp_path: Path, names: list[x509.GeneralName], common: list[str]
) -> None:
    der, files = written(tmp_path, names, common)
    decoded = shown_to_ourselves(files)
    assert decoded is not None
    assert {host for host in HOSTS if proves_host(decoded, host)} == {
        host for host in HOSTS if certificates.proves_host(der, host)
    }


def test_a_name_that_is_not_ascii_is_refused_as_unreadable() -> None:
    with pytest.raises(ValueError, match="not ASCII"):
        proves_host({"subjectAltName": (("DNS", "bücher.testdom"),)}, "bücher.testdom")


def test_a_certificate_that_says_nothing_proves_nothing() -> None:
    assert not proves_host({}, "one.testdom")
    assert not proves_host({}, "10.0.0.1")
