"""Reading certificates: the names they give, whether files fit together.

It takes 8 MB of memory for the library that reads them: an agent does without (`tls_trial`).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from whip_core.agents import PeerCertificate
from whip_core.day import day
from whip_core.errors import SettingsError
from whip_core.host_patterns import address_or_none, covers, pattern_or_none
from whip_core.pem_files import read_pem_file
from whip_core.settings import Role, TLSFiles

_UNREADABLE = (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.InvalidVersion)
_PRIVATE_KEY = re.compile(
    rb"-----BEGIN ((?:[A-Z0-9]+ )*PRIVATE KEY)-----.*?-----END \1-----", re.DOTALL
)


def certificate_names(der: bytes) -> tuple[str, ...]:
    """The DNS names of a certificate, lower-cased, in its order; `*.rest` stays as it is.

    A certificate without any dNSName gives its subject's common name instead, if there is
    exactly one and it looks like a host name. Empty when there is no name at all. Raises
    `ValueError` for what is not a certificate or has extensions that cannot be read.
    """
    return names_of(_from_der(der))


def certificate_names_pem(pem: bytes) -> tuple[str, ...]:
    """`certificate_names` of the first certificate in `pem` (gRPC's auth context has PEM)."""
    return names_of(_from_pem(pem))


def peer_certificate_pem(pem: bytes) -> PeerCertificate:
    """What `agents.Peer` keeps of the first certificate in `pem`; raises `ValueError`."""
    return _kept_of(_from_pem(pem))


def peer_certificate_der(der: bytes) -> PeerCertificate:
    """The same of a certificate in DER."""
    return _kept_of(_from_der(der))


def _kept_of(certificate: x509.Certificate) -> PeerCertificate:
    return PeerCertificate(
        issuer=sys.intern(certificate.issuer.rfc4514_string()),
        serial=certificate.serial_number,
        expires_at=certificate.not_valid_after_utc.timestamp(),
    )


def proves_host(der: bytes, host: str) -> bool:
    """Whether a server certificate is good for `host`, a DNS name or a literal address.

    A name is looked for among `certificate_names`, an address (anything that
    `literal_address` takes, compared as an address) among the iPAddress entries only.
    Raises `ValueError` as `certificate_names` does.
    """
    certificate = _from_der(der)
    address = address_or_none(host)
    if address is None:
        return covers(names_of(certificate), host)
    names = _alternative_names(certificate)
    return names is not None and address in names.get_values_for_type(x509.IPAddress)


def is_servers(der: bytes) -> bool:
    """Whether a certificate says that it is for a server, as no agent's does.

    Raises `ValueError` as `certificate_names` does.
    """
    return ExtendedKeyUsageOID.SERVER_AUTH in (_usages(_from_der(der)) or ())


def expires_at(der_or_pem: bytes) -> datetime:
    """The last moment at which the (first) certificate is valid, in UTC.

    Raises `ValueError` for what is not a certificate.
    """
    # Not "has a BEGIN in it": a peer may have put whole PEM texts into its DER.
    is_der = der_or_pem[:1] == b"\x30" and der_or_pem[1:2] >= b"\x80"
    return (_from_der if is_der else _from_pem)(der_or_pem).not_valid_after_utc


_USAGE = {
    Role.BROKER: (ExtendedKeyUsageOID.SERVER_AUTH, "a client", "pki createandsign server"),
    Role.AGENT: (ExtendedKeyUsageOID.CLIENT_AUTH, "a server", "pki createandsign client"),
}


def check_files(files: TLSFiles, role: Role) -> list[str]:
    """See that the three files can be used together, and for that role, before anything tries to.

    Raises `SettingsError`, one line that names the option and the path and says what to
    do. Gives back one-line warnings for what is unusual, but right in some set-ups.
    """
    key_source = f"--tls-key-path {files.key}"
    cert_source = f"--tls-cert-path {files.cert}"
    ca_source = f"--tls-ca-cert-path {files.ca}"
    key = private_key_in(read_pem_file(files.key, key_source), key_source)
    chain = certificates_in(read_pem_file(files.cert, cert_source), cert_source)
    authorities = certificates_in(read_pem_file(files.ca, ca_source), ca_source)

    if not same_key(key, chain[0]):
        raise SettingsError(
            f"{key_source} does not belong to {cert_source}: give the key that was made with it"
        )
    now = datetime.now(UTC)
    _check_valid_at(now, chain[0], cert_source)
    _check_role(role, chain[0], cert_source)
    last = max(authority.not_valid_after_utc for authority in authorities)
    if last < now:
        raise SettingsError(
            f"{ca_source} holds only expired certificates (until {day(last)}), "
            "so no peer can be trusted: make or fetch a new CA certificate"
        )
    if not _leads_to(chain, authorities):
        return [
            f"{cert_source} was not issued by a CA in {ca_source}: "
            "right only if the other end trusts another CA than this one"
        ]
    return []


def check_relays(files: TLSFiles) -> None:
    """See that a broker's certificate is good for connecting to other brokers, too.

    Raises `SettingsError`, as `check_files` does.
    """
    source = f"--tls-cert-path {files.cert}"
    certificate = certificates_in(read_pem_file(files.cert, source), source)[0]
    try:
        found = _usages(certificate) or ()
    except ValueError as error:
        raise SettingsError(f"{source}: {error}") from error
    if not {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH} <= set(found):
        raise SettingsError(
            f"{source} is for a server only, and with --relay a broker connects to others too: "
            "issue one for both with `whip pki createandsign server --relay`"
        )


def certificates_in(pem: bytes, source: str) -> list[x509.Certificate]:
    """All certificates in `pem`, at least one; else `SettingsError` that begins with `source`."""
    if b"-----BEGIN CERTIFICATE-----" not in pem:
        if b"PRIVATE KEY-----" in pem:
            problem = "holds a private key and no certificate: are two options swapped?"
        elif pem[:1] == b"\x30":
            problem = "is DER, not PEM: convert it with `openssl x509 -inform der`"
        else:
            problem = "holds no certificate: give a PEM file (-----BEGIN CERTIFICATE-----)"
        raise SettingsError(f"{source} {problem}")
    try:
        return x509.load_pem_x509_certificates(pem)
    except _UNREADABLE as error:
        raise SettingsError(
            f"{source} holds a damaged certificate: copy or issue it again"
        ) from error


def private_key_in(pem: bytes, source: str) -> PrivateKeyTypes:
    """The first private key in `pem` (PKCS#1, SEC1 or PKCS#8, not encrypted).

    Other blocks, such as EC PARAMETERS or a certificate, may stand around it. Raises
    `SettingsError` that begins with `source`.
    """
    found = _PRIVATE_KEY.search(pem)
    if found is None:
        if b"-----BEGIN CERTIFICATE-----" in pem:
            problem = "holds a certificate and no private key: are two options swapped?"
        elif pem[:1] == b"\x30":
            problem = "is DER, not PEM: convert it with `openssl pkey -inform der`"
        else:
            problem = "holds no private key: give a PEM file (-----BEGIN PRIVATE KEY-----)"
        raise SettingsError(f"{source} {problem}")
    label = found[1].decode()
    if label.startswith("ENCRYPTED") or b"Proc-Type: 4,ENCRYPTED" in found[0]:
        raise SettingsError(
            f"{source} is encrypted, and nobody is asked for a passphrase: "
            "decrypt it with `openssl pkey`"
        )
    try:
        return load_pem_private_key(pem, password=None)
    except (*_UNREADABLE, TypeError) as error:
        raise SettingsError(
            f"{source} holds a damaged or unknown {label}: give an EC or RSA key in PEM form"
        ) from error


def same_key(key: PrivateKeyTypes, certificate: x509.Certificate) -> bool:
    """Whether `certificate` was made for `key`."""
    return _public_bytes(key.public_key()) == _public_bytes(certificate.public_key())


def _public_bytes(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _from_der(der: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(der)
    except _UNREADABLE as error:
        raise ValueError(f"not a certificate in DER form: {error}") from error


def _from_pem(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except _UNREADABLE as error:
        raise ValueError(f"not a certificate in PEM form: {error}") from error


def _alternative_names(certificate: x509.Certificate) -> x509.SubjectAlternativeName | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    except (*_UNREADABLE, x509.UnsupportedGeneralNameType) as error:
        raise ValueError(f"a certificate's extensions cannot be read: {error}") from error


def names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """As `certificate_names`, of one that has been read."""
    alternative = _alternative_names(certificate)
    names = alternative.get_values_for_type(x509.DNSName) if alternative is not None else []
    if names:
        return tuple(name.lower() for name in names)
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(common) != 1:
        return ()
    pattern = pattern_or_none(str(common[0].value))
    return (pattern,) if pattern is not None else ()


def _check_valid_at(now: datetime, certificate: x509.Certificate, source: str) -> None:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if end < now:
        raise SettingsError(
            f"{source} expired on {day(end)}: issue a new one (`whip pki createandsign --help`)"
        )
    if now < begin:
        raise SettingsError(
            f"{source} is not valid before {day(begin)}: set this machine's clock, or wait"
        )


def _check_role(role: Role, certificate: x509.Certificate, source: str) -> None:
    """A certificate that does not say what it is for is for everything."""
    usage, other, command = _USAGE[role]
    try:
        found = _usages(certificate)
    except ValueError as error:
        raise SettingsError(f"{source} has extensions that cannot be read") from error
    if found is None:
        return
    if usage not in found and ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in found:
        article = "an" if role is Role.AGENT else "a"
        raise SettingsError(
            f"{source} is the certificate of {other}, but {article} {role.value} needs its own: "
            f"issue one with `whip {command}`"
        )


def _usages(certificate: x509.Certificate) -> x509.ExtendedKeyUsage | None:
    """What it says that it is for, if it does. Raises `ValueError`."""
    try:
        return certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return None
    except _UNREADABLE as error:
        raise ValueError("a certificate has extensions that cannot be read") from error


def _leads_to(chain: Sequence[x509.Certificate], authorities: list[x509.Certificate]) -> bool:
    """Whether the first of `chain` is one of `authorities` or from one, by way of the rest."""
    current, links = chain[0], list(chain[1:])
    while True:
        if current in authorities or any(_issued(issuer, current) for issuer in authorities):
            return True
        above = next((link for link in links if _issued(link, current)), None)
        if above is None:
            return False
        links.remove(above)
        current = above


def _issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
