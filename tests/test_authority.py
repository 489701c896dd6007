"""The CA for tests: files that a broker and agents can be started with."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from whip_core.certificates import certificate_names_pem, check_files, proves_host
from whip_core.settings import Role, TLSFiles
from whip_core.testing import Authority
from whip_core.tls import client_context, server_context


def shake_hands(server: TLSFiles, client: TLSFiles) -> None:
    """A whole mutual handshake in memory; raises `ssl.SSLError` when an end refuses."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client_context(client).wrap_bio(to_client, to_server),
        server_context(server).wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(3):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    for end in ends:
        end.do_handshake()
        assert end.getpeercert(binary_form=True)


def test_servers_and_clients_of_one_authority_trust_each_other(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server, client = authority.server_files(), authority.client_files("instance1.testdom")
    assert check_files(server, Role.BROKER) == check_files(client, Role.AGENT) == []
    shake_hands(server, client)


def test_strangers_do_not(tmp_path: Path) -> None:
    server = Authority(tmp_path / "one").server_files()
    client = Authority(tmp_path / "other").client_files("instance1.testdom")
    with pytest.raises(ssl.SSLError):
        shake_hands(server, client)


def test_certificates_have_the_names_that_were_asked_for(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "made" / "on demand")
    for name in ("instance1.testdom", "*.testdom"):
        files = authority.client_files(name)
        assert certificate_names_pem(files.cert.read_bytes()) == (name,)
    server = authority.server_files(["broker.example"], ["192.0.2.1"])
    der = ssl.PEM_cert_to_DER_cert(server.cert.read_text())
    proven = [name for name in ("broker.example", "192.0.2.1", "localhost", "127.0.0.1")
              if proves_host(der, name)]  # fmt: skip
    assert proven == ["broker.example", "192.0.2.1"]


def test_no_files_are_overwritten_and_keys_are_private(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    made = [authority.server_files(), authority.server_files(), authority.client_files("a.b")]
    assert len({files.key for files in made} | {files.cert for files in made}) == 6
    for files in made:
        assert files.key.stat().st_mode & 0o777 == 0o600
    assert repr(authority) == f"<Authority {tmp_path} made=3>"
