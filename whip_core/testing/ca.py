"""A CA for tests: PEM files in a folder, made in this process in a few milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from whip_core import pki
from whip_core.settings import TLSFiles

KEY_MODE = 0o600


class Authority:
    """A new CA whose certificates, and the keys to them, are written into `folder`.

    Each call that gives files makes a new key and certificate; none overwrites another's.
    All of one authority trust each other, and nobody else's.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.pki = pki.Authority.create()
        self.ca_cert = self.folder / "ca-cert.pem"
        self._made = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ca_cert.write_bytes(self.pki.cert_pem)

    def __repr__(self) -> str:
        return f"<Authority {self.folder} made={self._made}>"

    def server_files(
        self,
        names: Sequence[str] = ("localhost",),
        addresses: Sequence[str] = ("127.0.0.1", "::1"),
        *,
        relay: bool = False,
    ) -> TLSFiles:
        """What a broker needs to be reached under `names` and literal `addresses`.

        With `relay` it connects to other brokers with it, too.
        """
        return self._write("server", self.pki.issue_server(names, addresses, relay=relay))

    def client_files(self, name: str) -> TLSFiles:
        """What the agent `hostname.domain` needs; `*.domain` is good for each agent of it."""
        hostname, _, domain = name.partition(".")
        return self._write("client", self.pki.issue_client(hostname, domain))

    def write_crl(self, *revoked: TLSFiles, valid_for: timedelta = timedelta(days=1)) -> Path:
        """Write a revocation list with the certificates of `revoked`; gives its path."""
        now = datetime.now(UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.pki.certificate.subject)
            .last_update(now - timedelta(days=2))
            .next_update(now + valid_for)
        )
        for files in revoked:
            serial = x509.load_pem_x509_certificate(files.cert.read_bytes()).serial_number
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
            builder = builder.add_revoked_certificate(entry.build())
        path = self.folder / "crl.pem"
        new = path.with_suffix(".new")
        new.write_bytes(builder.sign(self.pki.key, SHA256()).public_bytes(Encoding.PEM))
        new.replace(path)
        return path

    def _write(self, purpose: str, issued: pki.Issued) -> TLSFiles:
        self._made += 1
        stem = f"{purpose}-{self._made}"
        files = TLSFiles.of(
            key=self.folder / f"{stem}-key.pem",
            cert=self.folder / f"{stem}-cert.pem",
            ca=self.ca_cert,
        )
        files.key.touch(KEY_MODE)
        files.key.write_bytes(issued.key_pem)
        files.cert.write_bytes(issued.cert_pem)
        return files
