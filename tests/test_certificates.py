"""Names in certificates and what they cover; files that do or do not fit together."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from whip_core.certificates import (
    certificate_names,
    certificate_names_pem,
    certificates_in,
    check_files,
    expires_at,
    private_key_in,
    proves_host,
)
from whip_core.errors import SettingsError
from whip_core.host_patterns import covers, dns_pattern, literal_address
from whip_core.pem_files import MAX_PEM_SIZE
from whip_core.pki import Authority
from whip_core.settings import Role, TLSFiles

KEY = ec.generate_private_key(ec.SECP256R1())
NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)


def certificate(
    *alternatives: x509.GeneralName, common_names: Sequence[str] = (), extra: bytes = b""
) -> x509.Certificate:
    """A self-signed certificate with just these names."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text) for text in common_names])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(KEY.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
    )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    if extra:
        oid = x509.ObjectIdentifier("1.3.6.1.4.1.55555.1")
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, extra), critical=False)
    return builder.sign(KEY, hashes.SHA256())


def der(
    *alternatives: x509.GeneralName, common_names: Sequence[str] = (), extra: bytes = b""
) -> bytes:
    return certificate(*alternatives, common_names=common_names, extra=extra).public_bytes(
        Encoding.DER
    )


def with_raw_alternative_names(raw: bytes) -> bytes:
    """A certificate whose alternative names are these bytes, which no library would write."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "one.testdom")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + DAY)
        .add_extension(
            x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, raw), critical=False
        )
        .sign(KEY, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )


def address(text: str) -> x509.IPAddress:
    return x509.IPAddress(ipaddress.ip_address(text))


# Names


def test_the_names_are_the_dns_names_in_lower_case_and_in_order() -> None:
    both = der(x509.DNSName("B.Testdom"), x509.DNSName("*.a.testdom"), common_names=["other"])
    assert certificate_names(both) == ("b.testdom", "*.a.testdom")


def test_without_dns_names_the_common_name_counts() -> None:
    assert certificate_names(der(common_names=["One.Testdom."])) == ("one.testdom",)
    assert certificate_names(der(address("10.0.0.1"), common_names=["*.testdom"])) == ("*.testdom",)


def test_a_common_name_never_adds_to_dns_names() -> None:
    assert "one.testdom" not in certificate_names(
        der(x509.DNSName("two.testdom"), common_names=["one.testdom"])
    )


@pytest.mark.parametrize(
    "common_names",
    [[], ["Jane Doe"], ["10.0.0.1"], ["*"], ["f*.testdom"], ["a.testdom", "b.testdom"]],
    ids=" and ".join,
)
def test_a_common_name_that_is_no_single_host_name_is_none(common_names: list[str]) -> None:
    assert certificate_names(der(common_names=common_names)) == ()


def test_pem_gives_the_names_of_its_first_certificate() -> None:
    first, second = (
        certificate(x509.DNSName(name)).public_bytes(Encoding.PEM) for name in ("one", "two")
    )
    assert certificate_names_pem(first + second) == ("one",)


def test_pem_hidden_inside_a_certificate_is_not_taken_for_it() -> None:
    ca = Authority.create(valid_for=9 * DAY)
    other = ca.issue_server(["victim.testdom"], valid_for=5 * DAY).cert_pem
    mine = der(x509.DNSName("mine.testdom"), extra=b"\n" + other)
    assert certificate_names(mine) == ("mine.testdom",)
    assert not proves_host(mine, "victim.testdom")
    assert expires_at(mine) == NOW + DAY


@pytest.mark.parametrize(
    "read", [certificate_names, certificate_names_pem, expires_at, lambda der: proves_host(der, "")]
)
@pytest.mark.parametrize(
    "junk",
    [b"", b"0", b"\x30\x82", b"-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----"],
)
def test_what_is_no_certificate_is_a_value_error(
    read: Callable[[bytes], object], junk: bytes
) -> None:
    with pytest.raises(ValueError, match="not a certificate"):
        read(junk)


@pytest.mark.parametrize(
    "raw",
    [
        b"junk",
        b"\x30\x05\x82\x03\xff\xfe\xfd",  # a dNSName that is not ASCII
        b"\x30\x04\xa3\x02\x05\x00",  # an x400Address
        b"\x30\x05\x87\x03\x01\x02\x03",  # an address of three octets
    ],
)
def test_names_that_cannot_be_read_are_a_value_error_and_no_common_name(raw: bytes) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        certificate_names(with_raw_alternative_names(raw))


# What names cover


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("one.testdom", "one.testdom"),
        ("One.TESTDOM", "oNE.testdom."),
        ("one.testdom.", "one.testdom"),
        ("*.testdom", "one.testdom"),
        ("*.TestDom.", "ONE.testdom."),
        ("*.eu.testdom", "one.eu.testdom"),
        ("xn--bcher-kva.testdom", "bücher.testdom"),
        ("*.xn--bcher-kva", "one.BÜCHER"),
    ],
)
def test_a_pattern_covers(pattern: str, name: str) -> None:
    assert covers([pattern], name)
    assert covers(iter(["other.example", pattern]), name)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("one.testdom", "two.testdom"),
        ("one.testdom", "testdom"),
        ("*.testdom", "testdom"),
        ("*.testdom", ".testdom"),
        ("*.testdom", "a.b.testdom"),
        ("*.testdom", "*.testdom"),
        ("*.*.testdom", "a.b.testdom"),
        ("a.*.testdom", "a.b.testdom"),
        ("o*.testdom", "one.testdom"),
        ("*ne.testdom", "one.testdom"),
        ("*", "testdom"),
        ("*", "*"),
        ("*.", "testdom"),
        ("*..", "testdom"),
        ("", ""),
        ("", "testdom"),
        ("one.testdom\0.evil", "one.testdom"),
        ("one.testdom", "one.testdom\0.evil"),
        (".testdom", "one.testdom"),
    ],
)
def test_a_pattern_does_not_cover(pattern: str, name: str) -> None:
    assert not covers([pattern], name)


def test_no_patterns_cover_nothing() -> None:
    assert not covers([], "one.testdom")


@pytest.mark.parametrize(
    "text", ["*", "*.", "", "a b", "*.*.a", "10.0.0.1", "::1", "*." + "a." * 126 + "a"]
)
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a host name|longer than"):
        dns_pattern(text)


# Hosts


@pytest.mark.parametrize(
    ("names", "host"),
    [
        ([x509.DNSName("broker.example")], "Broker.Example."),
        ([x509.DNSName("*.example")], "broker.example"),
        ([address("10.0.0.1")], "10.0.0.1"),
        ([address("::1")], "0:0:0:0:0:0:0:1"),
        ([address("2001:db8::a")], "[2001:DB8:0::A]"),
        ([address("fe80::1")], "fe80::1%eth0"),
    ],
)
def test_a_server_certificate_proves(names: list[x509.GeneralName], host: str) -> None:
    assert proves_host(der(*names), host)


@pytest.mark.parametrize(
    ("names", "host"),
    [
        ([x509.DNSName("broker.example")], "other.example"),
        ([x509.DNSName("broker.example")], ""),
        ([x509.DNSName("10.0.0.1")], "10.0.0.1"),
        ([x509.DNSName("*.0.0.1")], "10.0.0.1"),
        ([address("10.0.0.1")], "10.0.0.2"),
        ([address("10.0.0.1")], "10.0.0.1.example"),
        ([address("10.0.0.1")], "167772161"),
        ([address("::1")], "127.0.0.1"),
        ([], "10.0.0.1"),
    ],
)
def test_a_server_certificate_does_not_prove(names: list[x509.GeneralName], host: str) -> None:
    assert not proves_host(der(*names, common_names=["10.0.0.1"]), host)


def test_literal_addresses_leave_brackets_and_zones_aside() -> None:
    assert str(literal_address(" [FE80::1%eth0] ")) == "fe80::1"
    with pytest.raises(ValueError, match="'localhost' is not an IP address"):
        literal_address("localhost")


def test_the_end_of_a_certificate_is_in_utc() -> None:
    one = certificate(x509.DNSName("one"))
    for data in (
        one.public_bytes(Encoding.DER),
        one.public_bytes(Encoding.PEM),
        b"0 s:CN = one\n" + one.public_bytes(Encoding.PEM),
    ):
        assert expires_at(data) == NOW + DAY
        assert expires_at(data).tzinfo is not None


def test_the_names_of_a_grpc_peer_are_read_from_its_auth_context() -> None:
    """And so gRPC's own TLS library takes what we issue."""
    ca = Authority.create()
    broker, agent = ca.issue_server(["localhost"]), ca.issue_client("*", "testdom")

    def names_of_caller(_: bytes, context: grpc.ServicerContext) -> bytes:
        (pem,) = context.auth_context()["x509_pem_cert"]
        return ",".join(certificate_names_pem(pem)).encode()

    with ThreadPoolExecutor(1) as executor:
        server = grpc.server(executor)
        handler = grpc.unary_unary_rpc_method_handler(names_of_caller)
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("test.Test", {"Names": handler})]
        )
        server_credentials = grpc.ssl_server_credentials(
            [(broker.key_pem, broker.cert_pem)], ca.cert_pem, require_client_auth=True
        )
        port = server.add_secure_port("localhost:0", server_credentials)
        server.start()
        credentials = grpc.ssl_channel_credentials(ca.cert_pem, agent.key_pem, agent.cert_pem)
        with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
            assert channel.unary_unary("/test.Test/Names")(b"", timeout=30) == b"*.testdom"
        server.stop(None).wait()


