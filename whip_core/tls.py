"""TLS contexts for the reverse connections and credentials for gRPC, built on purpose.

What is on: TLS 1.2 at least, the peer's chain up to the given CA and nothing else, its
validity. What is off: the strict X.509 profile of Python 3.13's default context, which
certificates of existing installations do not meet (they lack an authority key id). The
peer's *name* is checked by whoever knows which one is right: `certificates`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

import grpc

from whip_core.errors import SettingsError
from whip_core.settings import TLSFiles


def server_context(files: TLSFiles) -> ssl.SSLContext:
    """For the reverse listener: a client certificate from the CA is required."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, files)
    # Resumption is no faster here (DESIGN §4), and a ticket is a write nobody asked for.
    context.num_tickets = 0
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


def grpc_server_credentials(files: TLSFiles) -> grpc.ServerCredentials:
    configuration = grpc_server_configuration(_read(files.ca), _read(files.key), _read(files.cert))
    return grpc_reloading_server_credentials(lambda: configuration)


def grpc_reloading_server_credentials(
    configuration: Callable[[], grpc.ServerCertificateConfiguration],
) -> grpc.ServerCredentials:
    """For each handshake `configuration` is asked anew, from a thread of gRPC's."""
    given = configuration()

    def changed() -> grpc.ServerCertificateConfiguration | None:
        """None where nothing has changed.

        gRPC replaces what all handshakes share with whatever it is given, while other
        threads use it: in a flood of connections that crashed the process (grpcio 1.85).
        """
        nonlocal given
        latest = configuration()
        if latest is given:
            return None
        given = latest
        return latest

    return grpc.dynamic_ssl_server_credentials(
        given,
        changed,  # type: ignore[arg-type]  # None is in gRPC's documentation, not in the stubs
        require_client_authentication=True,
    )


def grpc_server_configuration(
    ca: bytes, key: bytes, cert: bytes
) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=ca)


def grpc_channel_credentials(files: TLSFiles) -> grpc.ChannelCredentials:
    return grpc_channel_credentials_of(_read(files.ca), _read(files.key), _read(files.cert))


def grpc_channel_credentials_of(ca: bytes, key: bytes, cert: bytes) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        root_certificates=ca, private_key=key, certificate_chain=cert
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error


def peer_certificate(transport: asyncio.BaseTransport) -> bytes | None:
    """The other end's certificate (DER), or None on a connection without TLS."""
    ssl_object = transport.get_extra_info("ssl_object")
    if ssl_object is None:
        return None
    certificate: bytes | None = ssl_object.getpeercert(binary_form=True)
    return certificate
