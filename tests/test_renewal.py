"""A session is renewed before its certificate ends, and nothing that runs notices."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from client_agent import Agent, backoff, renewal, worker
from client_agent.renewal import RENEW_BEFORE, RETRY_DELAY, Renewal
from tunnel import (
    Log,
    Watch,
    agent_settings,
    broker_settings,
    echo,
    exchange,
    run,
    running,
    service,
)
from whip_core import Broker, credentials, hookimpl
from whip_core.credentials import Credentials
from whip_core.settings import Role
from whip_core.testing import Authority

END = 1_000_000.0
LATER = END + 86_400


# When


def test_it_is_due_within_the_last_hour_and_only_if_there_is_a_newer_certificate() -> None:
    early, late = Renewal(END, lambda: 0.0), Renewal(END, lambda: 0.999)
    for each in (early, late):
        assert not each.is_due(END - 1, END)
        assert not each.is_due(END - 1, END - 5)
    early, late = Renewal(END, lambda: 0.0), Renewal(END, lambda: 0.999)
    assert not early.is_due(END - RENEW_BEFORE - 1, LATER)
    assert early.is_due(END - RENEW_BEFORE, LATER)
    assert not late.is_due(END - RENEW_BEFORE, LATER)
    assert late.is_due(END - RENEW_BEFORE / 2, LATER)


@pytest.mark.parametrize("left", [4.0, 100.0, RENEW_BEFORE])
def test_a_certificate_that_comes_late_leaves_half_of_the_time_for_all_to_spread(
    left: float,
) -> None:
    shares = [number / 10 for number in range(10)]
    renewals = [Renewal(END, lambda share=share: share) for share in shares]  # type: ignore[misc]
    began = END - left
    due = {}
    for tenth in range(21):
        now = began + left * tenth / 20
        for share, each in zip(shares, renewals, strict=True):
            if each.is_due(now, LATER):
                due.setdefault(share, (now - began) / left)
    assert due == {share: pytest.approx(share / 2) for share in shares}


def test_who_has_expired_already_is_due_at_once() -> None:
    assert Renewal(END, lambda: 0.5).is_due(END + 1, LATER)


def test_one_that_failed_is_tried_again_within_half_of_what_is_left() -> None:
    failing = Renewal(END, lambda: 1.0)
    failing.failed(END - 100)
    assert not failing.is_due(END - 51, LATER)
    assert failing.is_due(END - 50, LATER)
    failing.failed(END - 1)
    assert not failing.is_due(END - 1, LATER)
    assert failing.is_due(END - 1 + RETRY_DELAY, LATER)


# How


class Renewed:
    """An agent's files, whose certificate is short-lived until it is renewed."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder)
        self.files = self.authority.client_files("*.testdom")

    def write(self, valid_for: timedelta) -> float:
        """A new certificate; gives when it ends."""
        issued = self.authority.pki.issue_client("*", "testdom", valid_for=valid_for)
        self.files.key.write_bytes(issued.key_pem)
        self.files.cert.write_bytes(issued.cert_pem)
        return Credentials(self.files, Role.AGENT).expires_at


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "CHECK_INTERVAL", 0.02)


@pytest.mark.once
@pytest.mark.usefixtures("often")
def test_a_stream_and_steady_dials_outlive_the_certificate_that_they_began_with(
    tmp_path: Path,
) -> None:
    own = Renewed(tmp_path)
    server = own.authority.server_files()
    watch = Watch()

    async def main() -> None:
        expires = own.write(timedelta(seconds=4))
        async with (
            service(echo) as port,
            Broker(broker_settings(tls=server), plugins=[watch]) as broker,
            running(
                agent_settings(broker.control_port, ports=f"80={port}", tls=own.files)
            ) as agent,
        ):
            await agent.wait_registered()
            with Log() as log:
                reader, writer = await broker.open_connection("instance1.testdom", 80)
                own.write(timedelta(days=1))
                while time.time() <= expires + 0.1 or len(watch.left) < 1:
                    # No dial waits for an agent, and none fails.
                    streams = await broker.open_connection("instance1.testdom", 80)
                    assert await exchange(streams, b"x") == b"x"
                    writer.write(b"the first stream")
                    assert await reader.readexactly(16) == b"the first stream"
                    assert agent.registered_at
                assert len(log.having("renewed the session at the broker")) == 1
                assert log.having("has expired") == []
            assert [reason for _, reason in watch.left] == ["replaced by a newer session"]
            assert len(broker.agents) == len(watch.joined) - 1 == 1
            assert [dial.error for dial in watch.dials if dial.error is not None] == []
            told = agent.metrics.registry.get_sample_value
            assert told("whip_client_active_sessions") == 1
            assert told("whip_client_control_reconnects_total") == 0
            writer.close()

    run(main())


class Refusing:
    """Lets nobody in any more once `why` says so."""

    why: str | None = None

    @hookimpl
    def whip_authorize_agent(self) -> str | None:
        return self.why


@pytest.mark.usefixtures("often")
def test_a_renewal_that_is_refused_leaves_the_session_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal, "RETRY_DELAY", 0.02)
    monkeypatch.setattr(backoff, "RETURN_BOUND", 0.02)
    monkeypatch.setattr(worker, "Renewal", partial(Renewal, random=lambda: 0.0))
    own = Renewed(tmp_path)
    server = own.authority.server_files()
    watch, refusing = Watch(), Refusing()

    async def main() -> None:
        own.write(timedelta(seconds=60))
        async with (
            service(echo) as port,
            Broker(broker_settings(tls=server), plugins=[watch, refusing]) as broker,
            running(
                agent_settings(broker.control_port, ports=f"80={port}", tls=own.files)
            ) as agent,
        ):
            await agent.wait_registered()
            with Log() as log:
                refusing.why = "not now"
                own.write(timedelta(days=1))
                line = await log.until("the session could not be renewed", 2)
                assert "not now" in line
                assert agent.registered_at
                assert watch.left == []
                streams = await broker.open_connection("instance1.testdom", 80)
                assert await exchange(streams, b"x") == b"x"
                refusing.why = None
                await log.until("renewed the session at the broker")
            await watch.until(lambda: len(watch.left) == 1)
            assert len(broker.agents) == 1
            # And it is an agent like any other: it comes back when it is sent away.
            broker.kick("instance1.testdom")
            await watch.until(lambda: len(watch.joined) == 3)
            await agent.wait_registered()
            told = agent.metrics.registry.get_sample_value
            assert told("whip_client_active_sessions") == 1

    run(main())


@pytest.mark.usefixtures("often")
def test_an_agent_that_is_renewing_drains_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "Renewal", partial(Renewal, random=lambda: 0.0))
    own = Renewed(tmp_path)
    server = own.authority.server_files()
    watch = Watch()

    async def main() -> None:
        own.write(timedelta(seconds=60))
        async with Broker(broker_settings(tls=server), plugins=[watch]) as broker:
            settings = agent_settings(broker.control_port, ports="80=1", tls=own.files)
            agent = Agent(settings)
            with Log() as log:
                serving = asyncio.get_running_loop().create_task(agent.run())
                await agent.wait_registered()
                own.write(timedelta(days=1))
                await log.until("renewed the session")
                agent.stop()
                await serving
            assert log.having("could not") == log.having("lost the broker") == []
            await watch.until(lambda: len(watch.left) == 2)

    run(main())
