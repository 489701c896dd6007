"""Certificates of programs that dial over TCP: renewed, revoked and expired while they run."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path

import pytest

from tunnel import (
    Log,
    agent_settings,
    authority,
    broker_settings,
    client_files,
    echo,
    exchange,
    run,
    running,
    scripted,
    server_files,
    service,
    until,
)
from whip_core import Broker, Caller, connect, control, credentials, hookimpl
from whip_core.certificates import peer_certificate_pem
from whip_core.dial_address import DialAddress
from whip_core.errors import BrokerClosed, NotAuthorized, SettingsError
from whip_core.settings import BrokerSettings, TLSFiles


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at so often that a test need not wait."""
    monkeypatch.setattr(credentials, "CHECK_INTERVAL", 0.02)


def dialled_settings(*names: str, tls: TLSFiles | bool = True) -> BrokerSettings:
    return broker_settings(tls=tls, dial_listen=(DialAddress(host="127.0.0.1"),), dial_allow=names)


def where(broker: Broker) -> str:
    return f"localhost:{broker.dial_addresses[0].port}"


class Refusing:
    """Refuses each dial, with the names of who dials."""

    @hookimpl
    def whip_authorize_dial(self, caller: Caller) -> str:
        return f"seen: {caller.certificate_names}"


def copied(files: TLSFiles, folder: Path) -> TLSFiles:
    """The same, where they can be written over."""
    copies = TLSFiles.of(folder / "key.pem", folder / "cert.pem", files.ca)
    shutil.copy(files.key, copies.key)
    shutil.copy(files.cert, copies.cert)
    return copies


def test_a_renewed_certificate_is_shown_on_the_next_connection(tmp_path: Path) -> None:
    async def main() -> None:
        files = copied(client_files("old.dialers"), tmp_path)
        settings = dialled_settings("old.dialers", "new.dialers")
        async with Broker(settings, plugins=[Refusing()]) as broker:
            agent = scripted(broker, tls=client_files(), tls_name="localhost")
            async with agent, await connect(where(broker), tls=files) as remote:
                await agent.expect(control.Registered)
                with pytest.raises(NotAuthorized, match=r"old\.dialers"):
                    await remote.open_connection("instance1.testdom", 80)
                with Log() as log:
                    copied(client_files("new.dialers"), tmp_path)
                    await log.until("TLS files loaded again")
                assert broker._dial_socket is not None
                for connection in tuple(broker._dial_socket._connections):
                    connection.drop()
                with pytest.raises(NotAuthorized, match=r"new\.dialers"):
                    await remote.open_connection("instance1.testdom", 80, wait=30)

    run(main())


def test_who_was_revoked_dials_no_more_but_its_streams_may_finish() -> None:
    async def main() -> None:
        server = server_files("localhost")
        bad, good = authority().client_files("bad.dialers"), client_files("good.dialers")
        files = dataclasses.replace(server, crl=authority().write_crl())
        settings = dialled_settings("bad.dialers", "good.dialers", tls=files)
        async with (
            service(echo) as port,
            Broker(settings) as broker,
            running(agent_settings(broker.control_port, ports=f"80={port}", tls=client_files())),
            await connect(where(broker), tls=bad) as revoked,
            await connect(where(broker), tls=good) as other,
        ):
            streams = await revoked.open_connection("instance1.testdom", 80, wait=30)
            with Log() as log:
                authority().write_crl(bad)
                # Two: its news, and the connection with the stream.
                line = await log.until("bad.dialers at 127.0.0.1", count=2)
                assert "dials no more: its certificate was revoked" in line
            with pytest.raises(BrokerClosed):
                await revoked.open_connection("instance1.testdom", 80)
            assert await exchange(streams, b"still here") == b"still here"
            assert (
                await exchange(await other.open_connection("instance1.testdom", 80), b"hello")
                == b"hello"
            )
            assert broker._dial_socket is not None
            left = broker._dial_socket._connections
            await until(
                lambda: {each.peer.certificate_names for each in left} == {("good.dialers",)}
            )

    run(main())


def test_who_has_expired_is_let_go_of_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        files = client_files("a.dialers")
        expires = peer_certificate_pem(files.cert.read_bytes()).expires_at
        async with (
            Broker(dialled_settings("a.dialers")) as broker,
            await connect(where(broker), tls=files),
        ):
            with Log() as log:
                monkeypatch.setattr(time, "time", lambda: expires + 1)
                await log.until("dials no more: its certificate has expired")
                monkeypatch.undo()
                await log.until("answers")  # the clock is right again: it is believed

    run(main())


def test_a_brokers_own_certificate_is_none_to_dial_with() -> None:
    async def main() -> None:
        with pytest.raises(SettingsError, match="is the certificate of a server"):
            await connect("localhost:1", tls=server_files("localhost"))

    run(main())
