"""TLS contexts for our connections, built on purpose.

What is on: TLS 1.2 at least, the peer's chain up to the given CA and nothing else, its
validity. What is off: the strict X.509 profile of Python 3.13's default context, which
certificates of existing installations do not meet (they lack an authority key id). The
peer's *name* is checked by whoever knows which one is right: `certificates`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import ssl

from whip_core.errors import SettingsError
from whip_core.settings import TLSFiles


def server_context(files: TLSFiles) -> ssl.SSLContext:
    """For the reverse listener: a client certificate from the CA is required."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, files)
    # Resumption is no faster here (DESIGN §4), and a ticket is a write nobody asked for.
    context.num_tickets = 0
    return context


def control_context(files: TLSFiles) -> ssl.SSLContext:
    """For the control port: the same, for HTTP/2.

    Revoked certificates pass its handshake: a peer that shows one is told so when it registers.
    """
    context = server_context(dataclasses.replace(files, crl=None))
    context.set_alpn_protocols(["h2"])
    return context


def client_context(files: TLSFiles) -> ssl.SSLContext:
    """For the agent's reverse connections: the caller checks the name itself."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, files)


def _context(protocol: int, files: TLSFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # TLS 1.2 only; nothing here needs it
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(files.cert, files.key)
        context.load_verify_locations(files.ca)
        if files.crl is not None:
            context.load_verify_locations(files.crl)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"cannot use the TLS files {files.cert}, {files.key}, {files.ca}: {error}"
        ) from error
    return context


def peer_certificate(transport: asyncio.BaseTransport) -> bytes | None:
    """The other end's certificate (DER), or None on a connection without TLS."""
    ssl_object = transport.get_extra_info("ssl_object")
    if ssl_object is None:
        return None
    certificate: bytes | None = ssl_object.getpeercert(binary_form=True)
    return certificate
