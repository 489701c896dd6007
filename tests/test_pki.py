"""What is issued holds before the strictest checkers at hand: OpenSSL's and Python's TLS."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from programs import needs_program, path_of
from whip_core.certificates import certificate_names, certificate_names_pem, proves_host
from whip_core.errors import SettingsError
from whip_core.host_patterns import covers
from whip_core.pki import (
    CLOCK_SKEW,
    MAX_VALIDITY,
    VALIDITY,
    Authority,
    Issued,
    Subject,
    client_name,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DAY = timedelta(days=1)
LONG = ".".join(["a" * 60, "b" * 60, "testdom"])

needs_openssl = needs_program("openssl")


@pytest.fixture(scope="module")
def ca() -> Authority:
    return Authority.create()


def read(issued: Issued) -> x509.Certificate:
    return x509.load_pem_x509_certificate(issued.cert_pem)


def common_name(certificate: x509.Certificate) -> str | None:
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else None


# Real checkers


def openssl(*arguments: str | Path) -> str:
    done = subprocess.run(
        [path_of("openssl"), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def verify(
    folder: Path, ca_pem: bytes, issued: Issued, purpose: str, *more: str
) -> subprocess.CompletedProcess[str]:
    (folder / "ca.pem").write_bytes(ca_pem)
    (folder / "cert.pem").write_bytes(issued.cert_pem)
    arguments = ["verify", *more, "-purpose", purpose, "-CAfile", "ca.pem", "cert.pem"]
    return subprocess.run(
        [path_of("openssl"), *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


class End:
    """One end of a TLS connection that is never a socket."""

    def __init__(self, context: ssl.SSLContext, server_hostname: str | None = None) -> None:
        self.inbox, self.outbox = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self.inbox,
            self.outbox,
            server_side=server_hostname is None,
            server_hostname=server_hostname,
        )

    def step(self, call: Callable[[], object]) -> bool:
        """Whether `call` could finish with the bytes that have arrived so far."""
        try:
            call()
        except ssl.SSLWantReadError:
            return False
        return True


def handshake(
    ca_pem: bytes, broker: Issued, agent: Issued, folder: Path, host: str
) -> tuple[bytes, bytes]:
    """A mutual, strict TLS handshake; the certificates that broker and agent saw."""
    ends = []
    for purpose, issued, name in (
        (ssl.Purpose.CLIENT_AUTH, broker, None),
        (ssl.Purpose.SERVER_AUTH, agent, host),
    ):
        context = ssl.create_default_context(purpose, cadata=ca_pem.decode())
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        path = folder / "both.pem"
        path.write_bytes(issued.key_pem + issued.cert_pem)
        context.load_cert_chain(path)
        ends.append(End(context, name))
    server, client = ends
    done = False
    while not done:
        # The server last: a TLS 1.3 client is done before its own certificate is looked at.
        done = client.step(client.tls.do_handshake)
        server.inbox.write(client.outbox.read())
        done = server.step(server.tls.do_handshake) and done
        client.inbox.write(server.outbox.read())
    seen = server.tls.getpeercert(binary_form=True), client.tls.getpeercert(binary_form=True)
    assert seen[0] is not None
    assert seen[1] is not None
    return seen[0], seen[1]


def ca_without_key_identifier(key: ec.EllipticCurvePrivateKey, *, usage: bool = True) -> bytes:
    """A CA certificate as simple Go programs make them."""
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Go")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(2019)
        .not_valid_before(datetime.now(UTC))
        .not_valid_after(datetime.now(UTC) + 3650 * DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    if usage:
        allowed = ("digital_signature", "key_cert_sign")
        every = (
            "digital_signature content_commitment key_encipherment data_encipherment "
            "key_agreement key_cert_sign crl_sign encipher_only decipher_only"
        )
        builder = builder.add_extension(
            x509.KeyUsage(**{one: one in allowed for one in every.split()}), critical=True
        )
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def pem(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey,
    form: PrivateFormat = PrivateFormat.PKCS8,
) -> bytes:
    return key.private_bytes(Encoding.PEM, form, NoEncryption())


@needs_openssl
@pytest.mark.parametrize("kind", ["server", "client"])
def test_openssl_takes_a_certificate_strictly_and_for_its_purpose_alone(
    ca: Authority, tmp_path: Path, kind: str
) -> None:
    issued = {
        "server": ca.issue_server(["localhost"], ["::1"]),
        "client": ca.issue_client("*", "testdom"),
    }[kind]
    right = verify(tmp_path, ca.cert_pem, issued, f"ssl{kind}", "-x509_strict")
    assert right.returncode == 0, right.stderr
    other = {"server": "sslclient", "client": "sslserver"}[kind]
    assert verify(tmp_path, ca.cert_pem, issued, other, "-x509_strict").returncode != 0


@needs_openssl
def test_openssl_takes_a_certificate_with_an_empty_subject(ca: Authority, tmp_path: Path) -> None:
    issued = ca.issue_client("*", LONG)
    assert not read(issued).subject.rdns
    done = verify(tmp_path, ca.cert_pem, issued, "sslclient", "-x509_strict")
    assert done.returncode == 0, done.stderr


@needs_openssl
@pytest.mark.parametrize(
    ("make_key", "beginning"),
    [
        (["genrsa", "-traditional"], b"-----BEGIN RSA PRIVATE KEY-----"),
        (["genrsa"], b"-----BEGIN PRIVATE KEY-----"),
        (["ecparam", "-genkey", "-name", "prime256v1"], b"-----BEGIN EC PARAMETERS-----"),
        (["ecparam", "-genkey", "-noout", "-name", "secp521r1"], b"-----BEGIN EC PRIVATE KEY-----"),
    ],
    ids=["PKCS#1", "PKCS#8", "SEC1 with parameters", "SEC1"],
)
def test_a_ca_made_by_openssl_signs_for_a_strict_mutual_handshake(
    tmp_path: Path, make_key: list[str], beginning: bytes
) -> None:
    key, cert = tmp_path / "ca-key.pem", tmp_path / "ca-cert.pem"
    openssl(make_key[0], "-out", key, *make_key[1:])
    extensions = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    openssl("req", "-x509", "-new", "-key", key, "-subj", "/CN=by hand", *extensions, "-out", cert)
    assert key.read_bytes().startswith(beginning)

    ca = Authority.load(cert.read_bytes(), key.read_bytes())
    broker, agent = ca.issue_server(["localhost"]), ca.issue_client("*", "testdom")
    for issued, purpose in ((broker, "sslserver"), (agent, "sslclient")):
        done = verify(tmp_path, ca.cert_pem, issued, purpose, "-x509_strict")
        assert done.returncode == 0, done.stderr
    handshake(ca.cert_pem, broker, agent, tmp_path, "localhost")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "broker.wild.example"])
def test_broker_and_agent_meet_in_a_strict_mutual_handshake(
    ca: Authority, tmp_path: Path, host: str
) -> None:
    broker = ca.issue_server(["localhost", "*.wild.example"], ["127.0.0.1", "::1"])
    agent = ca.issue_client("*", "testdom")
    of_agent, of_broker = handshake(ca.cert_pem, broker, agent, tmp_path, host)
    assert covers(certificate_names(of_agent), "instance1.testdom")
    assert proves_host(of_broker, host)


@pytest.mark.parametrize("wrong", ["broker", "agent", "both of another CA", "host"])
def test_a_handshake_fails_with_the_wrong_certificate(
    ca: Authority, tmp_path: Path, wrong: str
) -> None:
    broker, agent = ca.issue_server(["localhost"]), ca.issue_client("*", "testdom")
    trusted, host = ca.cert_pem, "localhost"
    if wrong == "broker":
        broker = ca.issue_client("localhost", "testdom")
        host = "localhost.testdom"
    elif wrong == "agent":
        agent = ca.issue_server(["instance1.testdom"])
    elif wrong == "host":
        host = "other"
    else:
        trusted = Authority.create().cert_pem
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(trusted, broker, agent, tmp_path, host)


@needs_openssl
def test_a_ca_without_a_key_identifier_is_pointed_at_by_its_key(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    ca = Authority.load(ca_without_key_identifier(key), pem(key, PrivateFormat.TraditionalOpenSSL))
    issued = ca.issue_server(["localhost"])
    extension = read(issued).extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    expected = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    assert extension.value.key_identifier == expected.key_identifier
    done = verify(tmp_path, ca.cert_pem, issued, "sslserver")
    assert done.returncode == 0, done.stderr
    # What strict checking still misses is in the CA, and nothing is missing in ours.
    strict = verify(tmp_path, ca.cert_pem, issued, "sslserver", "-x509_strict")
    assert "error 86 at 1 depth" in strict.stderr  # missing subject key identifier
    assert "at 0 depth" not in strict.stderr


def test_the_key_identifier_that_a_ca_gives_itself_is_repeated(ca: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "own way")])
    digest = b"chosen by the CA"
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.now(UTC))
        .not_valid_after(datetime.now(UTC) + 100 * DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier(digest), critical=False)
        .sign(key, hashes.SHA256())
    )
    loaded = Authority.load(certificate.public_bytes(Encoding.PEM), pem(key))
    issued = read(loaded.issue_server(["localhost"]))
    extension = issued.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    assert extension.value.key_identifier == digest


# The shape of what is issued


def critical(certificate: x509.Certificate) -> dict[x509.ObjectIdentifier, bool]:
    return {extension.oid: extension.critical for extension in certificate.extensions}


def test_the_shape_of_a_ca(ca: Authority) -> None:
    assert critical(ca.certificate) == {
        ExtensionOID.BASIC_CONSTRAINTS: True,
        ExtensionOID.KEY_USAGE: True,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER: False,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER: False,
    }
    constraints = ca.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert constraints == x509.BasicConstraints(ca=True, path_length=0)
    assert common_name(ca.certificate) == "whip CA"
    assert ca.certificate.issuer == ca.certificate.subject
    assert isinstance(ca.key.curve, ec.SECP256R1)  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["server", "client"])
def test_the_shape_of_a_certificate(ca: Authority, kind: str) -> None:
    issued = {
        "server": ca.issue_server(["localhost"]),
        "client": ca.issue_client("*", "testdom"),
    }[kind]
    certificate = read(issued)
    assert certificate.version is x509.Version.v3
    assert critical(certificate) == {
        ExtensionOID.BASIC_CONSTRAINTS: True,
        ExtensionOID.KEY_USAGE: True,
        ExtensionOID.EXTENDED_KEY_USAGE: False,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER: False,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER: False,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME: False,
    }
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [
        {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}[kind]
    ]
    assert issued.key_pem.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert b"PRIVATE" not in repr(issued).encode()


def test_serial_numbers_are_long_and_never_the_same(ca: Authority) -> None:
    serials = {read(ca.issue_client("*", "testdom")).serial_number for _ in range(20)}
    assert len(serials) == 20
    assert 140 < max(serials).bit_length() <= 159  # positive in twenty octets


def test_a_certificate_begins_a_little_ago_and_ends_when_asked() -> None:
    ca = Authority.create(now=NOW - DAY)
    issued = ca.issue_server(["localhost"], now=NOW)
    assert read(issued).not_valid_before_utc == NOW - CLOCK_SKEW
    assert read(issued).not_valid_after_utc == issued.not_after == NOW + VALIDITY
    assert not issued.shortened


def test_no_certificate_outlives_or_precedes_its_ca() -> None:
    ca = Authority.create(valid_for=10 * DAY, now=NOW)
    issued = ca.issue_client("*", "testdom", now=NOW + DAY)
    assert issued.not_after == read(issued).not_valid_after_utc == ca.not_after == NOW + 10 * DAY
    assert issued.shortened
    early = ca.issue_client("*", "testdom", valid_for=DAY, now=NOW - DAY / 2)
    assert read(early).not_valid_before_utc == ca.certificate.not_valid_before_utc


def test_an_expired_ca_signs_nothing() -> None:
    ca = Authority.create(valid_for=DAY, now=NOW)
    with pytest.raises(SettingsError, match="the CA expired on 2026-01-03 03:04 UTC"):
        ca.issue_server(["localhost"], now=NOW + DAY)


@pytest.mark.parametrize("valid_for", [timedelta(0), -DAY, MAX_VALIDITY + DAY, timedelta.max])
def test_an_absurd_validity_is_refused(ca: Authority, valid_for: timedelta) -> None:
    with pytest.raises(SettingsError, match="validity"):
        ca.issue_server(["localhost"], valid_for=valid_for)
    with pytest.raises(SettingsError, match="validity"):
        Authority.create(valid_for=valid_for)


def test_names_are_normalized_and_not_repeated(ca: Authority) -> None:
    issued = ca.issue_server(
        ["Localhost.", "localhost", "*.Bücher.example"], ["[::1]", "0:0::1", "10.0.0.1"]
    )
    assert issued.names == ("localhost", "*.xn--bcher-kva.example", "::1", "10.0.0.1")
    assert certificate_names_pem(issued.cert_pem) == ("localhost", "*.xn--bcher-kva.example")


def test_a_server_certificate_without_any_name_is_refused(ca: Authority) -> None:
    with pytest.raises(SettingsError, match="at least one name"):
        ca.issue_server([])


def test_the_common_name_is_the_first_name_that_fits(ca: Authority) -> None:
    assert common_name(read(ca.issue_server([LONG, "localhost"]))) == "localhost"
    assert common_name(read(ca.issue_server([LONG], ["::1"]))) == "::1"
    assert common_name(read(ca.issue_client("*", "testdom"))) == "*.testdom"
    chosen = ca.issue_client("*", "testdom", subject=Subject(common_name="the agents"))
    assert common_name(read(chosen)) == "the agents"


def test_a_name_too_long_for_a_common_name_is_in_the_alternative_names_alone(
    ca: Authority,
) -> None:
    issued = ca.issue_client("one", LONG)
    assert common_name(read(issued)) is None
    assert critical(read(issued))[ExtensionOID.SUBJECT_ALTERNATIVE_NAME]
    assert certificate_names_pem(issued.cert_pem) == (f"one.{LONG}",)
    named = ca.issue_client("one", LONG, subject=Subject(organization="Example"))
    assert not critical(read(named))[ExtensionOID.SUBJECT_ALTERNATIVE_NAME]


@pytest.mark.parametrize(
    ("hostname", "domain", "full"),
    [
        ("*", "testdom", "*.testdom"),
        ("One.EU", "TestDom.", "one.eu.testdom"),
        ("*.eu", "testdom", "*.eu.testdom"),
        ("one.", "bücher.example", "one.xn--bcher-kva.example"),
    ],
)
def test_a_client_is_named_by_hostname_and_domain(hostname: str, domain: str, full: str) -> None:
    assert client_name(hostname, domain) == full


@pytest.mark.parametrize(
    ("hostname", "domain"),
    [("", "testdom"), ("*", "*"), ("*", ""), ("one", "*.testdom"), ("o*", "testdom"),
     ("one", "test dom"), ("one.*", "testdom"), ("one", "a,b"), ("10.0", "0.1")],
)  # fmt: skip
def test_what_is_no_name_of_a_client_is_refused(hostname: str, domain: str) -> None:
    with pytest.raises(ValueError, match="not a host name"):
        client_name(hostname, domain)


# Subjects


def test_a_subject_has_what_was_given_in_the_usual_order() -> None:
    subject = Subject(
        country="DE",
        province="Berlin",
        locality="Berlin",
        street_address="Straße 1",
        postal_code="10115",
        organization="Example",
        organizational_unit="Ops",
        common_name="example CA",
    )
    assert Authority.create(subject).certificate.subject.rfc4514_string() == (
        "CN=example CA,OU=Ops,O=Example,2.5.4.17=10115,STREET=Straße 1,L=Berlin,ST=Berlin,C=DE"
    )


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("common_name", "x" * 65, "too long: it takes 64 octets"),
        ("organization", "ü" * 33, "too long: it takes 64 octets"),
        ("country", "DEU", "too long"),
        ("country", "D", "two letters"),
        ("country", "1É", "too long"),
        ("country", "12", "two letters"),
        ("locality", "two\nlines", "cannot be printed"),
        ("locality", "\udcff", "cannot be printed"),
    ],
)
def test_a_subject_that_no_certificate_can_hold_is_refused(
    field: str, value: str, text: str
) -> None:
    with pytest.raises(SettingsError, match=text):
        Subject(**{field: value})


# CAs that cannot sign


def test_a_ca_may_be_loaded_again(ca: Authority) -> None:
    again = Authority.load(ca.cert_pem, ca.key_pem)
    assert again.certificate == ca.certificate
    assert b"PRIVATE" not in repr(again).encode()


def test_a_ca_that_says_nothing_of_key_usage_may_sign() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    ca = Authority.load(ca_without_key_identifier(key, usage=False), pem(key))
    assert isinstance(read(ca.issue_server(["a"])).signature_hash_algorithm, hashes.SHA384)


def test_a_key_of_another_ca_is_refused(ca: Authority) -> None:
    with pytest.raises(SettingsError, match=r"^the CA key does not belong to the CA certificate"):
        Authority.load(ca.cert_pem, Authority.create().key_pem)


def test_an_end_certificate_signs_nothing(ca: Authority) -> None:
    issued = ca.issue_server(["localhost"])
    with pytest.raises(SettingsError, match=r"^cert\.pem is not a CA certificate"):
        Authority.load(issued.cert_pem, issued.key_pem, cert_source="cert.pem")


def self_signed(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey,
) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "odd")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + DAY)
        .sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (ec.generate_private_key(ec.SECP256K1()), "is on the curve secp256k1"),
        (ed25519.Ed25519PrivateKey.generate(), "is neither an EC nor an RSA key"),
        (rsa.generate_private_key(65537, 1024), "is RSA with 1024 bits"),
        (ec.generate_private_key(ec.SECP256R1()), "may not sign others"),
    ],
    ids=["curve", "Ed25519", "short RSA", "no basic constraints"],
)
def test_a_ca_that_tls_would_refuse_is_refused_at_once(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey, text: str
) -> None:
    with pytest.raises(SettingsError, match=text):
        Authority.load(self_signed(key), pem(key))
