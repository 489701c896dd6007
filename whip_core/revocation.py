"""Certificate revocation lists: which certificates of our CAs are no longer to be believed.

The same rule as OpenSSL's for a leaf, so that both kinds of connection are judged alike: the
certificate's own CA must have a list here, which is signed by it and up to date.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography import x509

from whip_core.agents import PeerCertificate
from whip_core.errors import SettingsError

_LIST = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)


class Revocations:
    """The lists of one file, as they were when it was read."""

    def __init__(self, pem: bytes, authorities: Sequence[x509.Certificate], source: str) -> None:
        """Raises `SettingsError` that begins with `source`, an option and a path."""
        texts = _LIST.findall(pem)
        if not texts:
            raise SettingsError(
                f"{source} holds no revocation list: give PEM (-----BEGIN X509 CRL-----)"
            )
        self._revoked: dict[str, frozenset[int]] = {}
        self._until: dict[str, datetime] = {}
        for text in texts:
            try:
                found = x509.load_pem_x509_crl(text)
                serials = frozenset(each.serial_number for each in found)
            except ValueError as error:
                raise SettingsError(f"{source} holds a damaged revocation list") from error
            issuer = found.issuer.rfc4514_string()
            if not any(_signed(found, authority) for authority in authorities):
                raise SettingsError(
                    f"{source} holds a list of {issuer!r} that no CA of --tls-ca-cert-path signed"
                )
            self._revoked[issuer] = self._revoked.get(issuer, frozenset()) | serials
            self._until[issuer] = found.next_update_utc or datetime.max.replace(tzinfo=UTC)

    @property
    def valid_until(self) -> datetime:
        """When the first of the lists is out of date."""
        return min(self._until.values())

    def problem(self, certificate: PeerCertificate) -> str | None:
        """Why the certificate is not to be believed, or None."""
        serials = self._revoked.get(certificate.issuer)
        if serials is None:
            return f"there is no revocation list of its CA {certificate.issuer!r}"
        if certificate.serial in serials:
            return "its certificate was revoked"
        if self._until[certificate.issuer] < datetime.now(UTC):
            return f"the revocation list of its CA {certificate.issuer!r} is out of date"
        return None


def _signed(found: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    try:
        return found.issuer == authority.subject and found.is_signature_valid(
            authority.public_key()  # type: ignore[arg-type]  # what cannot sign raises TypeError
        )
    except TypeError:
        return False
