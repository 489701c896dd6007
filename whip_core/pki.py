"""Issuing certificates: a CA of one's own, and what it signs for brokers and agents.

Nothing here touches a file: PEM bytes come in and go out. What is issued stands up to
OpenSSL's strict checking (the default of Python 3.13): version 3, subject and authority
key identifiers, critical basic constraints and key usage, an extended key usage that fits
the one purpose (a broker only serves, unless it is to relay; an agent only connects).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from whip_core.certificates import (
    certificates_in,
    private_key_in,
    same_key,
)
from whip_core.day import day
from whip_core.errors import SettingsError
from whip_core.host_patterns import IPAddress, dns_pattern, literal_address
from whip_core.names import normalize

SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

CA_VALIDITY = timedelta(days=10 * 365)
VALIDITY = timedelta(hours=720)
MAX_VALIDITY = timedelta(days=100 * 365)
"""More is a slip of the hand, and years past 9999 cannot be written at all."""
CLOCK_SKEW = timedelta(minutes=5)
"""How far a certificate's begin lies back, for peers whose clocks are slow."""
MIN_RSA_BITS = 2048
"""Less is refused by TLS libraries (OpenSSL's security level 2)."""

Hash = hashes.SHA256 | hashes.SHA384 | hashes.SHA512
_HASHES: dict[str, Hash] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}
"""The curves that every TLS library at hand can check, each with the hash of its strength."""

_KEY_USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
    *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)

_SUBJECT_FIELDS = {
    # attribute: its OID and the most octets it takes (RFC 5280, appendix A.1)
    "country": (NameOID.COUNTRY_NAME, 2),
    "province": (NameOID.STATE_OR_PROVINCE_NAME, 128),
    "locality": (NameOID.LOCALITY_NAME, 128),
    "street_address": (NameOID.STREET_ADDRESS, 128),
    "postal_code": (NameOID.POSTAL_CODE, 40),
    "organization": (NameOID.ORGANIZATION_NAME, 64),
    "organizational_unit": (NameOID.ORGANIZATIONAL_UNIT_NAME, 64),
    "common_name": (NameOID.COMMON_NAME, 64),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Who a certificate is about; empty fields are left out of it.

    Raises `SettingsError` for a value that no certificate can hold.
    """

    country: str = ""
    province: str = ""
    locality: str = ""
    street_address: str = ""
    postal_code: str = ""
    organization: str = ""
    organizational_unit: str = ""
    common_name: str = ""

    def __post_init__(self) -> None:
        for attribute, (_, limit) in _SUBJECT_FIELDS.items():
            value = getattr(self, attribute)
            what = attribute.replace("_", " ")
            if not value.isprintable():
                raise SettingsError(f"{what} {value!r} has characters that cannot be printed")
            if len(value.encode()) > limit:
                raise SettingsError(f"{what} {value[:80]!r} is too long: it takes {limit} octets")
        country = self.country
        if country and not (len(country) == 2 and country.isascii() and country.isalpha()):
            raise SettingsError(f"country {country!r} is not a code of two letters, such as DE")

    def or_common_name(self, *candidates: str) -> Subject:
        """With the first of `candidates` that fits, where no common name was given.

        A longer name would not be that name any more when cut, so then there is none: the
        names that count are in the certificate's alternative names anyway.
        """
        if self.common_name:
            return self
        limit = _SUBJECT_FIELDS["common_name"][1]
        fitting = (name for name in candidates if len(name.encode()) <= limit)
        return replace(self, common_name=next(fitting, ""))

    def to_name(self) -> x509.Name:
        return x509.Name(
            x509.NameAttribute(oid, value)
            for attribute, (oid, _) in _SUBJECT_FIELDS.items()
            if (value := getattr(self, attribute))
        )


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its key, both PEM (the key PKCS#8, not encrypted)."""

    cert_pem: bytes
    key_pem: bytes = field(repr=False)
    names: tuple[str, ...]
    """DNS names, then addresses, that the certificate is good for."""
    not_after: datetime
    shortened: bool
    """Whether it ends before the time asked for, because its CA does."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA: its certificate and the key that signs. Made by `create` or `load`."""

    certificate: x509.Certificate
    key: SigningKey = field(repr=False)

    @classmethod
    def create(
        cls,
        subject: Subject | None = None,
        valid_for: timedelta = CA_VALIDITY,
        *,
        now: datetime | None = None,
    ) -> Authority:
        """A new self-signed CA, for certificates of end entities only (no CA below it).

        Raises `SettingsError` when `valid_for` is out of bounds (see `check_validity`).
        """
        check_validity(valid_for)
        key = ec.generate_private_key(ec.SECP256R1())
        name = (subject or Subject()).or_common_name("whip CA").to_name()
        now = now or datetime.now(UTC)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = (
            _builder(name, name, key, now - CLOCK_SKEW, now + valid_for)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage("key_cert_sign", "crl_sign"), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
                critical=False,
            )
        )
        return cls(builder.sign(key, _hash_for(key, "the CA key")), key)

    @classmethod
    def load(
        cls,
        cert_pem: bytes,
        key_pem: bytes,
        *,
        cert_source: str = "the CA certificate",
        key_source: str = "the CA key",
    ) -> Authority:
        """A CA from PEM: the first certificate; an EC or RSA key in PKCS#1, SEC1 or PKCS#8.

        Raises `SettingsError`, one line that begins with one of the two sources, when they
        do not belong together or may not or cannot sign certificates.
        """
        certificate = certificates_in(cert_pem, cert_source)[0]
        key = private_key_in(key_pem, key_source)
        if not same_key(key, certificate):
            raise SettingsError(f"{key_source} does not belong to {cert_source}")
        if not isinstance(key, SigningKey):
            raise SettingsError(f"{key_source} is neither an EC nor an RSA key: make another CA")
        _hash_for(key, key_source)
        if not _may_sign_certificates(certificate, cert_source):
            raise SettingsError(f"{cert_source} is not a CA certificate: it may not sign others")
        return cls(certificate, key)

    @property
    def cert_pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """PKCS#8, not encrypted."""
        return _key_pem(self.key)

    @property
    def not_after(self) -> datetime:
        return self.certificate.not_valid_after_utc

    def issue_server(
        self,
        dns_names: Iterable[str],
        addresses: Iterable[str | IPAddress] = (),
        *,
        relay: bool = False,
        subject: Subject | None = None,
        valid_for: timedelta = VALIDITY,
        now: datetime | None = None,
    ) -> Issued:
        """A broker's certificate for these names (`*.rest` too) and literal addresses.

        With `relay` it is good for connecting to other brokers, too. The common name is the
        first of the names that fits, unless `subject` has one. It never
        outlives the CA: its end is brought forward, and `shortened` says so. Raises
        `SettingsError` when no name is given, `valid_for` is out of bounds or the CA has
        expired, and `ValueError` for what is not a name or address.
        """
        names = list(dict.fromkeys(map(dns_pattern, dns_names)))
        literals = list(dict.fromkeys(literal_address(str(address)) for address in addresses))
        usages = [ExtendedKeyUsageOID.SERVER_AUTH]
        if relay:
            usages.append(ExtendedKeyUsageOID.CLIENT_AUTH)
        return self._issue(names, literals, usages, subject, valid_for, now)

    def issue_client(
        self,
        hostname: str,
        domain: str,
        *,
        subject: Subject | None = None,
        valid_for: timedelta = VALIDITY,
        now: datetime | None = None,
    ) -> Issued:
        """An agent's certificate for `client_name(hostname, domain)`.

        Common name, end and errors are as for `issue_server`.
        """
        names = [client_name(hostname, domain)]
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        return self._issue(names, [], usages, subject, valid_for, now)

    def _issue(
        self,
        names: list[str],
        addresses: list[IPAddress],
        usages: list[x509.ObjectIdentifier],
        subject: Subject | None,
        valid_for: timedelta,
        now: datetime | None,
    ) -> Issued:
        check_validity(valid_for)
        if not names and not addresses:
            raise SettingsError("a certificate needs at least one name or address")
        now = now or datetime.now(UTC)
        if self.not_after <= now:
            raise SettingsError(f"the CA expired on {day(self.not_after)}: make a new one")
        begin = max(now - CLOCK_SKEW, self.certificate.not_valid_before_utc)
        end = min(now + valid_for, self.not_after)
        key = ec.generate_private_key(ec.SECP256R1())
        texts = (*names, *map(str, addresses))
        name = (subject or Subject()).or_common_name(*texts).to_name()
        alternatives = [*map(x509.DNSName, names), *map(x509.IPAddress, addresses)]
        builder = (
            _builder(name, self.certificate.subject, key, begin, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage("digital_signature"), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(_authority_key_identifier(self.certificate), critical=False)
            # RFC 5280 §4.2.1.6: beside an empty subject it has to be critical.
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=not name.rdns)
        )
        certificate = builder.sign(self.key, _hash_for(self.key, "the CA key"))
        return Issued(
            cert_pem=certificate.public_bytes(Encoding.PEM),
            key_pem=_key_pem(key),
            names=texts,
            not_after=certificate.not_valid_after_utc,
            shortened=end < now + valid_for,
        )