# Files


@pytest.fixture
def ca() -> Authority:
    return Authority.create()


@pytest.fixture
def files(tmp_path: Path, ca: Authority) -> TLSFiles:
    """Files that fit together; a test spoils what it wants to see told."""
    issued = ca.issue_client("*", "testdom")
    files = TLSFiles(tmp_path / "key.pem", tmp_path / "cert.pem", tmp_path / "ca.pem")
    files.key.write_bytes(issued.key_pem)
    files.cert.write_bytes(issued.cert_pem)
    files.ca.write_bytes(ca.cert_pem)
    return files


OPTIONS = {"key": "--tls-key-path", "cert": "--tls-cert-path", "ca": "--tls-ca-cert-path"}


def told(files: TLSFiles, which: str, text: str) -> None:
    """The check fails with one line on the file and its option, and with this text."""
    with pytest.raises(SettingsError) as caught:
        check_files(files, Role.AGENT)
    message = str(caught.value)
    assert message.startswith(f"{OPTIONS[which]} {getattr(files, which)} ")
    assert text in message
    assert "\n" not in message


def key_pem(
    form: PrivateFormat = PrivateFormat.PKCS8, password: bytes | None = None, key: object = KEY
) -> bytes:
    assert isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey)
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, form, encryption)


def test_files_that_fit_need_no_word(files: TLSFiles) -> None:
    assert check_files(files, Role.AGENT) == []


