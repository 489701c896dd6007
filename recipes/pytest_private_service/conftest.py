"""Tests against a private service: a broker lives as long as the test session.

    PRIVATE_SERVICE=instance1.testdom pytest recipes/pytest_private_service

The service's agent has to connect to this machine: `whip client --domain=testdom ...
thismachine:50051`. Certificates as for `whip proxy`, in the variables below.
"""

import asyncio
import os

import httpx
import pytest

from whip_core import Broker, BrokerSettings, TLSFiles
from whip_core.httpx import WhipTransport

APPEARS_WITHIN = 60.0


def settings():
    files = None
    if "WHIP_TLS_KEY_PATH" in os.environ:
        names = ("WHIP_TLS_KEY_PATH", "WHIP_TLS_CERT_PATH", "WHIP_TLS_CA_CERT_PATH")
        files = TLSFiles.of(*(os.environ[name] for name in names))
    return BrokerSettings(
        external_host=os.environ.get("WHIP_EXTERNAL_TCP_ADDRESS", "localhost"),
        tcp_listen_port=int(os.environ.get("WHIP_TCP_LISTEN_PORT", "8000")),
        grpc_listen_port=int(os.environ.get("WHIP_GRPC_LISTEN_PORT", "50051")),
        tls=files,
    )


@pytest.fixture(scope="session")
def in_session():
    """Run a coroutine in the one event loop of all tests."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(scope="session")
def client(in_session):
    """An httpx client whose hosts are whip's names."""
    broker = Broker(settings())
    in_session(broker.__aenter__())
    client = httpx.AsyncClient(
        transport=WhipTransport(broker, wait=APPEARS_WITHIN),
        base_url=f"http://{os.environ.get('PRIVATE_SERVICE', 'instance1.testdom')}",
    )
    yield client
    in_session(client.aclose())
    in_session(broker.__aexit__(None, None, None))