def client_name(hostname: str, domain: str) -> str:
    """What an agent's certificate says: `hostname.domain`, normalized.

    `*` as the hostname (or as its first label) stands for any one label. Raises
    `ValueError` for what cannot be a host name or a domain.
    """
    return dns_pattern(f"{hostname.strip().removesuffix('.')}.{normalize(domain)}")


def check_validity(valid_for: timedelta) -> timedelta:
    """Give `valid_for` back, or raise `SettingsError`: 1 second to `MAX_VALIDITY`."""
    if not timedelta(seconds=1) <= valid_for <= MAX_VALIDITY:
        raise SettingsError(
            "a certificate's validity has to be between 1 second and "
            f"{MAX_VALIDITY.days // 365} years"
        )
    return valid_for


def _builder(
    subject: x509.Name, issuer: x509.Name, key: SigningKey, begin: datetime, end: datetime
) -> x509.CertificateBuilder:
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _key_usage(*allowed: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{usage: usage in allowed for usage in _KEY_USAGES})


def _authority_key_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """The issuer's own subject key identifier, whatever way it was made, else by RFC 5280."""
    try:
        own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        public = issuer.public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(public)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _hash_for(key: SigningKey, source: str) -> Hash:
    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size < MIN_RSA_BITS:
            raise SettingsError(
                f"{source} is RSA with {key.key_size} bits, which TLS refuses: "
                f"it takes {MIN_RSA_BITS} or more"
            )
        return hashes.SHA256()
    try:
        return _HASHES[key.curve.name]
    except KeyError as error:
        raise SettingsError(
            f"{source} is on the curve {key.curve.name}, which TLS does not accept: "
            "make a CA with P-256, P-384 or P-521"
        ) from error


def _may_sign_certificates(certificate: x509.Certificate, source: str) -> bool:
    try:
        extensions = certificate.extensions
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
        if not constraints.ca:
            return False
        return extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound as missing:
        # Without a key usage every use is allowed; without basic constraints it is not a CA.
        return missing.oid == x509.KeyUsage.oid
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise SettingsError(f"{source} has extensions that cannot be read: {error}") from error


def _key_pem(key: SigningKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
