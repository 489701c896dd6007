"""Whether our own TLS files can be used, tried out before anything relies on them.

An agent shows its certificate to itself, in memory: OpenSSL judges it as a broker's would. Only
what it does not take is read by `certificates`, which says what is wrong and what to do, and
which an agent that has nothing to complain of need not hold in memory.
"""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from typing import Any

from whip_core.pem_files import read_pem_file
from whip_core.settings import Role, TLSFiles

ROUNDS = 4
"""Flights of a handshake, of which TLS 1.3 has three: an end, should neither side find one."""


def try_out(files: TLSFiles, role: Role) -> tuple[list[str], datetime]:
    """See that the three files can be used together by a `role`.

    Gives one-line warnings, and when the certificate expires. Raises `SettingsError`.
    """
    if role is Role.AGENT and (shown := shown_to_ourselves(files)) is not None:
        return [], datetime.fromtimestamp(ssl.cert_time_to_seconds(shown["notAfter"]), UTC)
    from whip_core.certificates import check_files, expires_at

    warnings = check_files(files, role)
    return warnings, expires_at(read_pem_file(files.cert, f"--tls-cert-path {files.cert}"))


def shown_to_ourselves(files: TLSFiles) -> dict[str, Any] | None:
    """The client certificate as a server decodes it that trusts our CA; None if it does not."""
    try:
        for path in (files.key, files.cert, files.ca):
            read_pem_file(path, str(path))  # one without an end is not for OpenSSL to read
        server = _context(ssl.PROTOCOL_TLS_SERVER, files)
        server.verify_mode = ssl.CERT_REQUIRED
        server.load_verify_locations(files.ca)
        client = _context(ssl.PROTOCOL_TLS_CLIENT, files)
        return _handshake(server, client)
    except (OSError, ValueError):
        return None


def _context(protocol: int, files: TLSFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.load_cert_chain(files.cert, files.key, _no_passphrase)
    return context


def _no_passphrase() -> str:
    """In the place of OpenSSL's own question at the terminal."""
    raise ValueError("the key is encrypted")


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> dict[str, Any] | None:
    """What the server learns of the client. Raises `ssl.SSLError`."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True))
    for _ in range(ROUNDS):
        waiting = 0
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                waiting += 1
        if not waiting:
            return ends[1].getpeercert()
    return None