def test_a_certificate_that_is_for_the_other_end_is_told(files: TLSFiles, ca: Authority) -> None:
    assert check_files(files, Role.AGENT) == []
    with pytest.raises(SettingsError) as caught:
        check_files(files, Role.BROKER)
    assert str(caught.value) == (
        f"--tls-cert-path {files.cert} is the certificate of a client, but a broker needs its "
        "own: issue one with `whip pki createandsign server`"
    )
    issued = ca.issue_server(["broker.example"])
    files.key.write_bytes(issued.key_pem)
    files.cert.write_bytes(issued.cert_pem)
    assert check_files(files, Role.BROKER) == []
    with pytest.raises(SettingsError, match="of a server, but an agent needs its own"):
        check_files(files, Role.AGENT)


def test_one_file_may_hold_key_and_certificate(files: TLSFiles) -> None:
    files.key.write_bytes(files.cert.read_bytes() + files.key.read_bytes())
    assert check_files(TLSFiles(files.key, files.key, files.ca), Role.AGENT) == []


@pytest.mark.parametrize("which", OPTIONS)
def test_a_missing_file_is_told(files: TLSFiles, which: str) -> None:
    getattr(files, which).unlink()
    told(files, which, "does not exist")


@pytest.mark.parametrize("which", OPTIONS)
def test_a_directory_is_told(files: TLSFiles, which: str) -> None:
    getattr(files, which).unlink()
    getattr(files, which).mkdir()
    told(files, which, "is a directory")


