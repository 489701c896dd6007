"""Our TLS files as they are on disk now: what new connections are made with.

The files are looked at every few seconds. New ones, also behind a symlink that was swapped,
are used if they fit together; files that do not are reported, and the old ones stay in use. A
key and a certificate that are written one after the other do not fit for a moment: nothing is
said as long as they change.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from whip_core import tls
from whip_core.agents import PeerCertificate
from whip_core.day import day
from whip_core.errors import SettingsError
from whip_core.pem_files import read_pem_file, signature
from whip_core.settings import Role, TLSFiles
from whip_core.tls_trial import try_out

if TYPE_CHECKING:
    from whip_core.revocation import Revocations

logger = logging.getLogger(__name__)

CHECK_INTERVAL = 2.0
"""Seconds between two looks: four `stat`s. New files are in use within two of them."""
WARN_BEFORE = timedelta(days=14)
"""A certificate that ends this soon causes a warning: time to find out why nothing renews it."""
WARN_EVERY = 24 * 3600.0
"""Seconds between two such warnings."""


class Credentials:
    """For one broker or agent, on loading its files and for as long as `watch` runs.

    `on_loaded` is told when the certificate expires, at once and whenever another is loaded.
    Raises `SettingsError` if the files cannot be used.
    """

    def __init__(
        self,
        files: TLSFiles,
        role: Role,
        on_loaded: Callable[[datetime], None] = lambda _: None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files = files
        self._role = role
        self._on_loaded = on_loaded
        self._clock = clock
        self._warned_at: float | None = None
        self._refused: object = None
        self._server: ssl.SSLContext | None = None
        self._control: ssl.SSLContext | None = None
        self._client: ssl.SSLContext | None = None
        self._seen = self._signature()
        for warning in self._load():
            logger.warning(warning)

    @property
    def names(self) -> tuple[str, ...]:
        """Those in our own certificate."""
        # Here, because an agent does not ask, and does without the library that reads them.
        from whip_core.certificates import certificate_names_pem

        return certificate_names_pem(self._pem[2])

    # What connections are made with. Each is built when it is first asked for.

    def server_context(self) -> ssl.SSLContext:
        """For a connection that comes in."""
        if self._server is None:
            self._server = tls.server_context(self._files)
        return self._server

    def control_context(self) -> ssl.SSLContext:
        """For an agent's control stream that comes in."""
        if self._control is None:
            self._control = tls.control_context(self._files)
        return self._control

    def client_context(self) -> ssl.SSLContext:
        """For a connection that goes out."""
        if self._client is None:
            self._client = tls.client_context(self._files)
        return self._client

    @property
    def pem(self) -> tuple[bytes, bytes, bytes]:
        """What the files of the CA, the key and the certificate hold."""
        return self._pem

    @property
    def expires_at(self) -> float:
        """When the certificate ends that connections are made with now, as `time.time` has it."""
        return self._expires.timestamp()

    def problem(self, certificate: PeerCertificate | None) -> str | None:
        """Why a peer's certificate is not believed (any more): it expired, or was revoked."""
        if certificate is None:
            return None
        if certificate.expires_at < time.time():
            return "its certificate has expired"
        return self._revocations.problem(certificate) if self._revocations else None

    # Following the files

    async def watch(self, tick: Callable[[], None] = lambda: None) -> None:
        """Follow the files until cancelled; `tick` is called after each look."""
        while True:
            self.check()
            tick()
            await asyncio.sleep(CHECK_INTERVAL)

    def check(self) -> None:
        """One look at the files."""
        self._warn_of_expiry()
        signature = self._signature()
        if signature == self._seen:
            return
        try:
            warnings = self._load()
        except SettingsError as error:
            if signature == self._refused:
                # They do not fit for longer than it takes to write them.
                logger.error("not using the new TLS files, keeping the old ones: %s", error)
                self._seen = signature
            self._refused = signature
            return
        if self._signature() != signature:
            return  # they changed while they were read: once more at the next look
        self._seen, self._refused = signature, None
        for warning in warnings:
            logger.warning(warning)
        logger.info("TLS files loaded again, valid until %s", day(self._expires))

    def _load(self) -> list[str]:
        files = self._files
        warnings, expires = try_out(files, self._role)
        ca, key, cert = (
            read_pem_file(path, f"--tls-{option}-path {path}")
            for path, option in ((files.ca, "ca-cert"), (files.key, "key"), (files.cert, "cert"))
        )
        revocations = self._read_revocations(ca)
        if revocations is not None and revocations.valid_until < datetime.now(UTC):
            warnings.append(
                f"--tls-crl-path {files.crl} is out of date: no peer is trusted until it is renewed"
            )
        # OpenSSL has its say before anything is used.
        context = tls.client_context(files) if self._role is Role.AGENT else None
        server = tls.server_context(files) if self._role is Role.BROKER else None
        self._client, self._server, self._control = context, server, None
        self._pem = (ca, key, cert)
        self._revocations = revocations
        self._expires = expires
        self._warned_at = None
        self._on_loaded(self._expires)
        self._warn_of_expiry()
        return warnings

    def _read_revocations(self, ca: bytes) -> Revocations | None:
        path = self._files.crl
        if path is None:
            return None
        # Here, because they need much memory that an agent without lists can save.
        from whip_core.certificates import certificates_in
        from whip_core.revocation import Revocations

        source = f"--tls-crl-path {path}"
        authorities = certificates_in(ca, f"--tls-ca-cert-path {self._files.ca}")
        return Revocations(read_pem_file(path, source), authorities, source)

    def _warn_of_expiry(self) -> None:
        left = self._expires - datetime.now(UTC)
        if left > WARN_BEFORE:
            return
        now = self._clock()
        if self._warned_at is not None and now - self._warned_at < WARN_EVERY:
            return
        self._warned_at = now
        state = "expired on" if left < timedelta(0) else "expires on"
        logger.warning(
            "our certificate %s %s %s: renew it", self._files.cert, state, day(self._expires)
        )

    def _signature(self) -> tuple[object, ...]:
        files = self._files
        return signature(files.key, files.cert, files.ca, files.crl)
