"""TLS files that change on disk, expire, or are revoked, under brokers and agents that run."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tunnel import (
    Log,
    Watch,
    agent_settings,
    broker_settings,
    echo,
    exchange,
    run,
    running,
    scripted,
    service,
    until,
)
from whip_core import Broker, TLSFiles, control, credentials
from whip_core.agents import PeerCertificate
from whip_core.certificates import peer_certificate_pem
from whip_core.credentials import WARN_EVERY, Credentials
from whip_core.errors import SettingsError
from whip_core.revocation import Revocations
from whip_core.settings import Role
from whip_core.testing import Authority
from whip_core.testing.agent import ControlStreamEnded, ScriptedAgent

DAY = timedelta(days=1)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at so often that a test need not wait."""
    monkeypatch.setattr(credentials, "CHECK_INTERVAL", 0.02)


class Mounted:
    """TLS files as Kubernetes mounts them: each a link by way of `..data`, which is swapped."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        folder.mkdir()
        names = ("tls.key", "tls.crt", "ca.crt")
        for name in names:
            (folder / name).symlink_to(Path("..data") / name)
        self.files = TLSFiles.of(*(folder / name for name in names))

    def swap(self, files: TLSFiles, ca: bytes | None = None) -> None:
        self._count += 1
        version = self._folder / f"..version-{self._count}"
        version.mkdir()
        (version / "tls.key").write_bytes(files.key.read_bytes())
        (version / "tls.crt").write_bytes(files.cert.read_bytes())
        (version / "ca.crt").write_bytes(files.ca.read_bytes() if ca is None else ca)
        link = self._folder / "..new"
        link.symlink_to(version.name)
        link.replace(self._folder / "..data")


@pytest.fixture
def one(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "one")


@pytest.fixture
def two(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "two")


# One set of files


def serials(files: TLSFiles) -> int:
    return peer_certificate_pem(files.cert.read_bytes()).serial


def test_new_files_are_loaded_and_broken_ones_are_refused_and_told_once(
    tmp_path: Path, one: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    told: list[datetime] = []
    mounted = Mounted(tmp_path / "tls")
    mounted.swap(one.server_files())
    held = Credentials(mounted.files, Role.BROKER, told.append)
    first = held.server_context()
    held.check()
    assert held.server_context() is first

    mounted.swap(one.server_files())
    held.check()
    second = held.server_context()
    assert second is not first
    assert len(told) == 2

    for spoil in ("tls.crt", "tls.key", "ca.crt"):
        caplog.clear()
        mounted.swap(one.server_files())
        (tmp_path / "tls" / spoil).write_text("nonsense")
        for _ in range(5):
            held.check()
        assert held.server_context() is second
        [line] = [record.getMessage() for record in caplog.records]
        assert "not using the new TLS files, keeping the old ones" in line
        assert spoil in line
    mounted.swap(one.server_files())
    held.check()
    assert held.server_context() is not second


def test_what_is_unusual_about_new_files_is_told_as_at_the_start(
    tmp_path: Path, one: Authority, two: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    mounted = Mounted(tmp_path / "tls")
    mounted.swap(one.server_files())
    held = Credentials(mounted.files, Role.BROKER)
    assert not caplog.records
    mounted.swap(one.server_files(), ca=two.pki.certificate.public_bytes(Encoding.PEM))
    held.check()
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "was not issued by a CA in" in record.getMessage()


def test_a_file_that_vanishes_while_it_is_looked_at_is_looked_for_again(
    tmp_path: Path, one: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted = Mounted(tmp_path / "tls")
    mounted.swap(one.server_files())
    held = Credentials(mounted.files, Role.BROKER, lambda expires: None)
    first = held.server_context()
    mounted.swap(one.server_files())

    def tried_and_gone(files: TLSFiles, role: Role) -> tuple[list[str], datetime]:
        (tmp_path / "tls" / "..data" / "tls.key").unlink()
        return [], datetime.now(UTC)

    with monkeypatch.context() as patch:
        patch.setattr(credentials, "try_out", tried_and_gone)
        held.check()
    assert held.server_context() is first
    mounted.swap(one.server_files())
    held.check()
    assert held.server_context() is not first


def test_a_key_that_is_written_before_its_certificate_is_nothing_to_talk_about(
    one: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    files, new = one.server_files(), one.server_files()
    held = Credentials(files, Role.BROKER)
    before = held.server_context()
    files.key.write_bytes(new.key.read_bytes())
    held.check()
    assert held.server_context() is before
    files.cert.write_bytes(new.cert.read_bytes())
    held.check()
    assert held.server_context() is not before
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


def test_a_certificate_that_ends_soon_is_warned_of_once_a_day(
    tmp_path: Path, one: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    files = one.server_files()
    for days, warns in ((15, False), (13, True)):
        issued = one.pki.issue_server(["localhost"], valid_for=timedelta(days=days))
        files.key.write_bytes(issued.key_pem)
        files.cert.write_bytes(issued.cert_pem)
        held = Credentials(files, Role.BROKER, clock=lambda: now)
        for _ in range(3):
            held.check()
        assert len(caplog.records) == warns
    assert f"our certificate {files.cert} expires on" in caplog.text
    now = WARN_EVERY
    held.check()
    assert len(caplog.records) == 2


# Revocation lists


def certificate(files: TLSFiles) -> PeerCertificate:
    return peer_certificate_pem(files.cert.read_bytes())


def test_a_list_tells_who_is_revoked_and_must_be_of_the_ca_and_up_to_date(
    one: Authority, two: Authority
) -> None:
    good, bad, stranger = one.client_files("a.x"), one.client_files("b.x"), two.client_files("c.x")
    cas = [one.pki.certificate]
    found = Revocations(one.write_crl(bad).read_bytes(), cas, "--tls-crl-path crl.pem")
    assert found.problem(certificate(good)) is None
    assert found.problem(certificate(bad)) == "its certificate was revoked"
    # Both CAs have the same subject: the chain is TLS's to check. Another subject has no list.
    other = PeerCertificate("CN=other", certificate(stranger).serial, time.time() + 60)
    assert "no revocation list of its CA 'CN=other'" in (found.problem(other) or "")
    old = Revocations(one.write_crl(valid_for=-DAY).read_bytes(), cas, "--tls-crl-path crl.pem")
    assert "out of date" in (old.problem(certificate(good)) or "")
    for text, why in (
        (b"nonsense", "holds no revocation list"),
        (b"-----BEGIN X509 CRL-----\nMA==\n-----END X509 CRL-----", "damaged"),
        (two.write_crl().read_bytes(), "no CA of --tls-ca-cert-path signed"),
    ):
        with pytest.raises(SettingsError, match=f"^--tls-crl-path crl.pem .*{why}"):
            Revocations(text, cas, "--tls-crl-path crl.pem")


# Under a broker and an agent


@pytest.mark.usefixtures("often")
def test_both_ends_change_their_ca_over_a_bundle_and_no_stream_is_lost(
    tmp_path: Path, one: Authority, two: Authority
) -> None:
    both = one.ca_cert.read_bytes() + two.ca_cert.read_bytes()
    ours, theirs = Mounted(tmp_path / "broker"), Mounted(tmp_path / "agent")
    ours.swap(one.server_files())
    theirs.swap(one.client_files("*.testdom"))

    async def main() -> None:
        with Log() as log:
            async with (
                service(echo) as port,
                Broker(broker_settings(tls=ours.files)) as broker,
                running(
                    agent_settings(broker.control_port, ports=f"80={port}", tls=theirs.files)
                ) as agent,
            ):
                await agent.wait_registered()
                reader, writer = await broker.open_connection("testdom", 80)
                loaded = 0
                for change in (
                    lambda: (
                        ours.swap(one.server_files(), both),
                        theirs.swap(one.client_files("*.testdom"), both),
                    ),
                    lambda: (
                        ours.swap(two.server_files(), both),
                        theirs.swap(two.client_files("*.testdom"), both),
                    ),
                    lambda: (
                        ours.swap(two.server_files()),
                        theirs.swap(two.client_files("*.testdom")),
                    ),
                ):
                    change()
                    loaded += 2
                    await log.until("TLS files loaded again", loaded)
                    # Four more streams at once than are parked: new reverse connections.
                    streams = await asyncio.gather(
                        *(broker.open_connection("testdom", 80) for _ in range(5))
                    )
                    assert [await exchange(each, b"x") for each in streams] == [b"x"] * 5
                # Who comes with the old CA is a stranger now, on both ports.
                async with scripted(broker, tls=one.client_files("*.testdom")) as old:
                    with pytest.raises(ControlStreamEnded):
                        await old.expect(control.Registered)
                new = ScriptedAgent(
                    ("127.0.0.1", broker.control_port),
                    control.Register("other", "testdom", (80,), protocol_version=1),
                    tls=two.client_files("*.testdom"),
                )
                async with new:
                    await new.expect(control.Registered)
                writer.write(b"the first stream")
                assert await reader.readexactly(16) == b"the first stream"
                writer.close()

    run(main())


@pytest.mark.usefixtures("often")
def test_who_was_revoked_has_its_session_ended_and_does_not_come_back(one: Authority) -> None:
    server = one.server_files()
    good, bad = one.client_files("a.testdom"), one.client_files("b.testdom")
    files = TLSFiles.of(server.key, server.cert, server.ca, one.write_crl())
    watch = Watch()

    async def main() -> None:
        async with (
            Broker(broker_settings(tls=files), plugins=[watch]) as broker,
            running(
                agent_settings(broker.control_port, ports="80=1", hostname="a", tls=good)
            ) as first,
            running(
                agent_settings(broker.control_port, ports="80=1", hostname="b", tls=bad)
            ) as second,
        ):
            await first.wait_registered()
            await second.wait_registered()
            await until(lambda: all(agent.parked for agent in broker.agents))
            with Log() as log:
                one.write_crl(bad)
                await log.until("refused the registration: b.testdom refused: its certificate was")
                await log.until("its certificate was revoked")
            assert [str(agent.name) for agent in broker.agents] == ["a.testdom"]
            [(left, reason)] = watch.left
            assert (str(left.name), reason) == ("b.testdom", "its certificate was revoked")
            # Reverse connections are under the same list: OpenSSL ends their handshake.
            with Log() as log:
                context = credentials.tls.client_context(bad)
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", broker.reverse_port, ssl=context
                )
                with pytest.raises(OSError, match=r"(?i)revoked"):
                    await reader.read()
                writer.close()
                await log.until("certificate revoked")

    run(main())


@pytest.mark.usefixtures("often")
def test_who_has_expired_has_its_session_ended(
    one: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with (
            Broker(broker_settings(tls=one.server_files())) as broker,
            scripted(broker, tls=one.client_files("*.testdom")) as agent,
        ):
            await agent.expect(control.Registered)
            expires = certificate(one.client_files("*.testdom")).expires_at
            monkeypatch.setattr(time, "time", lambda: expires + 1)
            with pytest.raises(ControlStreamEnded, match="its certificate has expired"):
                await agent.expect(control.Connect)
            assert broker.agents == []
            monkeypatch.undo()

    run(main())