@pytest.mark.parametrize("which", OPTIONS)
def test_a_file_that_may_not_be_read_is_told(
    files: TLSFiles, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_open = Path.open

    def refuse(path: Path, *args: Any) -> Any:
        if path == getattr(files, which):
            raise PermissionError(13, "Permission denied", str(path))
        return plain_open(path, *args)

    # Not by its mode: root, as which containers run tests, may read everything.
    monkeypatch.setattr(Path, "open", refuse)
    told(files, which, "cannot be read by this user: Permission denied")


@pytest.mark.parametrize("which", OPTIONS)
def test_a_file_without_an_end_is_told(files: TLSFiles, which: str) -> None:
    getattr(files, which).write_bytes(b"x" * (MAX_PEM_SIZE + 1))
    told(files, which, "larger than 1 MiB")


@pytest.mark.parametrize(
    ("which", "content", "text"),
    [
        ("key", b"", "holds no private key"),
        ("key", b"no PEM at all", "holds no private key"),
        ("key", b"\x30\x82\x01\x00", "is DER, not PEM"),
        ("key", b"-----BEGIN PRIVATE KEY-----\nTUE=\n-----END PRIVATE KEY-----\n", "damaged"),
        ("key", key_pem(password=b"secret"), "is encrypted"),
        ("key", key_pem(PrivateFormat.TraditionalOpenSSL, b"secret"), "is encrypted"),
        ("key", key_pem(PrivateFormat.OpenSSH), "OPENSSH PRIVATE KEY"),
        ("key", key_pem(), "does not belong to --tls-cert-path"),
        ("key", certificate(address("::1")).public_bytes(Encoding.PEM), "swapped"),
        ("cert", b"", "holds no certificate"),
        ("cert", key_pem(), "swapped"),
        ("cert", b"\x30\x82\x01\x00", "is DER, not PEM"),
        ("cert", b"-----BEGIN CERTIFICATE-----\nTUE=\n-----END CERTIFICATE-----\n", "damaged"),
        ("ca", b"# comments only\n", "holds no certificate"),
        ("ca", b"-----BEGIN CERTIFICATE-----\ncut", "damaged"),
    ],
)
def test_content_of_the_wrong_kind_is_told(
    files: TLSFiles, which: str, content: bytes, text: str
) -> None:
    getattr(files, which).write_bytes(content)
    told(files, which, text)


def reissue(files: TLSFiles, ca: Authority, now: datetime) -> None:
    issued = ca.issue_client("*", "testdom", valid_for=DAY, now=now)
    files.key.write_bytes(issued.key_pem)
    files.cert.write_bytes(issued.cert_pem)


def test_an_expired_certificate_is_told_with_its_end(files: TLSFiles) -> None:
    old = Authority.create(now=NOW - 9 * DAY)
    reissue(files, old, now=NOW - 3 * DAY)
    told(files, "cert", f"expired on {NOW - 2 * DAY:%Y-%m-%d %H:%M} UTC")


def test_a_certificate_from_the_future_is_told(files: TLSFiles, ca: Authority) -> None:
    reissue(files, ca, now=NOW + 2 * DAY)
    told(files, "cert", "is not valid before")


def test_cas_that_have_all_expired_are_told(files: TLSFiles, ca: Authority) -> None:
    old = Authority.create(valid_for=DAY, now=NOW - 9 * DAY)
    files.ca.write_bytes(old.cert_pem)
    told(files, "ca", "expired")
    files.ca.write_bytes(old.cert_pem + ca.cert_pem)
    assert check_files(files, Role.AGENT) == []


def test_a_certificate_from_elsewhere_is_only_a_warning(files: TLSFiles) -> None:
    files.ca.write_bytes(Authority.create().cert_pem)
    (warning,) = check_files(files, Role.AGENT)
    assert str(files.cert) in warning
    assert str(files.ca) in warning
    assert "was not issued by a CA in" in warning
    assert "\n" not in warning


def test_a_certificate_that_is_itself_trusted_needs_no_word(files: TLSFiles) -> None:
    files.ca.write_bytes(files.cert.read_bytes())
    assert check_files(files, Role.AGENT) == []


def test_a_chain_over_an_intermediate_ca_needs_no_word(files: TLSFiles, tmp_path: Path) -> None:
    root, middle = Authority.create(), Authority.create()
    between = (
        x509.CertificateBuilder()
        .subject_name(middle.certificate.subject)
        .issuer_name(root.certificate.subject)
        .public_key(middle.key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .sign(root.key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
    reissue(files, middle, now=NOW)
    files.ca.write_bytes(root.cert_pem)
    assert len(check_files(files, Role.AGENT)) == 1
    files.cert.write_bytes(files.cert.read_bytes() + between)
    assert check_files(files, Role.AGENT) == []


def test_a_key_is_found_among_other_blocks() -> None:
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    legacy = key_pem(PrivateFormat.TraditionalOpenSSL)
    assert legacy.startswith(b"-----BEGIN EC PRIVATE KEY-----")
    around = certificate(address("::1")).public_bytes(Encoding.PEM)
    found = private_key_in(around + parameters + legacy + around, "the key")
    assert isinstance(found, ec.EllipticCurvePrivateKey)
    assert found.private_numbers() == KEY.private_numbers()


def test_what_is_read_names_its_source() -> None:
    with pytest.raises(SettingsError, match=r"^the key holds no private key"):
        private_key_in(b"", "the key")
    with pytest.raises(SettingsError, match=r"^the chain holds no certificate"):
        certificates_in(b"", "the chain")
