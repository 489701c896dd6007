"""Certificates of programs that dial over TCP: renewed, revoked and expired while they run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tunnel import Log, broker_settings, client_files, run, scripted, server_files
from whip_core import Broker, Caller, connect, control, credentials, hookimpl
from whip_core.dial_address import DialAddress
from whip_core.errors import NotAuthorized, SettingsError
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


def test_a_brokers_own_certificate_is_none_to_dial_with() -> None:
    async def main() -> None:
        with pytest.raises(SettingsError, match="is the certificate of a server"):
            await connect("localhost:1", tls=server_files("localhost"))

    run(main())
