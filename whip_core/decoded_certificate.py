"""A peer's certificate as the ssl module decodes it (`getpeercert`): what it proves.

The same rules as `certificates`, which reads more, and takes a library of 8 MB to do it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from whip_core.host_patterns import address_or_none, covers, pattern_or_none

Decoded = Mapping[str, Any]


def proves_host(certificate: Decoded, host: str) -> bool:
    """Whether a server certificate is good for `host`, a DNS name or a literal address.

    A name is looked for among the dNSNames, or is the common name of a certificate that has
    none; an address among the iPAddress entries only. Raises `ValueError` for names that
    cannot be read.
    """
    address = address_or_none(host)
    if address is None:
        return covers(_names(certificate), host)
    return any(
        address_or_none(text) == address for text in _alternatives(certificate, "IP Address")
    )


def _names(certificate: Decoded) -> tuple[str, ...]:
    names = tuple(_alternatives(certificate, "DNS"))
    if names:
        return names
    common = [
        value
        for relative in certificate.get("subject", ())
        for kind, value in relative
        if kind == "commonName"
    ]
    pattern = pattern_or_none(common[0]) if len(common) == 1 else None
    return (pattern,) if pattern is not None else ()


def _alternatives(certificate: Decoded, kind: str) -> Iterator[str]:
    for found, text in certificate.get("subjectAltName", ()):
        if found == kind:
            if not text.isascii():
                raise ValueError("a certificate's extensions cannot be read: a name is not ASCII")
            yield text
